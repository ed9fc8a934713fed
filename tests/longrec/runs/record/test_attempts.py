"""The record of a run: one file per attempt of a step, written at its start and at its end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from longrec.errors import DataError
from longrec.runs.record import attempts
from longrec.runs.record.attempts import last_attempts, note, read, record_folder, recorded

ROOT = Path(__file__).parents[4]
RUN = "0b5d3e63-87b1-4fa6-b888-12266eeea82e"
EARLIER = "43eacd69-717d-4795-935f-a7b823d91996"
BUNDLE = f"minio://mlpipeline/v2/artifacts/longrec-training/{EARLIER}/train/{RUN}/bundle"
HISTORIES = "/srv/rec/runs/20260101-120000-a/artifacts/longrec/join-histories/histories"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the record of this run."""
    monkeypatch.setenv("LONGREC_HOME", str(tmp_path))
    monkeypatch.setenv("LONGREC_RUN", RUN)
    return tmp_path / "runs" / RUN / "steps"


def _inputs(**uris: str) -> dict[str, object]:
    artifacts = {name: {"artifacts": [{"uri": uri}]} for name, uri in uris.items()}
    return {"inputs": {"parameterValues": {"seed": 3}, "artifacts": artifacts}}


def test_a_step_that_succeeds_has_a_start_and_an_end(folder: Path) -> None:
    with recorded("train", {}):
        (running,) = read(folder)
        assert running.ended == ""
    (ended,) = read(folder)
    assert (ended.step, ended.error) == ("train", "")
    assert ended.ended > ended.started


def test_the_error_of_a_step_is_its_own_text(folder: Path) -> None:
    with pytest.raises(DataError), recorded("train", {}):
        raise DataError("no events", fix="Import some.")
    with pytest.raises(ZeroDivisionError), recorded("evaluate", {}):
        _ = 1 / 0
    errors = {attempt.step: attempt.error for attempt in read(folder)}
    assert errors == {
        "train": "no events. Import some.",
        "evaluate": "ZeroDivisionError: division by zero",
    }


def test_a_killed_step_has_no_end(folder: Path) -> None:
    code = (
        "import os\n"
        "from longrec.runs.record.attempts import recorded\n"
        "with recorded('train', {}):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, env=os.environ)
    assert answer.returncode == -signal.SIGKILL
    (attempt,) = read(folder)
    assert attempt.ended == ""


def test_attempts_of_one_item_are_told_from_other_items(folder: Path) -> None:
    for shard, fails in (("1/2", True), ("2/2", False), ("1/2", False)):
        try:
            with recorded("retrieve", {"inputs": {"parameterValues": {"shard": shard}}}):
                if fails:
                    raise ConnectionError("reset")
        except ConnectionError:
            pass
    assert len(read(folder)) == 3
    assert [attempt.error for attempt in last_attempts(read(folder))] == ["", ""]


def test_the_runs_that_made_the_inputs_are_named(folder: Path) -> None:
    with recorded("evaluate", _inputs(bundle=BUNDLE, histories=HISTORIES, other="s3://b/x")):
        pass
    (attempt,) = read(folder)
    assert attempt.sources == {"train": EARLIER, "join-histories": "20260101-120000-a"}


def test_a_step_adds_facts(folder: Path) -> None:
    with recorded("refuse", {}):
        assert note(gate={"missed": []})
        assert note(error="too low")
    (attempt,) = read(folder)
    assert attempt.facts == {"gate": {"missed": []}, "error": "too low"}
    assert not note(late=True), "no step is running"


@pytest.mark.parametrize("run", ["", "..", "a/b"])
def test_a_step_of_no_run_works_without_a_record(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGREC_RUN", run)
    assert record_folder() is None
    with recorded("train", {}):
        assert not note(gate={})
    assert list(tmp_path.iterdir()) == []


def test_a_lost_work_directory_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGREC_HOME", str(tmp_path / "lost"))
    with recorded("train", {}):
        pass
    assert read(record_folder()) == []
    assert not (tmp_path / "lost").exists()


def test_a_record_that_cannot_be_written_is_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, value: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(attempts, "write_json", refuse)
    with recorded("train", {}):
        pass
    assert "the record of the run cannot be written" in caplog.text
    assert not folder.exists()


def test_a_damaged_file_is_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with recorded("train", {}):
        pass
    (folder / "0.json").write_text("{")
    (folder / "1.json").write_text('{"step": "train"}')
    with caplog.at_level(logging.WARNING):
        assert [attempt.step for attempt in read(folder)] == ["train"]
    assert caplog.text.count("cannot be read") == 2
