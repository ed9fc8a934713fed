"""The programs of docs/guides/clients.md rank with a real service, as a reader would run them."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.clients.busy_proxy import RETRY_AFTER_SECONDS, busy_proxy
from tests.clients.page import Section, read_sections
from tests.conftest import ROOT

SECTIONS = read_sections(ROOT / "docs" / "guides" / "clients.md")
BODY = {"user_id": 1, "candidates": [11, 12, 13]}
MAVEN = "https://repo.maven.apache.org/maven2/"
GO_PROXY = "https://proxy.golang.org/"
NPM = "https://registry.npmjs.org/"
PYPI = "https://pypi.org/simple/"


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a section needs of a machine.

    Args:
        tools: commands.
        registry: where they fetch packages; empty for none.
    """

    tools: tuple[str, ...]
    registry: str = ""

    def skip_without(self) -> None:
        """Skip the test on a machine that lacks something."""
        for tool in self.tools:
            if shutil.which(tool) is None:
                pytest.skip(f"{tool} is not installed")
        if not self.registry:
            return
        try:
            httpx.head(self.registry, timeout=20, follow_redirects=True)
        except httpx.HTTPError as error:
            pytest.skip(f"{self.registry} cannot be reached: {error!r}")


BY_HAND = {
    "curl": Needs(("curl",)),
    "Python": Needs(()),
    "Java": Needs(("java",)),
    "Go": Needs(("go",)),
    "TypeScript": Needs(("node", "npm"), NPM),
}
GENERATED = {
    "Java with openapi-generator": Needs(("java", "mvn"), MAVEN),
    "Go with oapi-codegen": Needs(("go", "curl"), GO_PROXY),
    "TypeScript with openapi-typescript": Needs(("node", "npm"), NPM),
    "Python with openapi-python-client": Needs((), PYPI),
}


@pytest.fixture(scope="module")
def expected(server: str) -> list[float]:
    """Scores of the request of the page."""
    answer = httpx.post(f"{server}/rank", json=BODY, timeout=60).raise_for_status()
    return answer.json()["scores"]["label"]


def run(section: Section, folder: Path) -> str:
    """Return what the last commands of a section print."""
    for name, text in section.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    python = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{python}:{os.environ['PATH']}"}
    output = ""
    for commands in section.commands:
        done = subprocess.run(
            ["bash", "-e", "-c", commands],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        output = done.stdout
    return output


def scores_in(output: str) -> list[float]:
    """Return the first list of numbers in an output."""
    match = re.search(r"\[([^]\[]*)\]", output)
    assert match, output
    return [float(text) for text in re.split(r"[,\s]+", match[1].strip())]


def test_every_section_with_commands_is_run() -> None:
    assert {*BY_HAND, *GENERATED} == set(SECTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("heading", BY_HAND)
def test_a_program_waits_for_a_busy_service_and_ranks(
    heading: str,
    server: str,
    expected: list[float],
    tmp_path: Path,
) -> None:
    BY_HAND[heading].skip_without()
    with busy_proxy(server) as (address, times):
        output = run(SECTIONS[heading].at(address), tmp_path)
    assert scores_in(output) == pytest.approx(expected, abs=1e-3)
    assert len(times) == 2
    assert times[1] - times[0] > 0.9 * RETRY_AFTER_SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("heading", GENERATED)
def test_a_generated_client_ranks(
    heading: str,
    server: str,
    expected: list[float],
    tmp_path: Path,
) -> None:
    GENERATED[heading].skip_without()
    output = run(SECTIONS[heading].at(server), tmp_path)
    assert scores_in(output) == pytest.approx(expected, abs=1e-3)
