"""A workspace: a volume of each run in place of a claim that is made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from longrec.config_file import build
from longrec.errors import ConfigError
from pipelines import compiler
from pipelines.platform_config import PlatformConfig

WORKSPACE = {
    "workspace": "50Gi",
    "workspace_claim": {"storageClassName": "fast", "accessModes": ["ReadWriteMany"]},
    "workdir_volume": "",
    "workdir": "/kfp-workspace",
}


@pytest.mark.parametrize("name", compiler.PIPELINES)
def test_a_workspace_takes_the_place_of_the_claim(name: str) -> None:
    """Kubeflow mounts it into steps with an input below its path: those with a work directory."""
    made = compiler.pipeline(name, build(PlatformConfig, WORKSPACE))
    spec = compiler.specification(made)
    kubernetes = spec["platform_spec"]["platforms"]["kubernetes"]
    assert kubernetes["pipelineConfig"]["workspace"] == {
        "size": "50Gi",
        "kubernetes": {"pvcSpecPatch": WORKSPACE["workspace_claim"]},
    }
    assert "pvcMount" not in str(kubernetes["deploymentSpec"])
    workdir = spec["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]["workdir"]
    assert workdir["defaultValue"] == "/kfp-workspace"


def test_without_it_pipelines_have_none() -> None:
    spec = compiler.specification(compiler.pipeline("drift", PlatformConfig()))
    assert "pipelineConfig" not in str(spec["platform_spec"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"workspace": "much"}, "no size of a volume; found much; expected for example 50Gi"),
        ({"workdir_volume": "longrec-home"}, "takes the place of the volume"),
        ({"workdir": "/var/lib/longrec"}, "workdir /var/lib/longrec; expected workdir_volume ''"),
    ],
)
def test_a_mistake_in_the_workspace_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(PlatformConfig, {**WORKSPACE, **changed})
