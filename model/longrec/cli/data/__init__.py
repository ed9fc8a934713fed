"""Commands of datasets, histories and the feature store."""
