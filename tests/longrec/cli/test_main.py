"""The longrec command: help, JSON, exit codes, and mistakes that end in one message."""

from __future__ import annotations

import importlib.metadata
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from longrec.cli.main import app

ROOT = Path(__file__).parents[3]
COMMANDS = (
    ["import", "kuairand"],
    ["import", "movielens"],
    ["import", "taobao"],
    ["import", "lastfm"],
    ["import", "yambda"],
    ["import", "amazon"],
    ["import", "events"],
    ["synth"],
    ["run"],
    ["refresh"],
    ["drift"],
    ["compile"],
    ["submit"],
    ["schedule"],
    ["status"],
    ["logs"],
    ["serve"],
)


def _longrec(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a user does."""
    command = [sys.executable, "-m", "longrec.cli.main", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_examples_and_json(command: list[str]) -> None:
    answer = CliRunner().invoke(app, [*command, "--help"])
    assert answer.exit_code == 0
    assert "Examples:" in answer.output
    assert f"longrec {' '.join(command)}" in answer.output
    assert "--json" in answer.output


def _all_commands() -> list[list[str]]:
    found: list[list[str]] = []

    def walk(command: Any, path: list[str]) -> None:
        for name, child in getattr(command, "commands", {}).items():
            walk(child, [*path, name])
        if not hasattr(command, "commands"):
            found.append(path)

    walk(typer.main.get_command(app), [])
    return found


@pytest.mark.parametrize("command", _all_commands(), ids=" ".join)
def test_every_command_shows_examples_on_whole_lines(command: list[str]) -> None:
    if command == ["bench"]:  # It passes --help on to a script.
        return
    lines = CliRunner().invoke(app, [*command, "--help"]).output.splitlines()
    examples = [line.strip() for line in lines if line.strip().startswith("longrec ")]
    assert any(line.startswith(f"longrec {' '.join(command)}") for line in examples)
    assert max(map(len, lines)) <= 100


def test_the_version_is_that_of_the_package() -> None:
    answer = CliRunner().invoke(app, ["--version"])
    assert answer.exit_code == 0
    assert answer.output == f"longrec {importlib.metadata.version('longrec')}\n"


def test_a_renamed_key_is_one_warning_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("lengths: {law: fixed}\nplatform: {home: /srv}\n")
    command = ["compile", "drift", "--config", str(tmp_path / "old.yaml")]
    answer = CliRunner().invoke(app, [*command, "--output", str(tmp_path)])
    assert answer.exit_code == 0, answer.output
    warnings = answer.stderr.splitlines()
    assert len(warnings) == 2
    assert all(line.startswith("longrec: warning: ") for line in warnings)
    assert "'lengths.law' was renamed to 'lengths.distribution'" in warnings[0]
    assert "/srv" in (tmp_path / "drift.yaml").read_text()


def test_the_schema_is_printed_or_written(tmp_path: Path) -> None:
    printed = json.loads(CliRunner().invoke(app, ["config", "schema"]).stdout)
    assert {"model", "platform"} <= set(printed["properties"])
    target = tmp_path / "schema.json"
    assert CliRunner().invoke(app, ["config", "schema", "--output", str(target)]).exit_code == 0
    assert json.loads(target.read_text()) == printed


def test_bench_lists_the_benchmarks_and_their_options() -> None:
    answer = CliRunner().invoke(app, ["bench"])
    assert answer.exit_code == 0
    assert "longrec bench train" in answer.output
    assert "train" in json.loads(CliRunner().invoke(app, ["bench", "--json"]).output)
    options = _longrec("bench", "train", "--help")
    assert options.returncode == 0
    assert "--events" in options.stdout


def test_importing_the_command_loads_nothing_heavy() -> None:
    heavy = ("torch", "kfp", "feast", "bentoml", "pandas", "duckdb", "pyarrow")
    code = f"import sys, longrec.cli.main; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--config", "absent.yaml"], "no configuration at absent.yaml"),
        (
            ["run", "--set", "train.epoch=2"],
            "unknown configuration key 'train.epoch'. Did you mean 'epochs'?",
        ),
        (["run", "--data", "absent"], "there is no dataset at"),
        (["import", "kuairand", "absent", "--out", "never"], "absent holds no KuaiRand log"),
        (["bench", "nothing"], "no benchmark is called nothing"),
        (["synth", "--out", "never", "--topics", "5000"], "num_topics must not be above num_items"),
    ],
)
def test_a_mistake_is_one_message_on_stderr_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGREC_ROOT", str(ROOT))
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 1
    assert answer.stdout == ""
    assert answer.stderr.startswith("longrec: ")
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "never").exists()


def test_the_process_of_a_mistake_ends_with_the_message_and_code_1() -> None:
    answer = _longrec("run", "--config", "absent.yaml")
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert answer.stderr.startswith("longrec: no configuration at absent.yaml")
    assert answer.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for command in (["synth", "--users", "5", "--out"], ["compile", "training", "--output"]):
        answer = CliRunner().invoke(app, [*command, str(tmp_path / "file" / "below")])
        assert answer.exit_code == 1
        assert answer.stderr.startswith(f"longrec: {tmp_path / 'file'}"), answer.output
        assert "choose a folder" in answer.stderr
        assert answer.stderr.count("\n") == 1


def test_a_usage_error_is_exit_code_2() -> None:
    assert _longrec("run", "--no-such-option").returncode == 2
    assert CliRunner().invoke(app, ["submit"]).exit_code == 2


def test_synth_prints_counts_and_the_best_possible_auc(tmp_path: Path) -> None:
    answer = CliRunner().invoke(
        app, ["synth", "--out", str(tmp_path / "data"), "--users", "20", "--events", "40"]
    )
    assert answer.exit_code == 0
    assert "20 users" in answer.output
    assert "best possible AUC" in answer.output
    again = CliRunner().invoke(
        app,
        ["synth", "--out", str(tmp_path / "again"), "--users", "20", "--events", "40", "--json"],
    )
    report = json.loads(again.output)
    assert report["num_users"] == 20
    assert report["best_possible_auc"][0]["auc"] < report["best_possible_auc_full"]
    assert (
        report["content_hash"]
        == json.loads((tmp_path / "data" / "dataset.json").read_text())["facts"]["content_hash"]
    )


def test_import_events_shows_what_came_in_and_what_was_rejected(tmp_path: Path) -> None:
    rows = [
        f"{user},{item},{1_600_000_000 + 60 * item},{item % 2}"
        for user in range(5)
        for item in range(60)
    ]
    (tmp_path / "log.csv").write_text(
        "u,i,t,liked\n" + "\n".join([*rows, "x,1,1600000000,1"]) + "\n"
    )
    mapping = [
        "--user",
        "u",
        "--item",
        "i",
        "--timestamp",
        "t",
        "--timestamp-unit",
        "s",
        "--label",
        "liked",
    ]
    answer = CliRunner().invoke(
        app,
        ["import", "events", str(tmp_path / "log.csv"), "--out", str(tmp_path / "data"), *mapping],
    )
    assert answer.exit_code == 0, answer.output
    assert "300 events" in answer.output
    assert "301 read, 300 accepted, 0 filtered, 1 rejected" in answer.output
    assert "liked 50.00%" in answer.output
    strict = CliRunner().invoke(
        app,
        [
            "import",
            "events",
            str(tmp_path / "log.csv"),
            "--out",
            str(tmp_path / "none"),
            *mapping,
            "--max-reject-share",
            "0.001",
        ],
    )
    assert strict.exit_code == 1
    assert not (tmp_path / "none").exists()


def test_compile_writes_and_checks(tmp_path: Path) -> None:
    target, place = tmp_path / "training.yaml", ["--output", str(tmp_path)]
    assert f"wrote {target}" in CliRunner().invoke(app, ["compile", "training", *place]).output
    assert CliRunner().invoke(app, ["compile", "training", "--check", *place]).exit_code == 0
    target.write_text(target.read_text().replace("build-features", "make-features"))
    stale = CliRunner().invoke(app, ["compile", "training", "--check", "--json", *place])
    assert stale.exit_code == 1
    assert "not up to date" in stale.output
    assert "make-features" in target.read_text(), "a check writes nothing"
    assert (
        CliRunner()
        .invoke(app, ["compile", *place, "--set", "platform.image=team/python:2"])
        .exit_code
        == 0
    )
    assert "team/python:2" in target.read_text()
    assert (tmp_path / "refresh.yaml").is_file()


def test_submit_to_nothing_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKDIR", str(tmp_path))
    monkeypatch.setenv("LONGREC_PATIENCE_SECONDS", "0")
    place = ["--host", "http://127.0.0.1:9", "--data-uri", "x"]
    answer = CliRunner().invoke(app, ["submit", *place, "--config", str(_empty(tmp_path))])
    assert answer.exit_code == 1
    assert "no Kubeflow Pipelines server answers at http://127.0.0.1:9" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_serve_without_a_run_is_one_message(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["serve", "--workdir", str(tmp_path)])
    assert answer.exit_code == 1
    assert "longrec run" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_serve_at_a_port_that_is_taken_is_one_message() -> None:
    from longrec.runs.serve import ServeError, check_free

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ServeError,
            match=f"nothing can listen at 127.0.0.1:{port}; found Address already in use",
        ):
            check_free("127.0.0.1", port)
    check_free("127.0.0.1", port)


def _empty(folder: Path) -> Path:
    path = folder / "empty.yaml"
    path.write_text("")
    return path
