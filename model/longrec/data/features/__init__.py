"""Feature tables: what a dataset becomes before the feature store publishes it.

    OUT/schema.json  OUT/manifest.json
    OUT/user_history/part-00000.parquet   one row per user: user_id, event_timestamp (last event),
                                          created, history (packed), history_length
    OUT/user_features.parquet             one row per user
    OUT/item_features.parquet             one row per item

One part of the dataset is in memory at a time, and its users are written in groups of
`data.shard_users` (users per file; a shard is something else, see below). Nothing depends on the
clock: the same dataset gives the same bytes. `created`, and the time of item and user features, is
the end of the log.

A shard of a dataset (`longrec.data.shards`) is built on its own; the first one also holds item and
user features. `join_shards` combines the files of all shards. No file holds users of two parts of
the dataset, so joined tables equal those of one build, byte for byte.
"""

from longrec.data.features.join import join_shards
from longrec.data.features.manifest import FeatureReport
from longrec.data.features.tables import build_features

__all__ = ["FeatureReport", "build_features", "join_shards"]
