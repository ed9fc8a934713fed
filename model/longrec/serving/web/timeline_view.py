"""Columns that the page draws: the lane (item category) and kind (event category) of each event."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.data import history
from longrec.data.encoder import Encoder
from longrec.data.feature_encoders import Vocabulary
from longrec.errors import DataError
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, Feature
from longrec.serving.web.http import INT64

MAX_LANES = 20
MAX_KINDS = 8
MAX_CHOICES = 50
"""Kinds to choose from for one more event."""
OTHERS = "all others"
MAX_NAMED_KINDS = 10
MAX_SHOWN_CHARACTERS = 80


def timeline_view(events: pa.RecordBatch, encoder: Encoder) -> dict[str, Any]:
    """Return the columns that the page draws: times, item ids as texts, lanes and kinds.

    A lane is a value of the first category of items, a kind a value of the first category of
    events. The rarest values share one lane or kind.
    """
    is_text = "item" in encoder.schema.text_ids
    return {
        "timestamps": history.timestamps(events).tolist(),
        "items": [shown_id(item, is_text=is_text) for item in events.column(ITEM_ID).to_pylist()],
        "lanes": _lanes(events, encoder),
        "kinds": {**_kinds(events, encoder), "choices": _choices(encoder)},
    }


def shown_id(number: int, *, is_text: bool) -> str:
    """Return an id as the page shows and sends it; the text behind a hash is not stored."""
    return f"#{number}" if is_text else str(number)


def append_event(
    events: pa.RecordBatch,
    item: int,
    time_ms: int,
    *,
    kind: Any,
    encoder: Encoder,
) -> pa.RecordBatch:
    """Return a history with one more event, its newest.

    Args:
        events: the history.
        item: id of the new event's item.
        time_ms: time of the new event; that of the newest event if it is later.
        kind: value of the events' first category as text, None for a missing one. All other
            features of the new event are missing.
        encoder: encoder of the model.

    Raises:
        DataError: the kind is not a value of the category.
    """
    fields = history.arrow_schema(encoder.schema)
    required = [field.name for field in fields if not field.nullable]
    values: dict[str, Any] = dict.fromkeys(required, 0)
    values[ITEM_ID] = item
    values |= _newest_key(events, time_ms)
    category = _first_category(encoder.schema.event)
    if kind is not None and category is not None:
        name = encoder.schema.event[category].name
        values[name] = _value_of_kind(kind, _vocabulary(encoder, "event", category))
    columns = []
    for field in fields:
        value = values.get(field.name)
        columns.append(_one_value(value, field.type))
    event = pa.record_batch(columns, schema=fields)
    return history.concatenate([events, event], encoder.schema)


def group_rare(
    names: list[str],
    codes: npt.NDArray[Any],
    feature: str,
    max_groups: int,
) -> dict[str, Any]:
    """Return group names, most frequent first, and the group of each event.

    Args:
        names: text of each code.
        codes: int [n], code of each event.
        feature: name of the feature, shown with the groups.
        max_groups: largest number of groups; the last one takes all rarer values.
    """
    values, positions, counts = np.unique(codes, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    group = np.empty(len(values), np.int64)
    ranks = np.arange(len(values))
    group[order] = np.minimum(ranks, max_groups - 1)
    texts = [names[value] for value in values[order].tolist()]
    if len(texts) > max_groups:
        texts = [*texts[: max_groups - 1], OTHERS]
    return {
        "feature": feature,
        "names": texts,
        "of": group[positions].tolist(),
    }


def _lanes(events: pa.RecordBatch, encoder: Encoder) -> dict[str, Any]:
    category = _first_category(encoder.schema.item)
    if category is None:
        return _one_group("0", events)
    rows = encoder.item_rows(events.column(ITEM_ID).to_numpy())
    codes = encoder.item_table[rows][:, category]
    names = _category_names(encoder, "item", category)
    return group_rare(
        names,
        codes,
        encoder.schema.item[category].name,
        MAX_LANES,
    )


def _kinds(events: pa.RecordBatch, encoder: Encoder) -> dict[str, Any]:
    category = _first_category(encoder.schema.event)
    if category is None:
        return _one_group("", events)
    _, features, _ = encoder.events(events)
    codes = features[:, category]
    names = _category_names(encoder, "event", category)
    return group_rare(
        names,
        codes,
        encoder.schema.event[category].name,
        MAX_KINDS,
    )


def _one_group(name: str, events: pa.RecordBatch) -> dict[str, Any]:
    codes = np.zeros(events.num_rows, np.int64)
    return group_rare([name], codes, feature="", max_groups=1)


def _choices(encoder: Encoder) -> list[str]:
    """Return the kinds that one more event may have."""
    category = _first_category(encoder.schema.event)
    if category is None:
        return []
    num_special = 1 + encoder.schema.event[category].num_oov  # missing, unknown
    names = _category_names(encoder, "event", category)
    return names[num_special:][:MAX_CHOICES]


def _newest_key(events: pa.RecordBatch, time_ms: int) -> dict[str, int]:
    """Return time and sequence number of an event after all others."""
    if events.num_rows == 0:
        return {TIMESTAMP: time_ms, EVENT_SEQ: 0}
    newest_ms = events.column(TIMESTAMP)[-1].as_py()
    newest_seq = events.column(EVENT_SEQ)[-1].as_py()
    return {
        TIMESTAMP: max(time_ms, newest_ms),
        EVENT_SEQ: min(newest_seq + 1, INT64 - 1),
    }


def _value_of_kind(kind: Any, vocabulary: Vocabulary) -> Any:
    """Return the value of a category whose text is `kind`."""
    values = {str(value): value for value in vocabulary.values.to_pylist()}
    if not isinstance(kind, str) or kind not in values:
        raise DataError(
            "kind is none of the known ones",
            found=repr(kind)[:MAX_SHOWN_CHARACTERS],
            expected=", ".join(list(values)[:MAX_NAMED_KINDS]),
        )
    return values[kind]


def _one_value(value: Any, dtype: pa.DataType) -> pa.Array:
    if not pa.types.is_dictionary(dtype):
        return pa.array([value], dtype)
    plain = pa.array([value], dtype.value_type)
    return plain.dictionary_encode().cast(dtype)


def _first_category(features: tuple[Feature, ...]) -> int | None:
    """Return the place of the first categorical feature."""
    for place, feature in enumerate(features):
        if feature.kind == "category":
            return place
    return None


def _vocabulary(
    encoder: Encoder,
    group: str,
    place: int,
) -> Vocabulary:
    rule = encoder.feature_encoders[group][place]
    assert isinstance(rule, Vocabulary)
    return rule


def _category_names(
    encoder: Encoder,
    group: str,
    place: int,
) -> list[str]:
    """Return the text of each code of a categorical feature."""
    vocabulary = _vocabulary(encoder, group, place)
    values = vocabulary.values.to_pylist()
    num_oov = vocabulary.feature.num_oov
    names = ["missing"]
    names += ["unknown"] * num_oov
    names += [""] * len(values)
    for code, value in zip(vocabulary.indices.tolist(), values, strict=True):
        names[code] = str(value)
    return names
