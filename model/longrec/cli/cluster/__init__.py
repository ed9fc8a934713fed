"""The commands that look at a Kubeflow Pipelines server: status, logs, schedules."""
