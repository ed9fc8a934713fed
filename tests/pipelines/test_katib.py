"""The Katib Experiment of a search: valid by Katib's schema, and the same search."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.config import ModelConfig, RunConfig, TrainConfig
from longrec.config_file import read_config
from longrec.study.search_space import SearchSpace
from longrec.training.curve import NO_ROW
from longrec.training.progress import _summary
from pipelines.katib import METRIC, METRIC_LINE, experiment
from pipelines.platform_config import PlatformConfig, build_platform
from tests.deploy.manifests import custom_kinds, without_unknown_fields

jsonschema = pytest.importorskip("jsonschema")
KUBERNETES = "1.31"
CONFIG = RunConfig(
    name="My log_2", seed=3, model=ModelConfig(kind="din", width=32), train=TrainConfig(epochs=2)
)
SPACE = SearchSpace(
    {
        "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "train.epochs": {"low": 1, "high": 3},
        "model.crosses": [True, False],
        "train.id_init": ["random", "lsa"],
    }
)
PLATFORM = {
    "env": {"AWS_ENDPOINT_URL": "http://minio:9000"},
    "service_account": "trainer",
    "image_pull_secrets": ["registry"],
    "steps": {
        "train": {
            "gpu": 1,
            "cpu": "4",
            "memory": "16Gi",
            "node_selector": {"pool": "gpu"},
            "tolerations": [
                {
                    "key": "gpu",
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "toleration_seconds": 30,
                }
            ],
        }
    },
}


def _render(
    config: RunConfig = CONFIG,
    space: SearchSpace = SPACE,
    platform: PlatformConfig | None = None,
) -> dict[str, Any]:
    return experiment(
        config,
        space,
        platform or build_platform(PLATFORM),
        histories="/var/lib/longrec/histories",
        num_trials=20,
        num_parallel=4,
        seed=7,
    )


def _validate(manifest: dict[str, Any]) -> None:
    definition = custom_kinds()["Experiment"]
    assert (manifest["apiVersion"], manifest["kind"]) == (
        definition["apiVersion"],
        definition["kind"],
    )
    schema = without_unknown_fields(definition["schema"])
    jsonschema.Draft202012Validator(schema).validate(manifest)


def _job(manifest: dict[str, Any], **values: str) -> dict[str, Any]:
    """Return the Job of a trial as Katib makes it: a name, and a value for each parameter."""
    text = json.dumps(manifest["spec"]["trialTemplate"]["trialSpec"])
    for name, value in values.items():
        text = text.replace(f"${{trialParameters.{name}}}", json.dumps(value)[1:-1])
    job: dict[str, Any] = json.loads(text)
    return {**job, "metadata": {"name": "trial", "namespace": "team"}}


def _first_values(manifest: dict[str, Any]) -> dict[str, str]:
    """Return the first value of each parameter."""
    values = {}
    for parameter in manifest["spec"]["parameters"]:
        space = parameter["feasibleSpace"]
        values[parameter["name"]] = space["list"][0] if "list" in space else space["min"]
    return values


@pytest.mark.parametrize("platform", [PLATFORM, {}])
def test_the_experiment_is_valid_by_the_schema_of_katib(platform: dict[str, Any]) -> None:
    _validate(_render(platform=build_platform(platform)))


@pytest.mark.parametrize(
    "change",
    [{"maxTrials": 3}, {"parameters": [{"name": "a", "type": "int"}]}, {"maxTrialCount": "20"}],
)
def test_a_wrong_field_is_found(change: dict[str, Any]) -> None:
    manifest = _render()
    manifest["spec"].update(change)
    with pytest.raises(jsonschema.ValidationError):
        _validate(manifest)


@pytest.mark.parametrize("platform", [PLATFORM, {}])
def test_the_job_of_a_trial_is_valid_by_the_schema_of_kubernetes(platform: dict[str, Any]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    manifest = _render(platform=build_platform(platform))
    job = _job(manifest, **_first_values(manifest))
    assert "${" not in json.dumps(job)
    kubernetes_validate.validate(job, KUBERNETES, strict=True)


def test_a_trial_trains_the_configuration_with_its_values(tmp_path: Path) -> None:
    manifest = _render()
    job = _job(manifest, **_first_values(manifest))
    container = job["spec"]["template"]["spec"]["containers"][0]
    shell, option, script = container["command"]
    assert (shell, option) == ("sh", "-c")
    words = shlex.split(script)
    assert words[:3] == ["longrec", "train", "/var/lib/longrec/histories"]
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    (tmp_path / "empty.yaml").write_text("{}")
    config = read_config(tmp_path / "empty.yaml", sets).run
    assert config.seed == 3
    assert (config.model.kind, config.model.width, config.model.crosses) == ("din", 32, True)
    assert config.train.learning_rate == 1e-4
    assert (config.train.epochs, config.train.id_init) == (1, "random")


def test_each_parameter_of_the_template_is_searched_and_used() -> None:
    spec = _render()["spec"]
    searched = {parameter["name"] for parameter in spec["parameters"]}
    template = spec["trialTemplate"]
    used = set(re.findall(r"\$\{trialParameters\.(.+?)\}", json.dumps(template["trialSpec"])))
    assert {row["reference"] for row in template["trialParameters"]} == searched == used
    assert len(searched) == len(SPACE.entries)


def test_the_metric_is_read_from_the_line_that_a_training_logs() -> None:
    row = dataclasses.replace(NO_ROW, validation_auc=0.71239, validation_logloss=0.5)
    match = re.search(METRIC_LINE, _summary(row))
    assert match is not None
    assert match.groups() == (METRIC, "0.7124")


def test_the_resources_are_those_of_the_step_train() -> None:
    job = _render()["spec"]["trialTemplate"]["trialSpec"]
    pod = job["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == "1"
    assert resources["requests"] == {"cpu": "4", "memory": "16Gi"}
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["serviceAccountName"] == "trainer"


def test_the_command_writes_the_experiment_and_trains_nothing(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("model: {kind: din}\nplatform: {image: registry/python-ml}\n")
    paths = ["--config", str(config), "--histories", "/absent", "--out", str(tmp_path / "out")]
    answer = CliRunner().invoke(app, ["tune", *paths, "--katib", "--trials", "6"])
    assert answer.exit_code == 0, answer.output
    manifest = yaml.safe_load((tmp_path / "out" / "katib.yaml").read_text())
    _validate(manifest)
    assert manifest["spec"]["maxTrialCount"] == 6
    assert not (tmp_path / "out" / "journal.log").exists()
