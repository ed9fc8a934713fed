"""The compiled pipelines: up to date, byte-stable, with the documented graphs and settings."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import yaml
from google.protobuf import json_format
from kfp import dsl
from kfp.kubernetes import kubernetes_executor_config_pb2
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.config_file import build
from longrec.errors import ConfigError, LongrecError
from pipelines import compiler
from pipelines.kfp_fixes import quick_settings
from pipelines.platform_config import PlatformConfig

ROOT = Path(__file__).parents[2]
FEATURES = {
    "fingerprint": set(),
    "check-events": {"fingerprint"},
    "for-loop-2": {"fingerprint", "check-events"},
    "join-features": {"fingerprint", "for-loop-2"},
    "publish": {"fingerprint", "join-features"},
}
HISTORIES = {
    "retrieve": {"fingerprint", "publish"},
    "check-histories": {"fingerprint", "retrieve"},
}
GRAPHS: dict[str, dict[str, set[str]]] = {
    "refresh": FEATURES,
    "drift": {"drift": set()},
    "study": FEATURES
    | HISTORIES
    | {
        "plan": {"fingerprint"},
        "for-loop-3": {"fingerprint", "plan", "retrieve", "check-histories"},
        "collect": {"fingerprint", "for-loop-3"},
    },
    "tune": FEATURES
    | HISTORIES
    | {
        "for-loop-3": {"fingerprint", "publish", "retrieve", "check-histories"},
        "choose": {"fingerprint", "for-loop-3"},
    },
    "training": FEATURES
    | HISTORIES
    | {
        "train": {"fingerprint", "retrieve", "check-histories"},
        "evaluate": {"fingerprint", "train", "retrieve"},
        "condition-3": {"fingerprint", "evaluate", "train", "retrieve"},
        "condition-4": {"evaluate"},
    },
}
"""Pipeline -> steps below its exit handler -> the steps that each of them waits for."""
REQUIRED = {"data_uri", "study"}
"""Parameters without a default."""


def _documents(name: str, folder: Path = compiler.FOLDER) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the graph of a compiled pipeline and the platform settings of its steps."""
    spec, platform = yaml.safe_load_all((folder / f"{name}.yaml").read_text())
    return spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def _tasks(spec: dict[str, Any]) -> dict[str, Any]:
    tasks: dict[str, Any] = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    return tasks


def test_the_committed_files_are_what_compiling_writes() -> None:
    compiler.check_compiled()
    assert (
        set(GRAPHS)
        == set(compiler.PIPELINES)
        == {path.stem for path in compiler.FOLDER.glob("*.yaml")}
    )


def test_a_stale_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LongrecError, match="is not up to date"):
        compiler.check_compiled(["refresh"], tmp_path)
    (tmp_path / "refresh.yaml").write_text((compiler.FOLDER / "refresh.yaml").read_text() + " ")
    with pytest.raises(LongrecError, match="is not up to date"):
        compiler.check_compiled(["refresh"], tmp_path)


def test_manifests_are_a_pipeline_and_its_version_with_the_same_graph(tmp_path: Path) -> None:
    """What a server with its pipelines in Kubernetes takes; equal content has an equal name."""
    manifests = compiler.Manifests("team")
    (path,) = compiler.compile_all(["drift"], tmp_path, write=manifests)
    pipeline, version = yaml.safe_load_all(path.read_text())
    assert pipeline["kind"] == "Pipeline"
    assert pipeline["metadata"] == {"name": "longrec-drift", "namespace": "team"}
    assert version["kind"] == "PipelineVersion"
    assert re.fullmatch("longrec-drift-[0-9a-f]{12}", version["metadata"]["name"])
    assert version["metadata"]["namespace"] == "team"
    spec = compiler.specification(compiler.pipeline("drift", PlatformConfig()))
    assert version["spec"]["pipelineSpec"] == spec["pipeline_spec"]
    assert version["spec"]["platformSpec"] == spec["platform_spec"]
    assert version["spec"]["pipelineName"] == "longrec-drift"
    assert compiler.check_compiled(["drift"], tmp_path, write=manifests) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--kubernetes",), "Manifests need a folder"), (("--namespace", "x"), "Only manifests")],
)
def test_options_of_manifests_need_each_other(arguments: tuple[str, ...], message: str) -> None:
    answer = CliRunner().invoke(app, ["compile", *arguments])
    assert answer.exit_code == 2
    assert message in answer.stderr


def test_an_unknown_pipeline_is_an_error() -> None:
    with pytest.raises(LongrecError, match="there is no pipeline 'absent'"):
        compiler.pipeline("absent", None)


def test_no_setting_of_a_task_reads_the_source_of_its_callers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That would take most of the time of a compilation, in a process with many modules."""

    def read() -> NoReturn:
        raise AssertionError("the stack is read")

    monkeypatch.setattr(inspect, "stack", read)
    compiler.pipeline("training", build(PlatformConfig, PLATFORM))


def test_a_task_without_a_container_takes_no_setting_of_one() -> None:
    task: Any = SimpleNamespace(container_spec=None)
    with quick_settings(), pytest.raises(ValueError, match="only be used on single-step"):
        dsl.PipelineTask._ensure_container_spec_exists(task)


@pytest.mark.parametrize("name", GRAPHS)
def test_compiling_by_kfp_writes_the_same_bytes(name: str, tmp_path: Path) -> None:
    target, kfp = tmp_path / f"{name}.yaml", Path(sys.executable).with_name("kfp")
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PYTHONHASHSEED": "7",
        "LONGREC_IMAGE": "other/python:1",
    }
    subprocess.run(
        [kfp, "dsl", "compile", "--py", f"pipelines/{name}.py", "--output", target],
        cwd=ROOT,
        check=True,
        capture_output=True,
        env=environment,
    )
    assert target.read_bytes() == (compiler.FOLDER / f"{name}.yaml").read_bytes()


@pytest.mark.parametrize("name", GRAPHS)
def test_the_graph_has_the_steps_and_edges_of_the_architecture(name: str) -> None:
    spec, _ = _documents(name)
    root = spec["root"]["dag"]["tasks"]
    assert set(root) == {"exit-handler-1", "finish"}
    assert root["finish"]["dependentTasks"] == ["exit-handler-1"]
    assert root["finish"]["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert {
        step: set(task.get("dependentTasks", ())) for step, task in _tasks(spec).items()
    } == GRAPHS[name]


@pytest.mark.parametrize("name", ["refresh", "study", "training", "tune"])
def test_the_loop_over_the_shards_has_one_step(name: str) -> None:
    spec = _documents(name)[0]
    loop = _tasks(spec)["for-loop-2"]
    assert loop["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--shards"}
    assert loop["iteratorPolicy"] == {"parallelismLimit": PlatformConfig().parallelism}
    assert set(spec["components"]["comp-for-loop-2"]["dag"]["tasks"]) == {"build-features"}


def test_packaging_waits_for_the_gate() -> None:
    spec, _ = _documents("training")
    assert set(spec["components"]["comp-condition-3"]["dag"]["tasks"]) == {
        "package",
        "register",
    }
    condition = _tasks(spec)["condition-3"]["triggerPolicy"]["condition"]
    assert condition == "inputs.parameter_values['pipelinechannel--evaluate-Output'] == true"
    assert set(spec["components"]["comp-condition-4"]["dag"]["tasks"]) == {"refuse"}
    condition = _tasks(spec)["condition-4"]["triggerPolicy"]["condition"]
    assert condition == "inputs.parameter_values['pipelinechannel--evaluate-Output'] == false"


@pytest.mark.parametrize("name", GRAPHS)
def test_the_local_run_has_the_same_graph_and_parameters(name: str) -> None:
    """`longrec run` executes the compiled pipeline without the settings of a cluster."""
    local, spec = compiler.pipeline(name, None).pipeline_spec, _documents(name)[0]
    from google.protobuf import json_format

    plain = json_format.MessageToDict(local)

    def graph(value: dict[str, Any]) -> Any:
        dags = {
            key: component["dag"]
            for key, component in [*value["components"].items(), ("root", value["root"])]
            if "dag" in component
        }
        return {
            key: {
                step: (sorted(task.get("dependentTasks", ())), task["inputs"])
                for step, task in dag["tasks"].items()
            }
            for key, dag in dags.items()
        }

    assert graph(plain) == graph(spec)
    assert set(plain["root"]["inputDefinitions"]["parameters"]) == set(
        spec["root"]["inputDefinitions"]["parameters"]
    )


def test_gates_are_inputs_and_not_only_order() -> None:
    tasks = _tasks(_documents("training")[0])
    for task, upstream in (
        ("train", "check-histories"),
        ("publish", "join-features"),
        ("join-features", "for-loop-2"),
        ("check-histories", "retrieve"),
    ):
        producers = {
            value["taskOutputArtifact"]["producerTask"]
            for value in tasks[task]["inputs"]["artifacts"].values()
        }
        assert upstream in producers
    for task, name, upstream in (
        ("for-loop-2", "pipelinechannel--check-events-Output", "check-events"),
        ("retrieve", "published", "publish"),
    ):
        source = tasks[task]["inputs"]["parameters"][name]
        assert source["taskOutputParameter"]["producerTask"] == upstream


def test_each_step_gets_its_own_section_of_the_configuration_only() -> None:
    given = {
        step: {
            value["componentInputParameter"].removeprefix("pipelinechannel--")
            for value in task.get("inputs", {}).get("parameters", {}).values()
            if "componentInputParameter" in value
        }
        for step, task in _tasks(_documents("training")[0]).items()
    }
    sections = {"data", "checks", "model", "lengths", "train", "evaluate", "gate"}
    assert {
        name: parameters & sections for name, parameters in given.items() if parameters & sections
    } == {
        "for-loop-2": {"data"},
        "check-events": {"checks"},
        "retrieve": {"data"},
        "check-histories": {"checks"},
        "train": {"model", "lengths", "train"},
        "evaluate": {"evaluate", "gate"},
        "condition-3": {"gate"},
        "fingerprint": {"gate"},
    }, "the last is never cached: it asks for the champion only where the gate does"


@pytest.mark.parametrize("name", GRAPHS)
def test_every_cached_step_knows_its_code_and_the_others_are_never_cached(name: str) -> None:
    spec, _ = _documents(name)
    tasks = {
        step: task
        for component in [*spec["components"].values(), spec["root"]]
        for step, task in component.get("dag", {}).get("tasks", {}).items()
        if not step.startswith(("condition", "exit-handler", "for-loop"))
    }
    cached = {step for step, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == set(tasks) - {
        "fingerprint",
        "publish",
        "register",
        "collect",
        "tune",
        "choose",
        "drift",
        "refuse",
        "finish",
    }
    assert all("code_key" in tasks[step]["inputs"]["parameters"] for step in cached)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_file_names_no_path_of_a_machine_and_no_pip(name: str) -> None:
    text = (compiler.FOLDER / f"{name}.yaml").read_text()
    assert not re.search(r"/(work|tmp|root|home|Users)/", text)
    assert str(ROOT) not in text
    images = {
        executor["container"]["image"]
        for executor in _documents(name)[0]["deploymentSpec"]["executors"].values()
    }
    assert images == {PlatformConfig().image}
    assert "python" in PlatformConfig().image
    assert "pip install" not in text


@pytest.mark.parametrize("name", GRAPHS)
def test_a_server_takes_the_names_and_types(name: str) -> None:
    """The API server refuses names beyond DNS and defaults that do not fit their parameter."""
    spec, _ = _documents(name)
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,127}", spec["pipelineInfo"]["name"])
    assert spec["schemaVersion"] == "2.1.0"
    kinds = {
        "STRING": str,
        "STRUCT": dict,
        "NUMBER_INTEGER": (int, float),
        "NUMBER_DOUBLE": (int, float),
        "BOOLEAN": bool,
        "LIST": list,
    }
    for key, parameter in spec["root"]["inputDefinitions"]["parameters"].items():
        assert (
            parameter.get("isOptional", False)
            == ("defaultValue" in parameter)
            == (key not in REQUIRED)
        )
        assert isinstance(parameter.get("defaultValue", ""), kinds[parameter["parameterType"]])


@pytest.mark.parametrize("name", GRAPHS)
def test_every_parameter_is_described(name: str) -> None:
    made = compiler.pipeline(name, None)
    text = inspect.getdoc(made.pipeline_func) or ""
    for parameter in made.component_spec.inputs:
        assert re.search(rf"^\s+(\w+, )*{parameter}(, \w+)*:", text, re.M), parameter


def test_the_image_holds_what_the_steps_name() -> None:
    copied = [
        line.split()[-1]
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY --chmod")
    ]
    folders = {"model/longrec", "feature_repo", "bento", "components", "configs", "pipelines"}
    assert {f"/opt/longrec/{folder}" for folder in folders} | {"/opt/longrec/"} == set(copied)
    spec, _ = _documents("training")
    assert (
        spec["root"]["inputDefinitions"]["parameters"]["repo_dir"]["defaultValue"]
        == "/opt/longrec/feature_repo"
    )
    assert "USER 10001" in (ROOT / "Dockerfile").read_text()


PLATFORM = {
    "image": "registry.example/team/python-longrec:7",
    "image_pull_secrets": ["registry"],
    "workdir": "/srv/longrec",
    "workdir_volume": "rec-home",
    "data_volume": "logs",
    "data": "/logs",
    "env": {"AWS_ENDPOINT_URL": "http://minio.kubeflow:9000"},
    "secrets": {"s3": {"accesskey": "AWS_ACCESS_KEY_ID"}},
    "webhook_secret": "chat",
    "steps": {
        "all": {"retries": 1, "timeout_seconds": 1200},
        "evaluate": {"cache": False},
        "train": {
            "gpu": 2,
            "gpu_type": "nvidia.com/gpu",
            "memory": "64Gi",
            "cpu": "8",
            "shared_memory": "16Gi",
            "node_selector": {"pool": "gpu"},
            "timeout_seconds": 9000,
            "backoff_seconds": 60,
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
    },
}


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("placed")
    compiler.compile_to("training", folder / "training.yaml", build(PlatformConfig, PLATFORM))
    return _documents("training", folder)


@pytest.mark.parametrize("name", compiler.PIPELINES)
def test_what_the_platform_gives_is_what_the_driver_of_kubernetes_reads(
    name: str, tmp_path: Path
) -> None:
    """Each step's driver parses them as KubernetesExecutorConfig and fails on unknown keys."""
    platform = {**PLATFORM, "steps": {"all": PLATFORM["steps"]["train"]}}
    compiler.compile_to(name, tmp_path / f"{name}.yaml", build(PlatformConfig, platform))
    spec, executors = _documents(name, tmp_path)
    assert executors.keys() == spec["deploymentSpec"]["executors"].keys()
    for given in executors.values():
        read = json_format.ParseDict(
            given, kubernetes_executor_config_pb2.KubernetesExecutorConfig()
        )
        assert read.active_deadline_seconds == 9000
        assert read.tolerations[0].key == "gpu"
        assert read.secret_as_env


def test_the_platform_gives_containers_what_it_says(
    placed: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    spec, _ = placed
    containers = {
        name.removeprefix("exec-"): executor["container"]
        for name, executor in spec["deploymentSpec"]["executors"].items()
    }
    assert {container["image"] for container in containers.values()} == {PLATFORM["image"]}
    assert all(
        {"name": "AWS_ENDPOINT_URL", "value": "http://minio.kubeflow:9000"} in each["env"]
        for each in containers.values()
    )
    resources = containers["train"]["resources"]
    assert resources["resourceMemoryLimit"] == "64Gi"
    assert resources["resourceMemoryRequest"] == "64Gi"
    assert resources["resourceCpuRequest"] == "8"
    assert resources["accelerator"]["resourceCount"] == "2"
    assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert "resources" not in containers["publish"]
    assert (
        spec["root"]["inputDefinitions"]["parameters"]["workdir"]["defaultValue"] == "/srv/longrec"
    )


def test_the_platform_gives_steps_retries_and_caching(
    placed: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    tasks = _tasks(placed[0])
    backoff = {"backoffDuration": "60s", "backoffFactor": 2.0, "backoffMaxDuration": "600s"}
    assert tasks["train"]["retryPolicy"] == {"maxRetryCount": 1, **backoff}
    assert tasks["evaluate"]["cachingOptions"] == {}
    assert tasks["train"]["cachingOptions"] == {"enableCache": True}
    default = _tasks(_documents("training")[0])
    assert "retryPolicy" not in default["check-events"], "a failed check says the same again"
    assert default["train"]["retryPolicy"]["maxRetryCount"] == 2


def test_the_platform_gives_pods_volumes_secrets_nodes_and_time(
    placed: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    pods = {name.removeprefix("exec-"): pod for name, pod in placed[1].items()}
    train = pods["train"]
    assert train["emptyDirMounts"] == [
        {"medium": "Memory", "mountPath": "/dev/shm", "sizeLimit": "16Gi", "volumeName": "shm"}
    ]
    assert train["nodeSelector"]["labels"] == {"pool": "gpu"}
    assert train["tolerations"][0]["key"] == "gpu"
    assert train["activeDeadlineSeconds"] == "9000"
    assert pods["retrieve"]["activeDeadlineSeconds"] == "1200"
    mounts = {
        step: {(mount["constant"], mount["mountPath"]) for mount in pod.get("pvcMount", ())}
        for step, pod in pods.items()
    }
    workdir, data = ("rec-home", "/srv/longrec"), ("logs", "/logs")
    assert set(mounts) == set(pods)
    with_data = {step for step, found in mounts.items() if found == {workdir, data}}
    assert with_data == {"fingerprint", "check-events", "build-features", "retrieve"}
    others = [found for step, found in mounts.items() if step not in with_data]
    assert others == [{workdir}] * len(others), "every step writes the record of the run"
    for step, pod in pods.items():
        secrets = {
            secret["secretName"]: {(key["secretKey"], key["envVar"]) for key in secret["keyToEnv"]}
            for secret in pod["secretAsEnv"]
        }
        assert pod["fieldPathAsEnv"] == [
            {"name": "LONGREC_RUN", "fieldPath": "metadata.labels['pipeline/runid']"}
        ]
        assert secrets.pop("s3") == {("accesskey", "AWS_ACCESS_KEY_ID")}
        is_told = step in ("finish", "refuse")
        assert secrets == ({"chat": {("url", "LONGREC_WEBHOOK")}} if is_told else {})
        assert pod["imagePullSecret"][0]["secretName"] == "registry"


def test_training_on_several_nodes_is_a_step_that_waits_for_a_job(tmp_path: Path) -> None:
    """The GPUs are the job's; the step needs the volume that both mount, and knows the platform."""
    platform = {
        "trainer": {"engine": "kubeflow", "num_nodes": 4},
        "steps": {"train": {"gpu": 8, "memory": "64Gi"}},
    }
    compiler.compile_to("training", tmp_path / "training.yaml", build(PlatformConfig, platform))
    spec, pods = _documents("training", tmp_path)
    tasks = _tasks(spec)
    assert "train" not in tasks
    assert set(tasks["train-job"]["dependentTasks"]) == GRAPHS["training"]["train"]
    given = tasks["train-job"]["inputs"]["parameters"]["platform"]["runtimeValue"]["constant"]
    assert build(PlatformConfig, given) == build(PlatformConfig, platform)
    assert pods["exec-train-job"]["pvcMount"][0]["constant"] == "longrec-home"
    assert "resources" not in spec["deploymentSpec"]["executors"]["exec-train-job"]["container"]


@pytest.mark.parametrize(
    ("platform", "message"),
    [
        ({"steps": {"trainn": {}}}, "there is no step 'trainn'"),
        (
            {"steps": {"train": {"gpus": 1}}},
            r"unknown configuration key 'platform\.steps\.train\.gpus'. Did you mean 'gpu'",
        ),
        ({"steps": {"train": {"retries": -1}}}, "retries must not be negative"),
        (
            {"steps": {"train": {"tolerations": [{"taint": "x"}]}}},
            "a toleration has an unknown key; found taint",
        ),
        ({"image": "registry/longrec:1"}, "must have 'python' in its name"),
        ({"env": {"A": 1}}, r"env\.A has the wrong type"),
        (
            {"steps": {"train": {"memory": "64GiB"}}},
            "memory is no quantity of Kubernetes; found 64GiB; expected for example 16Gi",
        ),
        ({"steps": {"train": {"cpu": "two"}}}, "cpu is no quantity"),
        ({"steps": {"train": {"gpu_type": "a b"}}}, "gpu_type is no quantity"),
        (
            {"steps": {"train": {"tolerations": [{"operator": "Is"}]}}},
            "operator of a toleration is unknown; found Is; expected Exists, Equal",
        ),
        (
            {"workdir_volume": "My_Home"},
            r"platform\.workdir_volume is no name of a Kubernetes object; found My_Home",
        ),
        ({"secrets": {"S3": {"a": "B"}}}, r"platform\.secrets is no name"),
        ({"workdir": "relative"}, r"platform\.workdir is no absolute path"),
    ],
)
def test_a_mistake_in_the_platform_is_named(platform: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(PlatformConfig, platform)
