"""The pipelines: graphs of components, and the runner that executes one on this machine."""
