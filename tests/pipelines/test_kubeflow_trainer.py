"""The training step by Kubeflow Trainer: its TrainJob, its command, and its failures."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubeflow.trainer")

from longrec.config import RunConfig
from longrec.config_file import build
from longrec.errors import LongrecError
from longrec.scoring.bundle import Bundle
from longrec.training.train import train
from pipelines import kubeflow_trainer
from pipelines.platform_config import PlatformConfig, build_platform
from tests.longrec import small_histories
from tests.pipelines import trainer_cluster


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubeflow_trainer, "POLL_SECONDS", 0.2)


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_histories.write(tmp_path_factory.mktemp("histories") / "histories")


SETTINGS = {
    "seed": 3,
    "model": {
        "width": 16,
        "num_layers": 2,
        "num_heads": 2,
        "id_dim": 8,
        "feature_dim": 4,
        "mixer_layers": 1,
    },
    "lengths": {"distribution": "beta", "minimum": 0, "mean": 32, "maximum": 64},
    "evaluate": {"lengths": [64]},
    "train": {
        "max_steps": 6,
        "token_budget": 300,
        "max_requests_per_batch": 16,
        "log_every": 1,
        "device": "cpu",
        "tensorboard": False,
    },
}


def config(workdir: Path, **platform: Any) -> tuple[RunConfig, PlatformConfig]:
    section = {
        "workdir": str(workdir),
        "trainer": {"engine": "kubeflow"},
        "steps": {"train": {"cpu": "1"}},
        **platform,
    }
    return build(RunConfig, SETTINGS), build_platform(section)


def test_the_train_job_holds_what_the_platform_says(histories: Path, tmp_path: Path) -> None:
    settings, platform = config(
        tmp_path,
        image="registry/longrec-python-ml:7",
        workdir_volume="home-claim",
        env={"AWS_REGION": "x"},
        service_account="trainer",
        secrets={"s3": {"accesskey": "AWS_ACCESS_KEY_ID"}},
        image_pull_secrets=["pull"],
        trainer={"engine": "kubeflow", "num_nodes": 3},
        steps={
            "train": {
                "cpu": "8",
                "memory": "64Gi",
                "gpu": 4,
                "shared_memory": "16Gi",
                "node_selector": {"pool": "gpu"},
                "timeout_seconds": 7200,
                "tolerations": [{"key": "gpu", "operator": "Exists", "toleration_seconds": 60}],
            }
        },
    )
    with trainer_cluster.running(runs=False) as (cluster, client):
        name = kubeflow_trainer.submit(
            client, kubeflow_trainer.prepare(histories, settings, platform), platform
        )
    [sent] = cluster.created
    spec = sent["spec"]
    assert sent["metadata"]["name"] == name
    assert len(name) <= 40
    assert spec["runtimeRef"]["name"] == "torch-distributed"
    node = spec["trainer"]
    assert node["image"] == "registry/longrec-python-ml:7"
    assert node["numNodes"] == 3
    assert node["resourcesPerNode"]["limits"] == {
        "cpu": "8",
        "memory": "64Gi",
        "nvidia.com/gpu": "4",
    }
    variables = {entry["name"]: entry["value"] for entry in node["env"]}
    assert variables["AWS_REGION"] == "x"
    assert json.loads(variables["LONGREC_TRAIN"])[:2] == ["longrec", "train"]
    assert "torchrun" in node["command"][-1]
    assert "$" not in node["command"][-1].partition("EOM")[2].partition("EOM")[0]
    assert spec["activeDeadlineSeconds"] == 7200
    [patch] = spec["runtimePatches"]
    [job] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert [volume["name"] for volume in pod["volumes"]] == ["workdir", "shm"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "home-claim"}
    [container] = pod["containers"]
    assert container["volumeMounts"][0] == {"name": "workdir", "mountPath": str(tmp_path)}
    assert container["env"][0]["valueFrom"]["secretKeyRef"] == {"name": "s3", "key": "accesskey"}
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["serviceAccountName"] == "trainer"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists", "tolerationSeconds": 60}]


def test_a_timeout_of_0_seconds_sets_no_deadline(histories: Path, tmp_path: Path) -> None:
    settings, platform = config(tmp_path, steps={"train": {"timeout_seconds": 0}})
    with trainer_cluster.running(runs=False) as (cluster, client):
        job = kubeflow_trainer.prepare(histories, settings, platform)
        kubeflow_trainer.submit(client, job, platform)
    [sent] = cluster.created
    assert "activeDeadlineSeconds" not in sent["spec"]


def test_a_job_that_is_still_running_is_waited_for_and_its_failure_is_one_line(
    histories: Path, tmp_path: Path
) -> None:
    settings, platform = config(tmp_path)
    with trainer_cluster.running(runs=False) as (cluster, client):
        job = kubeflow_trainer.prepare(histories, settings, platform)
        name = kubeflow_trainer.submit(client, job, platform)  # by a step that was killed
        kubeflow_trainer.submit(
            client, kubeflow_trainer.TrainingJob(tmp_path, "0" * 12), platform
        )  # of another training
        cluster.logs[name] = (
            "step 1/6 loss 0.7\nlongrec [rank 1]: no GPU is available\ntorchrun: ChildFailedError\n"
        )
        reported = []

        def report(text: str) -> None:
            reported.append(text)
            if text.endswith("Running"):
                cluster.states[name] = "Failed"

        with pytest.raises(
            LongrecError, match=r"ended as Failed; found longrec \[rank 1\]: no GPU is available"
        ) as caught:
            kubeflow_trainer.run_training_job(
                histories, tmp_path / "out", settings, platform, client=client, report=report
            )
    assert len(cluster.created) == 2
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert any("ChildFailedError" in text for text in reported)


def test_a_bundle_that_a_killed_step_left_is_taken(histories: Path, tmp_path: Path) -> None:
    settings, platform = config(tmp_path / "workdir")
    job = kubeflow_trainer.prepare(histories, settings, platform)
    report = train(
        histories,
        job.bundle,
        settings.model,
        lengths=settings.lengths,
        train=settings.train,
        served_lengths=[64],
        seed=3,
    )
    with trainer_cluster.running(runs=False) as (cluster, client):
        assert (
            kubeflow_trainer.run_training_job(
                histories, tmp_path / "out", settings, platform, client=client
            ).version
            == report.version
        )
    assert not cluster.created
    assert Bundle.load(tmp_path / "out").version == report.version
    assert not job.folder.exists()


def test_an_error_of_the_sdk_without_text_is_named_by_its_type(
    histories: Path, tmp_path: Path
) -> None:
    def list_jobs() -> None:
        raise TimeoutError

    client = types.SimpleNamespace(list_jobs=list_jobs)
    with pytest.raises(LongrecError, match=r"refused the request; found TimeoutError\."):
        kubeflow_trainer.run_training_job(
            histories, tmp_path / "out", *config(tmp_path), client=client
        )


def test_a_training_of_other_code_or_another_image_is_another_training(
    histories: Path, tmp_path: Path
) -> None:
    """A job or bundle that a killed step left must not pass for the result of newer code."""
    settings, platform = config(tmp_path)
    _, newer_platform = config(tmp_path, image="registry/longrec-python-ml:8")
    jobs = [
        kubeflow_trainer.prepare(histories, settings, platform, code_key="a"),
        kubeflow_trainer.prepare(histories, settings, platform, code_key="b"),
        kubeflow_trainer.prepare(histories, settings, newer_platform, code_key="a"),
    ]
    assert len({job.fingerprint for job in jobs}) == 3


def test_a_cluster_that_does_not_answer_is_one_line(histories: Path, tmp_path: Path) -> None:
    with trainer_cluster.running(runs=False) as (_, client):
        pass
    with pytest.raises(LongrecError, match="Kubeflow Trainer refused the request") as caught:
        kubeflow_trainer.run_training_job(
            histories, tmp_path / "out", *config(tmp_path), client=client
        )
    assert "\n" not in str(caught.value)


def test_without_the_sdk_the_command_that_installs_it_is_named(
    histories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kubeflow.trainer", None)
    with pytest.raises(LongrecError, match=r"longrec\[trainer\]"):
        kubeflow_trainer.run_training_job(histories, tmp_path / "out", *config(tmp_path))


@pytest.mark.slow
def test_two_nodes_train_what_one_process_trains(histories: Path, tmp_path: Path) -> None:
    trainer = {"engine": "kubeflow", "num_nodes": 2}
    settings, platform = config(tmp_path / "workdir", trainer=trainer)
    with trainer_cluster.running(runs=True) as (cluster, client):
        by_nodes = kubeflow_trainer.run_training_job(
            histories, tmp_path / "out", settings, platform, client=client
        )
    report = train(
        histories,
        tmp_path / "alone",
        settings.model,
        lengths=settings.lengths,
        train=settings.train,
        served_lengths=[64],
        seed=3,
    )
    assert by_nodes.num_steps == report.num_steps == 6
    assert by_nodes.final_loss == pytest.approx(report.final_loss, rel=1e-4)
    bundle = Bundle.load(tmp_path / "out")
    assert bundle.served_length == 64
    assert bundle.version == by_nodes.version
    assert [path.name for path in (tmp_path / "workdir" / "train-jobs").iterdir()] == []
    [log] = cluster.logs.values()
    assert "trained 6 steps" in log


NO_VENV = """
set -e
mkdir -p $PYENV_LOCATION/bin
ln -s {torchrun} $PYENV_LOCATION/bin/torchrun
$ENTRYPOINT
$CLEANUP_SCRIPT
"""


@pytest.mark.slow
def test_the_local_backend_of_the_sdk_runs_the_same_function_with_two_processes(
    histories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend installs torch into a new venv for each job; the test skips that installation."""
    from kubeflow.trainer import LocalProcessBackendConfig, TrainerClient
    from kubeflow.trainer.backends.localprocess import constants

    monkeypatch.setattr(
        constants,
        "LOCAL_EXEC_JOB_TEMPLATE",
        NO_VENV.format(torchrun=Path(sys.executable).with_name("torchrun")),
    )
    settings, platform = config(tmp_path / "workdir")
    client = TrainerClient(LocalProcessBackendConfig())
    job = kubeflow_trainer.prepare(histories, settings, platform)
    own = kubeflow_trainer.custom_trainer(job, platform)
    packages = os.pathsep.join(path for path in sys.path if path)
    own.env |= {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": packages,
        "PET_NPROC_PER_NODE": "2",
        "OMP_NUM_THREADS": "1",
    }
    name = client.train(runtime="torch-distributed", trainer=own)
    status = client.wait_for_job_status(
        name, {"Complete", "Failed"}, timeout=800, polling_interval=1
    ).status
    log = "\n".join(client.get_job_logs(name))
    assert status == "Complete", log
    assert json.loads((job.bundle / "bundle.json").read_text())["facts"]["num_steps"] == 6
    assert "trained 6 steps" in log
