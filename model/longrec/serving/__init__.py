"""Serving: what stands between a service and the Scorer. Import the module you need.

request --reader--> rows of the user --engine--> batch --cache--> keys and values --Scorer--> probabilities
"""
