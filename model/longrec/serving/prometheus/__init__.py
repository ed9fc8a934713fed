"""What `GET /metrics` shows: all workers of a service together.

http_metrics      counts requests by route; an ASGI middleware
process_metrics   memory, CPU time and files of the processes of a service
exemplars         traces of sampled requests in the buckets of histograms
exposition        the route /metrics
"""
