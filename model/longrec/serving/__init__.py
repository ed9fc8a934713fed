"""Serving: everything between an HTTP service and the Scorer. Import the module you need.

    RankRequest --reader--> rows of the user --admission, engine--> batch
    batch --kv_cache--> keys and values --Scorer--> RankResult

requests         the types of a request, from the border to the engine
reader           rows of users from the feature store, in time
admission        which requests are rejected under load
engine           queue and thread of one model; batch_scoring and warm_up are its parts
kv_cache         cached keys and values of histories; cache_entry and timeline_spans are its parts
rollout          model versions of a worker, and the challenger in the shadow
auth, metrics    tokens; Prometheus
arrow_codec      Arrow form of requests and answers; inline_history reads histories they bring
web              the page at `/`
"""
