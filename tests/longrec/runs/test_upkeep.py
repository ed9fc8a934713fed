"""A user is forgotten everywhere and for good; doctor finds faults; gc removes what is unused."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.config import DataConfig
from longrec.data import features
from longrec.data.dataset import Dataset
from longrec.data.store.offline_store import OfflineStore
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import publish
from longrec.data.store.push import push
from longrec.data.store.retrieve import retrieve
from longrec.data.upkeep.forget_list import forgotten_users, list_path
from longrec.errors import DataError
from longrec.release.request_log import RequestLog, log_files
from longrec.runs.doctor import examine
from longrec.runs.forget import forget_user
from longrec.runs.gc import collect_garbage, plan_removal
from tests.longrec.data import random_log
from tests.longrec.data.random_log import HUGE, SCHEMA

REPO = Path(__file__).parents[3] / "feature_repo"
USER = HUGE
OTHER = 3
NOBODY = 424_242


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a dataset, its feature tables and a published work directory."""
    root = tmp_path_factory.mktemp("published")
    random_log.write(root / "data")
    features.build_features(root / "data", root / "features", DataConfig(shard_users=7))
    publish(root / "features", root / "workdir", REPO)
    return root


@pytest.fixture
def root(published: Path, tmp_path: Path) -> Path:
    """Return a copy with pushed events of two users."""
    copy = tmp_path / "copy"
    shutil.copytree(published, copy, symlinks=True)
    rng = np.random.default_rng(0)
    push(copy / "workdir", None, random_log.live(rng, 20, [USER, OTHER]))
    return copy


def num_events(workdir: Path, user: int) -> list[int]:
    """Return the events of a user, online and offline."""
    stores = (OnlineStore(workdir), OfflineStore(workdir))
    return [store.fetch([user])[0].history.num_rows for store in stores]


def log_requests(workdir: Path, users: list[int]) -> None:
    log = RequestLog(workdir, share=1.0)
    for user in users:
        log.add(user, 1, [1, 2], {"click": [0.1, 0.2]}, model_version="v", degraded=False)
    log.stop()


def logged_users(workdir: Path) -> set[int]:
    tables = [pq.read_table(path) for path in log_files(workdir)]
    return {user for table in tables for user in table["user_id"].to_pylist()}


def holds(folder: Path, user: int) -> list[Path]:
    """Return the Parquet files with rows of a user, and databases with the bytes of a key."""
    key = re.compile(b"user_id.{0,16}" + re.escape(user.to_bytes(8, "little")), re.DOTALL)
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            table = pq.ParquetFile(path).read()
            ids = table["user_id"].to_pylist() if "user_id" in table.column_names else []
            found += [path] if user in ids else []
        elif path.is_file() and path.suffix == ".db":
            found += [path] if key.search(path.read_bytes()) else []
    return found


def test_a_forgotten_user_is_nowhere_and_others_stay(root: Path) -> None:
    workdir = root / "workdir"
    log_requests(workdir, [USER, OTHER])
    runs = workdir / "runs" / "20260101-000000-x" / "artifacts"
    retrieve(root / "data", workdir, REPO, runs / "histories", DataConfig(), 0)
    (runs / "evaluation").mkdir()
    shutil.copyfile(log_files(workdir)[0], runs / "evaluation" / "predictions.parquet")
    others_before = num_events(workdir, OTHER)
    assert holds(workdir, USER)
    receipt = forget_user(workdir, USER, [root / "data"])
    assert not holds(workdir, USER)
    assert not holds(root / "data", USER)
    assert num_events(workdir, USER) == [0, 0]
    assert num_events(workdir, OTHER) == others_before
    assert logged_users(workdir) == {OTHER}
    assert receipt.store.histories >= 1
    assert receipt.store.tails >= 1
    assert receipt.store.features == 1
    assert receipt.online_rows > 3
    assert receipt.request_log_rows == 2
    assert receipt.datasets[str(root / "data")]["events"] == receipt.store.events > 0
    assert receipt.files == {str(runs / "evaluation" / "predictions.parquet"): 2}
    assert receipt.folders == (str(runs / "histories"),)
    assert [finding.fault for finding in examine(workdir)] == []
    dataset = Dataset.open(root / "data")
    assert dataset.facts["num_events"] == sum(part.num_rows for part in dataset.event_parts())
    features.build_features(root / "data", root / "again", DataConfig())


def test_forgetting_again_removes_nothing(root: Path) -> None:
    workdir = root / "workdir"
    forget_user(workdir, USER, [root / "data"])
    before = {path: path.stat().st_mtime_ns for path in (root / "data").rglob("*.parquet")}
    receipt = forget_user(workdir, USER, [root / "data"])
    assert receipt.was_listed
    assert not any(receipt.datasets[str(root / "data")].values())
    assert receipt.online_rows == receipt.request_log_rows == receipt.store.histories == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    nobody = forget_user(workdir, NOBODY)
    assert not nobody.was_listed
    assert nobody.online_rows == nobody.store.histories == 0


def test_a_log_that_is_imported_again_does_not_bring_the_user_back(root: Path) -> None:
    """The old feature tables and dataset still hold the user, and a producer sends events."""
    workdir = root / "workdir"
    forget_user(workdir, USER)
    others = num_events(workdir, OTHER)
    report = push(workdir, None, random_log.live(np.random.default_rng(1), 9, [USER], seq=7_000))
    assert report.num_new == report.num_users == 0
    publish(root / "features", workdir, REPO)
    assert num_events(workdir, USER) == [0, 0]
    assert num_events(workdir, OTHER) == others
    assert not holds(workdir / "store", USER)
    assert [finding.fault for finding in examine(workdir)] == []
    retrieve(root / "data", workdir, REPO, root / "histories", DataConfig(), 0)
    assert not holds(root / "histories", USER)
    log_requests(workdir, [USER, OTHER])
    assert logged_users(workdir) == {OTHER}


def test_a_damaged_forget_list_stops_whatever_could_bring_a_user_back(root: Path) -> None:
    workdir = root / "workdir"
    forget_user(workdir, USER)
    list_path(workdir).write_text("{")
    with pytest.raises(DataError, match=r"forgotten\.json is not JSON"):
        forgotten_users(workdir)
    with pytest.raises(DataError, match=r"forgotten\.json"):
        publish(root / "features", workdir, REPO)
    assert any("forgotten" in finding.fault for finding in examine(workdir))


def test_the_receipt_is_json(root: Path) -> None:
    command = ["forget", "--user", str(USER), "--data", str(root / "data")]
    answer = CliRunner().invoke(app, [*command, "--workdir", str(root / "workdir")])
    assert answer.exit_code == 0, answer.output
    receipt = json.loads(answer.stdout)
    assert receipt["user_id"] == USER
    assert receipt["store"]["features"] == 1
    assert receipt["kept"]


def doctor(workdir: Path) -> tuple[int, dict[str, Any]]:
    answer = CliRunner().invoke(app, ["doctor", "--json", "--workdir", str(workdir)])
    return answer.exit_code, json.loads(answer.stdout)


def break_table(version: Path) -> None:
    path = sorted((version / "features" / "user_history").glob("part-*"))[0]
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)


def break_online(version: Path) -> None:
    import sqlite3

    with sqlite3.connect(version / "feast" / "online.db") as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        names = [name for (name,) in tables if "user_history" in name]
        connection.execute(f"DELETE FROM \"{names[0]}\" WHERE feature_name = 'history'")


def break_manifest(version: Path) -> None:
    (version / "features" / "manifest.json").write_text("[]")


def break_current(version: Path) -> None:
    version.rename(version.with_name("elsewhere"))


def break_push(version: Path) -> None:
    (version / "feast" / "pushed.json").write_text('{"applied_us": 0}')


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (break_table, "tables"),
        (break_online, "online"),
        (break_manifest, "tables"),
        (break_current, "links"),
        (break_push, "online"),
    ],
)
def test_doctor_finds_a_fault(root: Path, damage: Any, check: str) -> None:
    workdir = root / "workdir"
    assert doctor(workdir)[0] == 0
    damage((workdir / "store" / "current").resolve())
    code, value = doctor(workdir)
    assert code == 1
    assert check in {finding["check"] for finding in value["findings"]}


def test_doctor_finds_what_lies_beside_the_store(root: Path) -> None:
    workdir = root / "workdir"
    (workdir / "requests").mkdir()
    (workdir / "requests" / "1.parquet").write_bytes(b"PAR1")
    (workdir / "cache").mkdir()
    (workdir / "cache" / "k.json").write_text('{"out": {"uri": "/nowhere/at/all"}}')
    (workdir / "models").mkdir()
    (workdir / "models" / "registry.json").write_text("[]")
    (workdir / "store" / f".x.tmp-{socket.gethostname()}-{2**22 + 1}-ab12cd34").mkdir()
    _, value = doctor(workdir)
    checks = {finding["check"] for finding in value["findings"]}
    assert checks == {"request log", "cache", "models", "orphans"}


def make_run(workdir: Path, name: str, version: str = "") -> Path:
    run = workdir / "runs" / name
    (run / "artifacts").mkdir(parents=True)
    tag = f"longrec-ranker:{version}" if version else None
    (run / "summary.json").write_text(json.dumps({"bento_tag": tag}))
    cache = workdir / "cache"
    cache.mkdir(exist_ok=True)
    (cache / f"{name}.json").write_text(json.dumps({"out": {"uri": f"{run}/artifacts"}}))
    return run


def test_gc_keeps_what_is_referred_to(root: Path) -> None:
    workdir = root / "workdir"
    publish(root / "features", workdir, REPO)
    old_versions = {path for path in (workdir / "store").iterdir() if path.is_dir()}
    runs = [make_run(workdir, f"2026010{day}-000000-x", f"v{day}") for day in range(1, 6)]
    registry = {"format_version": 1, "champion": "v1", "last": None}
    (workdir / "models").mkdir()
    (workdir / "models" / "registry.json").write_text(json.dumps(registry))
    (workdir / "runs" / "latest").symlink_to(runs[4].name)
    dead = workdir / f".x.tmp-{socket.gethostname()}-{2**22 + 1}-ab12cd34"
    alive = workdir / f".x.tmp-{socket.gethostname()}-{os.getpid()}-ab12cd34"
    dead.mkdir()
    alive.mkdir()
    planned = plan_removal(workdir, keep=2)
    assert set(planned.runs) == {runs[1], runs[2]}
    assert all(path.exists() for path in planned.paths), "a plan removes nothing"
    removal, num_bytes = collect_garbage(workdir, keep=2)
    assert removal == planned
    assert num_bytes > 0
    assert [run.exists() for run in runs] == [True, False, False, True, True]
    assert sorted(path.stem[7:8] for path in (workdir / "cache").iterdir()) == ["1", "4", "5"]
    assert not dead.exists()
    assert alive.exists()
    assert {path for path in (workdir / "store").iterdir() if path.is_dir()} == old_versions
    assert num_events(workdir, OTHER)[0] > 0
    assert not collect_garbage(workdir, keep=2)[0].paths


def test_runs_of_a_cluster_are_as_old_as_their_first_step(tmp_path: Path) -> None:
    """Their ids do not tell the time."""
    old = tmp_path / "runs" / "f8d84c46-9ff0-4905-be20-16a03292d17e"
    new = tmp_path / "runs" / "0272baca-57b4-4923-a162-c3eec7559733"
    for run, day in ((old, "20260101"), (new, "20260103")):
        (run / "steps").mkdir(parents=True)
        (run / "steps" / f"{day}T000000.0-train-1.json").write_text("{}")
    between = make_run(tmp_path, "20260102-000000-x")
    assert set(plan_removal(tmp_path, 1).runs) == {old, between}


def test_gc_lists_before_it_removes(root: Path) -> None:
    workdir = root / "workdir"
    runs = [make_run(workdir, f"2026010{day}-000000-x") for day in (1, 2)]
    words = ["gc", "--keep", "1", "--workdir", str(workdir)]
    answer = CliRunner().invoke(app, [*words, "--dry-run"])
    assert f"would remove {runs[0]}" in answer.stdout
    assert runs[0].exists()
    removed = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["removed"]
    assert str(runs[0]) in removed
    assert not runs[0].exists()
    assert runs[1].exists()


def test_live_events_have_the_columns_of_the_schema() -> None:
    table = random_log.live(np.random.default_rng(0), 1, [USER])
    assert isinstance(table, pa.Table)
    assert SCHEMA.event[0].name in table.column_names
