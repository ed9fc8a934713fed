"""Shared parts of the benchmark scripts: timing, rows of results.csv, models, logs and servers."""
