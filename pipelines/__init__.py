"""Pipelines: graphs of components, a local runner, and a client of Kubeflow Pipelines."""
