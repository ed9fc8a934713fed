"""Requests of a dataset: which targets were ranked together, for whom and when."""
