"""What the steps of a run left: the record of their attempts, and the verdict on the run."""
