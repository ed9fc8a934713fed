"""HTTP metrics have a series for each route, and none for paths that callers make up."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from longrec.serving.auth import AuthMiddleware, Tokens
from longrec.serving.prometheus.http_metrics import (
    OTHER_PATHS,
    HttpMetricsMiddleware,
    HttpTraffic,
)

TOKEN = "a-token-that-is-long-enough"
REQUESTS = "bentoml_service_request_total"


async def answer(request) -> PlainTextResponse:
    return PlainTextResponse("yes")


async def fail(request) -> PlainTextResponse:
    raise RuntimeError("broken")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def traffic(registry: CollectorRegistry) -> HttpTraffic:
    return HttpTraffic(registry)


@pytest.fixture
def client(traffic: HttpTraffic, tmp_path) -> httpx.AsyncClient:
    page = Starlette(routes=[Route("/page", answer)])
    routes = [
        Route("/rank", answer, methods=["POST"]),
        Route("/broken", fail),
        Route("/tasks/{name}", answer),
        Mount("/static", StaticFiles(directory=tmp_path)),
        Mount("", page),
    ]
    tokens = Tokens({"LONGREC_TOKEN": TOKEN})
    middleware = [
        Middleware(HttpMetricsMiddleware, traffic=traffic),
        Middleware(AuthMiddleware, tokens=tokens),
    ]
    app = Starlette(routes=routes, middleware=middleware)
    headers = {"authorization": f"Bearer {TOKEN}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)


def count(registry: CollectorRegistry, endpoint: str, status: int) -> float | None:
    """Return the number of requests of a route with a status."""
    labels = {"endpoint": endpoint, "http_response_code": str(status)}
    return registry.get_sample_value(REQUESTS, labels)


def num_series(registry: CollectorRegistry) -> int:
    return sum(len(metric.samples) for metric in registry.collect())


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "endpoint", "status"),
    [
        ("POST", "/rank", "/rank", 200),
        ("GET", "/rank", "/rank", 404),
        ("GET", "/page", "/page", 200),
        ("GET", "/broken", "/broken", 500),
        ("GET", "/tasks/a", "/tasks/{name}", 200),
        ("GET", "/tasks/a/b", OTHER_PATHS, 404),
        ("GET", "/static/a.js", "/static/*", 404),
        ("GET", "/nothing", OTHER_PATHS, 404),
        ("GET", "/rankings", OTHER_PATHS, 404),
    ],
)
async def test_a_request_counts_for_its_route(
    client: httpx.AsyncClient,
    registry: CollectorRegistry,
    method: str,
    path: str,
    endpoint: str,
    status: int,
) -> None:
    answered = await client.request(method, path)
    assert answered.status_code == status
    assert count(registry, endpoint, status) == 1


@pytest.mark.anyio
async def test_a_refused_token_counts_for_the_route_too(
    client: httpx.AsyncClient,
    registry: CollectorRegistry,
) -> None:
    del client.headers["authorization"]
    await client.post("/rank")
    await client.post("/nothing")
    assert count(registry, "/rank", 401) == 1
    assert count(registry, OTHER_PATHS, 401) == 1


@pytest.mark.anyio
async def test_paths_that_callers_make_up_add_no_series(
    client: httpx.AsyncClient,
    registry: CollectorRegistry,
) -> None:
    async def ask(number: int) -> None:
        await client.get(f"/made-up-{number}")
        await client.get(f"/static/{number}")
        await client.get(f"/tasks/{number}")
        await client.get("/made-up", headers={"authorization": f"Bearer {number}"})

    await ask(0)
    before = num_series(registry)
    for number in range(1, 200):
        await ask(number)
    assert num_series(registry) == before
    assert count(registry, OTHER_PATHS, 404) == 200


@pytest.mark.anyio
async def test_every_route_has_series_from_the_first_request_on(
    client: httpx.AsyncClient,
    registry: CollectorRegistry,
) -> None:
    await client.get("/page")
    for endpoint in ("/rank", "/page", "/static/*", OTHER_PATHS):
        assert count(registry, endpoint, 200) is not None


@pytest.mark.anyio
async def test_no_request_stays_in_work(
    client: httpx.AsyncClient,
    registry: CollectorRegistry,
) -> None:
    for path in ("/page", "/broken", "/nothing"):
        await client.get(path)
        labels = {"endpoint": path if path != "/nothing" else OTHER_PATHS}
        name = "bentoml_service_request_in_progress"
        assert registry.get_sample_value(name, labels) == 0


@pytest.mark.anyio
async def test_a_rejection_before_the_application_counts_for_its_route(
    client: httpx.AsyncClient,
    traffic: HttpTraffic,
    registry: CollectorRegistry,
) -> None:
    traffic.count_rejected("/rank", 503)  # no request has told the routes yet
    await client.get("/page")
    traffic.count_rejected("/rank", 429)
    traffic.count_rejected("/made-up", 503)
    assert count(registry, "/rank", 429) == 1
    assert count(registry, OTHER_PATHS, 503) == 2
