"""Client of a Kubeflow Pipelines server: submit, schedule, status, logs."""
