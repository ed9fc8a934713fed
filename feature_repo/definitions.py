"""What Feast knows: users, items, their features, and the long history of a user as one packed
value.

Fields are made from the schema of the published feature tables
(`LONGREC_HOME/features/schema.json`); where nothing was
published yet, from the synthetic dataset's. Only declarations belong here: `feast apply` imports every
.py file below this folder.
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

WORKDIR = Path(
    os.environ.get("LONGREC_HOME") or Path(__file__).resolve().parents[1] / ".longrec"
).resolve()
TABLES = (WORKDIR / "features").resolve()
SCHEMA = (
    Schema.load(TABLES / "schema.json") if (TABLES / "schema.json").exists() else synthetic_schema()
)
TIMES = {"timestamp_field": "event_timestamp", "created_timestamp_column": "created"}
TAGS = {"schema": SCHEMA.fingerprint, "schema_name": SCHEMA.name}
TYPES: dict[str, PrimitiveFeastType] = {"int64": Int64, "float64": Float64, "string": String}
(WORKDIR / "feast").mkdir(
    parents=True, exist_ok=True
)  # Feast makes only the last folder of a path itself


def _source(name: str, path: str) -> DataSource:
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
        path=path,
        file_format=ParquetFormat(),
        **TIMES,
    )


def _view(
    name: str, key: Entity, table: str, fields: list[Field], *, online: bool, pushed: bool = False
) -> FeatureView:
    table_source = _source(name, str(TABLES / table))
    source = PushSource(name=f"{name}_push", batch_source=table_source) if pushed else table_source
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

# A history never expires (no ttl): its last event may be years old, and its user is still the same.
history_fields = [
    Field(
        name="history",
        dtype=Bytes,
        description="Arrow IPC stream, see longrec.data.history",
    ),
    Field(
        name="history_length",
        dtype=Int64,
        description="events in it",
    ),
]
user_history = _view("user_history", user, "user_history", history_fields, online=True)
# Events that came after the publish, at most some hundreds: longrec.data.store.push writes them,
# readers merge them with the history.
tail_fields = [
    Field(
        name="history_tail",
        dtype=Bytes,
        description="the codec of history",
    ),
    Field(
        name="history_tail_length",
        dtype=Int64,
        description="events in it",
    ),
    Field(
        name="history_tail_base", dtype=Int64, description="length of the history that it continues"
    ),
]
user_tail = _view("user_tail", user, "user_tail", tail_fields, online=True, pushed=True)
user_features = (
    _view("user_features", user, "user_features.parquet", _fields(SCHEMA.user), online=True)
    if SCHEMA.user
    else None
)
# Read when histories are made; a served model carries the encoded items itself.
item_features = (
    _view("item_features", item, "item_features.parquet", _fields(SCHEMA.item[1:]), online=False)
    if SCHEMA.item[1:]
    else None
)

ranker_v1 = FeatureService(
    name="ranker_v1",
    features=[view for view in (user_history, user_tail, user_features) if view],
    tags=TAGS,
)
