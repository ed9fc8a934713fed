"""Serving: everything between an HTTP service and the Scorer. Import the module you need.

    CallerRequest --ids of the log--> RankRequest
    RankRequest --reader--> rows of the user --admission, engine--> batch
    batch --kv_cache--> keys and values --Scorer--> RankResult

requests         types of a request, from the border of the service to the engine
reader           rows of users from the feature store, in time
admission        which requests are rejected under load
engine           queue and thread of one model; batch_scoring and warm_up are its parts
kv_cache         cached keys and values of histories; cache_entry and timeline_spans are its parts
rollout          model versions of a worker, and the challenger in the shadow
auth             bearer tokens
metrics          Prometheus metrics
arrow_codec      Arrow form of requests and answers
inline_history   histories that come with a request
web              the page at `/`
"""
