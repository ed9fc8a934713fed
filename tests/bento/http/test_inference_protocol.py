"""Requests of the Open Inference Protocol: what is read, and what is refused with its reason."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from bento.errors import HttpError
from bento.inference_protocol import BINARY_REFUSED, Backend, InferenceProtocol, ToResponse
from bento.schemas import RankRequestBody

MODEL = "/v2/models/ranker"
USER = {"name": "user_id", "shape": [1], "datatype": "INT64", "data": [1]}
ITEMS = {"name": "candidates", "shape": [2], "datatype": "INT64", "data": [2, 3]}
TOO_MANY = "candidates: should have at most 2048 items, not 2049"
ANSWER = {
    "scores": {"click": [0.5, 0.25], "like": [0.1, 0.2]},
    "model_version": "v1",
    "store_version": "s1",
    "user_known": True,
    "history_length": 7,
    "unknown_candidates": 0,
    "unknown_events": {"item_id": 0},
    "degraded": False,
}


class FakeModels:
    """Models whose version may change during a request."""

    version = "v1"

    @contextlib.contextmanager
    def acquire(self) -> Iterator[tuple[str, Any]]:
        schema = SimpleNamespace(text_ids=("item",))
        scorer = SimpleNamespace(
            bundle=SimpleNamespace(schema=schema),
            task_names=["click", "like"],
        )
        yield self.version, SimpleNamespace(scorer=scorer)


class Service:
    """A service with the protocol that remembers the last body of /rank."""

    def __init__(self) -> None:
        self.protocol = InferenceProtocol("ranker")
        self.protocol.backend = Backend(FakeModels(), self.respond)
        self.body: RankRequestBody | None = None
        self.answer = ANSWER

    async def respond(self, body: RankRequestBody | HttpError, to_response: ToResponse) -> Response:
        if isinstance(body, HttpError):
            return body.to_response()
        self.body = body
        return to_response(self.answer)

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Return the response to a request."""

        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self.protocol.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await client.request(method, path, **options)

        return asyncio.run(call())

    def infer(self, *inputs: dict, **fields: Any) -> httpx.Response:
        """Return the response to a request for scores."""
        return self.call("POST", f"{MODEL}/infer", json={"inputs": inputs, **fields})


@pytest.fixture
def service() -> Service:
    return Service()


def test_tensors_become_the_body_of_rank(service: Service) -> None:
    text = {"name": "request_time", "shape": [1], "datatype": "BYTES"}
    length = {"name": "length", "shape": [1, 1], "datatype": "INT64", "data": [9]}
    batch = {**ITEMS, "shape": [1, 2]}
    service.infer(USER, batch, {**text, "data": ["2024-05-01T00:00:00Z"]}, length)
    assert service.body == RankRequestBody(
        user_id=1,
        candidates=[2, 3],
        request_time="2024-05-01T00:00:00Z",
        length=9,
    )


def test_an_answer_has_a_tensor_for_each_task_and_its_facts(service: Service) -> None:
    answer = service.infer(USER, ITEMS, id="42").json()
    assert answer == {
        "model_name": "ranker",
        "model_version": "v1",
        "id": "42",
        "parameters": {
            "store_version": "s1",
            "user_known": True,
            "history_length": 7,
            "unknown_candidates": 0,
            "degraded": False,
        },
        "outputs": [
            {"name": "click", "datatype": "FP32", "shape": [2], "data": [0.5, 0.25]},
            {"name": "like", "datatype": "FP32", "shape": [2], "data": [0.1, 0.2]},
        ],
    }


def test_a_request_chooses_its_outputs(service: Service) -> None:
    answer = service.infer(USER, ITEMS, outputs=[{"name": "like"}]).json()
    assert [output["name"] for output in answer["outputs"]] == ["like"]
    refused = service.infer(USER, ITEMS, outputs=[{"name": "buy"}])
    assert refused.status_code == 400
    assert refused.json()["error"] == "outputs: there is no 'buy'; expected click, like"


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([], "inputs: List should have at least 1 item"),
        ([USER], "candidates: Field required"),
        ([ITEMS], "user_id: Field required"),
        ([USER, ITEMS, ITEMS], "candidates: comes twice"),
        ([USER, {**ITEMS, "name": "items"}], "inputs[1].name"),
        ([USER, {**ITEMS, "shape": [3]}], "candidates: shape [3] is not that of its 2 values"),
        ([USER, {**ITEMS, "shape": [-1, -2]}], "candidates: shape [-1, -2] is not"),
        ([USER, {**ITEMS, "shape": []}], "inputs[1].shape"),
        ([USER, {**ITEMS, "shape": [10**400]}], "inputs[1].shape"),
        ([USER, {**ITEMS, "shape": [2_049], "data": [1] * 2_049}], TOO_MANY),
        ([USER, {**ITEMS, "shape": [1], "data": [1] * 2_049}], TOO_MANY),
        ([USER, {**ITEMS, "shape": [0], "data": []}], "candidates: "),
        ([USER, {**ITEMS, "data": [[2, 3]]}], "candidates: shape [2] is not that of its 1 values"),
        ([USER, {**ITEMS, "data": [2, 3.5]}], "candidates: not every value is INT64"),
        ([USER, {**ITEMS, "data": [2, True]}], "candidates: not every value is INT64"),
        ([USER, {**ITEMS, "data": [2, "3"]}], "candidates: not every value is INT64"),
        ([USER, {**ITEMS, "data": [2, None]}], "candidates: not every value is INT64"),
        ([USER, {**ITEMS, "datatype": "BYTES"}], "candidates: not every value is BYTES"),
        ([USER, {**ITEMS, "datatype": "FP32"}], "inputs[1].datatype"),
        ([USER, {**ITEMS, "data": [2, 2**63]}], "candidates[1]: "),
        ([{**USER, "shape": [2], "data": [1, 2]}, ITEMS], "user_id: expected one value"),
        ([USER, ITEMS, {**USER, "name": "length", "data": [-1]}], "length: "),
    ],
)
def test_a_bad_tensor_is_refused_by_name(service: Service, inputs: list, reason: str) -> None:
    response = service.infer(*inputs)
    assert response.status_code == 400
    assert response.json()["error"].startswith(reason), response.text
    assert service.body is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"inputs": 1}'])
def test_a_body_that_is_no_request_is_refused(service: Service, content: bytes) -> None:
    response = service.call("POST", f"{MODEL}/infer", content=content)
    assert response.status_code == 400
    assert response.json()["error"]


def test_binary_tensors_are_refused_with_what_to_do(service: Service) -> None:
    headers = {"Inference-Header-Content-Length": "2"}
    response = service.call("POST", f"{MODEL}/infer", content=b"{}\0\0", headers=headers)
    assert (response.status_code, response.json()) == (400, {"error": BINARY_REFUSED})


@pytest.mark.parametrize(
    "path",
    ["/v2/models/other", f"{MODEL}/versions/v0", f"{MODEL}/versions/v0/ready"],
)
def test_another_model_or_version_is_not_found(service: Service, path: str) -> None:
    response = service.call("GET", path)
    assert response.status_code == 404
    assert "ranker" in response.json()["error"] or "'v1' does" in response.json()["error"]


def test_a_version_that_is_replaced_during_the_request_is_not_found(service: Service) -> None:
    service.answer = {**ANSWER, "model_version": "v2"}
    path = f"{MODEL}/versions/v1/infer"
    response = service.call("POST", path, json={"inputs": [USER, ITEMS]})
    assert response.status_code == 404
    assert response.json()["error"] == "version 'v1' does not answer here; 'v2' does"


def test_ids_that_are_texts_are_bytes(service: Service) -> None:
    inputs = service.call("GET", MODEL).json()["inputs"]
    assert inputs == [
        {"name": "user_id", "datatype": "INT64", "shape": [1]},
        {"name": "candidates", "datatype": "BYTES", "shape": [-1]},
    ]


def test_before_the_service_is_ready_it_says_so(service: Service) -> None:
    service.protocol.backend = None
    assert service.call("GET", "/v2/health/live").status_code == 200
    assert service.call("GET", "/v2/health/ready").status_code == 503
    assert service.call("GET", f"{MODEL}/ready").status_code == 503
    assert service.infer(USER, ITEMS).status_code == 503


def test_an_output_that_comes_twice_is_refused(service: Service) -> None:
    outputs = [{"name": "click"}, {"name": "click"}]
    response = service.infer(USER, ITEMS, outputs=outputs)
    assert response.status_code == 400
    assert "outputs: a name comes twice" in response.text
