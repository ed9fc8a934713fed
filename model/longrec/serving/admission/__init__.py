"""Admission control (load shedding): requests that would be late are rejected at once.

gate           rejects before a body is read, while too many requests are in progress (ASGI)
concurrency    how many requests may be in progress: an AIMD limit
control        rejects a decoded request whose engine has too much work for its deadline
cost_model     estimated work of a request, from the model's own time
limits         bounds of an engine
errors         reasons why a request is not answered
"""
