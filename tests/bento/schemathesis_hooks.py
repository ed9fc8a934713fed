"""Hooks of schemathesis: bodies of a content type that it does not know."""

from __future__ import annotations

import schemathesis
from hypothesis import strategies as st

from longrec.serving.arrow_codec import write_request

IDS = st.integers(-(2**63), 2**63 - 1)
PARAMETERS = st.fixed_dictionaries(
    {"user_id": IDS},
    optional={"length": st.integers(0, 50), "timeout_ms": st.integers(1, 60_000)},
)
ARROW_BODIES = st.builds(write_request, st.lists(IDS, min_size=1, max_size=5), PARAMETERS)
schemathesis.openapi.media_type("application/vnd.apache.arrow.stream", ARROW_BODIES)
