"""Test the model registry: decisions, refusals, recovery after a kill, and `longrec models`."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.errors import DataError, LongrecError, SchemaMismatch
from longrec.release import model_store, registry
from longrec.release.model_store import MODEL_NAME, ModelError
from longrec.release.registry import Decision, ModelRegistry, StoredModel
from tests.conftest import VERSION, ServedWorld


@dataclasses.dataclass(frozen=True)
class Models:
    """A work directory and a store, with the decisions on them by ann."""

    workdir: Path
    store: Path

    @property
    def registry_path(self) -> Path:
        return registry.registry_path(self.workdir)

    @property
    def log_path(self) -> Path:
        return self.registry_path.with_name("log.jsonl")

    def promote(
        self,
        version: str,
        by: str = "ann",
        why: str = "first",
    ) -> ModelRegistry:
        return registry.promote(
            self.workdir,
            self.store,
            version,
            by=by,
            why=why,
        )

    def rollback(self, why: str = "worse") -> ModelRegistry:
        return registry.rollback(self.workdir, self.store, by="ann", why=why)

    def start_shadow(
        self,
        version: str,
        share: float = 1.0,
    ) -> ModelRegistry:
        return registry.start_shadow(
            self.workdir,
            self.store,
            version,
            share,
            by="ann",
            why="compare",
        )

    def stop_shadow(self) -> ModelRegistry:
        return registry.stop_shadow(self.workdir, by="ann", why="enough")

    def adopt(self, version: str, store: Path | None = None) -> bool:
        return registry.adopt_first_champion(
            self.workdir,
            store or self.store,
            version,
            why="the first",
        )

    def champion_bundle(self, version: str) -> Path | None:
        return registry.champion_bundle(self.workdir, self.store, version)

    def read(self) -> ModelRegistry:
        return registry.read_registry(self.workdir)

    def decisions(self) -> list[Decision]:
        return registry.read_decisions(self.workdir)

    def by_version(self) -> dict[str, StoredModel]:
        found = registry.list_models(self.workdir, self.store)
        return {model.version: model for model in found}


@pytest.fixture(scope="module")
def store(served_world: ServedWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BentoML store: a real model, its copies v1 and v2, a damaged and a foreign one."""
    path = tmp_path_factory.mktemp("store") / "bentoml"
    source = served_world.store / "models" / MODEL_NAME / VERSION
    folder = path / "models" / MODEL_NAME
    for version in (VERSION, "v1", "v2", "damaged", "foreign"):
        shutil.copytree(source, folder / version)
    weights = folder / "damaged" / "bundle" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    bundle_json = folder / "foreign" / "bundle" / "bundle.json"
    bundle = json.loads(bundle_json.read_text())
    bundle["schema"]["user"] = []
    bundle_json.write_text(json.dumps(bundle))
    return path


@pytest.fixture()
def models(
    served_world: ServedWorld,
    store: Path,
    tmp_path: Path,
) -> Models:
    """A work directory with published features and without a registry."""
    workdir = tmp_path / "workdir"
    workdir.mkdir()
    features = (served_world.workdir / "features").resolve()
    (workdir / "features").symlink_to(features)
    return Models(workdir, store)


def test_before_the_first_decision_there_is_no_champion(models: Models) -> None:
    assert models.read() == ModelRegistry()
    assert models.decisions() == []


def test_a_promotion_makes_a_champion_and_remembers_the_one_before(models: Models) -> None:
    models.promote("v1")
    after = models.promote("v2", by="bob", why=" better ")
    assert (after.champion, after.previous, after.generation) == ("v2", "v1", 2)
    assert models.read() == after


def test_registry_json_records_the_champion(models: Models) -> None:
    models.promote("v1")
    content = json.loads((models.workdir / "models" / "registry.json").read_text())
    assert content["champion"] == "v1"
    assert content["format_version"] == registry.FORMAT_VERSION


def test_a_second_rollback_undoes_the_first(models: Models) -> None:
    models.promote("v1")
    models.promote("v2")
    assert models.rollback().champion == "v1"
    assert models.rollback().champion == "v2"


def test_the_log_says_who_decided_and_why(models: Models) -> None:
    models.promote("v1")
    models.promote("v2", by="bob", why=" better ")
    models.rollback(why="worse after all")
    models.rollback(why="no")
    found = [dataclasses.astuple(decision)[:-1] for decision in models.decisions()]
    assert found == [
        (1, "promote", "v1", None, "ann", "first"),
        (2, "promote", "v2", "v1", "bob", "better"),
        (3, "rollback", "v1", "v2", "ann", "worse after all"),
        (4, "rollback", "v2", "v1", "ann", "no"),
    ]
    assert models.log_path.read_text().count("\n") == 4


def test_a_challenger_leaves_the_shadow_when_it_is_promoted(models: Models) -> None:
    models.promote("v1")
    after = models.start_shadow("v2", 0.25)
    assert (after.champion, after.challenger, after.mirror_share) == ("v1", "v2", 0.25)
    after = models.promote("v2")
    assert (after.challenger, after.mirror_share) == (None, 0.0)


def test_a_challenger_leaves_the_shadow_at_a_rollback_to_it(models: Models) -> None:
    models.promote("v1")
    models.promote("v2")
    models.start_shadow("v1")
    assert models.rollback().challenger is None


def test_a_shadow_can_be_stopped(models: Models) -> None:
    models.promote("v1")
    models.start_shadow("v2")
    assert models.stop_shadow().challenger is None


REFUSED_DECISIONS: list[tuple[Callable[[Models], object], type[LongrecError], str]] = [
    (lambda models: models.promote("v9"), ModelError, "no model longrec-ranker:v9"),
    (lambda models: models.promote("../x"), ModelError, "no model"),
    (lambda models: models.promote("damaged"), DataError, "weights_sha256"),
    (lambda models: models.promote("foreign"), SchemaMismatch, "user.region"),
    (lambda models: models.start_shadow("foreign"), SchemaMismatch, "user.region"),
    (lambda models: models.promote("v2", why="  "), ModelError, "reason"),
    (lambda models: models.promote("v1"), ModelError, "already"),
    (lambda models: models.rollback(), ModelError, "no champion to go back to"),
    (lambda models: models.start_shadow("v1"), ModelError, "is the champion"),
    (lambda models: models.start_shadow("v2", 0.0), ModelError, "share"),
    (lambda models: models.stop_shadow(), ModelError, "no version runs"),
]


@pytest.mark.parametrize(("decide", "error", "words"), REFUSED_DECISIONS)
def test_a_refused_decision_changes_nothing(
    decide: Callable[[Models], object], error: type[LongrecError], words: str, models: Models
) -> None:
    before = models.promote("v1")
    with pytest.raises(error, match=words):
        decide(models)
    assert models.read() == before
    assert len(models.decisions()) == 1


def test_the_first_model_is_adopted_and_no_other(models: Models) -> None:
    assert models.adopt("v1")
    assert not models.adopt("v2")
    assert models.read().champion == "v1"
    assert [decision.action for decision in models.decisions()] == ["adopt"]


def test_a_champion_of_another_schema_gives_way_and_is_not_compared(models: Models) -> None:
    assert models.adopt("foreign")
    assert models.champion_bundle("foreign") is None
    assert models.adopt("v1")
    assert models.decisions()[-1].replaced == "foreign"


def test_the_gate_compares_with_a_champion_in_the_store_only(models: Models) -> None:
    assert models.champion_bundle("v1") == model_store.bundle_dir(models.store, "v1")
    assert models.champion_bundle("gone") is None
    assert models.champion_bundle("") is None


def test_a_champion_in_the_store_of_another_machine_stays(models: Models, tmp_path: Path) -> None:
    assert models.adopt("v1")
    assert not models.adopt("v2", store=tmp_path / "empty")


@pytest.mark.parametrize("half_line", ["", '{"generation": 2, "a'])
def test_a_kill_between_registry_and_log_is_repaired(half_line: str, models: Models) -> None:
    models.promote("v1")
    models.promote("v2", why="second")
    first, second = models.log_path.read_text().splitlines()
    assert second.startswith(half_line)
    models.log_path.write_text(f"{first}\n{half_line}")
    # The decision is known although the log does not hold it.
    assert [decision.version for decision in models.decisions()] == ["v1", "v2"]
    models.rollback()
    assert [decision.generation for decision in models.decisions()] == [1, 2, 3]


def test_decisions_at_the_same_time_follow_each_other(models: Models) -> None:
    versions = [f"v{number}" for number in range(16)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        adopted = list(pool.map(models.adopt, versions))
    assert sum(adopted) == 1
    assert len(models.decisions()) == 1


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"format_version": 2}', '{"format_version": 1, "last": null, "what": 1}'],
)
def test_a_damaged_registry_is_an_error(content: str, models: Models) -> None:
    models.registry_path.parent.mkdir()
    models.registry_path.write_text(content)
    with pytest.raises(DataError, match=r"registry\.json"):
        models.read()


def test_an_unknown_format_version_is_refused_by_name(models: Models) -> None:
    models.promote("v1")
    content = json.loads(models.registry_path.read_text())
    content["format_version"] = 7
    models.registry_path.write_text(json.dumps(content))
    message = r"unknown format version; found 7; expected 1\. .*longrec models promote"
    with pytest.raises(DataError, match=message):
        models.read()
    with pytest.raises(DataError, match="unknown format version"):
        models.promote("v2")
    assert json.loads(models.registry_path.read_text()) == content


def test_the_models_of_the_store_with_their_problems(models: Models) -> None:
    models.promote("v1")
    found = models.by_version()
    assert set(found) == {VERSION, "v1", "v2", "damaged", "foreign"}
    assert found["v1"].role == "champion"
    assert found["v2"].role == ""
    assert found[VERSION].created.startswith("20")
    assert len(found[VERSION].schema) > 8
    assert not found[VERSION].problem
    assert "another schema" in found["foreign"].problem
    assert registry.list_models(models.workdir, models.store / "nowhere") == []


@pytest.fixture()
def longrec_models(models: Models, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The command `longrec models` on the work directory, run by ann; returns its output."""
    monkeypatch.setenv("USER", "ann")
    monkeypatch.setenv("BENTOML_HOME", str(models.store))

    def run(*arguments: object) -> str:
        command = ["models", *map(str, arguments), "--workdir", str(models.workdir)]
        answer = CliRunner().invoke(app, command)
        assert answer.exit_code == 0, answer.output
        return answer.stdout

    return run


def test_the_command_promotes_and_rolls_back(longrec_models: Callable[..., str]) -> None:
    output = longrec_models("promote", "longrec-ranker:v1", "--why", "first")
    assert "champion v1" in output
    output = longrec_models(
        "promote",
        "v2",
        "--why",
        "second",
        "--by",
        "bob",
        "--json",
    )
    assert json.loads(output)["previous"] == "v1"
    assert "champion v1 again" in longrec_models("rollback", "--why", "oh")
    table = longrec_models("list")
    assert "promote v2 by bob: second" in table
    assert "rollback v1 by ann: oh" in table
    assert "champion" in table
    assert json.loads(longrec_models("list", "--json"))["champion"] == "v1"


def test_the_command_runs_a_shadow(longrec_models: Callable[..., str]) -> None:
    longrec_models("promote", "v2", "--why", "first")
    assert "v1 receives a copy of 0.5" in longrec_models(
        "shadow",
        "v1",
        "--share",
        0.5,
    )
    assert "no worker has compared" in longrec_models("shadow", "report")
    assert longrec_models("shadow", "report", "--json") == "null\n"
    longrec_models("shadow", "off")


def test_the_command_needs_a_reason(models: Models) -> None:
    command = ["models", "promote", "v2", "--workdir", str(models.workdir)]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 2
    assert "--why" in answer.output


def test_the_command_fails_for_an_unknown_version(models: Models) -> None:
    command = ["models", "promote", "v9", "--why", "x", "--workdir", str(models.workdir)]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 1
    assert isinstance(answer.exception, SystemExit | LongrecError)
