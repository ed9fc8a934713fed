"""Reading of log files: find them, read them in batches, convert columns, reject bad rows."""
