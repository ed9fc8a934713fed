"""Encoder: every kind of feature, purity, exactness, and the state on disk."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data import feature_encoders
from longrec.data.encoder import Encoder
from longrec.data.hashing import splitmix64
from longrec.errors import DataError, SchemaMismatch
from longrec.schema import Feature, Schema, Task

BIG = 2**60 + 1
SCHEMA = Schema(
    name="test",
    item=(
        Feature("item_id", "id", min_count=2, num_oov=3),
        Feature("topic", "category"),
        Feature("price", "number", "float64", num_bins=4),
    ),
    user=(
        Feature("region", "category", "string"),
        Feature("age", "number", "int64", num_bins=3),
    ),
    event=(
        Feature("action", "category", "string", min_count=2),
        Feature("place", "id", "int64", num_oov=2),
    ),
    tasks=(Task("click"),),
)


def event_batch(
    items,
    actions,
    places,
    times=None,
) -> pa.RecordBatch:
    times = list(range(len(items))) if times is None else times
    return pa.RecordBatch.from_pydict(
        {
            "item_id": pa.array(items, pa.int64()),
            "timestamp": pa.array(times, pa.int64()),
            "event_seq": pa.array(range(len(items)), pa.int64()),
            "action": pa.array(actions, pa.string()).dictionary_encode(),
            "place": pa.array(places, pa.int64()),
        }
    )


def items_table() -> pa.Table:
    return pa.table(
        {
            "item_id": pa.array([BIG, 7, BIG - 1, 9], pa.int64()),
            "topic": pa.array([5, 5, None, 6], pa.int64()),
            "price": pa.array([1.0, 2.0, float("nan"), 4.0]),
        }
    )


def users_table() -> pa.Table:
    return pa.table(
        {
            "user_id": [1, 2, 3],
            "region": ["b", "a", "b"],
            "age": pa.array([20, None, 40], pa.int64()),
        }
    )


def fitted(schema: Schema = SCHEMA, id_min_count: int = 0) -> Encoder:
    events = [
        event_batch([BIG, 7, BIG], ["view", "view", "buy"], [1, 1, BIG]),
        event_batch([9, 12345], [None, "buy"], [None, 2]),
    ]
    return Encoder.fit(
        schema,
        items_table(),
        users_table(),
        events,
        [np.array([7, 7, 9, 9, 9])],
        id_min_count,
    )


def test_item_ids_below_the_count_share_rows_and_keep_their_other_features() -> None:
    encoder = fitted()
    strict = fitted(id_min_count=3)
    # 7 was seen three times and 9 four times, BIG twice.
    assert strict.sizes["item"][0] == encoder.sizes["item"][0] - 1
    ids = strict.item_table[1:, 0].tolist()
    assert (ids[1], ids[0]) == (4, 5)
    assert 1 <= ids[3] <= 3
    assert strict.item_table[:, 1:].tolist() == encoder.item_table[:, 1:].tolist()
    assert strict.schema == encoder.schema
    assert fitted(id_min_count=1).fingerprint == encoder.fingerprint


def test_known_values_are_ordered_by_count_then_value() -> None:
    encoder = fitted()
    # 7 was seen three times, 9 four times, BIG twice, BIG - 1 never: indices start after missing
    # and three shared ones
    assert encoder.item_ids.tolist() == [7, 9, BIG - 1, BIG]
    ids = encoder.item_table[1:, 0].tolist()
    assert (ids[1], ids[0], ids[3]) == (4, 5, 6)
    assert 1 <= ids[2] <= 3
    assert encoder.item_table[1:, 1].tolist() == [2, 3, 0, 2]
    _, features, _ = encoder.events(event_batch([7, 7, 7], ["buy", "view", None], [1, 2, None]))
    assert features[:, 0].tolist() == [2, 3, 0]
    assert features[:, 1].tolist() == [3, 4, 0]


def test_row_zero_is_the_unknown_item() -> None:
    encoder = fitted()
    assert encoder.item_table[0].tolist() == [1, 0, 0]
    assert encoder.item_rows(np.array([BIG, BIG - 1, BIG + 1, 7, -5])).tolist() == [4, 3, 0, 1, 0]


def test_values_above_2_to_53_stay_exact() -> None:
    encoder = fitted()
    places = [BIG, BIG - 1, BIG + 1]
    _, features, _ = encoder.events(event_batch([7] * 3, ["view"] * 3, places))
    known = features[0, 1]
    assert known >= 3
    assert all(1 <= index <= 2 for index in features[1:, 1])


def test_rare_and_unseen_strings_share_the_indices_of_unknown_values() -> None:
    events = [event_batch([7] * 4, ["a", "a", "b", "c"], [1] * 4)]
    encoder = Encoder.fit(
        SCHEMA,
        items_table(),
        users_table(),
        events,
    )
    _, features, _ = encoder.events(event_batch([7] * 5, ["a", "b", "c", "never", None], [1] * 5))
    assert features[:, 0].tolist() == [2, 1, 1, 1, 0]
    assert encoder.sizes["event"][0] == 3


def test_max_size_keeps_the_most_frequent() -> None:
    schema = Schema(
        "s",
        (Feature("item_id", "id"),),
        (),
        (Feature("action", "category", "string", max_size=2),),
        (Task("t"),),
    )
    events = [event_batch([7] * 6, ["x", "y", "y", "z", "z", "z"], [1] * 6)]
    encoder = Encoder.fit(
        schema,
        items_table(),
        users_table(),
        events,
    )
    _, features, _ = encoder.events(event_batch([7] * 3, ["z", "y", "x"], [1] * 3))
    assert features[:, 0].tolist() == [2, 3, 1]


def test_numbers_fall_in_quantile_bins_and_nulls_are_missing() -> None:
    encoder = fitted()
    price = encoder.item_table[1:, 2].tolist()
    assert price[2] == 0  # NaN
    assert (
        0 < price[3] < price[0] < price[1]
    )  # 1.0 < 2.0 < 4.0, in the order of item ids 7, 9, BIG - 1, BIG
    ages = pa.table(
        {"region": ["a"] * 4, "age": pa.array([None, -(10**6), 30, 10**17 + 1], pa.int64())}
    )
    column = encoder.users(ages)[:, 1].tolist()
    assert column[0] == 0
    assert 1 <= column[1] <= column[2] <= column[3] == encoder.sizes["user"][1] - 1


def test_quantile_bins_hold_equal_shares() -> None:
    schema = Schema(
        "s",
        (Feature("item_id", "id"),),
        (Feature("x", "number", "float64", num_bins=10),),
        (),
        (Task("t"),),
    )
    values = np.random.default_rng(0).lognormal(size=50_000)
    encoder = Encoder.fit(
        schema,
        items_table(),
        pa.table({"x": values}),
        [],
    )
    shares = np.bincount(encoder.users(pa.table({"x": values}))[:, 0], minlength=11) / len(values)
    assert shares[0] == 0
    assert np.allclose(shares[1:], 0.1, atol=0.001)


def test_the_sample_of_a_number_does_not_depend_on_batch_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feature_encoders, "SAMPLE_SIZE", 500)
    schema = Schema(
        "s", (Feature("item_id", "id"),), (), (Feature("x", "number", "float64"),), (Task("t"),)
    )
    values = np.random.default_rng(1).normal(size=4_000)
    ids = np.full(4_000, 7)

    def fit(size: int) -> Encoder:
        batches = [
            pa.RecordBatch.from_pydict({"item_id": ids[i : i + size], "x": values[i : i + size]})
            for i in range(0, 4_000, size)
        ]
        return Encoder.fit(
            schema,
            items_table(),
            users_table(),
            batches,
        )

    assert fit(4_000).fingerprint == fit(37).fingerprint


def test_indices_stay_inside_the_tables() -> None:
    encoder = fitted()
    for column, size in enumerate(encoder.sizes["item"]):
        assert encoder.item_table[:, column].min() >= 0
        assert encoder.item_table[:, column].max() < size


def test_features_of_no_users_and_no_events_have_their_width() -> None:
    encoder = fitted()
    items, features, times = encoder.events(event_batch([], [], []))
    assert items.shape == (0,)
    assert features.shape == (0, 2)
    assert times.shape == (0,)
    assert encoder.users(users_table().slice(0, 0)).shape == (0, 2)
    plain = Schema(
        "s",
        (Feature("item_id", "id"),),
        (),
        (),
        (Task("t"),),
    )
    bare = Encoder.fit(
        plain,
        items_table(),
        users_table(),
        [],
    )
    assert bare.users(users_table()).shape == (3, 0)
    assert bare.events(event_batch([7], ["a"], [1]))[1].shape == (1, 0)


def test_shared_hashes_are_the_same_on_every_machine() -> None:
    # known outputs of splitmix64 for the states 0 and 1 (the reference implementation's first
    # outputs)
    assert splitmix64(np.array([0, 1], np.int64)).tolist() == [
        0xE220A8397B1DCDAF,
        0x910A2DEC89025CC1,
    ]


def test_a_hashed_table_keeps_its_rows_from_version_to_version() -> None:
    hashed = {"max_size": 0, "num_oov": 1_000}
    schema = Schema(
        "s",
        (
            Feature("item_id", "id", **hashed),
            Feature("brand", "id", "string", **hashed),
        ),
        (),
        (),
        (Task("t"),),
    )
    ids = np.array([7, 9, BIG, BIG + 1, -5], np.int64)
    items = pa.table({"item_id": ids, "brand": ["a", "b", "é", None, "a"]})
    encoder = Encoder.fit(
        schema,
        items,
        users_table(),
        [event_batch([7, 7], ["x", "x"], [1, 1])],
    )
    assert encoder.sizes["item"] == (1_001, 1_001)  # nothing but missing and the hashed rows
    # a trained table is useless when these change, so they are written down (by the reference of
    # splitmix64), not computed
    assert encoder.item_table[encoder.item_rows(ids), 0].tolist() == [488, 229, 748, 854, 515]
    assert encoder.item_table[encoder.item_rows(ids), 1].tolist() == [775, 328, 105, 0, 775]
    other = Encoder.fit(
        schema,
        items.slice(1),
        users_table(),
        [],
    )
    assert set(other.item_table[1:, 0]) <= set(encoder.item_table[1:, 0])  # whatever else there is


def test_hashing_fills_the_shared_rows_evenly() -> None:
    ids = np.concatenate(
        [np.arange(20_000), BIG + 1_024 * np.arange(20_000)]
    )  # dense ids and ids with a stride
    schema = Schema(
        "s",
        (Feature("item_id", "id", max_size=0, num_oov=100),),
        (),
        (),
        (Task("t"),),
    )
    encoder = Encoder.fit(
        schema,
        pa.table({"item_id": ids}),
        users_table(),
        [],
    )
    counts = np.bincount(encoder.item_table[1:, 0], minlength=101)
    assert (
        counts[0] == 0 and counts[1:].min() > 300 and counts[1:].max() < 500
    )  # 400 each, deviation 20


def test_ids_below_the_frequency_share_rows_by_hash() -> None:
    schema = Schema(
        "s",
        (Feature("item_id", "id", min_count=3, num_oov=64),),
        (),
        (),
        (Task("t"),),
    )
    seen = {7: 3, 9: 2, BIG: 5}
    events = event_batch(
        [item for item, count in seen.items() for _ in range(count)], ["x"] * 10, [1] * 10
    )
    encoder = Encoder.fit(
        schema,
        items_table(),
        users_table(),
        [events],
    )
    rows = dict(zip(encoder.item_ids.tolist(), encoder.item_table[1:, 0].tolist(), strict=True))
    assert rows[BIG] == 65
    assert rows[7] == 66
    assert encoder.sizes["item"][0] == 67
    assert 1 <= rows[9] <= 64
    assert 1 <= rows[BIG - 1] <= 64
    assert rows[9] != rows[BIG - 1]


rows = st.lists(
    st.tuples(
        st.sampled_from([7, 9, BIG, BIG - 1, 123]),
        st.sampled_from(["view", "buy", "é", None]),
        st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.sampled_from([1, 2, BIG])),
    ),
    max_size=30,
)
ENCODER = fitted()


@settings(max_examples=100, deadline=None)
@given(rows, st.integers(0, 30), st.integers(0, 30))
def test_encoding_a_slice_is_the_slice_of_the_encoding(
    entries,
    first,
    second,
) -> None:
    batch = event_batch([e[0] for e in entries], [e[1] for e in entries], [e[2] for e in entries])
    start, end = sorted((min(first, len(entries)), min(second, len(entries))))
    whole = ENCODER.events(batch)
    part = ENCODER.events(batch.slice(start, end - start))
    for a, b in zip(whole, part, strict=True):
        assert np.array_equal(a[start:end], b)


@settings(max_examples=50, deadline=None)
@given(rows)
def test_dictionary_columns_encode_like_plain_ones(entries) -> None:
    batch = event_batch([e[0] for e in entries], [e[1] for e in entries], [e[2] for e in entries])
    plain = batch.set_column(3, "action", batch.column(3).dictionary_decode()).set_column(
        4, "place", batch.column(4).dictionary_encode()
    )
    for a, b in zip(ENCODER.events(batch), ENCODER.events(plain), strict=True):
        assert np.array_equal(a, b)


@settings(max_examples=50, deadline=None)
@given(rows)
def test_every_index_is_missing_shared_or_its_own(entries) -> None:
    batch = event_batch([e[0] for e in entries], [e[1] for e in entries], [e[2] for e in entries])
    _, features, _ = ENCODER.events(batch)
    for (_, action, place), (a, p) in zip(entries, features.tolist(), strict=True):
        assert (a == 0) == (action is None)
        assert (p == 0) == (place is None)
        assert (a in (2, 3)) == (action in ("view", "buy"))
        assert (p >= 3) == (place in (1, 2, BIG))
        assert a < ENCODER.sizes["event"][0]
        assert p < ENCODER.sizes["event"][1]


def test_fitting_does_not_depend_on_batches_or_row_order() -> None:
    one = event_batch(
        [BIG, 7, BIG, 9, 12345], ["view", "view", "buy", None, "buy"], [1, 1, BIG, None, 2]
    )
    rng = np.random.default_rng(0)
    parts = [one.take(pa.array([row])) for row in rng.permutation(5)]
    items = items_table().take(pa.array([3, 1, 0, 2]))
    again = Encoder.fit(
        SCHEMA, items, users_table(), parts, [np.array([9, 7, 9]), np.array([7, 9])]
    )
    assert again.fingerprint == fitted().fingerprint


def test_saved_state_round_trips(tmp_path) -> None:
    encoder = fitted()
    encoder.save(tmp_path / "encoder")
    loaded = Encoder.load(tmp_path / "encoder", SCHEMA)
    assert loaded.fingerprint == encoder.fingerprint
    assert np.array_equal(loaded.item_table, encoder.item_table)
    assert loaded.sizes == encoder.sizes
    batch = event_batch([7, BIG, 1], ["é", "buy", None], [BIG, None, 5])
    for a, b in zip(encoder.events(batch), loaded.events(batch), strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(encoder.users(users_table()), loaded.users(users_table()))
    assert sorted(path.name for path in (tmp_path / "encoder").iterdir()) == [
        "encoder.json",
        "encoder.safetensors",
    ]


def test_another_schema_is_refused_with_its_fields(tmp_path) -> None:
    fitted().save(tmp_path / "encoder")
    other = Schema(
        "test",
        SCHEMA.item[:2],
        SCHEMA.user,
        SCHEMA.event,
        SCHEMA.tasks,
    )
    with pytest.raises(SchemaMismatch, match=r"item\.price"):
        Encoder.load(tmp_path / "encoder", other)


@pytest.mark.parametrize("damage", ["bytes", "truncated", "missing", "json", "format"])
def test_damaged_state_is_refused(tmp_path, damage: str) -> None:
    directory = tmp_path / "encoder"
    fitted().save(directory)
    arrays = directory / "encoder.safetensors"
    meta = directory / "encoder.json"
    content = bytearray(arrays.read_bytes())
    if damage == "bytes":
        content[-3] ^= 1
        arrays.write_bytes(content)
    elif damage == "truncated":
        arrays.write_bytes(content[:-8])
    elif damage == "missing":
        arrays.unlink()
    elif damage == "json":
        meta.write_text("{")
    else:
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"format_version": 99}))
    with pytest.raises(DataError) as caught:
        Encoder.load(directory)
    assert "\n" not in str(caught.value)


def test_wrong_tables_are_refused() -> None:
    with pytest.raises(DataError, match="column 'price' is missing"):
        Encoder.fit(
            SCHEMA,
            items_table().drop_columns(["price"]),
            users_table(),
            [],
        )
    twice = pa.concat_tables([items_table(), items_table()])
    with pytest.raises(DataError, match="unique"):
        Encoder.fit(
            SCHEMA,
            twice,
            users_table(),
            [],
        )
    wrong = event_batch([7], ["view"], [1])
    wrong = wrong.set_column(4, "place", pa.array(["not a number"]))
    with pytest.raises(DataError, match="'place' has the wrong type"):
        fitted().events(wrong)
    nulls = event_batch([None], ["view"], [1])
    with pytest.raises(DataError, match="'item_id' must not hold nulls"):
        fitted().events(nulls)


def test_timestamps_may_be_arrow_timestamps() -> None:
    batch = event_batch([7], ["view"], [1])
    request_time = pa.array([1_700_000_000_123], pa.timestamp("ms", tz="UTC"))
    for column in (request_time, request_time.cast(pa.timestamp("us", tz="UTC"))):
        assert fitted().events(batch.set_column(1, "timestamp", column))[2].tolist() == [
            1_700_000_000_123
        ]
