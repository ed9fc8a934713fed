"""Static pages: page.html and the API docs, each with its Content-Security-Policy."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import re
from pathlib import Path

PAGE_PATH = Path(__file__).with_name("page.html")


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """An HTML page.

    Args:
        html: text of the page.
        policy: its Content-Security-Policy.
    """

    html: str
    policy: str


DOCS_PAGE = Page(
    html="""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>longrec: API</title>
<link rel="stylesheet" href="./static_content/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="./static_content/swagger-ui-bundle.js"></script>
<script src="./static_content/swagger-ui-standalone-preset.js"></script>
<script src="./static_content/swagger-initializer.js"></script>
</body>
</html>
""",
    policy=(
        "default-src 'none'; connect-src 'self'; img-src 'self' data:; "
        "script-src 'self'; style-src 'self' 'unsafe-inline'"
    ),
)
"""Swagger UI, from the files that BentoML serves. BentoML's own page would track its readers."""


@functools.cache
def main_page() -> Page:
    """Return page.html; its policy allows its own script and style, and this service."""
    html = PAGE_PATH.read_text(encoding="utf-8")
    script = _hash_of_tag(html, "script")
    # The script sets widths through the DOM, so 'unsafe-inline' is not needed.
    style = _hash_of_tag(html, "style")
    policy = (
        "default-src 'none'; connect-src 'self'; "
        f"script-src {script}; style-src {style}; "
        "base-uri 'none'; form-action 'none'"
    )
    return Page(html, policy)


def _hash_of_tag(html: str, tag: str) -> str:
    """Return the hash of a tag's content, as a policy names it."""
    match = re.search(
        f"<{tag}>(.*?)</{tag}>",
        html,
        re.DOTALL,
    )
    assert match is not None
    digest = hashlib.sha256(match[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
