"""Quality of data: profiles, expectations on them, drift between versions and check reports.

    dataset or histories -> profiles -> suites of expectations -> results -> report (HTML)

Profiles are small: one row per user and some numbers per table. Profiles of shards are merged, so
checks give the same results for a dataset in one piece and shard by shard.
"""
