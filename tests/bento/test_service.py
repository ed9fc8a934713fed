"""POST /rank and /explain, against a real `bentoml serve` with a real Feast online store."""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import json
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pyarrow as pa
import pytest
from openapi_spec_validator import OpenAPIV30SpecValidator

from longrec.data import history
from longrec.data.store.versions import PublishedVersion
from longrec.serving.arrow_codec import write_request
from tests.bento.requests_and_scores import (
    LATE_MS,
    TOLERANCE,
    UNKNOWN_ITEM,
    UNKNOWN_USER,
    assert_scores,
    now_ms,
    rank,
    score_events,
    score_user,
)
from tests.conftest import LENGTH, VERSION

GOOD = {"user_id": 1, "candidates": [1, 2]}
DAY_MS = 86_400_000


def test_an_answer_has_scores_per_task_in_the_order_of_the_request(
    client,
    scorer,
    served_world,
    user,
    items,
) -> None:
    request_time = int(history.timestamps(user.timeline)[-1]) + 1
    answer = rank(client, user_id=user.id, candidates=items, request_time=request_time)
    assert list(answer) == [
        "scores",
        "model_version",
        "store_version",
        "user_known",
        "history_length",
        "unknown_candidates",
        "unknown_events",
        "degraded",
    ]
    assert list(answer["scores"]) == ["label"]
    assert answer["model_version"] == VERSION
    assert (
        answer["store_version"] == PublishedVersion.open(served_world.workdir).manifest["version"]
    )
    assert answer["user_known"] is True
    assert answer["unknown_candidates"] == 0
    assert answer["degraded"] is False
    # The user has more events than the served length.
    assert answer["history_length"] == min(LENGTH, user.timeline.num_rows) == LENGTH
    assert_scores(answer, score_user(scorer, user, items, request_time))
    spread = np.ptp(answer["scores"]["label"])
    assert spread > 1e-4, "all scores are the same: nothing was tested"


def test_the_order_of_candidates_and_repeated_ones(client, user, items) -> None:
    request = {"user_id": user.id, "request_time": LATE_MS}
    forward = rank(client, **request, candidates=items)["scores"]["label"]
    backward = rank(client, **request, candidates=items[::-1])
    assert_scores(backward, forward[::-1])
    repeated = rank(
        client,
        **request,
        candidates=[items[0]] * 3,
    )
    assert_scores(repeated, [forward[0]] * 3)


def test_an_event_at_the_request_time_is_not_used(client, scorer, user, items) -> None:
    times = history.timestamps(user.timeline)
    event_time = int(times[20])
    request = {"user_id": user.id, "candidates": items}
    at = rank(client, **request, request_time=event_time)
    after = rank(client, **request, request_time=event_time + 1)
    assert at["history_length"] == int((times < event_time).sum()) <= 20
    assert after["history_length"] == int((times <= event_time).sum()) > at["history_length"]
    assert_scores(at, score_user(scorer, user, items, event_time))
    assert_scores(after, score_user(scorer, user, items, event_time + 1))
    is_equal = np.allclose(
        at["scores"]["label"],
        after["scores"]["label"],
        atol=1e-5,
    )
    assert not is_equal, "the event makes no difference: nothing was tested"


def test_a_request_time_may_be_a_text(client, user, items) -> None:
    request_time = int(history.timestamps(user.timeline)[10])
    request = {"user_id": user.id, "candidates": items}
    exact = rank(client, **request, request_time=request_time)
    time_utc = datetime.datetime.fromtimestamp(request_time / 1000, datetime.UTC)
    other_zone = datetime.timezone(datetime.timedelta(hours=-7))
    to_seconds = time_utc.strftime("%Y-%m-%dT%H:%M:%S.")
    milliseconds = f"{request_time % 1000:03d}"
    for text in (
        time_utc.isoformat(timespec="milliseconds"),
        f"{to_seconds}{milliseconds}Z",
        time_utc.astimezone(other_zone).isoformat(timespec="milliseconds"),
        f"{to_seconds}{milliseconds}999Z",
    ):
        assert rank(client, **request, request_time=text) == exact, text


def test_the_default_request_time_is_now(client, scorer, user, items) -> None:
    before = score_user(scorer, user, items, now_ms())
    answer = rank(client, user_id=user.id, candidates=items)
    after = score_user(scorer, user, items, now_ms())  # rarely another hour has begun
    assert answer["history_length"] == LENGTH
    differences = [np.abs(answer["scores"]["label"] - now).max() for now in (before, after)]
    assert min(differences) < 1e-4
    later = score_user(
        scorer,
        user,
        items,
        now_ms() + DAY_MS // 2,
    )
    difference = np.abs(later - after).max()
    assert difference > 1e-4, "the request time makes no difference: nothing was tested"


def test_the_length_selects_the_most_recent_events(client, scorer, user, items) -> None:
    request_time = int(history.timestamps(user.timeline)[-1]) + 1
    request = {"user_id": user.id, "candidates": items, "request_time": request_time}
    first_scores = set()
    for length, num_used in ((0, 0), (7, 7), (10**6, user.timeline.num_rows)):
        answer = rank(client, **request, length=length)
        assert answer["history_length"] == num_used
        assert_scores(answer, score_user(scorer, user, items, request_time, length))
        first_scores.add(round(answer["scores"]["label"][0], 5))
    assert len(first_scores) == 3


def test_an_unknown_user_is_scored_with_an_empty_history(client, scorer, items) -> None:
    answer = rank(client, user_id=UNKNOWN_USER, candidates=items, request_time=LATE_MS)
    facts = (answer["user_known"], answer["history_length"], answer["degraded"])
    assert facts == (False, 0, False)
    assert_scores(
        answer,
        score_events(
            scorer,
            history.empty(scorer.bundle.schema),
            items,
        ),
    )


def test_a_known_user_before_the_first_event_has_an_empty_history(client, user, items) -> None:
    first = int(history.timestamps(user.timeline)[0])
    answer = rank(client, user_id=user.id, candidates=items, request_time=first)
    assert (answer["user_known"], answer["history_length"]) == (True, 0)
    assert np.isfinite(answer["scores"]["label"]).all()


def test_unknown_items_are_scored_as_the_unknown_item(client, user, items) -> None:
    request = {"user_id": user.id, "request_time": LATE_MS}
    answer = rank(
        client,
        **request,
        candidates=[UNKNOWN_ITEM, items[0], 2**63 - 1],
    )
    scores = answer["scores"]["label"]
    assert answer["unknown_candidates"] == 2
    np.testing.assert_allclose(
        scores[0],
        scores[2],
        atol=TOLERANCE,
    )
    assert abs(scores[1] - scores[0]) > 1e-5
    known = rank(client, **request, candidates=[items[0]])
    assert_scores(known, scores[1:2])


def test_requests_at_the_same_time_do_not_mix(client, histories, items) -> None:
    users = histories.users.column("user_id").to_pylist()[:8] * 3

    def rank_late(user_id: int) -> dict:
        return rank(client, user_id=user_id, candidates=items, request_time=LATE_MS)

    alone = {user_id: rank_late(user_id) for user_id in set(users)}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(rank_late, users))
    for user_id, answer in zip(users, together, strict=True):
        # What is scored together is rounded together.
        assert_scores(answer, alone[user_id]["scores"]["label"])
        assert {**answer, "scores": 0} == {**alone[user_id], "scores": 0}
    assert len({answer["scores"]["label"][0] for answer in together}) > 4


def test_a_body_that_is_too_large_is_rejected_unread(client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b" " * 10_000

    # The server may stop listening while the body is being sent.
    with contextlib.suppress(httpx.TransportError):
        assert client.post("/rank", content=endless()).status_code == 413
    assert client.post("/rank", content=b" " * 10_000_000).status_code == 413
    assert client.get("/readyz").status_code == 200


def test_the_largest_request(client) -> None:
    answer = rank(
        client,
        user_id=-(2**63),
        candidates=[-(2**63) + number for number in range(2048)],
        request_time=4_102_444_799_999,
        length=2**63 - 1,
    )
    assert len(answer["scores"]["label"]) == 2048


@pytest.mark.parametrize("content_type", [None, "application/json; charset=utf-8"])
def test_a_body_is_json_unless_it_says_otherwise(client, content_type) -> None:
    headers = {"content-type": content_type} if content_type else {}
    assert client.post("/rank", content=json.dumps(GOOD), headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs.json", "/livez", "/readyz", "/metrics"])
def test_head_has_the_status_of_get_without_a_body(client, path) -> None:
    response = client.head(path)
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE"])
def test_another_method_is_refused_with_the_right_one(client, method) -> None:
    response = client.request(method, "/rank")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_no_other_site_may_read_answers(client) -> None:
    headers = {"origin": "https://elsewhere.example"}
    response = client.post("/rank", json=GOOD, headers=headers)
    assert "access-control-allow-origin" not in response.headers
    preflight = {**headers, "access-control-request-method": "POST"}
    assert client.options("/rank", headers=preflight).status_code == 405


def test_an_upgrade_to_http_2_has_the_answer_of_http_1(client, user, items) -> None:
    """The JDK's client and `curl --http2` send these headers with each first request."""
    body = {"user_id": user.id, "candidates": items, "request_time": LATE_MS}
    headers = {
        "connection": "Upgrade, HTTP2-Settings",
        "upgrade": "h2c",
        "http2-settings": "AAMAAABkAAQAoAAAAAIAAAAA",
    }
    response = client.post("/rank", json=body, headers=headers)
    assert response.status_code == 200, response.text
    assert response.json() == rank(client, **body)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/rank", 405),
        ("POST", "/livez", 405),
        ("POST", "/score", 404),
        ("POST", "/rank/", 404),
        ("GET", "/docs/", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/static_content", 404),
        ("GET", "/static_content/none.js", 404),
    ],
)
def test_other_methods_and_paths_are_refused_as_json(client, method, path, status) -> None:
    response = client.request(method, path, headers={"host": "elsewhere.example"})
    assert response.status_code == status, response.headers
    assert list(response.json()) == ["error"]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_pickles_are_refused_as_json(client) -> None:
    pickle = {"content-type": "application/vnd.bentoml+pickle"}
    response = client.post("/rank", content=b"x", headers=pickle)
    assert response.status_code == 415
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/metrics", "/docs.json"])
def test_standard_endpoints(client, path: str) -> None:
    assert client.get(path).status_code == 200


def test_the_interface_describes_itself(client) -> None:
    document = client.get("/docs.json").json()
    assert list(OpenAPIV30SpecValidator(document).iter_errors()) == []
    content = document["paths"]["/rank"]["post"]["requestBody"]["content"]["application/json"]
    answer = document["components"]["schemas"]["RankAnswer"]
    assert set(answer["properties"]) == set(rank(client, **GOOD))
    assert rank(client, **content["example"])


def test_unknown_values_of_a_history_are_counted_by_column(client, items) -> None:
    own = {
        "item_id": [items[0], UNKNOWN_ITEM, items[1]],
        "timestamp": [LATE_MS - 3, LATE_MS - 2, LATE_MS - 1],
        "action": ["never seen", "never seen either", None],
    }
    request = {"user_id": UNKNOWN_USER, "candidates": items, "request_time": LATE_MS}
    answer = rank(client, **request, history=own)
    assert answer["unknown_events"] == {"item_id": 1, "action": 2}
    shorter = rank(client, **request, history=own, length=1)
    assert shorter["unknown_events"] == {"item_id": 0, "action": 0}


def test_an_unreadable_feature_store_degrades_answers_until_it_recovers(
    client,
    served_world,
    user,
    items,
) -> None:
    request = {"user_id": user.id, "candidates": items, "request_time": LATE_MS}
    healthy = rank(client, **request)
    degraded = {**healthy, "degraded": True}
    link = served_world.workdir / "store" / "current"
    target = link.readlink()
    link.unlink()
    link.symlink_to("gone")
    try:
        assert rank(client, **request) == degraded  # the last rows read
        unknown = rank(client, **{**request, "user_id": UNKNOWN_USER - 1})
        facts = (unknown["degraded"], unknown["user_known"], unknown["history_length"])
        assert facts == (True, False, 0)
    finally:
        link.unlink()
        link.symlink_to(target)
    limit = time.monotonic() + 60
    while (answer := rank(client, **request)) != healthy:
        assert answer == degraded
        assert time.monotonic() < limit
        time.sleep(0.1)


def rank_arrow(
    client: httpx.Client,
    items: list[int],
    packed: bytes = b"",
    **parameters: int,
) -> pa.RecordBatch:
    """Return the answer of POST /rank_arrow."""
    response = client.post("/rank_arrow", content=write_request(items, parameters, packed))
    assert response.status_code == 200, response.text
    with pa.ipc.open_stream(response.content) as reader:
        return reader.read_next_batch()


def test_arrow_requests_have_the_answers_of_json_requests(client, user, items) -> None:
    parameters = {"user_id": user.id, "request_time": LATE_MS, "length": 20}
    batch = rank_arrow(client, items, **parameters)
    expected = rank(client, **parameters, candidates=items)
    assert_scores(expected, batch.column("label").to_numpy())
    metadata = batch.schema.metadata.items()
    facts = {name.decode(): value.decode() for name, value in metadata}
    assert facts == {
        "model_version": VERSION,
        "store_version": expected["store_version"],
        "user_known": "true",
        "history_length": "20",
        "unknown_candidates": "0",
        "unknown_events": json.dumps(expected["unknown_events"]),
        "degraded": "false",
    }


def test_an_arrow_request_may_hold_a_packed_history(client, scorer, user, items) -> None:
    events = user.timeline.slice(0, 9)
    packed = history.pack(events, scorer.bundle.schema)
    batch = rank_arrow(client, items, packed, user_id=UNKNOWN_USER, request_time=LATE_MS)
    expected = score_events(scorer, events, items)
    np.testing.assert_allclose(
        batch.column("label").to_numpy(),
        expected,
        atol=TOLERANCE,
    )


def test_inline_events_replace_the_stored_ones(client, scorer, user, items) -> None:
    request = {"user_id": user.id, "candidates": items}
    events = user.timeline.slice(3, 11)
    columns = {name: events.column(name).to_pylist() for name in events.schema.names}
    backwards = {name: values[::-1] for name, values in columns.items()}
    expected = score_events(scorer, events, items, user.features)
    for given in (columns, backwards):
        answer = rank(client, **request, request_time=LATE_MS, history=given)
        assert answer["history_length"] == 11
        assert_scores(answer, expected)
    # They are not cached.
    assert rank(client, **request, request_time=LATE_MS)["history_length"] == LENGTH
    nothing = {"item_id": [], "timestamp": []}
    assert rank(client, **request, history=nothing)["history_length"] == 0


def test_an_explanation_names_events_of_the_history_used(client, user, items) -> None:
    request = {"user_id": user.id, "request_time": LATE_MS}
    body = {**request, "candidate": items[0], "top": 5}
    answer = client.post("/explain", json=body).json()
    ranked = rank(client, **request, candidates=items[:1])
    assert_scores(answer, ranked["scores"]["label"])
    used = history.most_recent(user.timeline, LENGTH)
    used_items = used.column("item_id").to_pylist()
    used_times = used.column("timestamp").to_pylist()
    heads = [(part["layer"], part["head"]) for part in answer["attention"]]
    assert heads == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for part in answer["attention"]:
        weights = [event["weight"] for event in part["events"]]
        assert len(weights) == 5
        assert weights == sorted(weights, reverse=True)
        assert 5 / LENGTH <= sum(weights) <= 1.0001
        for event in part["events"]:
            assert event["item_id"] == used_items[event["row"]]
            assert event["timestamp"] == used_times[event["row"]]


def test_an_explanation_has_ids_as_texts_where_it_is_asked(client, items) -> None:
    large = str(2**53 + 1)
    body = {
        "user_id": large,
        "candidate": str(items[0]),
        "request_time": LATE_MS,
        "history": {"item_id": [large], "timestamp": [LATE_MS - 1]},
    }
    expected = {(2**53 + 1, None), (2**53 + 1, large)}
    seen = set()
    for fields in ({}, {"ids_as_text": False}, {"ids_as_text": True}):
        answer = client.post("/explain", json={**body, **fields}).json()
        for part in answer["attention"]:
            (event,) = part["events"]
            assert ("item_id_text" in event) == bool(fields.get("ids_as_text"))
            seen.add((event["item_id"], event.get("item_id_text")))
    assert seen == expected


def test_a_byte_order_mark_before_the_body_is_skipped(client) -> None:
    content = b"\xef\xbb\xbf" + json.dumps(GOOD).encode()
    response = client.post("/rank", content=content)
    assert response.status_code == 200, response.text


def test_the_explanation_of_an_unknown_user_is_empty(client, items) -> None:
    body = {"user_id": UNKNOWN_USER, "candidate": items[0]}
    answer = client.post("/explain", json=body).json()
    assert all(part["events"] == [] for part in answer["attention"])


def test_a_short_timeout_holds(client, user, items) -> None:
    body = {"user_id": user.id, "candidates": items * 100, "timeout_ms": 1}
    responses = [client.post("/rank", json=body) for _ in range(20)]
    assert {response.status_code for response in responses} <= {200, 408, 503}
    for response in responses:
        is_rejected = response.status_code == 503
        assert response.status_code == 200 or is_rejected == ("retry-after" in response.headers)


def read_metrics(client: httpx.Client) -> dict[str, float]:
    """Return the value of each series of longrec."""
    metrics = {}
    for line in client.get("/metrics").text.splitlines():
        if line.startswith("longrec_"):
            series, value = line.rsplit(" ", 1)
            metrics[series] = float(value)
    return metrics


def test_requests_are_counted(client, user, items) -> None:
    rank(client, user_id=user.id, candidates=items)
    before = read_metrics(client)
    rank(
        client,
        user_id=user.id,
        candidates=[*items, UNKNOWN_ITEM],
    )
    rank(client, user_id=UNKNOWN_USER - 7, candidates=items)
    after = read_metrics(client)
    change = {series: value - before.get(series, 0.0) for series, value in after.items()}
    assert change['longrec_candidates_total{known="yes"}'] == 2 * len(items)
    assert change['longrec_candidates_total{known="no"}'] == 1
    assert change['longrec_cache_requests_total{result="hit"}'] == 1
    assert change["longrec_history_events_count"] == 2
    assert change['longrec_stage_seconds_count{stage="fetch"}'] == 2
    assert change['longrec_stage_seconds_count{stage="score"}'] == 2
    assert change["longrec_newest_event_age_seconds_count"] == 1
    assert change['longrec_score_count{task="label"}'] >= 2 * 8
    assert change["longrec_cache_bytes"] == 0 < before["longrec_cache_bytes"]
    assert 'longrec_rejected_requests_total{reason="overload"}' in before
    assert 'longrec_degraded_total{history="cached"}' in before


def test_the_open_inference_protocol_is_off_by_default(client) -> None:
    assert client.get("/v2/health/ready").status_code == 404
    assert client.post("/v2/models/longrec-ranker/infer", json={}).status_code == 404
