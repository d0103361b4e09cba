"""Learning from labels: the engine, sticky splits, adapter versions, the promotion gate, retraining."""
