"""Names in the pages exist in the code, and the code has no variable that the pages lack."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from longrec.config import RunConfig
from longrec.serving.metrics import PrometheusMetrics
from pipelines.platform_config import PlatformConfig

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HISTORY = ("log.md", "CHANGELOG.md")
PAGES = [p for p in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))) if p.name not in HISTORY]
INTERNAL_VARIABLES = {
    "LONGREC_ERROR",  # a constant of pipelines/step_log.py
    "LONGREC_POLL_SECONDS",  # shortens the tests of the Kubeflow commands
    "LONGREC_SERVICE_FOLDER",  # set by the service for its workers
    "LONGREC_STORE_DIGEST",  # set by the parity check for the service that it starts
    "LONGREC_SUPERVISOR",  # set by the service for its workers
    "LONGREC_TRAIN",  # set by a TrainJob for its nodes
}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """Return docs/generate_reference.py as a module."""
    spec = importlib.util.spec_from_file_location(
        "generate_reference", DOCS / "generate_reference.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inline_code() -> dict[str, str]:
    """Return every inline code of the pages, with a page that has it."""
    found: dict[str, str] = {}
    for path in PAGES:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        for code in re.findall(r"`([^`\n]+)`", text):
            found[code] = str(path.relative_to(ROOT))
    return found


def resolves(name: str) -> bool:
    """Say whether a dotted name is a module of the library, or an attribute of one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            if not hasattr(value, attribute):
                return False
            value = getattr(value, attribute)
        return True
    return False


def is_config_key(name: str) -> bool:
    """Say whether `section.key` is a key of a configuration; a step's name matches any word."""
    section: Any = RunConfig
    if name.startswith("platform."):
        section = PlatformConfig
        name = name.removeprefix("platform.")
    for part in name.split("."):
        if not dataclasses.is_dataclass(section):
            return True
        hints = typing.get_type_hints(section)
        if part not in hints:
            return False
        section = hints[part]
    return True


def test_modules_and_functions_in_the_pages_exist() -> None:
    names = {name: page for name, page in inline_code().items() if re.match(r"longrec\.\w", name)}
    dotted = {name: page for name, page in names.items() if re.fullmatch(r"[\w.]+", name)}
    missing = {name: page for name, page in dotted.items() if not resolves(name)}
    assert len(dotted) > 15
    assert not missing


def test_configuration_keys_in_the_pages_exist() -> None:
    sections = "|".join(["platform", *(field.name for field in dataclasses.fields(RunConfig))])
    pattern = re.compile(rf"(?:{sections})\.[a-z_.]+")
    missing = {}
    for code, page in inline_code().items():
        name = re.split(r"[=:]", code)[0]
        if pattern.fullmatch(name) and not (is_config_key(name) or resolves(f"longrec.{name}")):
            missing[code] = page
    assert not missing


def test_metrics_in_the_pages_exist() -> None:
    registry = CollectorRegistry()
    PrometheusMetrics(["task"], registry)
    known = set(registry._names_to_collectors)
    missing = {}
    for code, page in inline_code().items():
        match = re.match(r"longrec_[a-z_]+", code)
        if match and match[0] not in known:
            missing[code] = page
    assert not missing


def test_the_reference_has_every_metric_of_the_dashboard(generator: ModuleType) -> None:
    dashboard = (ROOT / "deploy" / "grafana" / "longrec.json").read_text(encoding="utf-8")
    names = set(re.findall(r"(?:longrec|bentoml_service)_[a-z_]+", dashboard))
    page = generator.metrics_page()
    missing = {
        name for name in names if f"`{re.sub(r'_(bucket|sum|count)$', '', name)}`" not in page
    }
    assert len(names) > 15
    assert not missing


def test_files_in_the_pages_exist() -> None:
    folders = "model|components|pipelines|feature_repo|bento|deploy|configs|examples|docs|tests"
    missing = {}
    for code, page in inline_code().items():
        if re.fullmatch(rf"(?:{folders})/[\w./-]*", code) and not (ROOT / code).exists():
            missing[code] = page
    missing.pop("pipelines/compiled/", None)
    assert not missing


def test_every_environment_variable_is_described(generator: ModuleType) -> None:
    found = set()
    for folder in ("model", "bento", "pipelines", "components", "feature_repo"):
        for path in (ROOT / folder).rglob("*.py"):
            found |= set(re.findall(r"\bLONGREC_[A-Z_]+\b", path.read_text(encoding="utf-8")))
    assert found - INTERNAL_VARIABLES <= set(generator.ENVIRONMENT)
    assert found >= INTERNAL_VARIABLES


def test_described_arguments_are_joined(generator: ModuleType) -> None:
    text = "a: one\n    two.\nb (int): three.\nRaises:\n    c: four."
    assert generator.described_arguments(text) == {"a": "one two.", "b": "three."}


def test_every_configuration_key_is_described(generator: ModuleType) -> None:
    rows = [line for line in generator.configuration_page().splitlines() if line.startswith("| `")]
    undescribed = [row for row in rows if row.rstrip(" |").endswith(("`", "required"))]
    assert len(rows) > 80
    assert not undescribed


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loads = re.compile(r"""<(?:script|img|iframe|link)[^>]+(?:src|href)=["']https?://[^"']+""")
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    anchors = {path: set(re.findall(r'id="([^"]+)"', text)) for path, text in pages.items()}
    for path, text in pages.items():
        assert not loads.findall(text), path
        for name, anchor in re.findall(r'href="([^"#:]*[.]html)#([^"]+)"', text):
            target = (path.parent / name).resolve()
            assert anchor in anchors[target], f"{path.name}: {name}#{anchor}"
    commands = (tmp_path / "reference" / "cli.html").read_text(encoding="utf-8")
    assert "longrec import events" in commands
