"""BentoML's own clients, against a real `bentoml serve`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import bentoml
import httpx
import pyarrow as pa
import pytest
from bentoml.exceptions import BentoMLException

from bento.schemas import ExplainRequestBody, RankRequestBody
from longrec.serving.arrow_codec import write_request
from tests.bento.requests_and_scores import LATE_MS, rank


@pytest.fixture(scope="module")
def bento_client(server: str) -> Iterator[bentoml.SyncHTTPClient]:
    with bentoml.SyncHTTPClient(server, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def request_fields(user, items) -> dict:
    return {"user_id": user.id, "candidates": items, "request_time": LATE_MS}


@pytest.fixture(scope="module")
def explain_fields(user, items) -> dict:
    return {"user_id": user.id, "candidate": items[0], "top": 3, "request_time": LATE_MS}


def explain(client: httpx.Client, **body: object) -> dict:
    """Return the answer of POST /explain."""
    return client.post("/explain", json=body).raise_for_status().json()


def test_keywords_have_the_answers_of_json(bento_client, client, request_fields) -> None:
    expected = rank(client, **request_fields)
    assert bento_client.rank(**request_fields) == expected
    shorter = {**request_fields, "length": 5}
    assert bento_client.rank(**shorter) == rank(client, **shorter) != expected


def test_one_object_has_the_answers_of_json(bento_client, client, request_fields) -> None:
    expected = rank(client, **request_fields)
    assert bento_client.rank(request_fields) == expected
    assert bento_client.rank(request=request_fields) == expected


def test_explanations_have_the_answers_of_json(bento_client, client, explain_fields) -> None:
    expected = explain(client, **explain_fields)
    assert bento_client.explain(**explain_fields) == expected
    assert bento_client.explain(explain_fields) == expected


def test_the_asynchronous_client(server, client, request_fields, explain_fields) -> None:
    async def call() -> list[dict]:
        async with bentoml.AsyncHTTPClient(server, timeout=60) as bento_client:
            return [
                await bento_client.rank(**request_fields),
                await bento_client.rank(request_fields),
                await bento_client.explain(**explain_fields),
            ]

    ranked = rank(client, **request_fields)
    assert asyncio.run(call()) == [ranked, ranked, explain(client, **explain_fields)]


def test_a_history_of_ones_own_as_a_keyword(bento_client, client, request_fields, items) -> None:
    history = {"item_id": items[:2], "timestamp": [LATE_MS - 2, LATE_MS - 1]}
    fields = {**request_fields, "history": history}
    assert bento_client.rank(**fields) == rank(client, **fields)


def test_arrow_in_and_out(bento_client, client, request_fields, items) -> None:
    parameters = {name: request_fields[name] for name in ("user_id", "request_time")}
    answer = bento_client.rank_arrow(write_request(items, parameters))
    scores = pa.ipc.open_stream(answer).read_all().column("label").to_pylist()
    assert scores == pytest.approx(rank(client, **request_fields)["scores"]["label"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"user_id": 1}, "candidates: Field required"),
        ({"user_id": 1, "candidates": []}, "candidates: "),
        ({"request": {"user_id": 1}}, "candidates: Field required"),
        ({"request": {"user_id": 1, "candidates": [1]}, "user_id": 1}, "candidates: "),
        ({"request": {"request": {"user_id": 1, "candidates": [1]}}}, "user_id: "),
        ({"request": None}, "user_id: "),
        ({"request": 5}, "user_id: "),
        ({}, "user_id: "),
    ],
)
def test_a_bad_call_is_refused_with_the_name_of_the_field(
    bento_client,
    fields: dict,
    message: str,
) -> None:
    with pytest.raises(BentoMLException, match=message) as raised:
        bento_client.rank(**fields)
    assert raised.value.error_code == 400


def test_a_misspelt_keyword_is_refused(bento_client) -> None:
    with pytest.raises(TypeError, match="candidate_ids"):
        bento_client.rank(user_id=1, candidate_ids=[1])


def test_a_caller_with_the_code_of_the_service_uses_both_forms_too() -> None:
    """`bentoml.depends(Ranker)` makes the body in the caller's process."""
    fields = {"user_id": 1, "candidates": [1, 2], "length": 5}
    body = RankRequestBody.from_inputs(**fields)
    assert body == RankRequestBody.from_inputs(fields) == RankRequestBody(**fields)
    assert RankRequestBody.from_inputs(request=fields) == body
    assert ExplainRequestBody.from_inputs(user_id=1, candidate=3).candidate == 3
    with pytest.raises(TypeError, match="either one object or keywords"):
        RankRequestBody.from_inputs(fields, user_id=2)
