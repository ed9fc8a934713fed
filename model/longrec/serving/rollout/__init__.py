"""Rollout of model versions in a running service.

model_manager    follows the registry of a work directory, replaces engines under load
shadow           runs the challenger on copies of requests, compares its scores
worker_reports   what each worker serves, for `longrec models`
"""
