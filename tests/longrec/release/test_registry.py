"""The registry of versions: promote, roll back, shadow; what is refused; what a kill leaves;
`longrec models`.
"""

from __future__ import annotations

import concurrent.futures
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.errors import DataError, LongrecError, SchemaMismatch
from longrec.release import model_store, registry
from longrec.release.model_store import ModelError
from longrec.release.registry import ModelRegistry
from tests.conftest import VERSION, ServedWorld


@pytest.fixture()
def workdir(served_world: ServedWorld, tmp_path: Path) -> Path:
    """A work directory with the published features of the served world, and no registry."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "features").symlink_to((served_world.workdir / "features").resolve())
    return tmp_path / "home"


@pytest.fixture(scope="module")
def store(served_world: ServedWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BentoML store: the model that BentoML wrote, copies of it as v1 and v2, a damaged one, and
    one of another schema.
    """
    path = tmp_path_factory.mktemp("store") / "bentoml"
    folder = path / "models" / model_store.MODEL_NAME
    for version in (VERSION, "v1", "v2", "damaged", "foreign"):
        shutil.copytree(
            served_world.store / "models" / model_store.MODEL_NAME / VERSION, folder / version
        )
    weights = folder / "damaged" / "bundle" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    meta = json.loads((folder / "foreign" / "bundle" / "bundle.json").read_text())
    meta["schema"]["user"] = []
    (folder / "foreign" / "bundle" / "bundle.json").write_text(json.dumps(meta))
    return path


def test_promotion_and_rollback_and_who_decided(workdir: Path, store: Path) -> None:
    assert (
        registry.read_registry(workdir) == ModelRegistry()
        and registry.read_decisions(workdir) == []
    )
    registry.promote(workdir, store, "v1", by="ann", why="first")
    after = registry.promote(workdir, store, "v2", by="bob", why=" better ")
    assert (after.champion, after.previous, after.generation) == ("v2", "v1", 2)
    assert registry.read_registry(workdir) == after
    assert registry.rollback(workdir, store, by="ann", why="worse after all").champion == "v1"
    assert registry.rollback(workdir, store, by="ann", why="no").champion == "v2"  # undoes it
    told = [
        (change.generation, change.action, change.version, change.replaced, change.by, change.why)
        for change in registry.read_decisions(workdir)
    ]
    assert told == [
        (1, "promote", "v1", None, "ann", "first"),
        (2, "promote", "v2", "v1", "bob", "better"),
        (3, "rollback", "v1", "v2", "ann", "worse after all"),
        (4, "rollback", "v2", "v1", "ann", "no"),
    ]
    assert (workdir / "models" / "log.jsonl").read_text().count("\n") == 4


def test_a_challenger_leaves_the_shadow_when_it_is_promoted(workdir: Path, store: Path) -> None:
    registry.promote(workdir, store, "v1", by="ann", why="first")
    after = registry.start_shadow(workdir, store, "v2", 0.25, by="ann", why="compare")
    assert (after.champion, after.challenger, after.mirror_share) == ("v1", "v2", 0.25)
    after = registry.promote(workdir, store, "v2", by="ann", why="good")
    assert (after.challenger, after.mirror_share) == (None, 0.0)
    registry.start_shadow(workdir, store, "v1", 1.0, by="ann", why="compare")
    assert registry.rollback(workdir, store, by="ann", why="x").challenger is None
    registry.start_shadow(workdir, store, "v2", 1.0, by="ann", why="compare")
    assert registry.stop_shadow(workdir, by="ann", why="enough").challenger is None


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (
            lambda workdir, store: registry.promote(workdir, store, "v9", by="a", why="b"),
            ModelError,
            "no model longrec-ranker:v9",
        ),
        (
            lambda workdir, store: registry.promote(workdir, store, "../x", by="a", why="b"),
            ModelError,
            "no model",
        ),
        (
            lambda workdir, store: registry.promote(workdir, store, "damaged", by="a", why="b"),
            DataError,
            "weights_sha256",
        ),
        (
            lambda workdir, store: registry.promote(workdir, store, "foreign", by="a", why="b"),
            SchemaMismatch,
            "user.region",
        ),
        (
            lambda workdir, store: registry.start_shadow(
                workdir, store, "foreign", 0.1, by="a", why="b"
            ),
            SchemaMismatch,
            "user.region",
        ),
        (
            lambda workdir, store: registry.promote(workdir, store, "v2", by="a", why="  "),
            ModelError,
            "reason",
        ),
        (
            lambda workdir, store: registry.promote(workdir, store, "v1", by="a", why="b"),
            ModelError,
            "already",
        ),
        (
            lambda workdir, store: registry.rollback(workdir, store, by="a", why="b"),
            ModelError,
            "no champion to go back to",
        ),
        (
            lambda workdir, store: registry.start_shadow(
                workdir, store, "v1", 0.1, by="a", why="b"
            ),
            ModelError,
            "is the champion",
        ),
        (
            lambda workdir, store: registry.start_shadow(
                workdir, store, "v2", 0.0, by="a", why="b"
            ),
            ModelError,
            "share",
        ),
        (
            lambda workdir, store: registry.stop_shadow(workdir, by="a", why="b"),
            ModelError,
            "no version runs",
        ),
    ],
)
def test_what_is_refused_changes_nothing(
    workdir: Path, store: Path, wrong, error, words: str
) -> None:
    before = registry.promote(workdir, store, "v1", by="ann", why="first")
    with pytest.raises(error, match=words):
        wrong(workdir, store)
    assert registry.read_registry(workdir) == before and len(registry.read_decisions(workdir)) == 1


def test_the_first_model_is_adopted_and_no_other(workdir: Path, store: Path) -> None:
    assert registry.adopt_first_champion(workdir, store, "v1", why="the first")
    assert not registry.adopt_first_champion(workdir, store, "v2", why="the second")
    assert (
        registry.read_registry(workdir).champion,
        [change.action for change in registry.read_decisions(workdir)],
    ) == (
        "v1",
        ["adopt"],
    )


def test_a_champion_that_the_home_cannot_serve_any_more_gives_way_and_is_not_compared_with(
    workdir: Path, store: Path
) -> None:
    assert registry.adopt_first_champion(
        workdir, store, "foreign", why="before other features were published"
    )
    assert registry.champion_bundle(workdir, store, "foreign") is None
    assert registry.adopt_first_champion(workdir, store, "v1", why="the first of the new schema")
    assert registry.read_decisions(workdir)[-1].replaced == "foreign"
    assert registry.champion_bundle(workdir, store, "v1") == model_store.bundle_dir(store, "v1")
    assert (
        registry.champion_bundle(workdir, store, "gone") is None
        and registry.champion_bundle(workdir, store, "") is None
    )


def test_a_champion_that_another_machine_keeps_stays(
    workdir: Path, store: Path, tmp_path: Path
) -> None:
    assert registry.adopt_first_champion(workdir, store, "v1", why="the first")
    assert not registry.adopt_first_champion(
        workdir, tmp_path / "empty", "v2", why="a pod whose store is empty"
    )


def test_a_kill_between_file_and_log_is_made_good(workdir: Path, store: Path) -> None:
    registry.promote(workdir, store, "v1", by="ann", why="first")
    registry.promote(workdir, store, "v2", by="ann", why="second")
    path = workdir / "models" / "log.jsonl"
    first, second = path.read_text().splitlines()
    for left in (f"{first}\n", f"{first}\n{second[:20]}"):
        path.write_text(left)
        assert [change.version for change in registry.read_decisions(workdir)] == [
            "v1",
            "v2",
        ]  # told although it is not written
    registry.rollback(workdir, store, by="ann", why="third")
    assert [change.generation for change in registry.read_decisions(workdir)] == [1, 2, 3]


def test_decisions_at_the_same_time_follow_each_other(workdir: Path, store: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        adopted = list(
            pool.map(
                lambda n: registry.adopt_first_champion(workdir, store, f"v{n}", why="race"),
                range(16),
            )
        )
    assert sum(adopted) == 1 and len(registry.read_decisions(workdir)) == 1


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"format_version": 2}', '{"format_version": 1, "last": null, "what": 1}'],
)
def test_a_damaged_registry_is_told(workdir: Path, content: str) -> None:
    registry.registry_path(workdir).parent.mkdir()
    registry.registry_path(workdir).write_text(content)
    with pytest.raises(DataError, match=r"registry\.json"):
        registry.read_registry(workdir)


def test_the_models_of_the_store_with_what_is_wrong_with_them(workdir: Path, store: Path) -> None:
    registry.promote(workdir, store, "v1", by="ann", why="first")
    found = {each.version: each for each in registry.list_models(workdir, store)}
    assert set(found) == {VERSION, "v1", "v2", "damaged", "foreign"}
    assert found["v1"].role == "champion" and found["v2"].role == ""
    assert (
        found[VERSION].created.startswith("20")
        and len(found[VERSION].schema) > 8
        and not found[VERSION].problem
    )
    assert "another schema" in found["foreign"].problem
    assert registry.list_models(workdir, store / "nowhere") == []


def longrec(*arguments: object) -> str:
    answer = CliRunner().invoke(app, ["models", *map(str, arguments)])
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def test_the_command(workdir: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ann")
    monkeypatch.setenv("BENTOML_HOME", str(store))
    place = ("--workdir", workdir)
    assert "champion v1" in longrec("promote", "longrec-ranker:v1", "--why", "first", *place)
    assert (
        json.loads(longrec("promote", "v2", "--why", "second", "--by", "bob", "--json", *place))[
            "previous"
        ]
        == "v1"
    )
    assert "v1 gets a copy of 0.5" in longrec("shadow", "v1", "--share", 0.5, *place)
    assert "no worker has compared" in longrec("shadow", "report", *place)
    assert longrec("shadow", "report", "--json", *place) == "null\n"
    longrec("shadow", "off", *place)
    assert "champion v1 again" in longrec("rollback", "--why", "oh", *place)
    table = longrec("list", *place)
    assert (
        "promote v2 by bob: second" in table
        and "rollback v1 by ann: oh" in table
        and "champion" in table
    )
    assert json.loads(longrec("list", "--json", *place))["champion"] == "v1"
    answer = CliRunner().invoke(app, ["models", "promote", "v2", "--workdir", str(workdir)])
    assert answer.exit_code == 2 and "--why" in answer.output  # no decision without a reason
    answer = CliRunner().invoke(
        app, ["models", "promote", "v9", "--why", "x", "--workdir", str(workdir)]
    )
    assert answer.exit_code == 1 and isinstance(answer.exception, SystemExit | LongrecError)
