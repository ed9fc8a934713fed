"""The feature store. Feature tables go in by `publish`, live events by `push`, histories come out by two doors.

    feature tables --publish--> LONGREC_HOME/store/<version>/{features,feast} <-- store/current <-- LONGREC_HOME/{features,feast}
                                     |  offline: retrieve(), one entity row per user     |  online: OnlineStore.fetch()
                                     v                                                   v
                                 histories of all requests                           one user now

    versions (what a work directory points to) <- tails (files of pushed rows) <- door (Feast) <- reader <- push <- publish
                                                                             ^------------------ retrieve

Only `door` imports Feast, inside functions: it costs seconds.
"""
