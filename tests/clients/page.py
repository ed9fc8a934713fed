"""Programs and commands of a page, by section."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

HEADING = re.compile(r"^##+ (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"^(?://|#) ([\w.]+)")
SHELL = "bash"
ADDRESS = "http://localhost:3000"
"""Address of the service in the page."""


@dataclasses.dataclass(frozen=True)
class Section:
    """What a section of the page tells its reader to do.

    Args:
        files: text of each program by the file name in its first line.
        commands: blocks of shell commands, in order.
    """

    files: dict[str, str]
    commands: list[str]

    def at(self, address: str) -> Section:
        """Return the section for a service at another address."""
        files = {name: text.replace(ADDRESS, address) for name, text in self.files.items()}
        commands = [text.replace(ADDRESS, address) for text in self.commands]
        return Section(files, commands)


def read_sections(path: Path) -> dict[str, Section]:
    """Return the sections that have commands, by heading."""
    _, *parts = HEADING.split(path.read_text(encoding="utf-8"))
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    sections = {heading: read_section(text) for heading, text in texts.items()}
    return {heading: section for heading, section in sections.items() if section.commands}


def read_section(text: str) -> Section:
    """Return the programs and commands of a section."""
    section = Section({}, [])
    for language, content in BLOCK.findall(text):
        if language == SHELL:
            section.commands.append(content)
        else:
            section.files[file_name(content)] = content
    return section


def file_name(program: str) -> str:
    """Return the file name in the first line of a program."""
    match = FILE_NAME.match(program)
    assert match, f"the first line is no comment with a file name: {program[:40]!r}"
    return match[1]
