"""Traces of requests: BentoML's instrumentation makes the span of each one, by our configuration.

BentoML instruments every request with OpenTelemetry's ASGI middleware, whose provider and excluded
paths come from internals of BentoML. Everything that touches these is here.
`tests/bento/test_traces.py` fails when they change.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from longrec import tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.sampling import Sampler

SERVICE = "longrec-ranker"
EXCLUDED_VARIABLE = "OTEL_PYTHON_EXCLUDED_URLS"
PROBES = "/livez$,/readyz$,/healthz$,/metrics$,/v2/health/[a-z]+$,/v2/models/.+/ready$"
"""Regular expressions of the paths without a span, unless EXCLUDED_VARIABLE names others."""


def install() -> None:
    """Let OpenTelemetry's variables configure the spans of requests; without them, do nothing.

    It must run before BentoML makes the application.
    """
    provider = tracing.start(SERVICE)
    if provider is None:
        return
    from bentoml._internal.configuration.containers import BentoMLContainer
    from opentelemetry.util.http import parse_excluded_urls

    # Tracers take the sampler when they are made.
    provider.sampler = _recording(provider.sampler)
    tracing.use(provider)
    excluded = os.environ.get(EXCLUDED_VARIABLE, PROBES)
    BentoMLContainer.tracer_provider.set(provider)
    BentoMLContainer.tracing_excluded_urls.set(parse_excluded_urls(excluded))


def _recording(sampler: Sampler) -> Sampler:
    """Return a sampler that records what another one drops; it is not sent.

    BentoML's access log takes the ids of each request from its span.
    """
    from opentelemetry.sdk.trace.sampling import Decision, Sampler

    class RecordingSampler(Sampler):
        def should_sample(self, *args: Any, **kwargs: Any) -> Any:
            result = sampler.should_sample(*args, **kwargs)
            if result.decision is Decision.DROP:
                result.decision = Decision.RECORD_ONLY
            return result

        def get_description(self) -> str:
            return sampler.get_description()

    return RecordingSampler()
