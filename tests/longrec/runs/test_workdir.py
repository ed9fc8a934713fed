"""The environment of a work directory, for its steps and for `bentoml` in a shell."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.runs.run import latest_dataset
from longrec.runs.workdir import WorkdirError, check_writable, run_environment
from tests.longrec.mounts import mounted


@pytest.fixture(autouse=True)
def _no_bentoml_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENTOML_HOME", raising=False)
    monkeypatch.delenv("LONGREC_HOME", raising=False)


def test_each_work_directory_has_a_model_store_of_its_own(tmp_path: Path) -> None:
    stores = {run_environment(tmp_path / name)["BENTOML_HOME"] for name in ("a", "b")}
    assert stores == {str(tmp_path / "a" / "bentoml"), str(tmp_path / "b" / "bentoml")}


def test_a_store_that_the_user_names_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", "/elsewhere")
    assert run_environment(tmp_path)["BENTOML_HOME"] == "/elsewhere"


def test_a_store_that_bentoml_would_put_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkdirError, match=r"\$NAME.*BENTOML_HOME"):
        run_environment(tmp_path / "a $HOME b")


def test_a_dataset_in_a_moved_work_directory_is_found(tmp_path: Path) -> None:
    latest = tmp_path / "runs" / "latest"
    latest.mkdir(parents=True)
    (tmp_path / "data" / "synthetic-1").mkdir(parents=True)
    summary = {"dataset": {"path": "/gone/data/synthetic-1"}}
    (latest / "summary.json").write_text(json.dumps(summary))
    assert latest_dataset(tmp_path) == str(tmp_path / "data" / "synthetic-1")


def test_a_shell_reads_the_printed_environment_of_any_path(tmp_path: Path) -> None:
    workdir = tmp_path / "it's {{$}} #1"
    workdir.mkdir()
    answer = CliRunner().invoke(app, ["env", "--workdir", str(workdir)])
    assert answer.exit_code == 0, answer.output
    script = f'{answer.stdout}\nprintf "%s" "$BENTOML_HOME"'
    found = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True).stdout
    assert found == str(workdir / "bentoml")
    as_json = CliRunner().invoke(app, ["env", "--workdir", str(workdir), "--json"])
    assert json.loads(as_json.stdout)["LONGREC_HOME"] == str(workdir)


@contextlib.contextmanager
def user_of_the_image() -> Iterator[None]:
    """Be user 10001 in the block."""
    if os.geteuid():
        pytest.skip("only root may become another user")
    os.setegid(10_001)
    os.seteuid(10_001)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Return a folder that the user of the image may reach."""
    root = Path(tempfile.gettempdir())
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to(root) and folder != root:
            folder.chmod(0o755)
    folder = tmp_path / "volume"
    folder.mkdir()
    return folder


def test_a_volume_of_root_is_told_with_the_line_that_repairs_it(volume: Path) -> None:
    message = rf"it belongs to user 0, and this is user 10001.*chown -R 10001:10001 {volume}$"
    with user_of_the_image(), pytest.raises(WorkdirError, match=message):
        check_writable(volume)
    os.chown(volume, 10_001, 10_001)
    with user_of_the_image():
        check_writable(volume)
    assert list(volume.iterdir()) == []


def test_a_folder_of_root_in_a_volume_is_told_too(volume: Path) -> None:
    (volume / "store").mkdir()
    os.chown(volume, 10_001, 10_001)
    message = rf"written at {volume}/store; .* user 0, .*chown -R 10001:10001 {volume}$"
    with user_of_the_image(), pytest.raises(WorkdirError, match=message):
        check_writable(volume)


def test_a_volume_that_is_mounted_read_only_is_no_matter_of_owners(volume: Path) -> None:
    message = r"found Read-only file system. Repair the volume or its mount\."
    read_only = mounted(volume, volume, "bind", "remount,bind,ro")
    with read_only, pytest.raises(WorkdirError, match=message):
        check_writable(volume)
