"""Writing of datasets: spill events by part, sort them, write parts and the import report."""
