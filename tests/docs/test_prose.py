"""The pages are short to read, their links lead somewhere, and their commands exist."""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from longrec.cli.main import app
from longrec.runs.project import benchmarks

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
HISTORY = DOCS / "log.md"
"""Notes as they were written at the time: their sentences are not measured."""
GENERATED_PAGES = (
    "reference/api/",
    "reference/cli.md",
    "reference/configuration.md",
    "reference/environment.md",
    "reference/http.md",
    "reference/metrics.md",
    "changelog.md",
)
MAX_MEDIAN_WORDS = 16
MAX_WORDS = 30
MAX_COLUMNS = 100
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
TABLE_ROW = re.compile(r"^ *\|")
LIST_ITEM = re.compile(r"^ *(?:[-*]|\d+[.]) +")
LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def sentences(text: str) -> list[str]:
    """Return the sentences of the prose: no code block, table, heading or front matter."""
    found: list[str] = []
    for paragraph in paragraphs(text):
        plain = re.sub(r"!\[[^]]*\]\([^)]*\)", "", paragraph)
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", plain)
        plain = re.sub(r"`[^`]*`", "code", plain)
        for sentence in re.split(r"(?<=[.!?:])[)*_]*\s+", plain):
            if re.search(r"[A-Za-z]{2}", sentence):
                found.append(sentence.strip())
    return found


def paragraphs(text: str) -> Iterator[str]:
    """Yield paragraphs and list items, each on one line."""
    lines: list[str] = []
    for line in [*FENCE.sub("\n", text).splitlines(), ""]:
        is_prose = line.strip() and not line.startswith(("#", "    ", "<", "!!!"))
        is_prose = is_prose and not TABLE_ROW.match(line)
        starts_item = LIST_ITEM.match(line) is not None
        if lines and (not is_prose or starts_item):
            yield " ".join(lines)
            lines = []
        if is_prose:
            lines.append(LIST_ITEM.sub("", line).strip())


def test_sentences_are_told_apart() -> None:
    text = "# Head\n\nOne two. Three `a b` four!\n- an item\n\n| a | b |\n\n```\ncode here\n```\n"
    assert sentences(text) == ["One two.", "Three code four!", "an item"]


@pytest.mark.parametrize("path", [p for p in PAGES if p != HISTORY], ids=page_name)
def test_sentences_are_short(path: Path) -> None:
    lengths = {text: len(text.split()) for text in sentences(path.read_text(encoding="utf-8"))}
    too_long = [text for text, words in lengths.items() if words > MAX_WORDS]
    assert not too_long, too_long
    assert not lengths or statistics.median(lengths.values()) <= MAX_MEDIAN_WORDS


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_lines_fit(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    long_lines = [
        line
        for line in text.splitlines()
        if len(line) > MAX_COLUMNS and not TABLE_ROW.match(line) and " " in line.strip()
    ]
    assert not long_lines


def headings(path: Path) -> set[str]:
    """Return the anchors of a page, as Python-Markdown makes them."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    found = set()
    for line in text.splitlines():
        if line.startswith("#"):
            title = re.sub(r"[^\w\s-]", "", line.lstrip("#").replace("`", "")).strip().lower()
            found.add(re.sub(r"[\s-]+", "-", title))
    return found


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_links_lead_to_a_page(path: Path) -> None:
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        if linked.is_relative_to(DOCS) and linked.relative_to(DOCS).as_posix().startswith(
            GENERATED_PAGES
        ):
            continue
        assert linked.exists(), target
        assert not anchor or anchor in headings(linked), target


def commands(text: str) -> list[str]:
    """Return the `longrec ...` commands in code blocks and in inline code."""
    found = []
    for block in FENCE.findall(text):
        joined = re.sub(r"\\\n\s*", " ", block)
        found += re.findall(r"^ *(?:\$ )?(?:[.]venv/bin/)?(longrec .*)$", joined, re.MULTILINE)
    inline = re.findall(r"`(longrec [a-z-][^`]*)`", FENCE.sub("", text))
    return [*found, *(command.replace("\n", " ") for command in inline)]


def words_of(command: str) -> list[str]:
    """Return the words of a command without its comment and what follows a shell operator."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if set(word) <= set("|&;<>"):
            break
        words.append(word)
    return words


def check_command(words: list[str]) -> None:
    """Raise AssertionError when a command or one of its options does not exist."""
    command: Any = get_command(app)
    rest = words[1:]
    while rest and hasattr(command, "commands"):
        if rest[0].startswith("-") or "|" in rest[0] or "*" in rest[0]:
            return
        assert rest[0] in command.commands, f"no command {rest[0]}"
        command = command.commands[rest.pop(0)]
    if command.name == "bench":
        check_benchmark(rest)
        return
    known = {option for parameter in command.params for option in parameter.opts}
    known |= {option for parameter in command.params for option in parameter.secondary_opts}
    for word in rest:
        if word.startswith("--"):
            assert word.partition("=")[0] in known | {"--help"}, f"no option {word}"


def check_benchmark(words: list[str]) -> None:
    scripts = benchmarks()
    if not words or words[0] == "--help" or words[0].isupper():
        return
    assert words[0] in scripts, f"no benchmark {words[0]}"
    source = Path(scripts[words[0]][0]).read_text(encoding="utf-8")
    for word in words[1:]:
        if word.startswith("--"):
            name = word.removeprefix("--")
            assert f'"{word}"' in source or f'("{name}", ' in source, f"no option {word}"


@pytest.mark.parametrize("path", [p for p in PAGES if p != HISTORY], ids=page_name)
def test_commands_exist(path: Path) -> None:
    for command in commands(path.read_text(encoding="utf-8")):
        check_command(words_of(command))


def test_a_command_that_does_not_exist_is_found() -> None:
    for command in ("longrec fly", "longrec run --sideways", "longrec bench nothing"):
        with pytest.raises(AssertionError):
            check_command(words_of(command))
