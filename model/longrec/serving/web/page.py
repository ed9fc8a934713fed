"""Static pages: the main page and the API docs, each with its Content-Security-Policy.

The main page is one file that loads nothing else: page.html with page.css, timeline.js and page.js.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent
SCRIPTS = ("timeline.js", "page.js")


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
    """Return the main page; its policy allows its own script and style, and this service."""
    style = _read("page.css")
    script = "".join(map(_read, SCRIPTS))
    html = _read("page.html")
    html = html.replace("<style></style>", f"<style>{style}</style>")
    html = html.replace("<script></script>", f"<script>{script}</script>")
    # The script sets widths through the DOM, so 'unsafe-inline' is not needed.
    policy = (
        "default-src 'none'; connect-src 'self'; "
        f"script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return Page(html, policy)


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the hash of the content of a tag, as a policy names it."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
