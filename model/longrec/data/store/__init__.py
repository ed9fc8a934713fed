"""The feature store: tables are published, live events pushed, histories read online or offline.

    feature tables --publish--> WORKDIR/store/<version>/{features,feast} <-- store/current
                                  |                                            <-- {features,feast}
                                  +-- offline: retrieve(), histories of all requests
                                  +-- online: OnlineStore.fetch(), one user now

    workdir            format version, lock and links of a work directory
    versions           the published version
    tail_files         files of pushed events: incremental tails and compacted histories
    feast_adapter      a published version, opened with Feast; the only file that imports Feast
    user_record        what the store knows of one user: base and tail merged
    online_store       reads of single users for serving
    offline_store      the same reads from the tables on disk
    live_events        rows of a push: read, cast, sorted
    deduplication      which events of a push are new
    push               live events into the store
    publish            feature tables into a new version
    materialize        fills the online store of a new version
    retrieve           histories for training
    request_table      requests of a dataset or of shards, by time
    timeline_sources   timelines of users, from the offline store or from shards

Feast is imported inside functions, because it costs seconds.
"""
