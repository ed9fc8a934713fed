"""The feature repository with the real `feast` command, before and after a publish."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from longrec.config import DataConfig
from longrec.data import features, history
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import publish
from longrec.schema import synthetic_schema
from tests.longrec.data import random_log
from tests.longrec.data.random_log import SCHEMA

REPO = Path(__file__).parents[2] / "feature_repo"
FEAST = Path(sys.executable).with_name("feast")


def feast(
    repo: Path,
    *arguments: str,
    **variables: str,
) -> str:
    """Run a feast command in the repository and return its output."""
    done = subprocess.run(
        [FEAST, *arguments],
        cwd=repo,
        env={**clean_environment(repo), **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def clean_environment(repo: Path) -> dict[str, str]:
    """Return this process's environment without settings of Feast and longrec."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LONGREC_", "FEAST_"))
    }
    user_home = repo.parents[1] / "user_home"
    user_home.mkdir(exist_ok=True)
    return {**clean, "HOME": str(user_home)}


@contextlib.contextmanager
def feast_ui(repo: Path) -> Iterator[httpx.Client]:
    """Yield a client of `feast ui`, run in the repository."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = repo.parents[1] / "ui.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [FEAST, "ui", "--host", "127.0.0.1", "--port", str(port)],
            cwd=repo,
            env=clean_environment(repo),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_for_answer(client, process, log)
            yield client
    finally:
        process.terminate()
        process.wait(30)


def wait_for_answer(client: httpx.Client, process: subprocess.Popen, log: Path) -> None:
    """Wait until a server answers; fail with its log if it ends before."""
    limit = time.monotonic() + 180
    while True:
        assert process.poll() is None and time.monotonic() < limit, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            client.get("/")
            return
        time.sleep(0.2)


def build(folder: Path) -> Path:
    """Build feature tables of a random dataset."""
    features.build_features(
        random_log.write(folder / "data").path, folder / "features", DataConfig()
    )
    return folder / "features"


def assert_nothing_to_do(plan: str) -> None:
    """Check that a plan lists only materialized views and existing tables.

    Feast compares time stamps, so a materialized view counts as updated.
    """
    lines = [
        line for line in plan.splitlines() if line.startswith(("Created", "Deleted", "Updated"))
    ]
    assert all(
        line.startswith(("Updated feature view user_", "Created sqlite table longrec_"))
        for line in lines
    ), lines
    paths = set(re.findall(r'uri: "(.*?)"', plan))
    assert all(
        sum(path.endswith(name) for path in paths) <= 1
        for name in ("user_history", "user_features.parquet")
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh copy of the repository's folder, alone in its parent folder."""
    return Path(
        shutil.copytree(
            REPO,
            tmp_path / "checkout" / "feature_repo",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    )


def test_feast_apply_works_by_itself_in_a_fresh_clone(clone: Path) -> None:
    printed = feast(clone, "apply")
    workdir = clone.parent / ".longrec"
    for name in (
        "entity user",
        "entity item",
        "feature view user_history",
        "feature view user_features",
        "feature view item_features",
        "feature service ranker_v1",
    ):
        assert f"Created {name}" in printed
    assert {path.name for path in (workdir / "feast").iterdir()} == {"registry.db", "online.db"}
    assert {path.name for path in clone.parent.iterdir()} == {"feature_repo", ".longrec"}
    assert tags_of(workdir) == {
        "schema": synthetic_schema().fingerprint,
        "schema_name": "synthetic",
    }


@pytest.mark.slow
def test_a_fresh_clone_from_apply_over_publish_to_materialize(clone: Path, tmp_path: Path) -> None:
    """A publish replaces the result of `feast apply`; then the command works on the new version."""
    feast(clone, "apply")
    workdir = clone.parent / ".longrec"
    publish(build(tmp_path), workdir, clone)
    assert tags_of(workdir) == {"schema": SCHEMA.fingerprint, "schema_name": "random"}
    assert_nothing_to_do(feast(workdir / "feast", "plan"))
    before = OnlineStore(workdir).fetch(range(20))
    online = (workdir / "feast" / "online.db").resolve()
    with contextlib.closing(sqlite3.connect(online)) as database:
        database.execute("delete from longrec_user_history")
        database.commit()
    feast(
        workdir / "feast",
        "materialize",
        "1970-01-01T00:00:00",
        "2100-01-01T00:00:00",
    )
    for found, expected in zip(OnlineStore(workdir).fetch(range(20)), before, strict=True):
        assert history.pack(found.history, SCHEMA) == history.pack(expected.history, SCHEMA)
        assert found.features == expected.features
    assert sum(answer.history.num_rows for answer in before) > 100


def tags_of(workdir: Path) -> dict[str, str]:
    """Return the tags of the feature service in the registry file."""
    from feast.protos.feast.core.Registry_pb2 import Registry

    registry = Registry()
    registry.ParseFromString((workdir / "feast" / "registry.db").read_bytes())
    return dict(registry.feature_services[0].spec.tags)


@pytest.mark.slow
def test_the_command_works_in_a_work_directory_that_was_moved(clone: Path, tmp_path: Path) -> None:
    publish(build(tmp_path), tmp_path / "published", clone)
    moved = (tmp_path / "published").rename(tmp_path / "else where")
    assert_nothing_to_do(feast(moved / "feast", "plan"))
    feast(moved / "feast", "apply")
    assert OnlineStore(moved).fetch([0])[0].history.num_rows > 0
    assert not (clone.parent / ".longrec").exists()


@pytest.mark.slow
def test_feast_ui_shows_a_published_work_directory(clone: Path, tmp_path: Path) -> None:
    publish(build(tmp_path), tmp_path / "workdir", clone)
    with feast_ui(tmp_path / "workdir" / "feast") as client:
        page = client.get("/")
        assert page.status_code == 200
        assert "<title>Feast" in page.text
        project = {"project": "longrec"}
        views = client.get("/api/v1/feature_views", params=project).raise_for_status().json()
        names = {view["spec"]["name"] for view in views["featureViews"]}
        assert names == {"user_history", "user_tail", "user_features", "item_features"}
        services = client.get("/api/v1/feature_services", params=project).raise_for_status()
        (service,) = services.json()["featureServices"]
        assert service["spec"]["tags"]["schema"] == SCHEMA.fingerprint


def test_the_repository_holds_one_file_of_declarations() -> None:
    """`feast apply` imports every Python file below the folder."""
    assert [path.name for path in REPO.rglob("*.py") if path.name != "__init__.py"] == [
        "definitions.py"
    ]
    imported = [
        line.split()[1]
        for line in (REPO / "definitions.py").read_text().splitlines()
        if line.startswith(("import ", "from "))
    ]
    assert {name for name in imported if name.split(".")[0] == "longrec"} == {"longrec.schema"}
    assert {name.split(".")[0] for name in imported} == {
        "__future__",
        "os",
        "pathlib",
        "feast",
        "longrec",
    }
