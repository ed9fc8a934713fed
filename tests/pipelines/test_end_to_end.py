"""`longrec run` as a user types it, in an empty HOME."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from longrec.release.model_store import bundle_dir
from longrec.release.registry import read_registry, reference_dir
from longrec.release.request_log import RequestLog
from tests.docs.pages import console_blocks, run_block
from tests.longrec import openlineage_receiver
from tests.longrec.release import mlflow_server
from tests.longrec.runs.test_outcome import Hook

ROOT = Path(__file__).parents[2]
LINEAGE_GUIDE = ROOT / "docs" / "guides" / "lineage.md"
SERVER = "http://localhost:5000"
"""Address of each server in that guide."""
CONFIG = {
    "name": "tiny",
    "seed": 3,
    "data": {"max_history": 64, "shard_users": 50},
    "model": {"width": 16, "num_layers": 1, "num_heads": 2, "id_dim": 8},
    "lengths": {"mean": 16, "maximum": 64},
    "train": {"epochs": 1, "token_budget": 4096, "max_steps": 20},
    "evaluate": {"lengths": [4, 64], "served_length": 64, "bootstrap_samples": 20},
    "gate": {
        "max_loss_to_baseline": 1,
        "against_champion": False,
        "min_calibration": 0.5,
        "max_calibration": 2.0,
    },
}
FEATURES = ["check-events", "build-features", "join-features", "publish"]
HISTORIES = ["retrieve", "check-histories"]
STEPS = [*FEATURES, *HISTORIES, "train", "evaluate"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Place:
    """An empty home directory with a work directory and a small configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workdir = folder, folder / "work"
        (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
        hidden = ("LONGREC_HOME", "LONGREC_FEATURE_REPO", "LONGREC_MODEL")
        self.environment = {name: value for name, value in os.environ.items() if name not in hidden}
        self.hook = Hook()
        self.environment |= {"LONGREC_WEBHOOK": f"http://127.0.0.1:{self.hook.server_port}/"}
        self.environment |= {
            "HOME": str(folder),
            "BENTOML_HOME": str(folder / "bentoml"),
            "LONGREC_ROOT": str(ROOT),
        }

    def longrec(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "longrec.cli.main", *arguments]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.environment, **environment},
            timeout=1500,
            check=False,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.longrec(
            "run", "--config", "tiny.yaml", "--workdir", "work", *arguments, **environment
        )

    def executed(self) -> list[str]:
        """Return the steps that kfp executed in the newest run, without the first and the last."""
        log = re.sub(r"\x1b\[\d+m", "", (self.newest() / "pipeline.log").read_text())
        names = re.findall(r"Executing task '([^']+)'", log)
        assert names[-1] == "finish"
        assert names[0] == "fingerprint" or names[0] == "drift"
        return [name for name in names if name not in ("fingerprint", "refuse", "finish")]

    def newest(self) -> Path:
        """Return the folder of the newest run."""
        return max(
            (path for path in (self.workdir / "runs").iterdir() if not path.is_symlink()),
            key=lambda path: path.name,
        )

    def summary(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(
            (self.workdir / "runs" / "latest" / "summary.json").read_text()
        )
        return value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("home"))
    thread = threading.Thread(target=place.hook.serve_forever, daemon=True)
    thread.start()
    yield place
    place.hook.shutdown()
    thread.join()


def test_a_run_ends_with_a_packaged_model_and_a_summary(place: Place) -> None:
    answer = place.run("--users", "60", "--events", "64", "--json")
    assert answer.returncode == 0, answer.stderr
    printed, summary = json.loads(answer.stdout), place.summary()
    assert printed == summary
    assert summary["dataset"]["name"] == "synthetic"
    assert summary["seed"] == 3
    assert "--users 60" in summary["command"]
    assert summary["num_requests"] == 96
    assert summary["num_targets"] == 96 * 16
    label = summary["metrics"]["label"]
    assert {"auc", "auc_interval", "gauc", "logloss", "ne", "calibration"} <= set(label)
    assert label["auc_interval"][0] <= label["auc"] <= label["auc_interval"][1]
    assert summary["popularity"]["label"]["auc"] > 0
    assert [row["length"] for row in summary["lengths"]] == [4, 64]
    assert all(
        0.4 < row["auc"] <= 1 and row["logloss"] > 0 and row["best_possible_auc"] >= 0.5
        for row in summary["lengths"]
    )
    assert summary["gate"]["passed"]
    assert summary["gate"]["reasons"]
    assert list(summary["seconds"]) == [*STEPS, "package", "register"]
    assert all(value > 0 for value in summary["seconds"].values())
    assert summary["versions"]["longrec"]
    assert summary["versions"]["torch"]
    assert summary["config"]["model"]["width"] == 16
    assert len(summary["example"]["candidates"]) == 5
    assert 0 <= summary["example"]["user_id"] < 60
    assert re.fullmatch(r"longrec-ranker:[0-9a-f]{12}-[0-9a-f]{6}", summary["bento_tag"])
    for page in ("report", "check-events", "check-histories"):
        assert "<html" in (place.workdir / "runs" / "latest" / f"{page}.html").read_text()
    assert Path(summary["report"]).is_file()
    recorder = place.hook.got[-1]
    assert recorder["state"] == "SUCCEEDED"
    assert recorder["run_id"] == summary["run"]
    assert recorder["pipeline"] == "longrec-training"


def test_drift_of_live_requests_is_a_run_of_its_own_that_fails(place: Place) -> None:
    version = place.summary()["bento_tag"].partition(":")[2]
    rows = pq.read_table(
        place.workdir / "models" / "reference" / version / "predictions.parquet"
    ).to_pylist()
    for factor, code, message in (
        (1.0, 0, "requests have not drifted"),
        (0.5, 1, "have drifted; found score label"),
    ):
        log = RequestLog(place.workdir, 1.0)
        for row in rows:
            log.add(
                row["user_id"],
                int(row["timestamp"].timestamp() * 1e3),
                [row["item_id"]],
                {"label": [factor * row["label_score"]]},
                history_length=row["history_length"],
                model_version=version,
                degraded=False,
            )
        log.stop()
        answer = place.longrec(
            "drift",
            "--config",
            "tiny.yaml",
            "--workdir",
            "work",
            "--set",
            "drift.window_hours=1000000",
        )
        assert answer.returncode == code
        assert message in answer.stdout + answer.stderr, answer.stderr
        assert place.executed() == ["drift"]
    assert place.hook.got[-1]["state"] == "FAILED"
    assert place.hook.got[-1]["pipeline"] == "longrec-drift"
    assert "score label" in (place.newest() / "drift.html").read_text()
    shutil.rmtree(place.workdir / "requests")


def test_a_second_run_executes_no_heavy_step(place: Place) -> None:
    """The feature store is checked and found current; a deleted bento is restored."""
    before, published = place.summary(), (place.workdir / "feast" / "online.db").stat()
    shutil.rmtree(place.folder / "bentoml")
    answer = place.run("--users", "60", "--events", "64")
    assert answer.returncode == 0, answer.stderr
    assert place.executed() == ["publish", "register"]
    assert set(place.summary()["steps"].values()) == {
        "done",
        "cached",
    }
    found = (place.workdir / "feast" / "online.db").stat()
    assert found.st_ino == published.st_ino
    assert found.st_mtime_ns == published.st_mtime_ns, "publish had nothing to do"
    same = ("metrics", "bento_tag", "lengths", "gate", "num_requests")
    assert {key: place.summary()[key] for key in same} == {key: before[key] for key in same}
    assert (
        place.folder / "bentoml" / "bentos" / before["bento_tag"].replace(":", "/") / "bento.yaml"
    ).is_file()


def _guide(place: Place) -> list[str]:
    """Return the commands of the guide to lineage, for the cached run of the place."""
    names = {
        "13e4bcdd3395-e040d2": f"{_version(place)} --workdir work",
        "--registry mlflow": "--registry mlflow --workdir work",
        "longrec run": "longrec run --config tiny.yaml --workdir work --users 60 --events 64",
    }
    blocks = []
    for block in console_blocks(LINEAGE_GUIDE):
        lines = [line for line in block.splitlines() if not line.startswith("pip install")]
        text = "\n".join(lines)
        for name, value in names.items():
            text = text.replace(name, value)
        blocks.append(text)
    return blocks


def _version(place: Place) -> str:
    tag: str = place.summary()["bento_tag"]
    return tag.partition(":")[2]


def _run_block(place: Place, block: str) -> str:
    variables = {name: value for name, value in place.environment.items() if name != "PATH"}
    return run_block(block, place.folder, variables)


def test_the_guide_to_lineage_prints_the_chain_and_sends_events(place: Place) -> None:
    pytest.importorskip("openlineage.client")
    chain, lineage, _ = _guide(place)
    printed = _run_block(place, chain)
    kinds = [line.split()[0] for line in printed.splitlines()]
    once = [kind for kind in kinds if kind not in ("deployment", "features")]
    assert once == ["bento", "evaluation", "bundle", "histories", "store", "dataset"]
    assert _version(place) in printed
    with openlineage_receiver.receiver() as receiver:
        assert SERVER in lineage
        _run_block(place, lineage.replace(SERVER, receiver.url))
        types = [event["eventType"] for event in receiver.of_job("register")]
    assert types == ["START", "COMPLETE"]


def test_the_guide_to_lineage_lists_the_version_in_mlflow(place: Place, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    tracking = _guide(place)[2]
    with mlflow_server.running(tmp_path) as address:
        assert SERVER in tracking
        listed = _run_block(place, tracking.replace(SERVER, address))
    # The list comes last. The version has no alias in it: it was promoted before there was MLflow.
    number_in_mlflow = "1"
    assert listed.splitlines()[-1].split() == [_version(place), number_in_mlflow]


def test_a_lost_work_directory_is_filled_again_from_the_cache(place: Place) -> None:
    version = place.summary()["bento_tag"].partition(":")[2]
    for name in ("features", "feast"):
        (place.workdir / name).unlink()
    for name in ("store", "models"):
        shutil.rmtree(place.workdir / name)
    shutil.rmtree(place.folder / "bentoml")
    answer = place.run("--users", "60", "--events", "64")
    assert answer.returncode == 0
    assert place.executed() == ["publish", "register"], answer.stderr
    assert (place.workdir / "feast" / "online.db").is_file()
    assert read_registry(place.workdir).champion == version
    assert reference_dir(place.workdir, version).is_dir()
    assert bundle_dir(place.folder / "bentoml", version).is_dir()


def test_an_edit_of_the_trainer_trains_again_and_nothing_before_it(place: Place) -> None:
    shutil.copytree(
        ROOT / "model" / "longrec",
        place.folder / "edited" / "longrec",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    path = place.folder / "edited" / "longrec" / "training" / "train.py"
    assert path.is_file()
    with open(path, "a") as stream:
        stream.write("\n# an edit\n")
    refuse = ("--set", "gate.min_auc=0.999")
    answer = place.run(
        "--users", "60", "--events", "64", *refuse, PYTHONPATH=str(place.folder / "edited")
    )
    assert answer.returncode == 3, answer.stderr
    assert place.executed() == ["publish", "train", "evaluate"]


def test_a_new_day_of_events_runs_what_depends_on_it(place: Place) -> None:
    """The refresh checks, builds and publishes; the next training reuses these results."""
    config = ("--config", "tiny.yaml", "--workdir", "work", "--data", "day-2")
    assert (
        place.longrec(
            "synth", "--out", "day-2", "--users", "60", "--events", "64", "--seed", "9"
        ).returncode
        == 0
    )
    answer = place.longrec("refresh", *config, "--set", "checks.check_drift=false")
    assert answer.returncode == 0
    assert "published" in answer.stdout, answer.stderr
    assert place.executed() == FEATURES
    answer = place.longrec(
        "run", *config, "--set", "checks.check_drift=false", "--set", "gate.min_auc=0.999"
    )
    assert answer.returncode == 3, answer.stderr
    assert place.executed() == ["publish", *HISTORIES, "train", "evaluate"]


def test_progress_is_a_line_per_step_and_the_rest_is_in_the_log(place: Place) -> None:
    answer = place.run("--users", "60", "--events", "64", "--set", "train.max_steps=5")
    assert answer.returncode == 0, answer.stderr
    words = [line.split() for line in answer.stderr.strip().splitlines()]
    finished = [line for line in words if line[0] in ("ok", "cached")]
    assert [line[1] for line in finished] == ["synth", *STEPS, "package", "register"], answer.stderr
    assert finished[0][0] == "cached", "an equal synthetic dataset is reused"
    details = [line for line in words if line not in finished]
    assert {line[0] for line in details} <= {"retrieve", "train", "evaluate", "package"}
    assert len(details) < 10, "a line every ten seconds"
    texts = (
        "served length 64",
        "one model, several served lengths",
        "best possible",
        "gate     passed",
        "longrec serve --workdir work",
    )
    for text in texts:
        assert text in answer.stdout
    assert len(answer.stdout.splitlines()) < 50, "tables of metrics, baselines and lengths"
    assert "Executing task" in (place.workdir / "runs" / "latest" / "pipeline.log").read_text()


def test_a_study_trains_its_grid_in_parallel_on_existing_histories(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The local runner runs two trials at a time and collects their results."""
    from longrec.config import RunConfig
    from longrec.config_file import build
    from longrec.runs import run as runs
    from longrec.study.config import parse, to_text
    from tests.pipelines.test_local_runner import Recorder

    monkeypatch.setenv("LONGREC_ROOT", str(ROOT))
    monkeypatch.delenv("LONGREC_WEBHOOK", raising=False)
    variants = {"stca": {}, "mean": {"model.kind": "mean", "model.recency": "token"}}
    study = parse(
        yaml.safe_dump(
            {
                "name": "two",
                "base": {**CONFIG, "train": {**CONFIG["train"], "max_steps": 3}},
                "variants": variants,
            }
        )
    )
    config = build(
        RunConfig,
        {**CONFIG, "checks": {**CONFIG.get("checks", {}), "check_drift": False}},
    )
    arguments = runs.pipeline_arguments(
        config,
        str(place.folder / "day-2"),
        study=to_text(study),
        only=("data_uri", "shards", "data", "checks", "seed", "study"),
    )
    recorder = Recorder()
    _, finished = runs.run_pipeline("study", arguments, "study", place.workdir, recorder)
    executed = [
        step.name
        for step in finished.steps
        if step.status == "done" and step.name not in ("fingerprint", "finish")
    ]
    assert sorted(executed) == ["collect", "plan", "publish", "trial", "trial"], (
        "features and histories are those of the training"
    )
    facts = json.loads((finished.output("collect", "tables") / "study.json").read_text())
    assert facts["num_done"] == 2
    assert {row["variant"] for row in facts["trials"]} == {"stca", "mean"}
    assert "<html" in finished.output("collect", "report").read_text()


def test_a_search_shares_its_trials_among_steps_on_existing_histories(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps at a time write one journal; the next run of the search trains nothing."""
    from longrec.config import RunConfig
    from longrec.config_file import build, load_config
    from longrec.runs import run as runs
    from tests.pipelines.test_local_runner import Recorder

    monkeypatch.setenv("LONGREC_ROOT", str(ROOT))
    monkeypatch.delenv("LONGREC_WEBHOOK", raising=False)
    changes = {
        "train": {**CONFIG["train"], "max_steps": 3},
        "checks": {**CONFIG.get("checks", {}), "check_drift": False},
    }
    arguments = runs.pipeline_arguments(
        build(RunConfig, {**CONFIG, **changes}),
        str(place.folder / "day-2"),
        trials=3,
        shares=["1/2", "2/2"],
        workers=1,
        space={"train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
    )
    arguments.pop("served_lengths")
    results = []
    for name in ("first", "again"):
        _, finished = runs.run_pipeline("tune", arguments, name, place.workdir, Recorder())
        tables = finished.output("choose", "tables")
        results.append(json.loads((tables / "tune.json").read_text()))
    first, again = results
    assert first["num_finished"] == 3
    assert again["trials"] == first["trials"]
    rates = [trial["train.learning_rate"] for trial in first["trials"]]
    assert len(set(rates)) == 3
    chosen = load_config(finished.output("choose", "config"), [])
    assert chosen.train.learning_rate == first["best"]["train.learning_rate"]
    assert chosen.train.max_steps == 3
    assert "<html" in finished.output("choose", "report").read_text()


def test_a_refused_model_is_not_packaged_and_the_exit_code_is_3(place: Place) -> None:
    before = sorted((place.folder / "bentoml" / "bentos").rglob("bento.yaml"))
    answer = place.run(
        "--users",
        "60",
        "--events",
        "64",
        "--set",
        "gate.min_auc=0.999",
        "--set",
        "train.max_steps=5",
    )
    assert answer.returncode == 3, answer.stderr
    summary = place.summary()
    assert summary["gate"]["passed"] is False
    assert "The AUC" in summary["gate"]["reasons"][0]
    assert summary["bento_tag"] is None
    assert list(summary["seconds"]) == STEPS
    refusal = place.hook.got[-1]
    assert [each["run_id"] for each in place.hook.got].count(summary["run"]) == 1
    assert refusal["state"] == "REFUSED"
    assert refusal["gate"]["missed"][0]["name"] == "min_auc"
    assert refusal["gate"]["package"] == f"longrec package --run {summary['run']} --force"
    assert f"package --run {summary['run']} --force" in answer.stdout
    assert "REFUSED" in answer.stdout
    assert "The AUC" in answer.stdout
    assert "longrec serve" not in answer.stdout
    assert sorted((place.folder / "bentoml" / "bentos").rglob("bento.yaml")) == before


def test_the_gate_compares_with_the_champion_if_configured(place: Place) -> None:
    """A model of one step cannot pass against the champion, the first model of the workdir."""
    answer = place.run(
        "--users",
        "60",
        "--events",
        "64",
        "--set",
        "gate.against_champion=true",
        "--set",
        "train.max_steps=1",
    )
    assert answer.returncode == 3, answer.stderr
    assert any("champion" in reason for reason in place.summary()["gate"]["reasons"])


def test_a_corrupted_dataset_stops_at_the_checks_and_the_report_stays(place: Place) -> None:
    answer = place.longrec("synth", "--out", "corrupted", "--users", "40", "--events", "40")
    assert answer.returncode == 0, answer.stderr
    latest = (place.workdir / "runs" / "latest").resolve()
    _repeat_an_event(place.folder / "corrupted" / "events" / "part-00000.parquet")
    answer = place.run("--data", "corrupted")
    assert answer.returncode == 1
    assert answer.stdout == ""
    message = answer.stderr.strip().splitlines()[-1] if answer.stderr.strip() else ""
    assert "longrec: step check-events failed" in answer.stderr
    assert "duplicate" in answer.stderr.lower(), answer.stderr
    assert "Traceback" not in answer.stderr
    assert message
    newest = max(
        (path for path in (place.workdir / "runs").iterdir() if not path.is_symlink()),
        key=lambda path: path.name,
    )
    assert "<html" in (newest / "check-events.html").read_text()
    assert not (newest / "summary.json").exists()
    assert not list(newest.glob("artifacts/*/publish")), "nothing after the failed check ran"
    assert place.hook.got[-1]["state"] == "FAILED"
    assert place.hook.got[-1]["run_id"] == newest.name
    assert place.hook.got[-1]["step"] == "check-events"
    assert place.hook.got[-1]["link"] == str(newest)
    assert (
        json.loads(next(newest.glob("artifacts/*/finish/outcome")).read_text())
        == place.hook.got[-1]
    )
    assert (place.workdir / "runs" / "latest").resolve() == latest, (
        "latest still points at a finished run"
    )


def test_a_dataset_that_is_cut_off_is_one_clear_line(place: Place) -> None:
    shutil.copytree(place.folder / "corrupted", place.folder / "cut")
    part = place.folder / "cut" / "events" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:1000])
    answer = place.run("--data", "cut")
    assert answer.returncode == 1
    assert "longrec: step check-events failed" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_shards_end_as_one_process_and_are_cached(place: Place) -> None:
    """Three shards of five parts give the same histories, model and metrics as one.

    The same run again executes nothing. A corrupted shard stops the run.
    """
    from longrec.data.importers.synthetic import synthesize

    dataset = place.folder / "parts"
    assert (
        synthesize(dataset, num_users=60, events_per_user=64, seed=5, rows_per_part=600).facts[
            "num_parts"
        ]
        == 5
    )
    run = (
        "--data",
        "parts",
        "--set",
        "checks.check_drift=false",
        "--set",
        "train.max_steps=3",
        "--set",
        "gate.min_auc=0.999",
    )
    found = []
    for count in (1, 3, 3):
        answer = place.run(*run, "--set", f"data.shards={count}")
        assert answer.returncode == 3, answer.stderr
        found.append((place.executed(), place.summary()))
    assert [steps.count("build-features") for steps, _ in found] == [1, 3, 0]
    assert found[2][0] == ["publish"]
    assert all(
        steps.count(name) == 1
        for steps, _ in found[:2]
        for name in ("join-features", "retrieve", "check-events", "train")
    )
    assert list(found[1][1]["seconds"]) == STEPS
    assert set(found[2][1]["steps"].values()) == {
        "done",
        "cached",
    }
    same = ("metrics", "lengths", "num_requests", "num_targets", "longest_history")
    assert all(
        {key: summary[key] for key in same} == {key: found[0][1][key] for key in same}
        for _, summary in found
    )
    _repeat_an_event(dataset / "events" / "part-00004.parquet")
    answer = place.run(*run, "--set", "data.shards=3")
    assert answer.returncode == 1
    assert "step check-events failed" in answer.stderr
    assert "(shard 3)" in answer.stderr.replace("\n", " ")
    assert "build-features" not in place.executed()


def test_a_place_that_cannot_be_written_or_read_is_one_clear_line(place: Place) -> None:
    (place.folder / "file").write_text("")
    nowhere = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "x",
    }
    unwritable = place.longrec(
        "run", "--config", "tiny.yaml", "--data", "corrupted", "--workdir", "file/work"
    )
    unreachable = place.run("--data", "s3://bucket/dataset", **nowhere)
    for answer, text in (
        (unwritable, "cannot be written"),
        (unreachable, "s3://bucket/dataset cannot be read"),
    ):
        assert answer.returncode == 1
        assert answer.stdout == ""
        assert text in answer.stderr
        assert len(answer.stderr.strip().splitlines()) == 1, answer.stderr


def _repeat_an_event(path: Path) -> None:
    """Replaces the second event by a copy of the first."""
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2)]), path)
