"""Test the wheel of a bento: built in a checkout, packed again elsewhere, and its pins."""

from __future__ import annotations

import importlib.metadata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from longrec.release.bento_server import PackagingError
from longrec.release.wheel import build_wheel, pinned_requirements, repack_installed
from tests.conftest import ROOT
from tests.longrec.release.staging import install, installed_distribution

METADATA = """\
Metadata-Version: 2.1
Name: longrec
Version: 1
Requires-Dist: numpy>=1
Requires-Dist: no-such-thing<3,>=2
Requires-Dist: left-out; extra == "other"
Requires-Dist: only-elsewhere; sys_platform == "plan9"
"""


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def data_files() -> Iterator[str]:
    """Yield the files of the library that are no modules: pages, styles, scripts, templates."""
    for path in (ROOT / "model" / "longrec").rglob("*.*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            yield path.relative_to(ROOT / "model").as_posix()


def test_the_wheel_holds_the_library_and_only_it(wheel: Path) -> None:
    files = content(wheel)
    names = {name for name in files if ".dist-info/" not in name}
    assert files["longrec/schema.py"] == (ROOT / "model/longrec/schema.py").read_bytes()
    assert {name.split("/")[0] for name in names} == {"longrec"}
    assert not any("__pycache__" in name for name in names)
    assert names >= {
        "longrec/scoring/scorer.py",
        "longrec/nn/ranker.py",
        "longrec/data/store/feast_adapter.py",
        "longrec/errors.py",
        "longrec/py.typed",
        "longrec/_project/bento/service.py",
        "longrec/_project/feature_repo/definitions.py",
    }
    assert names >= set(data_files())


def test_an_installed_wheel_is_packed_again_as_it_was(
    wheel: Path, installed: Path, tmp_path: Path
) -> None:
    repacked = repack_installed(installed_distribution(installed), tmp_path)
    assert repacked.name == wheel.name
    before = content(wheel)
    after = content(repacked)
    assert set(after) == set(before)
    record = next(name for name in before if name.endswith("/RECORD"))
    before_lines = sorted(before.pop(record).splitlines())
    after_lines = sorted(after.pop(record).splitlines())
    assert after_lines == before_lines
    assert after == before


def test_a_repacked_wheel_can_be_installed(installed: Path, tmp_path: Path) -> None:
    repacked = repack_installed(installed_distribution(installed), tmp_path)
    install(repacked, tmp_path / "again")
    again = installed_distribution(tmp_path / "again")
    assert again.version == installed_distribution(installed).version
    assert [entry.name for entry in again.entry_points] == ["longrec"]
    assert (tmp_path / "again" / "longrec" / "schema.py").is_file()


def test_equal_installations_give_equal_wheels(installed: Path, tmp_path: Path) -> None:
    wheels = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        wheels.append(repack_installed(installed_distribution(installed), tmp_path / name))
    assert wheels[0].read_bytes() == wheels[1].read_bytes()


def test_outside_a_checkout_the_installed_files_are_packed(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution = installed_distribution(installed)
    monkeypatch.setattr(
        importlib.metadata,
        "distribution",
        lambda name: distribution,
    )
    (tmp_path / "project").mkdir()
    wheel = build_wheel(tmp_path / "project", tmp_path / "wheels")
    assert wheel.parent == tmp_path / "wheels"
    assert "longrec/schema.py" in content(wheel)


def test_an_incomplete_installation_is_an_error(wheel: Path, tmp_path: Path) -> None:
    install(wheel, tmp_path / "installed")
    (tmp_path / "installed" / "longrec" / "schema.py").unlink()
    with pytest.raises(PackagingError, match=r"incomplete; found no .*schema\.py.*pip install"):
        repack_installed(installed_distribution(tmp_path / "installed"), tmp_path)


def test_an_editable_installation_cannot_be_packed(tmp_path: Path) -> None:
    metadata = tmp_path / "longrec-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(METADATA)
    (metadata / "WHEEL").write_text("Tag: py3-none-any\n")
    (metadata / "RECORD").write_text("longrec-1.dist-info/WHEEL,,\nlongrec-1.dist-info/RECORD,,\n")
    with pytest.raises(PackagingError, match=r"cannot be packed.*editable.*LONGREC_ROOT"):
        repack_installed(installed_distribution(tmp_path), tmp_path)


def test_a_wheel_that_cannot_be_built_is_an_error(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "model" / "longrec").mkdir(parents=True)
    (root / "pyproject.toml").write_text("[project]\nname = 'other'\nversion = '1'\n")
    with pytest.raises(PackagingError, match="wheel of longrec cannot be built"):
        build_wheel(root, tmp_path / "wheels")


@pytest.mark.parametrize(
    "name",
    [
        "torch",
        "feast",
        "redis",  # by an extra of feast
        "jinja2",  # of torch
    ],
)
def test_requirements_are_pinned_as_installed(name: str, wheel: Path) -> None:
    pins = dict(line.split("==") for line in pinned_requirements(wheel))
    assert pins[name] == importlib.metadata.version(name).partition("+")[0]


def test_only_the_service_is_pinned(wheel: Path) -> None:
    pins = dict(line.split("==") for line in pinned_requirements(wheel))
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
    wheel = tmp_path / "longrec-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("longrec-1.dist-info/METADATA", METADATA)
    numpy_version = importlib.metadata.version("numpy")
    assert pinned_requirements(wheel) == ["no-such-thing<3,>=2", f"numpy=={numpy_version}"]
