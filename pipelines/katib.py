"""Katib Experiment of a search: the trials of `longrec tune` as Jobs that Katib suggests and runs.

Source: kubeflow.org/v1beta1, API of kubeflow/katib (Experiment, batch/v1 Job as a trial).
"""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from longrec.config import RunConfig
from longrec.config_file import changed_settings
from longrec.data.files import atomic_replace
from longrec.study.search_space import SearchSpace
from longrec.study.tune import FIRST_PRUNED_VALIDATION, MAX_FAILURES, NUM_STARTUP_TRIALS
from pipelines.platform_config import PlatformConfig, StepConfig

CONTAINER = "train"
METRIC = "AUC"
METRIC_LINE = "validation (AUC) ([0-9.]+)"
"""Line of a training's log with its two groups: name and value of the metric."""
TRAINED_SECTIONS = ("model", "lengths", "train", "evaluate")
WORKDIR_VOLUME = "workdir"
SHARED_MEMORY_VOLUME = "shared-memory"
BUNDLE = "/tmp/bundle"  # noqa: S108  (in the container of a trial)


def experiment(
    config: RunConfig,
    space: SearchSpace,
    platform: PlatformConfig,
    *,
    histories: str,
    num_trials: int,
    num_parallel: int,
    seed: int,
) -> dict[str, Any]:
    """Return the manifest of an Experiment.

    Args:
        config: configuration that every trial starts from.
        space: what is searched.
        platform: image, volume of the work directory and resources of the step `train`.
        histories: path of the histories in the containers.
        num_trials: number of trials.
        num_parallel: number of trials at the same time.
        seed: of the suggestions.
    """
    names = {key: key.replace(".", "-").replace("_", "-") for key in space.entries}
    parameters = [_parameter(names[key], entry) for key, entry in space.entries.items()]
    return {
        "apiVersion": "kubeflow.org/v1beta1",
        "kind": "Experiment",
        "metadata": {"name": _object_name(f"{config.name}-{config.model.kind}")},
        "spec": {
            "objective": {"type": "maximize", "objectiveMetricName": METRIC},
            "algorithm": _algorithm(
                "multivariate-tpe", n_startup_trials=NUM_STARTUP_TRIALS, random_state=seed
            ),
            "earlyStopping": _algorithm(
                "medianstop",
                min_trials_required=NUM_STARTUP_TRIALS,
                start_step=FIRST_PRUNED_VALIDATION,
            ),
            "metricsCollectorSpec": {
                "collector": {"kind": "StdOut"},
                "source": {"filter": {"metricsFormat": [METRIC_LINE]}},
            },
            "maxTrialCount": num_trials,
            "parallelTrialCount": num_parallel,
            "maxFailedTrialCount": MAX_FAILURES,
            "resumePolicy": "LongRunning",
            "parameters": parameters,
            "trialTemplate": _trial_template(config, names, platform, histories),
        },
    }


def write(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest as YAML for `kubectl apply`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_replace(path) as temporary:
        temporary.write_text(yaml.safe_dump(dict(manifest), sort_keys=False), encoding="utf-8")


def _algorithm(name: str, **settings: int) -> dict[str, Any]:
    """Return an algorithm with its settings, as of suggestion and of early stopping."""
    rows = [{"name": key, "value": str(value)} for key, value in settings.items()]
    return {"algorithmName": name, "algorithmSettings": rows}


def _parameter(name: str, entry: Any) -> dict[str, Any]:
    """Return a searched key as a parameter of Katib."""
    if isinstance(entry, list):
        space = {"list": [json.dumps(value) for value in entry]}
        return {"name": name, "parameterType": "categorical", "feasibleSpace": space}
    space = {"min": str(entry["low"]), "max": str(entry["high"])}
    if "step" in entry:
        space["step"] = str(entry["step"])
    if entry.get("log"):
        space["distribution"] = "logUniform"
    is_whole = all(isinstance(entry[bound], int) for bound in ("low", "high"))
    kind = "int" if is_whole else "double"
    return {"name": name, "parameterType": kind, "feasibleSpace": space}


def _trial_template(
    config: RunConfig, names: Mapping[str, str], platform: PlatformConfig, histories: str
) -> dict[str, Any]:
    """Return the Job of a trial with the places of its parameters."""
    step = platform.step("train")
    searched = [f"{key}=${{trialParameters.{name}}}" for key, name in names.items()]
    script = shlex.join(["longrec", "train", histories, BUNDLE, *_sets(config)])
    # In double quotes: the shell must not see the brackets of a value, Katib replaces the rest.
    script += "".join(f' --set "{text}"' for text in searched)
    parameters = [{"name": name, "reference": name} for name in names.values()]
    pod = _pod(script, platform, step)
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "spec": {
            "backoffLimit": step.retries,
            "activeDeadlineSeconds": step.timeout_seconds,
            "template": {"spec": pod},
        },
    }
    return {
        "primaryContainerName": CONTAINER,
        "trialParameters": parameters,
        "trialSpec": job,
    }


def _pod(script: str, platform: PlatformConfig, step: StepConfig) -> dict[str, Any]:
    """Return the specification of a trial's pod."""
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": platform.image,
        "command": ["sh", "-c", script],
        "env": [{"name": name, "value": value} for name, value in platform.env.items()],
        "resources": _resources(step),
        "volumeMounts": [],
    }
    pod: dict[str, Any] = {"restartPolicy": "Never", "containers": [container], "volumes": []}
    if platform.workdir_volume:
        claim = {"claimName": platform.workdir_volume, "readOnly": True}
        pod["volumes"].append({"name": WORKDIR_VOLUME, "persistentVolumeClaim": claim})
        mount = {"name": WORKDIR_VOLUME, "mountPath": platform.workdir, "readOnly": True}
        container["volumeMounts"].append(mount)
    if step.shared_memory:
        memory = {"medium": "Memory", "sizeLimit": step.shared_memory}
        pod["volumes"].append({"name": SHARED_MEMORY_VOLUME, "emptyDir": memory})
        mount = {"name": SHARED_MEMORY_VOLUME, "mountPath": "/dev/shm"}  # noqa: S108
        container["volumeMounts"].append(mount)
    if platform.service_account:
        pod["serviceAccountName"] = platform.service_account
    if platform.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in platform.image_pull_secrets]
    if step.node_selector:
        pod["nodeSelector"] = dict(step.node_selector)
    if step.tolerations:
        pod["tolerations"] = [_camel_case(toleration) for toleration in step.tolerations]
    return pod


def _camel_case(toleration: Mapping[str, Any]) -> dict[str, Any]:
    """Return a toleration with the keys of Kubernetes."""
    keys = {"toleration_seconds": "tolerationSeconds"}
    return {keys.get(key, key): value for key, value in toleration.items()}


def _resources(step: StepConfig) -> dict[str, Any]:
    """Return the requests and limits of a step."""
    requests = {"cpu": step.cpu, "memory": step.memory}
    limits: dict[str, Any] = {"memory": step.memory}
    if step.gpu:
        limits[step.gpu_type] = str(step.gpu)
    resources = {}
    for name, values in (("requests", requests), ("limits", limits)):
        given = {key: value for key, value in values.items() if value}
        if given:
            resources[name] = given
    return resources


def _sets(config: RunConfig) -> list[str]:
    """Return the options that give a training the settings that are not defaults."""
    changed = changed_settings(config)
    values = {"seed": config.seed}
    for section in TRAINED_SECTIONS:
        for key, value in changed.get(section, {}).items():
            values[f"{section}.{key}"] = value
    options = []
    for key, value in values.items():
        text = json.dumps(value, separators=(",", ":"))
        options += ["--set", f"{key}={text}"]
    return options


def _object_name(text: str) -> str:
    """Return a text as the name of an object of Kubernetes, of at most 40 characters."""
    safe = re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")
    return f"longrec-{safe}"[:40].strip("-")
