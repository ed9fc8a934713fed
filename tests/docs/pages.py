"""Run the commands of a page of the documentation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

CONSOLE_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
BASH_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


def bash_blocks(page: Path) -> list[str]:
    """Return the blocks that a reader runs; those marked `console` need a cluster."""
    return BASH_BLOCK.findall(page.read_text(encoding="utf-8"))


def console_blocks(page: Path) -> list[str]:
    """Return the blocks that need a cluster, a server or a version of the reader's own."""
    return CONSOLE_BLOCK.findall(page.read_text(encoding="utf-8"))


def run_block(block: str, folder: Path, variables: dict[str, str] | None = None) -> str:
    """Run a block in a folder, with the programs of this environment; return its output."""
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **(variables or {})}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout
