"""What every page of longrec must be: well-formed and free of references to anywhere else."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path


class Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def text_of(path: Path) -> str:
    """Returns the text of a page after checking that it parses, that its tags close and that
    nothing in it points elsewhere.
    """
    source = path.read_text(encoding="utf-8")
    parsed = Page(source)
    assert parsed.open == []
    assert not re.search(r"https?://|[\"'(=]\s*//|@import|url\(|<script|<link|<img|<iframe", source)
    assert {name for name, _ in parsed.attributes} & {
        "src",
        "href",
        "srcset",
        "action",
        "data",
    } == set()
    assert "default-src 'none'" in source
    return "".join(parsed.text)
