"""Each service has a folder of its own; folders of dead services go away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bento.service_folder import PREFIX, create_service_folder
from tests.conftest import ROOT

SERVICE = """
import sys, time
from pathlib import Path
from bento.service_folder import create_service_folder
print(create_service_folder(Path(sys.argv[1])).path, flush=True)
time.sleep(600)
"""


def start_service(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """Return a process that holds a service folder, and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(parent)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_service_keeps_its_folder_when_another_one_starts(tmp_path: Path) -> None:
    process, first = start_service(tmp_path)
    second = create_service_folder(tmp_path)
    third = create_service_folder(tmp_path)
    try:
        assert first.is_dir()
        assert second.metrics.is_dir()
        assert len({first, second.path, third.path}) == 3
    finally:
        process.kill()
        process.communicate()


def test_a_killed_service_leaves_its_folder_to_the_next_one(tmp_path: Path) -> None:
    process, first = start_service(tmp_path)
    process.kill()
    process.communicate()
    assert first.is_dir()
    create_service_folder(tmp_path)
    assert not first.exists()


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "longrec-other").mkdir()
    (tmp_path / f"{PREFIX}text").write_text("a file")
    create_service_folder(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"longrec-other", f"{PREFIX}text"} <= names


def test_the_folder_is_closed_to_other_users_and_gone_at_the_end(tmp_path: Path) -> None:
    folder = create_service_folder(tmp_path)
    assert folder.path.stat().st_mode & 0o077 == 0
    assert folder.read_startup_error() == ""
    folder.startup_error.write_text("reason")
    assert folder.read_startup_error() == "reason"
    folder.remove()
    assert not folder.path.exists()
