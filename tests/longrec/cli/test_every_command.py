"""No path that a user names ends in a traceback: every command, every parameter, bad paths."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.config import DataConfig
from longrec.data import features
from longrec.data.store.publish import publish
from pipelines import compiler
from tests.longrec import small_histories
from tests.longrec.cli.every_command import all_commands
from tests.longrec.data import random_log
from tests.pipelines.compiled_once import compiled_once

REPO = Path(__file__).parents[3] / "feature_repo"
COMMANDS = all_commands()
CASES = [(command.name, path) for command in COMMANDS.values() for path in command.paths]
CLOSED_PORT = "http://127.0.0.1:9"
SUFFIXES = {
    "push": ".jsonl",
    "inspect history": ".svg",
}
"""Suffixes that a command reads or writes; others read .yaml or .csv."""
STARTS_WORK = {
    ("run", "workdir"),
    ("refresh", "workdir"),
    ("train", "out"),
    ("train", "checkpoint_dir"),
    ("train", "log_dir"),
    ("train", "config"),
}
"""Parameters for which an absent, empty or unused path is no mistake: hours of work begin."""
IN_A_WORK_DIRECTORY = (
    "inspect history --user 1",
    "inspect history --user 1 --side offline",
    "models list",
    "models shadow report",
    "models rollback --why x",
    "serve",
    "doctor",
    "gc",
    "forget --user 1",
)
"""Commands that read a work directory and start no long work."""
HARMLESS_THERE = ("absent", "folder", "empty", "used")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a published work directory, a log, events and histories."""
    root = tmp_path_factory.mktemp("world")
    random_log.write(root / "data")
    features.build_features(root / "data", root / "features", DataConfig())
    publish(root / "features", root / "workdir", REPO)
    small_histories.write(root / "histories")
    rows = [f"{user},{item},{1_600_000_000_000 + item},1" for user in (1, 2) for item in (1, 2, 3)]
    (root / "log.csv").write_text("\n".join(["user_id,item_id,timestamp,like", *rows]))
    event = {"user_id": 3, "item_id": 7, "timestamp": random_log.START_MS, "event_seq": 900}
    (root / "events.jsonl").write_text(json.dumps(event))
    return root


@pytest.fixture(autouse=True)
def _sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Start no server, and leave store and logging of the test process as they are."""

    monkeypatch.setenv("LONGREC_PATIENCE_SECONDS", "0")
    monkeypatch.setattr(compiler, "pipeline", compiled_once)

    def start_nothing(*_: object) -> NoReturn:
        raise SystemExit(0)

    monkeypatch.setattr(os, "execvpe", start_nothing)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    root = logging.getLogger()
    longrec = logging.getLogger("longrec")
    handlers = list(root.handlers)
    level = longrec.level
    yield
    root.handlers[:] = handlers
    longrec.setLevel(level)


def values_of(command: str, world: Path, out: Path) -> dict[str, str]:
    """Return parameters that reach the code behind the path under test."""
    log = str(world / "log.csv")
    workdir = str(world / "workdir")
    values = {
        "import events": {"src": log, "out": str(out)},
        "import amazon": {"src": log, "out": str(out)},
        "push": {"file": str(world / "events.jsonl"), "workdir": workdir},
        "inspect history": {"user": "3", "workdir": workdir},
        "train": {"histories": str(world / "histories"), "out": str(out)},
        "compile": {"pipeline": "drift", "output": str(out)},
        "synth": {"users": "3", "events": "8", "items": "20", "out": str(out)},
        "run": {"data": str(world / "data"), "workdir": str(out)},
        "refresh": {"data": str(world / "data"), "workdir": str(out)},
    }
    return values.get(command, {"host": CLOSED_PORT, "data_uri": "x"})


def bad_paths(folder: Path, suffix: str) -> dict[str, Path]:
    """Return a path of each kind of mistake, by name."""
    folder.mkdir()
    contents = {
        "empty": b"",
        "random": bytes(range(256)),
        "list": b"[1, 2]\n",
        "text": b"a: [\n",
    }
    paths = {}
    for kind, content in contents.items():
        paths[kind] = folder / f"{kind}{suffix}"
        paths[kind].write_bytes(content)
    used = folder / f"used{suffix}"
    used.mkdir()
    (used / "mine.txt").write_text("mine")
    paths["used"] = used
    paths["folder"] = folder / f"folder{suffix}"
    paths["folder"].mkdir()
    paths["absent"] = folder / f"absent{suffix}"
    paths["below_a_file"] = paths["text"] / f"below{suffix}"
    paths["long"] = folder / ("x" * 300)
    paths["unreadable"] = folder / f"unreadable{suffix}"
    _make_unreadable(paths["unreadable"])
    return paths


def _make_unreadable(path: Path) -> None:
    """Make a file that cannot be read, by root neither."""
    if os.geteuid():
        path.touch(mode=0)
    else:
        path.symlink_to("/proc/self/mem")


@pytest.mark.parametrize(("command", "parameter"), CASES, ids=[" ".join(case) for case in CASES])
def test_a_bad_path_is_one_message(
    world: Path,
    tmp_path: Path,
    command: str,
    parameter: str,
) -> None:
    suffix = ".yaml" if parameter in ("config", "study") else SUFFIXES.get(command, ".csv")
    for kind, path in bad_paths(tmp_path / "paths", suffix).items():
        if (command, parameter) in STARTS_WORK and kind in HARMLESS_THERE:
            continue
        values = {**values_of(command, world, tmp_path / "out"), parameter: str(path)}
        if parameter == "config":
            values |= {"data": "/nonexistent", "histories": "/nonexistent"}
        answer = CliRunner().invoke(app, COMMANDS[command].call(**values))
        is_exit = answer.exception is None or isinstance(answer.exception, SystemExit)
        assert is_exit, (kind, repr(answer.exception))
        assert "Traceback" not in answer.output, kind
        if answer.exit_code == 1:
            last = answer.stderr.splitlines()[-1]
            assert last.startswith("longrec: "), (kind, answer.stderr)
        if kind == "used":
            assert (path / "mine.txt").read_text() == "mine", "nothing of the user is replaced"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_argument_that_is_not_utf8_is_one_message(command: str) -> None:
    answer = CliRunner().invoke(app, [*command.split(), "caf\udce9"])
    assert answer.exit_code == 1
    assert answer.stderr.startswith("longrec: an argument is not UTF-8; found 'caf\\udce9'")


@pytest.mark.parametrize(
    "command",
    ["models list", "models shadow report", "drift", "inspect history --user 1", "push x.csv"],
)
def test_a_missing_work_directory_is_an_error(tmp_path: Path, command: str) -> None:
    missing = tmp_path / "missing"
    answer = CliRunner().invoke(app, [*command.split(), "--workdir", str(missing)])
    assert answer.exit_code == 1
    assert answer.stderr.startswith(f"longrec: there is no work directory {missing}")
    assert not missing.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 99}', "\\udcff"])
@pytest.mark.parametrize("name", ["workdir.json", "features/manifest.json", "models/registry.json"])
def test_a_damaged_work_directory_is_one_message(tmp_path: Path, name: str, text: str) -> None:
    for folder in ("features", "feast", "models", "store"):
        (tmp_path / folder).mkdir()
    (tmp_path / "features" / "schema.json").write_text("[]")
    (tmp_path / "feast" / "feature_store.yaml").write_text("[")
    (tmp_path / "store" / "current").symlink_to("nothing")
    (tmp_path / name).write_bytes(text.encode("utf-8", "replace"))
    for command in IN_A_WORK_DIRECTORY:
        words = [*command.split(), "--workdir", str(tmp_path)]
        answer = CliRunner().invoke(app, words)
        is_exit = answer.exception is None or isinstance(answer.exception, SystemExit)
        assert is_exit, (command, repr(answer.exception))


@pytest.mark.parametrize(
    "command",
    ["inspect history --user 3 --plot", "config schema --output"],
)
def test_the_folder_of_an_output_file_is_not_made(
    world: Path,
    tmp_path: Path,
    command: str,
) -> None:
    path = tmp_path / "missing" / "file.svg"
    words = [*command.split(), str(path)]
    if command.startswith("inspect"):
        words += ["--workdir", str(world / "workdir")]
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 1
    assert f"found no folder {path.parent}" in answer.stderr
    assert not path.parent.exists()
