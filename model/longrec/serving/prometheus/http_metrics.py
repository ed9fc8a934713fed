"""HTTP metrics: requests by route and status, with a bounded number of series.

A caller can ask for any path. Only paths of the service's own routes become labels; every other
path, with or without a token, is OTHER_PATHS. The names are those of BentoML's own metrics.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

from longrec.serving.auth import App, Message, Scope, Send
from longrec.serving.prometheus.exemplars import worker_exemplars
from longrec.tracing import Trace, current_trace

OTHER_PATHS = "other"
"""Label of every path that is no route."""
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60)
DURATION = "bentoml_service_request_duration_seconds"
TIMED_OUT = 504
FAILED = 500


class HttpMetrics:
    """Prometheus metrics of the requests of one worker.

    Args:
        registry: a prometheus_client registry; None for that of the process.
    """

    def __init__(self, registry: Any = None) -> None:
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram

        options: dict[str, Any] = {"registry": registry or REGISTRY}
        self._exemplars = worker_exemplars()
        self._requests = Counter(
            "bentoml_service_request_total",
            "Requests by route and status.",
            ["endpoint", "http_response_code"],
            **options,
        )
        self._seconds = Histogram(
            DURATION,
            "Time of a request, by route and status; rejections at the gate have none.",
            ["endpoint", "http_response_code"],
            buckets=SECONDS,
            **options,
        )
        self._in_progress = Gauge(
            "bentoml_service_request_in_progress",
            "Requests in work, by route.",
            ["endpoint"],
            multiprocess_mode="livesum",
            **options,
        )

    def create_series(self, endpoint: str) -> None:
        """Create the series of a route, so its rates are known from the first request on."""
        self._requests.labels(endpoint, 200)
        self._seconds.labels(endpoint, 200)
        self._in_progress.labels(endpoint)

    def track(self, endpoint: str) -> Any:
        """Return a context manager that counts a request in work."""
        return self._in_progress.labels(endpoint).track_inprogress()

    def count(self, endpoint: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(endpoint, status).inc()

    def observe(
        self,
        endpoint: str,
        status: int,
        seconds: float,
        trace: Trace | None = None,
    ) -> None:
        """Count a request that reached the application, and observe its time."""
        self.count(endpoint, status)
        self._seconds.labels(endpoint, status).observe(seconds)
        if trace is None:
            return
        self._exemplars.add(
            DURATION,
            {"endpoint": endpoint, "http_response_code": str(status)},
            seconds,
            bounds=SECONDS,
            trace=trace,
        )
        self._exemplars.write()


class EndpointLabels:
    """Label of each path: the route it belongs to, or OTHER_PATHS.

    Args:
        routes: Starlette routes of the application, those of mounted applications included.
    """

    def __init__(self, routes: Sequence[Any]) -> None:
        patterns = dict(_route_patterns(routes, ""))
        self.has_routes = bool(patterns)
        self.names = [*patterns, OTHER_PATHS]
        self._exact = frozenset(name for name, pattern in patterns.items() if pattern is None)
        self._patterns = tuple(
            (name, pattern) for name, pattern in patterns.items() if pattern is not None
        )

    def label(self, path: str) -> str:
        """Return the label of a path."""
        if path in self._exact:
            return path
        for name, pattern in self._patterns:
            if pattern.match(path):
                return name
        return OTHER_PATHS


class HttpTraffic:
    """HTTP metrics and route labels of one worker.

    They are made at its first request: the worker has set the folder of its metrics by then.

    Args:
        registry: a prometheus_client registry; None for that of the process.
    """

    def __init__(self, registry: Any = None) -> None:
        self._registry = registry
        self._labels = EndpointLabels([])

    @functools.cached_property
    def metrics(self) -> HttpMetrics:
        """The metrics."""
        return HttpMetrics(self._registry)

    def label(self, scope: Scope) -> str:
        """Return the label of a request; the first one creates the series of all routes."""
        if not self._labels.has_routes:
            self._labels = EndpointLabels(scope["app"].routes)
            for name in self._labels.names:
                self.metrics.create_series(name)
        return self._labels.label(scope["path"])

    def count_rejected(self, path: str, status: int) -> None:
        """Count a request that was rejected before it reached the application."""
        self.metrics.count(self._labels.label(path), status)


class HttpMetricsMiddleware:
    """ASGI middleware that observes each HTTP request.

    Args:
        app: the application behind it.
        traffic: of the worker.
    """

    def __init__(self, app: App, traffic: HttpTraffic) -> None:
        self._app = app
        self._traffic = traffic

    async def __call__(
        self,
        scope: Scope,
        receive: Any,
        send: Send,
    ) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        endpoint = self._traffic.label(scope)
        metrics = self._traffic.metrics
        started = perf_counter()
        status = 0

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with metrics.track(endpoint):
                await self._app(scope, receive, send_and_note_status)
        except asyncio.CancelledError:
            # BentoML cancels a request that takes too long, and answers it itself.
            status = status or TIMED_OUT
            raise
        finally:
            seconds = perf_counter() - started
            metrics.observe(
                endpoint,
                status or FAILED,
                seconds,
                current_trace(),
            )


def _route_patterns(
    routes: Sequence[Any], prefix: str
) -> Iterator[tuple[str, re.Pattern[str] | None]]:
    """Yield each route's name and the pattern of its paths; None where the name is the only path.

    A route with parameters has the name that declares it, `/tasks/{name}`, and a mounted
    application without known routes `/folder/*`.
    """
    from starlette.routing import compile_path

    for route in routes:
        path = prefix + route.path
        inner = getattr(getattr(route, "app", None), "routes", None)
        is_mount = hasattr(route, "routes")
        if is_mount and inner is not None:
            yield from _route_patterns(inner, path)
        elif is_mount:
            yield f"{path}/*", re.compile(re.escape(f"{path}/"))
        elif "{" in path:
            yield path, compile_path(path)[0]
        else:
            yield path, None
