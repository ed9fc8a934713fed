"""Parse pages and check that they are well-formed and load nothing from elsewhere."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path

VOID_TAGS = ("meta", "br")
LINK_ATTRIBUTES = {"src", "srcset", "action", "data"}
REFERENCE = re.compile(r"https?://|[\"'(=]\s*//|@import|url\([^#]|<script|<link|<img|<iframe")
Attributes = list[tuple[str, str | None]]


class Page(html.parser.HTMLParser):
    """A parsed page: the tags that are still open, all attributes and all texts."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(
        self,
        tag: str,
        attrs: Attributes,
    ) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(
        self,
        tag: str,
        attrs: Attributes,
    ) -> None:
        for name, value in attrs:
            self.attributes.append((name, value or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def text_of(path: Path) -> str:
    """Return the text of a page whose tags close; check that it refers to no other host.

    It may link to other pages, but show nothing of another file.
    """
    source = path.read_text(encoding="utf-8")
    parsed = Page(source)
    assert parsed.open == []
    assert not REFERENCE.search(source)
    names = {name for name, _ in parsed.attributes}
    assert not names & LINK_ATTRIBUTES
    links = [value for name, value in parsed.attributes if name in ("href", "xlink:href")]
    assert all(re.fullmatch(r"#\w+|[\w./-]+\.html", link) for link in links)
    assert "default-src 'none'" in source
    return "".join(parsed.text)
