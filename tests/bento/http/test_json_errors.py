"""Every error is an object with the key `error`, and no path is redirected."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from bento.json_errors import JsonErrorsMiddleware

SCORES = JSONResponse({"scores": {}})


def send(
    method: str,
    path: str,
    answer: Response = SCORES,
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    """Return the response of an application whose POST /rank gives an answer."""

    async def endpoint(_: Any) -> Response:
        return answer

    app = Starlette(
        routes=[Route("/rank", endpoint, methods=["POST"])],
        middleware=[Middleware(JsonErrorsMiddleware)],
    )

    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(request())


def assert_error(response: httpx.Response, status: int, reason: str) -> None:
    """Assert that an answer is an error in the form of all errors."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.content)
    assert list(response.json()) == ["error"]
    assert reason in response.json()["error"]


def test_an_answer_stays_as_it_is() -> None:
    response = send("POST", "/rank")
    assert response.status_code == 200
    assert response.json() == {"scores": {}}


def test_an_unknown_path_is_named() -> None:
    assert_error(send("POST", "/score"), 404, "'/score'")


def test_another_method_is_named_with_those_that_are_allowed() -> None:
    response = send("GET", "/rank")
    assert_error(response, 405, "GET is not allowed here; allowed: POST")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("host", ["127.0.0.1", "elsewhere.example"])
def test_a_path_with_a_slash_at_its_end_is_not_redirected(host: str) -> None:
    response = send("POST", "/rank/", headers={"host": host})
    assert_error(response, 404, "no path ends with a slash")
    assert "location" not in response.headers


def test_a_long_path_is_shortened() -> None:
    response = send("GET", "/" + "x" * 5000)
    assert len(response.json()["error"]) < 150


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (JSONResponse({"error": "field: reason"}, 400), "field: reason"),
        (JSONResponse([{"error": "in a list"}], 415), "in a list"),
        (JSONResponse({"error": "short", "detail": ["long"]}, 400), "short"),
        (JSONResponse({"detail": "unlike"}, 400), "bad request"),
        (JSONResponse({"error": ["unlike"]}, 400), "bad request"),
        (JSONResponse([], 400), "bad request"),
        (JSONResponse("unlike", 500), "internal server error"),
        (PlainTextResponse("Internal Server Error", 500), "internal server error"),
        (PlainTextResponse("", 503), "service unavailable"),
        (Response(b"\xff\xfe", 400), "bad request"),
        (StreamingResponse(iter(["[{", '"error": "parts"}]']), 400), "parts"),
    ],
)
def test_every_error_has_the_same_form(answer: Response, reason: str) -> None:
    assert_error(send("POST", "/rank", answer), answer.status_code, reason)


def test_the_headers_of_an_error_stay() -> None:
    answer = PlainTextResponse("wait", 503, headers={"Retry-After": "2"})
    response = send("POST", "/rank", answer)
    assert response.headers["retry-after"] == "2"
