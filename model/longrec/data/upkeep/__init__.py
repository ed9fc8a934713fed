"""Upkeep of a work directory: users that were forgotten, and rows that are removed with them."""
