"""The chain of a version, by the records of the runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.data.files import write_json
from longrec.runs.record.artifacts import step_input
from longrec.runs.record.attempts import recorded
from longrec.runs.record.chain import LineageError, trace

FIRST, SECOND = "20260101-120000-clicks", "20260102-120000-clicks"
BENTO = "13e4bcdd3395-e040d2"
KINDS = ["bento", "evaluation", "bundle", "histories", "store", "features", "features", "dataset"]


class Work:
    """A work directory whose steps write the files that name versions.

    Args:
        path: the work directory.
        monkeypatch: sets the variables of a step.
    """

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self._monkeypatch = monkeypatch
        facts = {"content_hash": "48e957d0"}
        write_json(self.at("dataset/dataset.json"), {"name": "clicks", "facts": facts})
        write_json(self.at("shards/1/manifest.json"), {"version": "part"})
        write_json(self.at("features/manifest.json"), {"version": "86afdda6"})
        write_json(self.at("published"), {"digest": "86afdda6"})
        write_json(self.at("histories/manifest.json"), {"store_version": "86afdda6"})
        write_json(self.at("bundle/bundle.json"), {"version": "13e4bcdd33957abc"})
        write_json(self.at("evaluation/metrics.json"), {"auc": 0.7})
        write_json(self.at("bento/src/release.json"), {"model": f"longrec-ranker:{BENTO}"})

    def at(self, name: str) -> Path:
        return self.path / "files" / name

    def step(self, name: str, read: str, written: str = "", **parameters: Any) -> None:
        """Run a step that reads and writes artifacts, by name."""
        with recorded(name, self.input(read, written, parameters)):
            pass

    def input(self, read: str, written: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        def paths(names: str) -> dict[str, Path]:
            return {name: self.at(name) for name in names.split()}

        content = step_input(paths(read), paths(written))
        content["inputs"]["parameterValues"] = dict(parameters)
        return content

    def begin(self, run: str) -> None:
        self._monkeypatch.setenv("LONGREC_HOME", str(self.path))
        self._monkeypatch.setenv("LONGREC_RUN", run)

    def features(self) -> None:
        data = {"data_uri": str(self.at("dataset")), "data_key": "k"}
        self.step("build-features", "", "shards", **data)
        self.step("join-features", "shards", "features")
        self.step("publish", "features", "published")
        self.step("retrieve", "", "histories", published="86afdda6", **data)

    def model(self) -> None:
        self.step("train", "histories", "bundle")
        self.step("evaluate", "bundle histories", "evaluation")
        self.step("package", "bundle evaluation histories", "bento")
        self.step("register", "bento evaluation")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(tmp_path / "work", monkeypatch)


def test_the_chain_goes_from_the_bento_to_the_dataset(work: Work) -> None:
    work.begin(FIRST)
    work.features()
    work.model()
    chain = trace(work.path, BENTO)
    assert [link.kind for link in chain.links] == KINDS
    assert chain.is_complete
    dataset = chain.links[-1]
    assert (dataset.version, dataset.name) == ("48e957d0", "clicks")
    assert dataset.uri == str(work.at("dataset"))
    assert ("bundle", "13e4bcdd33957abc") in chain.links[0].inputs


def test_cached_results_are_traced_to_the_run_that_made_them(work: Work) -> None:
    work.begin(FIRST)
    work.features()
    work.begin(SECOND)
    work.model()
    chain = trace(work.path, f"longrec-ranker:{BENTO}")
    assert [link.kind for link in chain.links] == KINDS
    runs = {link.kind: link.run for link in chain.links}
    assert (runs["histories"], runs["bundle"]) == (FIRST, SECOND)


def test_a_store_version_has_a_chain_of_its_own(work: Work) -> None:
    work.begin(FIRST)
    work.features()
    kinds = [link.kind for link in trace(work.path, "86afdda6").links]
    assert kinds == KINDS[4:]


def test_a_moved_work_directory_keeps_its_chain(work: Work, tmp_path: Path) -> None:
    work.begin(FIRST)
    work.features()
    work.model()
    moved = tmp_path / "moved"
    shutil.move(work.path, moved)
    assert trace(moved, BENTO).is_complete


def test_a_failed_attempt_made_nothing(work: Work) -> None:
    work.begin(FIRST)
    with pytest.raises(ZeroDivisionError), recorded("train", work.input("", "bundle", {})):
        _ = 1 / 0
    with pytest.raises(LineageError):
        trace(work.path, "13e4bcdd33957abc")


def test_a_chain_without_its_beginning_says_so(work: Work) -> None:
    work.begin(FIRST)
    work.model()
    chain = trace(work.path, BENTO)
    assert not chain.is_complete
    answer = CliRunner().invoke(app, ["lineage", BENTO, "--workdir", str(work.path)])
    assert answer.output.splitlines()[-1].startswith("incomplete")


def test_an_unknown_version_is_one_message(work: Work) -> None:
    work.begin(FIRST)
    work.features()
    for version in ("absent", "", "longrec-ranker:"):
        with pytest.raises(LineageError, match="no record of a run names"):
            trace(work.path, version)


def test_damaged_files_leave_a_step_undisturbed(work: Work) -> None:
    work.begin(FIRST)
    work.at("bundle/bundle.json").write_text("{")
    shutil.rmtree(work.at("histories"))
    work.step("train", "histories", "bundle", data_uri="/absent", data_key="k")
    with pytest.raises(LineageError):
        trace(work.path, BENTO)


def test_a_record_of_an_earlier_longrec_has_no_lineage(work: Work) -> None:
    work.begin(FIRST)
    work.model()
    for path in (work.path / "runs" / FIRST / "steps").glob("*.json"):
        content = json.loads(path.read_text())
        del content["inputs"], content["outputs"]
        path.write_text(json.dumps(content))
    with pytest.raises(LineageError, match="earlier longrec"):
        trace(work.path, BENTO)


def test_the_command_prints_text_and_json(work: Work) -> None:
    work.begin(FIRST)
    work.features()
    work.model()
    command = ["lineage", BENTO, "--workdir", str(work.path)]
    lines = CliRunner().invoke(app, command).output.splitlines()
    assert lines[0].split() == ["bento", BENTO, "package", "of", "run", FIRST]
    assert lines[-1].split()[-2:] == ["clicks", str(work.at("dataset"))]
    content = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert content["is_complete"] is True
    assert [link["kind"] for link in content["links"]] == KINDS
