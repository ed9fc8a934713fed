"""Settings derived from a dataset, for a run without a configuration file."""
