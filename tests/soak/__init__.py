"""Long runs and their evidence: what takes too long for `make test` is run once, and its figures are kept."""
