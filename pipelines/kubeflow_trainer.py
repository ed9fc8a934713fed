"""Hands the training step to Kubeflow Trainer: a TrainJob whose nodes run `longrec train` under
torchrun.

The step and all nodes mount one volume, the work directory of the feature store. On it lies a folder per
training:

    HOME/train-jobs/<fingerprint>/histories/  config.yaml  bundle/
    HOME/checkpoints/  HOME/tensorboard/                                where the step of one
    process keeps them too

The step fills it, submits the TrainJob, waits, and moves the bundle to where its own output
belongs. The fingerprint is that of
histories and configuration: a step that is started again finds its job still running and waits for
it, or submits another one that
goes on from the checkpoints.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional, Union

from longrec.config import PlatformConfig, RunConfig
from longrec.data import files
from longrec.errors import LongrecError
from longrec.training.train import TrainReport

FOLDER, PREFIX = "train-jobs", "longrec"
POLL_SECONDS = 5.0
LINES = 20
"""Last lines of a failed job's log that its error shows."""
LIVE, COMPLETE, FAILED = ("Created", "Running"), "Complete", "Failed"
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingJob:
    """One training on a cluster.

    Args:
        workdir: the volume that step and nodes mount.
        fingerprint: of histories and configuration.
    """

    workdir: Path
    fingerprint: str

    @property
    def folder(self) -> Path:
        return self.workdir / FOLDER / self.fingerprint

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def prefix(self) -> str:
        """How the names of its TrainJobs begin."""
        return f"{PREFIX}-{self.fingerprint}-"

    @property
    def arguments(self) -> list[str]:
        """What every process of every node runs."""
        return [
            "longrec",
            "train",
            str(self.folder / "histories"),
            str(self.bundle),
            "--config",
            str(self.folder / "config.yaml"),
            "--checkpoint-dir",
            str(self.workdir / "checkpoints"),
            "--log-dir",
            str(self.workdir / "tensorboard" / self.fingerprint),
        ]


def run_training_job(
    histories_dir: Union[str, Path],
    out_dir: Union[str, Path],
    config: RunConfig,
    *,
    client: Any = None,
    say: Callable[[str], None] = log.info,
) -> TrainReport:
    """Returns the report of a training after a TrainJob wrote its bundle, which is moved to
    `out_dir`: what `longrec.training.train.train` returns.

    Args:
        histories_dir: of the step retrieve.
        out_dir: of the bundle, replaced at once.
        config: model, lengths, train, evaluate.served_length and seed say what is trained; platform
            says where. This process mounts
            the volume `platform.workdir_volume` at `platform.workdir`, as the nodes do.
        client: a kubeflow.trainer.TrainerClient; None for one of the cluster that this process runs
            on.
        say: is told what happens.

    Raises:
        LongrecError: the SDK is not installed, the cluster does not answer, or the job failed; with
            the last lines of its log.
    """
    job = prepare(Path(histories_dir), config)
    if not (
        job.bundle / "bundle.json"
    ).is_file():  # a step that was killed after its job had ended left it there
        with _understandable():
            _train(client or _client(config.platform), job, config.platform, say)
    with files.replacing(out_dir) as temporary:
        shutil.copytree(job.bundle, temporary)
    meta = files.read_json(Path(out_dir) / "bundle.json")
    shutil.rmtree(job.folder, ignore_errors=True)
    names = {field.name for field in dataclasses.fields(TrainReport)}
    return TrainReport(
        **{
            **{name: value for name, value in meta["facts"].items() if name in names},
            "version": meta["version"],
        }
    )


def _train(
    client: Any, job: TrainingJob, platform: PlatformConfig, say: Callable[[str], None]
) -> None:
    """Returns when the TrainJob of a training, a live one or a new one, is complete.

    Raises:
        LongrecError: it failed.
    """
    name = _live(client, job) or submit(client, job, platform)
    say(f"TrainJob {name}: {platform.trainer.num_nodes} nodes, runtime {platform.trainer.runtime}")
    if (status := _wait(client, name, say)) == COMPLETE:
        return
    tail = [line.strip() for line in client.get_job_logs(name) if line.strip()][-LINES:]
    said = next(
        (line for line in reversed(tail) if line.startswith("longrec")),
        tail[-1] if tail else "no log",
    )
    say("\n".join(tail))
    raise LongrecError(
        f"TrainJob {name} ended as {status}",
        found=said,
        fix="Started again, the step goes on from the last checkpoint; `kubectl describe trainjob` says more.",
    )


def prepare(histories_dir: Path, config: RunConfig) -> TrainingJob:
    """Returns the job of a training, its folder filled; what lies there already is left as it
    is.
    """
    value = {name: entry for name, entry in config.to_dict().items() if name != "platform"}
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode())
    for path in sorted(histories_dir.iterdir()):
        digest.update(f"{path.name}:{files.sha256_of(path)}".encode())
    job = TrainingJob(Path(config.platform.workdir), digest.hexdigest()[:12])
    if not (job.folder / "histories").is_dir():
        with files.replacing(job.folder / "histories") as temporary:
            shutil.copytree(histories_dir, temporary)
    files.write_json(job.folder / "config.yaml", value)  # JSON is YAML
    return job


def submit(client: Any, job: TrainingJob, platform: PlatformConfig) -> str:
    """Returns the name of a new TrainJob."""
    from kubeflow.trainer.options import Name

    options = [Name(f"{job.prefix}{uuid.uuid4().hex[:5]}"), *_placement(client, platform)]
    name: str = client.train(
        runtime=platform.trainer.runtime, trainer=custom_trainer(job, platform), options=options
    )
    return name


def custom_trainer(job: TrainingJob, platform: PlatformConfig) -> Any:
    """Returns the kubeflow.trainer.CustomTrainer: what every process runs, and what a node gets."""
    from kubeflow.trainer import CustomTrainer

    node = platform.step("train")
    wanted = {
        "cpu": node.cpu,
        "memory": node.memory,
        node.gpu_type: str(node.gpu) if node.gpu else "",
    }
    return CustomTrainer(
        func=train_on_ranks,
        image=platform.image,
        num_nodes=platform.trainer.num_nodes,
        resources_per_node={name: value for name, value in wanted.items() if value} or None,
        env={**platform.env, "LONGREC_TRAIN": json.dumps(job.arguments)},
    )


def train_on_ranks() -> None:
    """Runs the command in LONGREC_TRAIN as one of the processes that torchrun started.

    Its source travels inside a shell script: no dollar sign, no backtick, nothing of this module.
    """
    import json
    import os
    import sys

    from longrec.cli.main import main

    sys.argv = json.loads(os.environ["LONGREC_TRAIN"])
    main()


def _placement(client: Any, platform: PlatformConfig) -> list[Any]:
    """Returns what a Kubernetes backend is told of the pods: volumes, nodes, secrets; other
    backends have no pods.
    """
    from kubeflow.trainer import options
    from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend

    if not isinstance(client.backend, KubernetesBackend):
        return []
    node = platform.step("train")
    volumes, mounts = _volumes(platform, node.shared_memory)
    secrets = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for secret, variables in platform.secrets.items()
        for key, variable in variables.items()
    ]
    pod = options.PodSpecPatch(
        volumes=volumes,
        containers=[options.ContainerPatch("node", env=secrets or None, volume_mounts=mounts)],
        image_pull_secrets=[{"name": name} for name in platform.image_pull_secrets] or None,
        node_selector=node.node_selector or None,
        service_account_name=platform.service_account or None,
        tolerations=[_toleration(entry) for entry in node.tolerations] or None,
    )
    jobs = [
        options.ReplicatedJobPatch(
            "node",
            options.JobTemplatePatch(spec=options.JobSpecPatch(options.PodTemplatePatch(spec=pod))),
        )
    ]
    template = options.JobSetTemplatePatch(spec=options.JobSetSpecPatch(jobs))
    return [
        options.RuntimePatch(options.TrainingRuntimeSpecPatch(template)),
        options.ActiveDeadlineSeconds(node.timeout_seconds),
    ]


def _volumes(
    platform: PlatformConfig, shared_memory: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns (volumes of a pod, mounts of its container): the work directory, and shared memory."""
    volumes: list[dict[str, Any]] = [
        {"name": "workdir", "persistentVolumeClaim": {"claimName": platform.workdir_volume}}
    ]
    mounts: list[dict[str, Any]] = [{"name": "workdir", "mountPath": platform.workdir}]
    if shared_memory:
        volumes.append(
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}}
        )
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
    return volumes, mounts


def _toleration(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tolerationSeconds" if name == "toleration_seconds" else name: value
        for name, value in entry.items()
    }


def _client(platform: PlatformConfig) -> Any:
    try:
        from kubeflow.trainer import KubernetesBackendConfig, TrainerClient
    except ImportError as error:
        raise LongrecError(
            "platform.trainer.engine=kubeflow needs the SDK of Kubeflow",
            found=str(error),
            fix="pip install 'longrec[trainer]' -c constraints.txt",
        ) from error
    return TrainerClient(KubernetesBackendConfig(namespace=platform.trainer.namespace or None))


def _live(client: Any, job: TrainingJob) -> Optional[str]:
    """Returns the name of a TrainJob of this training that has not ended, which a step that was
    killed left.
    """
    names = [found.name for found in client.list_jobs() if found.name.startswith(job.prefix)]
    return next((name for name in names if client.get_job(name).status in LIVE), None)


def _wait(client: Any, name: str, say: Callable[[str], None]) -> str:
    """Returns how the job ended; it may take as long as it likes, its own deadline
    (platform.steps.train.timeout_seconds) ends it.
    """
    before = ""
    while (status := str(client.get_job(name).status)) not in (COMPLETE, FAILED):
        if status != before:
            say(f"TrainJob {name}: {status}")
        before = status
        time.sleep(POLL_SECONDS)
    return status


@contextlib.contextmanager
def _understandable() -> Any:
    """Turns what the SDK raises into one line.

    Raises:
        LongrecError: instead of everything that is none.
    """
    try:
        yield
    except LongrecError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        raise LongrecError(
            "Kubeflow Trainer does not do what it is asked",
            found=f"{error}; {str(cause).strip().splitlines()[0]}",
            fix="Is the Trainer installed (kubectl get clustertrainingruntimes), and may this service account create "
            "trainjobs and read runtimes, pods and logs?",
        ) from error
