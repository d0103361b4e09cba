"""The HTTP endpoints: plain functions in worker threads, so that a computation keeps nobody else waiting."""
