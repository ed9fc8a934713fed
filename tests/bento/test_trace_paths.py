"""Which requests have no span."""

from __future__ import annotations

import pytest
from opentelemetry.util.http import parse_excluded_urls

from bento.traces import PROBES


@pytest.mark.parametrize(
    ("path", "is_excluded"),
    [
        ("/livez", True),
        ("/metrics", True),
        ("/v2/health/live", True),
        ("/v2/health/ready", True),
        ("/v2/models/longrec-ranker/ready", True),
        ("/v2/models/longrec-ranker/versions/a/ready", True),
        ("/v2/models/longrec-ranker/infer", False),
        ("/rank", False),
    ],
)
def test_probes_have_no_span(path: str, is_excluded: bool) -> None:
    assert parse_excluded_urls(PROBES).url_disabled(f"http://host:3000{path}") is is_excluded
