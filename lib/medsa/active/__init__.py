"""Which study next: scores, coverage and strategies, and the campaign that proves them against random."""
