"""Packaging: what is in a bento, that it scores like training does, and that nothing is left of a
refused one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longrec.data.histories import Histories
from longrec.errors import GateRefused
from longrec.release import bento_server, build_context, packaging, parity
from longrec.release import wheel as wheels
from longrec.release.bento_server import PackagingError
from longrec.release.parity import ParityReport
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import Scorer
from tests.conftest import LENGTH, ROOT, Packaged, ServedWorld, make_world
from tests.longrec import small_histories

REPO = ROOT / "feature_repo"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = sorted(ROOT.iterdir())
    wheel = wheels.build_wheel(ROOT, tmp_path_factory.mktemp("wheel") / "wheels")
    assert sorted(ROOT.iterdir()) == before, "building left something in the checkout"
    return wheel


@pytest.fixture(scope="module")
def staged(
    served_world: ServedWorld, tmp_path_factory: pytest.TempPathFactory
) -> build_context.StagedBento:
    return _stage(served_world, tmp_path_factory.mktemp("staged") / "context")


def test_the_wheel_holds_the_library_and_only_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert archive.read("longrec/schema.py") == (ROOT / "model/longrec/schema.py").read_bytes()
    assert {name.split("/")[0] for name in names} == {"longrec"} and not any(
        "__pycache__" in name for name in names
    )
    assert {
        "longrec/scoring/scorer.py",
        "longrec/nn/ranker.py",
        "longrec/data/store/feast_adapter.py",
        "longrec/errors.py",
        "longrec/py.typed",
    } <= names


def test_the_requirements_are_what_is_installed_here(wheel: Path) -> None:
    pins = dict(line.split("==") for line in wheels.pinned_requirements(wheel))
    assert pins["torch"] == importlib.metadata.version("torch").partition("+")[0]
    assert pins["feast"] == importlib.metadata.version("feast")
    assert pins["redis"] == importlib.metadata.version("redis")  # by an extra of feast
    assert pins["jinja2"] == importlib.metadata.version("jinja2")  # of torch
    assert not pins.keys() & {
        "kfp",
        "great-expectations",
        "great_expectations",
        "pytest",
        "matplotlib",
        "bentoml",
        "longrec",
    }


def test_a_requirement_that_is_not_installed_stays_as_declared(tmp_path: Path) -> None:
    metadata = "Metadata-Version: 2.1\nName: longrec\nVersion: 1\nRequires-Dist: numpy>=1\nRequires-Dist: no-such-thing<3,>=2\n"
    metadata += 'Requires-Dist: left-out; extra == "other"\nRequires-Dist: only-elsewhere; sys_platform == "plan9"\n'
    with zipfile.ZipFile(tmp_path / "longrec-1-py3-none-any.whl", "w") as archive:
        archive.writestr("longrec-1.dist-info/METADATA", metadata)
    pins = wheels.pinned_requirements(tmp_path / "longrec-1-py3-none-any.whl")
    assert pins == ["no-such-thing<3,>=2", f"numpy=={importlib.metadata.version('numpy')}"]


@pytest.mark.parametrize(
    ("version", "clean"),
    [
        ("20260102-030405-quickstart", "20260102-030405-quickstart"),
        ("Nightly 1/2", "nightly-1-2"),
        ("-a-", "a"),
        ("a" * 99, "a" * 63),
        ("1.0_b", "1.0_b"),
    ],
)
def test_a_version_is_written_as_a_tag_takes_it(version: str, clean: str) -> None:
    assert build_context.clean_version(version) == clean


@pytest.mark.parametrize("version", ["", "///", "latest", "Latest"])
def test_a_version_that_is_none_is_refused(version: str) -> None:
    with pytest.raises(PackagingError, match="a bento needs a version"):
        build_context.clean_version(version)


def _stage(
    world: ServedWorld, out: Path, evaluation: Path | None = None
) -> build_context.StagedBento:
    return build_context.stage(
        world.path / "bundle",
        evaluation or world.path / "evaluation",
        out,
        histories_dir=world.path / "histories",
        repo_dir=REPO,
        version="Run 1",
    )


def test_a_build_context_holds_everything_but_the_model(staged: build_context.StagedBento) -> None:
    context = Path(staged.path)
    found = {path.relative_to(context).as_posix() for path in context.rglob("*") if path.is_file()}
    features = {
        path.relative_to(ROOT).as_posix()
        for path in REPO.rglob("*")
        if path.is_file() and path.suffix in (".py", ".md", ".yaml")
    }
    service = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "bento").glob("*.py")
        if path.name != "build.py"
    }
    assert found == {
        "bentofile.yaml",
        *service,
        "release.json",
        "MODEL_CARD.md",
        "requirements.txt",
        f"wheels/{staged.wheel}",
        *features,
    }
    assert "bento/service.py" in service
    assert {"feature_repo/definitions.py", "feature_repo/feature_store.yaml"} <= features
    options = json.loads((context / "bentofile.yaml").read_text())
    assert options["python"] == {
        "requirements_txt": "requirements.txt",
        "wheels": [f"wheels/{staged.wheel}"],
        "lock_packages": False,
    }
    assert (
        json.loads((context / "release.json").read_text())["model"]
        == staged.tag
        == "longrec-ranker:run-1"
    )


def test_labels_name_data_schema_bundle_and_metrics(
    staged: build_context.StagedBento, served_world: ServedWorld
) -> None:
    labels = staged.labels
    bundle = json.loads((served_world.path / "bundle" / "bundle.json").read_text())
    metrics = json.loads((served_world.path / "evaluation" / "metrics.json").read_text())
    facts = json.loads((served_world.path / "dataset" / "dataset.json").read_text())["facts"]
    assert (
        labels["schema"] == bundle["schema_fingerprint"] and labels["bundle"] == bundle["version"]
    )
    assert (
        labels["data"] == facts["content_hash"][:16]
        and labels["dataset"] == "synthetic"
        and labels["served_length"] == str(LENGTH)
    )
    assert float(labels["label.auc"]) == pytest.approx(metrics["metrics"]["label"]["auc"], rel=1e-4)
    assert all(isinstance(value, str) and value for value in labels.values())


def _changed(evaluation: Path, out: Path, change: Any) -> Path:
    shutil.copytree(evaluation, out)
    value = json.loads((out / "metrics.json").read_text())
    change(value)
    (out / "metrics.json").write_text(json.dumps(value))
    return out


def test_a_refused_model_is_not_staged(served_world: ServedWorld, tmp_path: Path) -> None:
    refused = _changed(
        served_world.path / "evaluation",
        tmp_path / "evaluation",
        lambda value: value.update(gate={"passed": False, "reasons": ["The AUC is low."]}),
    )
    with pytest.raises(GateRefused, match="The AUC is low"):
        _stage(served_world, tmp_path / "context", refused)
    assert not (tmp_path / "context").exists()


def test_the_evaluation_of_another_bundle_is_refused(
    served_world: ServedWorld, tmp_path: Path
) -> None:
    other = _changed(
        served_world.path / "evaluation",
        tmp_path / "evaluation",
        lambda value: value["bundle"].update(version="0" * 16),
    )
    with pytest.raises(PackagingError, match="another bundle"):
        _stage(served_world, tmp_path / "context", other)


def test_a_project_without_a_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "feature_repo").mkdir()
    with pytest.raises(
        PackagingError, match=r"not a project folder of longrec; found no bento/service\.py"
    ):
        build_context.project_root(tmp_path / "feature_repo")


def test_a_wheel_that_cannot_be_built_is_told(tmp_path: Path) -> None:
    (tmp_path / "root" / "model" / "longrec").mkdir(parents=True)
    (tmp_path / "root" / "pyproject.toml").write_text("[project]\nname = 'other'\nversion = '1'\n")
    with pytest.raises(PackagingError, match="wheel of longrec cannot be built"):
        wheels.build_wheel(tmp_path / "root", tmp_path / "wheels")


def test_the_sample_holds_the_longest_and_the_shortest_history(tmp_path: Path) -> None:
    histories = Histories.open(small_histories.write(tmp_path / "histories"))
    requests, split = histories.requests.to_pydict(), np.asarray(histories.requests.column("split"))
    lengths = np.asarray(requests["event_end"]) - np.asarray(requests["event_start"])
    for seed in range(5):
        chosen = parity.sample_requests(histories, seed, count=6)
        assert (
            set(split[chosen]) == {"eval"} and 6 <= len(chosen) <= 8 and (np.diff(chosen) > 0).all()
        )
        assert (
            lengths[chosen].max() == lengths[split == "eval"].max() and lengths[chosen].min() == 0
        )
    assert not np.array_equal(
        parity.sample_requests(histories, 0, count=6), parity.sample_requests(histories, 1, count=6)
    )
    assert np.array_equal(
        parity.sample_requests(histories, 1), parity.sample_requests(histories, 1)
    )


def test_the_largest_difference_is_infinite_where_a_score_is_missing_or_not_finite() -> None:
    ones, shape = np.ones((3, 2), np.float32), np.ones((2, 2), np.float32)
    assert parity._largest_difference([ones, shape], [ones, shape - 0.25]) == 0.25
    assert parity._largest_difference([ones], [shape]) == float("inf")
    assert parity._largest_difference([ones], [ones * np.nan]) == float("inf")


FINE = ParityReport(3, 6, 9, 0.0, 1e-7, 1e-4, (), True, 1.0, 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"http_error": 2e-4}, r"HTTP 0\.0002"),
        ({"scorer_error": float("inf")}, "Scorer inf"),
        ({"problems": ("user 5: bad",)}, "user 5: bad"),
    ],
)
def test_unequal_scores_are_refused(change: dict[str, Any], message: str) -> None:
    packaging._require_parity(FINE)
    with pytest.raises(GateRefused, match=message):
        packaging._require_parity(dataclasses.replace(FINE, passed=False, **change))


def test_the_training_forward_is_the_scores_of_the_evaluation(served_world: ServedWorld) -> None:
    import pyarrow.parquet as pq

    scorer, histories = (
        Scorer.load(served_world.path / "bundle"),
        Histories.open(served_world.path / "histories"),
    )
    requests = parity.sample_requests(histories, 3)
    forward = parity.training_forward(scorer, histories, requests)
    predicted = pq.read_table(served_world.path / "evaluation" / "predictions.parquet").to_pandas()
    for row, scores in zip(requests.tolist(), forward, strict=True):
        mine = predicted[
            predicted.request_id == histories.requests.column("request_id")[row].as_py()
        ]
        np.testing.assert_allclose(scores[:, 0], mine.label_score, atol=2e-6)


FAULTS: dict[str, Any] = {
    "none": lambda answer: answer,
    "one score is off": lambda answer: answer["scores"]["label"].__setitem__(
        -1, answer["scores"]["label"][-1] + 2e-4
    ),
    "candidates in another order": lambda answer: answer["scores"]["label"].reverse(),
    "a score is missing": lambda answer: answer["scores"]["label"].pop(),
    "a score is NaN": lambda answer: answer["scores"]["label"].__setitem__(0, float("nan")),
    "one event more": lambda answer: answer.update(history_length=answer["history_length"] + 1),
    "degraded": lambda answer: answer.update(degraded=True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_parity_passes_only_equal_answers(
    fault: str, served_world: ServedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, histories = (
        Scorer.load(served_world.path / "bundle"),
        Histories.open(served_world.path / "histories"),
    )
    users = {user["user_id"]: user for user in histories.users.to_pylist()}
    asked: list[int] = []

    def answer(host: str, port: int, body: dict[str, Any]) -> dict[str, Any]:
        user, request_time = users[body["user_id"]], body["request_time"]
        rows = RequestRows(
            histories.timeline(user["user_row"]), user, request_time, np.array(body["candidates"])
        )
        events = int((np.asarray(rows.history.column("timestamp")) < request_time).sum())
        found = {
            "scores": {"label": scorer.score([rows])[0][:, 0].tolist()},
            "history_length": min(events, LENGTH),
            "degraded": False,
        }
        asked.append(request_time)
        if len(asked) == 5:  # one answer of many
            FAULTS[fault](found)
        return found

    monkeypatch.setattr(
        parity, "serve_bento", lambda *_, **__: contextlib.nullcontext(("127.0.0.1", 1))
    )
    monkeypatch.setattr(parity, "post_rank", answer)
    report = parity.check_parity(
        served_world.path / "bundle",
        served_world.path / "histories",
        tmp_path,
        workdir=tmp_path,
        bound=1e-4,
        seed=0,
    )
    assert (
        report.passed == (fault == "none")
        and report.scorer_error <= 2e-6
        and len(asked) == report.num_requests >= 24
    )
    assert bool(report.problems) == (fault in ("one event more", "degraded"))


@pytest.mark.slow
def test_a_bento_is_packaged_once(
    packaged: Packaged, served_world: ServedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = packaged.report
    assert (
        report.tag == "longrec-ranker:run-1" and report.parity.passed and not report.parity.problems
    )
    assert max(report.parity.scorer_error, report.parity.http_error) <= 2e-6  # far below the bound
    assert report.parity.longest_history == LENGTH and report.parity.num_requests >= 24
    assert json.loads(packaged.parity_path.read_text())["passed"] is True
    assert packaged.listed() == (["longrec-ranker:run-1"], ["longrec-ranker:run-1"])
    monkeypatch.setenv("BENTOML_HOME", str(packaged.store))
    with pytest.raises(PackagingError, match="a version is never used twice"):
        packaged.again(served_world, tmp_path / "bento", workdir=served_world.workdir)
    assert not (tmp_path / "bento").exists() and packaged.listed() == (
        ["longrec-ranker:run-1"],
        ["longrec-ranker:run-1"],
    )


@pytest.mark.slow
def test_nothing_is_left_of_a_bento_whose_scores_differ(
    packaged: Packaged, served_world: ServedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_world(
        tmp_path / "other", seed=9
    )  # the same schema, other events of the same users
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "store"))
    with pytest.raises(GateRefused, match=r"the service used .* events, training"):
        packaged.again(served_world, tmp_path / "out" / "bento", workdir=other.workdir)
    verdict = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert not verdict["passed"] and verdict["http_error"] > 1e-3 and verdict["scorer_error"] < 1e-5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["parity.json"]
    assert not [
        path
        for kind in ("models", "bentos")
        for path in (tmp_path / "store").glob(f"{kind}/longrec-ranker/*")
    ]


@pytest.mark.slow
def test_a_server_dies_with_the_process_that_started_it(
    packaged: Packaged, served_world: ServedWorld
) -> None:
    import psutil

    script = (
        "import sys, time\nfrom longrec.release.bento_server import serve_bento\n"
        "with serve_bento(sys.argv[1], workdir=sys.argv[2]) as (host, port):\n    print(port, flush=True)\n    time.sleep(900)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script, packaged.report.path, str(served_world.workdir)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None and starter.stdout.readline().strip().isdigit()
    family = psutil.Process(starter.pid).children(recursive=True)
    assert len(family) >= 2, "the supervisor and its worker"
    starter.kill()
    starter.wait()
    _, alive = psutil.wait_procs(family, timeout=120)
    assert all(
        each.status() == psutil.STATUS_ZOMBIE for each in alive
    )  # where nobody reaps what lost its parent


def test_a_server_that_does_not_start_says_why(served_world: ServedWorld, tmp_path: Path) -> None:
    target, workdir = "bento.service:Ranker", tmp_path / "nothing"
    with (
        pytest.raises(
            PackagingError, match=r"did not start; found .*no feature store at .*nothing"
        ),
        bento_server.serve_bento(target, workdir=workdir, store=served_world.store, folder=ROOT),
    ):
        pytest.fail("it started")


def test_packaging_imports_no_bentoml() -> None:
    code = "import sys, longrec.release.packaging; assert not {'bentoml', 'torch', 'feast'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
