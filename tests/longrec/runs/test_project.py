"""The project around the library: a checkout, or the copy in an installed wheel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from longrec.runs import project

ROOT = Path(__file__).parents[3]


def test_a_relative_file_is_found_here_first_and_then_in_the_project(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LONGREC_ROOT", str(ROOT))
    monkeypatch.chdir(tmp_path)
    path = Path("configs/quickstart.yaml")
    assert project.find_file(path) == ROOT / path
    (tmp_path / "configs").mkdir()
    (tmp_path / path).write_text("")
    assert project.find_file(path) == path
    assert project.find_file(Path("absent.yaml")) == Path("absent.yaml")


def test_an_installed_copy_of_the_project_comes_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LONGREC_ROOT", raising=False)
    library = tmp_path / "site-packages" / "longrec"
    packaged = library / "_project"
    (packaged / "pipelines").mkdir(parents=True)
    (packaged / "feature_repo").mkdir()
    (packaged / "pipelines" / "training.py").write_text("")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(project, "__file__", str(library / "runs" / "project.py"))
    monkeypatch.chdir(empty)
    assert project.find_root() == packaged
    monkeypatch.chdir(ROOT / "docs")
    assert project.find_root() == ROOT


def test_benchmarks_need_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "feature_repo").mkdir()
    (tmp_path / "pipelines" / "training.py").write_text("")
    monkeypatch.setenv("LONGREC_ROOT", str(tmp_path))
    with pytest.raises(project.ProjectError, match="benchmarks run in a checkout only"):
        project.benchmarks()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with longrec, installed from its wheel and without dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    sources = folder / "sources"
    sources.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("bento", "components", "configs", "feature_repo", "pipelines", "model/longrec"):
        shutil.copytree(ROOT / name, sources / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, sources / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    build = ["wheel", *offline, "--no-build-isolation", "--wheel-dir", str(folder), str(sources)]
    subprocess.run([*pip, *build], check=True)
    [wheel] = folder.glob("longrec-*.whl")
    target = folder / "site-packages"
    subprocess.run([*pip, "install", *offline, "--target", str(target), str(wheel)], check=True)
    shutil.rmtree(sources)
    return target


def _run(installed: Path, cwd: Path, *command: str) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "LONGREC_ROOT"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**variables, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installed_wheel_works_outside_a_checkout(installed: Path, tmp_path: Path) -> None:
    assert {path.name for path in installed.iterdir()} - {"bin"} == {
        "longrec",
        f"longrec-{_version()}.dist-info",
    }
    assert str(installed) in _run(
        installed, tmp_path, "-c", "import longrec; print(longrec.__file__)"
    )
    _run(installed, tmp_path, "-m", "longrec", "compile", "--output", str(tmp_path / "compiled"))
    for path in (ROOT / "pipelines" / "compiled").iterdir():
        assert (tmp_path / "compiled" / path.name).read_bytes() == path.read_bytes()
    assert "Examples:" in _run(installed, tmp_path, "-m", "longrec", "run", "--help")
    code = (
        "from longrec.cli.options import DEFAULT_CONFIG, read_run_config; "
        "from longrec.runs.project import find_root; import json; "
        "print(json.dumps([read_run_config(DEFAULT_CONFIG, []).name, str(find_root())]))"
    )
    name, root = json.loads(_run(installed, tmp_path, "-c", code))
    assert name == "quickstart"
    assert root == str(installed / "longrec" / "_project")


@pytest.mark.slow
def test_the_wheel_holds_the_project_and_no_generated_file(installed: Path) -> None:
    packaged = installed / "longrec" / "_project"
    for name in ("bento", "components", "configs", "feature_repo", "pipelines"):
        expected = {path.relative_to(ROOT) for path in (ROOT / name).rglob("*") if _is_source(path)}
        assert expected == {
            path.relative_to(packaged) for path in (packaged / name).rglob("*") if _is_source(path)
        }


def _is_source(path: Path) -> bool:
    generated = {"__pycache__", "data", "wheels"}
    return path.is_file() and not generated & set(path.parts)


def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("longrec")
