"""Declare users, items and their features for Feast.

A user's long history is one packed value. Fields come from the schema of the published feature
tables. Before the first publish they come from the synthetic dataset's schema. Only declarations
belong here: `feast apply` imports every .py file below this folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, Project, PushSource
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.types import Bytes, Float64, Int64, PrimitiveFeastType, String
from feast.value_type import ValueType

from longrec.schema import Feature, Schema, synthetic_schema

FOLDER = Path(__file__).resolve().parent
# Each published version holds a copy of this file in its folder `feast`, beside its tables.
IS_PUBLISHED = FOLDER.name == "feast"
DEFAULT_WORKDIR = FOLDER.parent if IS_PUBLISHED else FOLDER.parent / ".longrec"
NAMED_WORKDIR = None if IS_PUBLISHED else os.environ.get("LONGREC_HOME")
WORKDIR = Path(NAMED_WORKDIR or DEFAULT_WORKDIR).resolve()
# In a work directory this is a link, which a later publish points to another version.
TABLES = (WORKDIR / "features").resolve()
SCHEMA_FILE = TABLES / "schema.json"
SCHEMA = Schema.load(SCHEMA_FILE) if SCHEMA_FILE.exists() else synthetic_schema()
TIMES = {
    "timestamp_field": "event_timestamp",
    "created_timestamp_column": "created",
}
TAGS = {
    "schema": SCHEMA.fingerprint,
    "schema_name": SCHEMA.name,
}
TYPES: dict[str, PrimitiveFeastType] = {
    "int64": Int64,
    "float64": Float64,
    "string": String,
}
# Feast makes only the last folder of a path itself.
(WORKDIR / "feast").mkdir(parents=True, exist_ok=True)


def _source(name: str, table: str) -> DataSource:
    """Return the source of a feature table, for Spark or for DuckDB."""
    path = str(TABLES / table)
    # The user sets this variable to publish with one of the settings in overlays/.
    if os.environ.get("LONGREC_FEATURE_OVERLAY") == "spark":
        from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

        return SparkSource(
            name=name,
            path=path,
            file_format="parquet",
            **TIMES,
        )
    return FileSource(
        name=name,
        path=os.path.relpath(path, FOLDER),
        file_format=ParquetFormat(),
        **TIMES,
    )


def _view(
    name: str,
    key: Entity,
    source: DataSource,
    fields: list[Field],
    *,
    online: bool = True,
) -> FeatureView:
    key_field = Field(name=key.join_key, dtype=Int64)
    return FeatureView(
        name=name,
        entities=[key],
        schema=[key_field, *fields],
        source=source,
        online=online,
        tags=TAGS,
    )


def _fields(features: tuple[Feature, ...]) -> list[Field]:
    return [
        Field(
            name=feature.name,
            dtype=TYPES[feature.stored_dtype],
            tags={"kind": feature.kind},
        )
        for feature in features
    ]


project = Project(name="longrec", description="Ranking with long user histories")
user = Entity(
    name="user",
    join_keys=["user_id"],
    value_type=ValueType.INT64,
)
item = Entity(
    name="item",
    join_keys=["item_id"],
    value_type=ValueType.INT64,
)

# A history has no ttl: its last event may be years old.
history_fields = [
    Field(
        name="history",
        dtype=Bytes,
        description="base history: Arrow IPC stream, see longrec.data.history",
    ),
    Field(
        name="history_length",
        dtype=Int64,
        description="events in the base history",
    ),
]
user_history = _view(
    "user_history",
    user,
    _source("user_history", "user_history"),
    history_fields,
)
# Events pushed after the publish, at most some hundreds. longrec.data.store.push writes them,
# readers merge them with the base history.
tail_fields = [
    Field(
        name="history_tail",
        dtype=Bytes,
        description="incremental tail, packed like history",
    ),
    Field(
        name="history_tail_length",
        dtype=Int64,
        description="events in the tail",
    ),
    Field(
        name="history_tail_base",
        dtype=Int64,
        description="events in the base history that the tail continues",
    ),
]
user_tail_push = PushSource(
    name="user_tail_push",
    batch_source=_source("user_tail", "user_tail"),
)
user_tail = _view(
    "user_tail",
    user,
    user_tail_push,
    tail_fields,
)
user_features = None
if SCHEMA.user:
    user_features = _view(
        "user_features",
        user,
        _source("user_features", "user_features.parquet"),
        _fields(SCHEMA.user),
    )
# Read by retrieval; a served model carries its encoded items. The first item feature is the key.
item_features = None
if SCHEMA.item[1:]:
    item_features = _view(
        "item_features",
        item,
        _source("item_features", "item_features.parquet"),
        _fields(SCHEMA.item[1:]),
        online=False,
    )

# The features that the ranker reads online, by this name.
ranker_v1 = FeatureService(
    name="ranker_v1",
    features=[view for view in (user_history, user_tail, user_features) if view],
    tags=TAGS,
)
