"""The service over HTTP, against a real `bentoml serve` that reads a real Feast online store."""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest

from longrec.data import history
from longrec.data.histories import Histories
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import Scorer
from tests.conftest import LENGTH, ROOT, VERSION, ServedWorld

NOBODY, NOTHING = 2**62, -(2**63)
LATE = 1_720_000_000_000
"""A moment after all events; scores depend on the hour and the weekday of the request too."""


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def histories(served_world: ServedWorld) -> Histories:
    return Histories.open(served_world.path / "histories")


@pytest.fixture(scope="module")
def scorer(served_world: ServedWorld) -> Scorer:
    return Scorer.load(served_world.path / "bundle")


@pytest.fixture(scope="module")
def user(histories: Histories) -> tuple[int, dict, pa.RecordBatch]:
    """Id, features and timeline of the user with most events."""
    users = histories.users.to_pylist()
    row = max(
        range(len(users)), key=lambda row: users[row]["event_end"] - users[row]["event_start"]
    )
    return users[row]["user_id"], users[row], histories.timeline(row)


@pytest.fixture(scope="module")
def items(histories: Histories) -> list[int]:
    return histories.items.column("item_id").to_pylist()[:12]


def rank(client: httpx.Client, **body: object) -> dict:
    answer = client.post("/rank", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def expected(
    scorer: Scorer, user: tuple, request_time: int, items: list[int], length: int | None = None
) -> np.ndarray:
    """The first task's scores of the events strictly before the moment."""
    cut = history.prefix_before(user[2], request_time)
    return scorer.score(
        [RequestRows(cut, user[1], request_time, np.array(items, np.int64))], length
    )[0][:, 0]


def test_an_answer_has_scores_per_task_in_the_order_asked_for(client, scorer, user, items) -> None:
    request_time = int(history.timestamps(user[2])[-1]) + 1
    answer = rank(client, user_id=user[0], candidates=items, request_time=request_time)
    assert list(answer) == [
        "scores",
        "model_version",
        "user_known",
        "history_length",
        "unknown_candidates",
        "degraded",
    ]
    assert list(answer["scores"]) == ["label"]
    assert (
        answer["model_version"],
        answer["user_known"],
        answer["unknown_candidates"],
        answer["degraded"],
    ) == (VERSION, True, 0, False)
    assert (
        answer["history_length"] == min(LENGTH, user[2].num_rows) == LENGTH
    )  # longer than what is served
    np.testing.assert_allclose(
        answer["scores"]["label"], expected(scorer, user, request_time, items), atol=2e-6
    )
    assert np.ptp(answer["scores"]["label"]) > 1e-4, "all scores are the same: nothing was tested"


def test_the_order_of_candidates_and_repeated_ones(client, user, items) -> None:
    forward = rank(client, user_id=user[0], candidates=items, request_time=LATE)["scores"]["label"]
    backward = rank(client, user_id=user[0], candidates=items[::-1], request_time=LATE)["scores"][
        "label"
    ]
    np.testing.assert_allclose(backward[::-1], forward, atol=2e-6)
    doubled = rank(client, user_id=user[0], candidates=[items[0]] * 3, request_time=LATE)["scores"][
        "label"
    ]
    np.testing.assert_allclose(doubled, [forward[0]] * 3, atol=2e-6)


def test_an_event_at_the_request_time_is_not_in_the_history(client, scorer, user, items) -> None:
    times = history.timestamps(user[2])
    request_time = int(times[20])  # an event happens at this very moment
    at, after = (
        rank(client, user_id=user[0], candidates=items, request_time=when)
        for when in (request_time, request_time + 1)
    )
    assert at["history_length"] == int((times < request_time).sum()) <= 20
    assert after["history_length"] == int((times <= request_time).sum()) > at["history_length"]
    np.testing.assert_allclose(
        at["scores"]["label"], expected(scorer, user, request_time, items), atol=2e-6
    )
    np.testing.assert_allclose(
        after["scores"]["label"], expected(scorer, user, request_time + 1, items), atol=2e-6
    )
    assert not np.allclose(at["scores"]["label"], after["scores"]["label"], atol=1e-5), (
        "the event makes no difference: nothing was tested"
    )


def test_request_time_as_text_is_the_same_moment(client, user, items) -> None:
    request_time = int(history.timestamps(user[2])[10])
    exact = rank(client, user_id=user[0], candidates=items, request_time=request_time)
    when = datetime.datetime.fromtimestamp(request_time / 1000, datetime.UTC)
    for text in (
        when.isoformat(timespec="milliseconds"),
        when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{request_time % 1000:03d}Z",
        when.astimezone(datetime.timezone(datetime.timedelta(hours=-7))).isoformat(
            timespec="milliseconds"
        ),
        when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{request_time % 1000:03d}999Z",
    ):
        assert rank(client, user_id=user[0], candidates=items, request_time=text) == exact, text


def test_without_a_request_time_it_is_now(client, scorer, user, items) -> None:
    before = expected(scorer, user, time.time_ns() // 1_000_000, items)
    answer = rank(client, user_id=user[0], candidates=items)
    after = expected(
        scorer, user, time.time_ns() // 1_000_000, items
    )  # another hour has begun, once in a while
    assert answer["history_length"] == LENGTH
    assert min(np.abs(answer["scores"]["label"] - now).max() for now in (before, after)) < 1e-4
    later = expected(scorer, user, time.time_ns() // 1_000_000 + 43_200_000, items)
    assert np.abs(later - after).max() > 1e-4, "the moment makes no difference: nothing was tested"


def test_the_length_cuts_to_the_most_recent_events(client, scorer, user, items) -> None:
    request_time = int(history.timestamps(user[2])[-1]) + 1
    seen = set()
    for length, used in ((0, 0), (7, 7), (10**6, user[2].num_rows)):
        answer = rank(
            client, user_id=user[0], candidates=items, request_time=request_time, length=length
        )
        assert answer["history_length"] == used
        np.testing.assert_allclose(
            answer["scores"]["label"],
            expected(scorer, user, request_time, items, length),
            atol=2e-6,
        )
        seen.add(round(answer["scores"]["label"][0], 5))
    assert len(seen) == 3


def test_an_unknown_user_is_scored_with_an_empty_history(client, scorer, items) -> None:
    answer = rank(client, user_id=NOBODY, candidates=items, request_time=LATE)
    assert (answer["user_known"], answer["history_length"], answer["degraded"]) == (False, 0, False)
    nobody = RequestRows(history.empty(scorer.bundle.schema), None, LATE, np.array(items))
    np.testing.assert_allclose(
        answer["scores"]["label"], scorer.score([nobody])[0][:, 0], atol=2e-6
    )


def test_a_known_user_before_the_first_event_has_an_empty_history(client, user, items) -> None:
    first = int(history.timestamps(user[2])[0])
    answer = rank(client, user_id=user[0], candidates=items, request_time=first)
    assert (answer["user_known"], answer["history_length"]) == (True, 0)
    assert np.isfinite(answer["scores"]["label"]).all()


def test_unknown_items_are_scored_as_the_unknown_item(client, user, items) -> None:
    answer = rank(
        client, user_id=user[0], candidates=[NOTHING, items[0], 2**63 - 1], request_time=LATE
    )
    scores = answer["scores"]["label"]
    assert answer["unknown_candidates"] == 2
    np.testing.assert_allclose(scores[0], scores[2], atol=2e-6)
    assert abs(scores[1] - scores[0]) > 1e-5
    known = rank(client, user_id=user[0], candidates=[items[0]], request_time=LATE)
    np.testing.assert_allclose(scores[1], known["scores"]["label"][0], atol=2e-6)


def test_requests_at_the_same_time_do_not_mix(client, histories, items) -> None:
    users = histories.users.column("user_id").to_pylist()[:8] * 3
    alone = {
        user: rank(client, user_id=user, candidates=items, request_time=LATE) for user in set(users)
    }
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(
            pool.map(
                lambda user: rank(client, user_id=user, candidates=items, request_time=LATE), users
            )
        )
    for user, answer in zip(users, together, strict=True):
        scores, expected = answer["scores"]["label"], alone[user]["scores"]["label"]
        np.testing.assert_allclose(
            scores, expected, atol=2e-6
        )  # what is scored together is rounded together
        assert {**answer, "scores": 0} == {**alone[user], "scores": 0}
    assert len({answer["scores"]["label"][0] for answer in together}) > 4


GOOD = {"user_id": 1, "candidates": [1, 2]}
MALFORMED = {
    "no user": ({"candidates": [1]}, "user_id"),
    "user as text": ({**GOOD, "user_id": "1"}, "user_id"),
    "user as a fraction": ({**GOOD, "user_id": 1.5}, "user_id"),
    "user as a whole float": ({**GOOD, "user_id": 1.0}, "user_id"),
    "user as truth": ({**GOOD, "user_id": True}, "user_id"),
    "user is null": ({**GOOD, "user_id": None}, "user_id"),
    "user beyond int64": ({**GOOD, "user_id": 2**63}, "user_id"),
    "user far beyond int64": ({**GOOD, "user_id": -(10**40)}, "user_id"),
    "no candidates": ({"user_id": 1}, "candidates"),
    "empty candidates": ({**GOOD, "candidates": []}, "candidates"),
    "candidates null": ({**GOOD, "candidates": None}, "candidates"),
    "candidates as a number": ({**GOOD, "candidates": 3}, "candidates"),
    "candidate as text": ({**GOOD, "candidates": [1, "2"]}, "candidates[1]"),
    "candidate null": ({**GOOD, "candidates": [None]}, "candidates[0]"),
    "candidate beyond int64": ({**GOOD, "candidates": [1, -(2**63) - 1]}, "candidates[1]"),
    "nested candidates": ({**GOOD, "candidates": [[1]]}, "candidates[0]"),
    "one candidate too many": ({**GOOD, "candidates": [1] * 2049}, "candidates"),
    "negative length": ({**GOOD, "length": -1}, "length"),
    "length as text": ({**GOOD, "length": "10"}, "length"),
    "length beyond int64": ({**GOOD, "length": 2**63}, "length"),
    "time is NaN": ('{"user_id": 1, "candidates": [1], "request_time": NaN}', "request_time"),
    "time is infinite": (
        '{"user_id": 1, "candidates": [1], "request_time": Infinity}',
        "request_time",
    ),
    "time as a float": ({**GOOD, "request_time": 1.7e12}, "request_time"),
    "time without a zone": ({**GOOD, "request_time": "2024-05-01T12:00:00"}, "request_time"),
    "time is no time": ({**GOOD, "request_time": "yesterday"}, "request_time"),
    "time is an empty text": ({**GOOD, "request_time": ""}, "request_time"),
    "time of an impossible day": ({**GOOD, "request_time": "2024-02-30T00:00:00Z"}, "request_time"),
    "time before year 1": ({**GOOD, "request_time": "0001-01-01T00:00:00+12:00"}, "request_time"),
    "time beyond year 9999": ({**GOOD, "request_time": 253_402_300_800_000}, "request_time"),
    "a misspelt field": ({**GOOD, "lenght": 5}, "lenght"),
    "no JSON": ("user 1", "body"),
    "half of JSON": ('{"user_id": 1, "candidates": [1', "body"),
    "nothing": ("", "body"),
    "a list": ("[1, 2]", "body"),
    "null": ("null", "body"),
    "no UTF-8": (b'{"user_id": 1, "candidates": [1], "\xff": 1}', "body"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_input_is_refused_with_the_name_of_the_field(client, name: str) -> None:
    body, field = MALFORMED[name]
    answer = client.post(
        "/rank", content=body if isinstance(body, (str, bytes)) else json.dumps(body)
    )
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["error"]
    assert answer.json()["error"].startswith(f"{field}: "), answer.text
    assert (
        "Traceback" not in answer.text
        and "pydantic" not in answer.text
        and "/" not in answer.text.replace("since 1970", "")
    )


def test_a_body_that_is_too_large_is_refused_unread(client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b" " * 10_000

    with contextlib.suppress(
        httpx.TransportError
    ):  # the server may stop listening while it is being sent
        assert client.post("/rank", content=endless()).status_code == 413
    assert client.post("/rank", content=b" " * 10_000_000).status_code == 413
    assert client.get("/readyz").status_code == 200


def test_the_largest_request_and_the_content_type_of_curl(client, items) -> None:
    body = {
        "user_id": -(2**63),
        "candidates": [-(2**63) + n for n in range(2048)],
        "request_time": -1,
        "length": 2**63 - 1,
    }
    assert len(rank(client, **body)["scores"]["label"]) == 2048
    plain = client.post(
        "/rank",
        content=json.dumps(GOOD),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert plain.status_code == 200


def test_other_methods_paths_and_pickles_are_refused(client) -> None:
    assert client.get("/rank").status_code == 405
    assert client.post("/score", json=GOOD).status_code == 404
    assert (
        client.post(
            "/rank", content=b"x", headers={"content-type": "application/vnd.bentoml+pickle"}
        ).status_code
        == 415
    )


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/metrics", "/docs.json"])
def test_standard_endpoints(client, path: str) -> None:
    assert client.get(path).status_code == 200


def test_the_interface_describes_itself(client) -> None:
    described = client.get("/docs.json").json()
    operation = described["paths"]["/rank"]["post"]
    asked = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(asked["properties"]) == {
        "user_id",
        "candidates",
        "request_time",
        "length",
        "timeout_ms",
        "history",
    }
    assert set(asked["required"]) == {"user_id", "candidates"}
    answered = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(answered["properties"]) == set(rank(client, **GOOD))
    assert rank(client, **asked["example"])


def test_an_unreadable_feature_store_gives_a_flagged_answer_and_mends_itself(
    client, served_world, user, items
) -> None:
    link = served_world.workdir / "store" / "current"
    healthy, before = (
        rank(client, user_id=user[0], candidates=items, request_time=LATE),
        link.readlink(),
    )
    link.unlink()
    link.symlink_to("gone")
    try:
        answer = rank(client, user_id=user[0], candidates=items, request_time=LATE)
        assert answer == {**healthy, "degraded": True}  # what was read last
        unknown = rank(client, user_id=NOBODY - 1, candidates=items, request_time=LATE)
        assert (unknown["degraded"], unknown["user_known"], unknown["history_length"]) == (
            True,
            False,
            0,
        )
    finally:
        link.unlink()
        link.symlink_to(before)
    limit = time.monotonic() + 60
    while (answer := rank(client, user_id=user[0], candidates=items, request_time=LATE)) != healthy:
        assert answer == {**healthy, "degraded": True} and time.monotonic() < limit
        time.sleep(0.1)


def arrow_body(items: list[int], packed: bytes = b"", **parameters: object) -> bytes:
    metadata = {name: str(value) for name, value in parameters.items()}
    batch = pa.record_batch(
        [pa.array(items, pa.int64())], schema=pa.schema([("item_id", pa.int64())], metadata)
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes() + packed


def test_the_arrow_twin_answers_the_same(client, scorer, user, items) -> None:
    expected = rank(client, user_id=user[0], candidates=items, request_time=LATE, length=20)
    answer = client.post(
        "/rank_arrow", content=arrow_body(items, user_id=user[0], request_time=LATE, length=20)
    )
    assert answer.status_code == 200, answer.text
    with pa.ipc.open_stream(answer.content) as reader:
        batch = reader.read_next_batch()
    np.testing.assert_allclose(
        batch.column("label").to_numpy(), expected["scores"]["label"], atol=2e-6
    )
    facts = {name.decode(): value.decode() for name, value in batch.schema.metadata.items()}
    assert facts == {
        "model_version": VERSION,
        "user_known": "true",
        "history_length": "20",
        "unknown_candidates": "0",
        "degraded": "false",
    }
    packed = history.pack(user[2].slice(0, 9), scorer.bundle.schema)
    answer = client.post(
        "/rank_arrow", content=arrow_body(items, packed, user_id=NOBODY, request_time=LATE)
    )
    with pa.ipc.open_stream(answer.content) as reader:
        batch = reader.read_next_batch()
    alone = scorer.score([RequestRows(user[2].slice(0, 9), None, LATE, np.array(items))])[0][:, 0]
    np.testing.assert_allclose(batch.column("label").to_numpy(), alone, atol=2e-6)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"\x00\xff" * 300, "body"),
        (arrow_body([1, 2]), "user_id"),
        (arrow_body([1], user_id="x"), "user_id"),
        (arrow_body([], user_id=1), "candidates"),
        (arrow_body([1] * 2049, user_id=1), "candidates"),
        (arrow_body([1], user_id=2**63), "user_id"),
        (arrow_body([1], user_id=1, length=-1), "length"),
        (arrow_body([1], b"no history", user_id=1), "history"),
        (arrow_body([1], user_id=1)[:-30], "body"),
    ],
)
def test_malformed_arrow_is_refused_with_the_name_of_the_field(
    client, body: bytes, field: str
) -> None:
    answer = client.post("/rank_arrow", content=body)
    assert answer.status_code == 400 and answer.json()["error"].startswith(f"{field}"), answer.text


def test_events_brought_along_take_the_place_of_the_stored_ones(
    client, scorer, user, items
) -> None:
    some = user[2].slice(3, 11)
    columns = {name: some.column(name).to_pylist() for name in some.schema.names}
    shuffled = {name: values[::-1] for name, values in columns.items()}
    expected_scores = scorer.score([RequestRows(some, user[1], LATE, np.array(items))])[0][:, 0]
    for given in (columns, shuffled):
        answer = rank(client, user_id=user[0], candidates=items, request_time=LATE, history=given)
        assert answer["history_length"] == 11
        np.testing.assert_allclose(answer["scores"]["label"], expected_scores, atol=2e-6)
    assert (
        rank(client, user_id=user[0], candidates=items, request_time=LATE)["history_length"]
        == LENGTH
    )  # nothing was kept of them
    assert (
        rank(client, user_id=user[0], candidates=items, history={"item_id": [], "timestamp": []})[
            "history_length"
        ]
        == 0
    )
    for wrong, named in (
        ({"item_id": [1]}, "timestamp"),
        ({**columns, "timestamp": [1]}, "timestamp"),
        ({**columns, "colour": [1] * 11}, "colour"),
        ({"item_id": ["x"], "timestamp": [1]}, "item_id"),
        ({"item_id": [2**70], "timestamp": [1]}, "item_id"),
        ({"item_id": [None], "timestamp": [1]}, "item_id"),
        ({"item_id": [1], "timestamp": [1], "action": [[1]]}, "action"),
    ):
        answer = client.post("/rank", json={"user_id": 1, "candidates": items, "history": wrong})
        assert answer.status_code == 400 and named in answer.json()["error"], answer.text


def test_explaining_names_events_of_the_history_used(client, user, items) -> None:
    answer = client.post(
        "/explain", json={"user_id": user[0], "candidate": items[0], "request_time": LATE, "top": 5}
    ).json()
    ranked = rank(client, user_id=user[0], candidates=items[:1], request_time=LATE)
    np.testing.assert_allclose(answer["scores"]["label"], ranked["scores"]["label"], atol=2e-6)
    used = history.most_recent(user[2], LENGTH)
    assert [(part["layer"], part["head"]) for part in answer["attention"]] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    for part in answer["attention"]:
        weights = [event["weight"] for event in part["events"]]
        assert (
            len(weights) == 5
            and weights == sorted(weights, reverse=True)
            and 5 / LENGTH <= sum(weights) <= 1.0001
        )
        for event in part["events"]:
            assert event["item_id"] == used.column("item_id")[event["row"]].as_py()
            assert event["timestamp"] == used.column("timestamp")[event["row"]].as_py()
    empty = client.post("/explain", json={"user_id": NOBODY, "candidate": items[0]}).json()
    assert all(part["events"] == [] for part in empty["attention"])
    assert (
        client.post("/explain", json={"user_id": 1, "candidate": 1, "top": 0})
        .json()["error"]
        .startswith("top: ")
    )


def test_a_time_too_short_is_kept(client, user, items) -> None:
    answers = [
        client.post("/rank", json={"user_id": user[0], "candidates": items * 100, "timeout_ms": 1})
        for _ in range(20)
    ]
    assert {answer.status_code for answer in answers} <= {200, 408, 503}
    for answer in answers:
        assert answer.status_code == 200 or (answer.status_code == 503) == (
            "retry-after" in answer.headers
        )


def test_what_is_done_is_counted(client, user, items) -> None:
    def read() -> dict[str, float]:
        lines = [
            line.rsplit(" ", 1)
            for line in client.get("/metrics").text.splitlines()
            if line.startswith("longrec_")
        ]
        return {name: float(value) for name, value in lines}

    rank(client, user_id=user[0], candidates=items)
    before = read()
    rank(client, user_id=user[0], candidates=[*items, NOTHING])
    rank(client, user_id=NOBODY - 7, candidates=items)
    change = {name: value - before.get(name, 0.0) for name, value in read().items()}
    assert (
        change['longrec_candidates_total{known="yes"}'] == 2 * len(items)
        and change['longrec_candidates_total{known="no"}'] == 1
    )
    assert (
        change['longrec_cache_requests_total{result="hit"}'] == 1
        and change["longrec_history_events_count"] == 2
    )
    assert (
        change['longrec_stage_seconds_count{stage="fetch"}'] == 2
        and change['longrec_stage_seconds_count{stage="score"}'] == 2
    )
    assert (
        change["longrec_newest_event_age_seconds_count"] == 1
        and change['longrec_score_count{task="label"}'] >= 2 * 8
    )
    assert change["longrec_cache_bytes"] == 0 < before["longrec_cache_bytes"]
    assert {
        'longrec_shed_total{reason="overload"}',
        'longrec_degraded_total{history="kept"}',
    } <= set(before)


def _refusal(environment: dict[str, str]) -> str:
    """What `bentoml serve` says of why it does not start."""
    done = _serve(environment)
    lines = [
        line
        for line in done.stderr.splitlines()
        if line.strip() and not line.startswith(("nanobind", " - "))
    ]
    assert done.returncode == 1 and len(lines) == 1 and "Traceback" not in done.stdout, done.stderr
    return lines[0]


def _serve(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", "bento.service:Ranker", "--port", "0"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_a_missing_model_is_told_in_one_line(served_world, tmp_path) -> None:
    line = _refusal({**served_world.environment, "BENTOML_HOME": str(tmp_path)})
    assert "no model longrec-ranker:latest" in line and "longrec run" in line
    assert "no model longrec-ranker:other" in _refusal(
        {**served_world.environment, "LONGREC_MODEL": "longrec-ranker:other"}
    )


def test_a_missing_feature_store_is_told_in_one_line(served_world, tmp_path) -> None:
    line = _refusal({**served_world.environment, "LONGREC_HOME": str(tmp_path / "nothing")})
    assert "no feature store" in line and "nothing" in line


def test_a_feature_store_of_another_schema_is_told_in_one_line(served_world, tmp_path) -> None:
    other = tmp_path / "home" / "store" / "v1"
    (other / "features").mkdir(parents=True)
    (other / "feast").mkdir()
    (other / "feast" / "feature_store.yaml").write_text("project: longrec\n")
    (other / "features" / "manifest.json").write_text("{}")
    schema = json.loads((served_world.workdir / "features" / "schema.json").read_text())
    (schema.get("schema") or schema)["user"][0]["name"] = "country"
    (other / "features" / "schema.json").write_text(json.dumps(schema))
    (tmp_path / "home" / "features").symlink_to(other / "features")
    line = _refusal({**served_world.environment, "LONGREC_HOME": str(tmp_path / "home")})
    assert (
        "another schema" in line
        and "user.region: missing" in line
        and "user.country: unexpected" in line
    )


@pytest.mark.slow
def test_damaged_weights_end_the_server_with_one_line(served_world, tmp_path) -> None:
    environment = {**served_world.environment, "BENTOML_HOME": str(tmp_path)}
    script = (
        "import bentoml, shutil, sys\nwith bentoml.models.create('longrec-ranker:damaged') as model:\n"
        "    shutil.copytree(sys.argv[1], model.path_of('bundle'))\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(served_world.path / "bundle")],
        env=environment,
        check=True,
    )
    weights = next(Path(tmp_path).rglob("model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "weights_sha256" in _refusal(environment)


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_not_started_for_ever(served_world) -> None:
    done = _serve({**served_world.environment, "LONGREC_THREADS": "0"})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "Error: longrec cannot serve: a forward pass needs a thread"
    )


@pytest.mark.slow
def test_a_gpu_that_is_not_there_is_told_in_one_line(served_world) -> None:
    environment = {**served_world.environment, "LONGREC_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    assert "no GPU is available" in _refusal(environment)
