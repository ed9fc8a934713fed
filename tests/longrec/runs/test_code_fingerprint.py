"""Fingerprints of code: an edit changes those of the steps that can reach it, and no other."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from components.fingerprint import fingerprint
from longrec.runs import code_fingerprint
from longrec.runs.code_fingerprint import _imports, of_steps
from longrec.runs.steps import steps_by_code_key

ROOT = Path(__file__).parents[3]
CODE_KEYS = tuple(steps_by_code_key())


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for room in ("model/longrec", "components", "feature_repo", "bento"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    return folder


def _now(copy: Path, project: Path | None = None) -> dict[str, str]:
    """Return the fingerprints of the library in a copy, next to a project."""
    library = copy / "model" / "longrec"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_fingerprint, "LIBRARY", library)
        patch.setattr(code_fingerprint, "TEMPLATES", library / "reporting" / "templates")
        return of_steps((project or copy) / "feature_repo")


@pytest.fixture(scope="module")
def before(copy: Path) -> dict[str, str]:
    return _now(copy)


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        ("model/longrec/training/train.py", {"train"}),
        ("model/longrec/training/loop.py", {"train", "study"}),
        (
            "model/longrec/data/quality/checks.py",
            {"check_events", "check_histories"},
        ),
        ("model/longrec/data/store/push.py", {"publish"}),
        ("model/longrec/data/store/retrieve.py", {"retrieve"}),
        ("components/join_features.py", {"join_features"}),
        ("model/longrec/cli/main.py", set()),
        ("model/longrec/schema.py", set(CODE_KEYS)),
        ("feature_repo/definitions.py", {"publish", "retrieve"}),
        ("bento/service.py", set()),
    ],
)
def test_an_edit_touches_the_steps_that_can_reach_it(
    copy: Path, before: dict[str, str], path: str, steps: set[str]
) -> None:
    text = (copy / path).read_text()
    (copy / path).write_text(text + "\n# an edit\n")
    after = _now(copy)
    (copy / path).write_text(text)
    # A bento holds the wheel: all of the library.
    package = set() if path.startswith("components/") else {"package"}
    assert {step for step in CODE_KEYS if before[step] != after[step]} == steps | package


def test_an_edit_of_a_template_touches_the_steps_that_write_pages(
    copy: Path, before: dict[str, str]
) -> None:
    path = copy / "model/longrec/reporting/templates/base.html.jinja"
    text = path.read_text()
    path.write_text(text + "\n")
    after = _now(copy)
    path.write_text(text)
    touched = {step for step in CODE_KEYS if before[step] != after[step]}
    assert {"check_events", "check_histories", "evaluate", "study", "package"} <= touched
    assert not touched & {"train", "publish", "retrieve"}


def test_a_library_outside_of_the_project_has_the_same_fingerprints(
    copy: Path, before: dict[str, str], tmp_path: Path
) -> None:
    for room in ("components", "feature_repo", "bento"):
        shutil.copytree(copy / room, tmp_path / room)
    shutil.copyfile(copy / "pyproject.toml", tmp_path / "pyproject.toml")
    assert _now(copy, project=tmp_path) == before


def test_the_step_returns_them_in_the_order_of_its_names() -> None:
    names = fingerprint.component_spec.outputs
    assert set(names) == {"data", "before", "champion", *CODE_KEYS}
    assert list(of_steps(ROOT / "feature_repo")) == list(CODE_KEYS)


def test_imports_are_found_wherever_they_are_but_for_types() -> None:
    source = "import a.b\nif TYPE_CHECKING:\n    import never\ndef f():\n    from c import d\n"
    assert set(_imports(ast.parse(source))) == {"a.b", "c", "c.d"}
