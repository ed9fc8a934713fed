"""Loading: encoded histories in, packed request batches out."""
