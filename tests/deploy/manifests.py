"""Render deploy/kubernetes and read what is published about its custom resources."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT

KUBECTL = Path(sys.executable).with_name("kubectl")
FOLDER = ROOT / "deploy" / "kubernetes"
CRDS = Path(__file__).with_name("crds")

Manifest = dict[str, Any]


def render(overlay: Path) -> dict[str, Manifest]:
    """Return kind -> manifest of an overlay, as kustomize renders it."""
    command = [KUBECTL, "kustomize", overlay]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}


def custom_kinds() -> dict[str, Manifest]:
    """Return kind -> published definition: apiVersion and schema."""
    found = {}
    for path in CRDS.glob("*.json"):
        definition = json.loads(path.read_text(encoding="utf-8"))
        found[definition["kind"]] = definition
    return found


def without_unknown_fields(schema: Any) -> Any:
    """Return a schema that refuses fields it does not name; the API server would drop them."""
    if isinstance(schema, list):
        return [without_unknown_fields(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: without_unknown_fields(value) for key, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and schema.get("properties") and not is_open:
        strict["additionalProperties"] = False
    return strict


def alerting_rules(rule: Manifest) -> Manifest:
    """Return the content of a rule file of Prometheus from a PrometheusRule."""
    return {"groups": rule["spec"]["groups"]}
