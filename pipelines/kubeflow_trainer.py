"""Run the training step as a TrainJob of Kubeflow Trainer: nodes that run `longrec train`.

The step and all nodes mount one volume, the work directory. It holds a folder per training:

    WORKDIR/train-jobs/<fingerprint>/histories/  config.yaml  bundle/
    WORKDIR/checkpoints/  WORKDIR/tensorboard/      as with the step of one process

The step fills the folder, submits the TrainJob, waits, and moves the bundle to its own output. The
fingerprint covers histories, configuration, code and image. So a restarted step finds its running
job and waits for it, or submits another one, which resumes from the checkpoints. A step of newer
code takes neither the job nor the bundle of older code.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional, Union

from longrec.config import RunConfig
from longrec.data import files
from longrec.errors import LongrecError
from longrec.retries import retried
from longrec.training.report import TrainReport
from pipelines.platform_config import PlatformConfig, StepConfig

JOBS_FOLDER = "train-jobs"
JOB_PREFIX = "longrec"
POLL_SECONDS = 5.0
MAX_LOG_LINES = 20
"""Last lines of a failed job's log in the step's log."""
LIVE_STATES = ("Created", "Running")
COMPLETE = "Complete"
FAILED = "Failed"
FINGERPRINT_LENGTH = 12
SHARED_MEMORY_PATH = "/dev/shm"  # noqa: S108
log = logging.getLogger(__name__)

Reporter = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingJob:
    """One training on a cluster.

    Args:
        workdir: mount path of the volume, the same on the step and on the nodes.
        fingerprint: fingerprint of histories, configuration, code and image.
    """

    workdir: Path
    fingerprint: str

    @property
    def folder(self) -> Path:
        return self.workdir / JOBS_FOLDER / self.fingerprint

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def prefix(self) -> str:
        """Prefix of the names of its TrainJobs."""
        return f"{JOB_PREFIX}-{self.fingerprint}-"

    @property
    def arguments(self) -> list[str]:
        """Command line of every process on every node."""
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
    platform: PlatformConfig,
    *,
    code_key: str = "",
    client: Any = None,
    report: Reporter = log.info,
) -> TrainReport:
    """Train by a TrainJob, move its bundle to `out_dir`, and return the report of the training.

    Args:
        histories_dir: output of the step join-histories.
        out_dir: directory for the bundle, replaced in one step.
        config: its sections model, lengths and train, served length and seed define the training.
        platform: settings of the nodes. This process mounts `platform.workdir_volume` at
            `platform.workdir`, as the nodes do.
        code_key: fingerprint of the training code (step `fingerprint`).
        client: a kubeflow.trainer.TrainerClient; None for one of the surrounding cluster.
        report: receives a line per event.

    Raises:
        LongrecError: the SDK is not installed, the cluster does not answer, or the job failed. The
            error holds the last lines of its log.
    """
    job = prepare(Path(histories_dir), config, platform, code_key=code_key)
    has_bundle = (job.bundle / "bundle.json").is_file()
    if not has_bundle:  # A step killed after the end of its job leaves the bundle there.
        with _one_line_errors():
            _train(client or _client(platform), job, platform, report)
    with files.atomic_replace(out_dir) as temporary:
        shutil.copytree(job.bundle, temporary)
    meta = files.read_json(Path(out_dir) / "bundle.json")
    shutil.rmtree(job.folder, ignore_errors=True)
    return _train_report(meta)


def prepare(
    histories_dir: Path, config: RunConfig, platform: PlatformConfig, *, code_key: str = ""
) -> TrainingJob:
    """Fill the folder of a training and return its job; existing histories stay as they are."""
    settings = config.to_dict()
    identity = {"config": settings, "code": code_key, "image": platform.image}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for path in sorted(histories_dir.iterdir()):
        digest.update(f"{path.name}:{files.sha256_of(path)}".encode())
    job = TrainingJob(Path(platform.workdir), digest.hexdigest()[:FINGERPRINT_LENGTH])
    if not (job.folder / "histories").is_dir():
        with files.atomic_replace(job.folder / "histories") as temporary:
            shutil.copytree(histories_dir, temporary)
    files.write_json(job.folder / "config.yaml", settings)  # JSON is YAML.
    return job


def submit(client: Any, job: TrainingJob, platform: PlatformConfig) -> str:
    """Submit a new TrainJob and return its name."""
    from kubeflow.trainer.options import Name

    options = [Name(f"{job.prefix}{uuid.uuid4().hex[:5]}"), *_pod_options(client, platform)]
    name: str = client.train(
        runtime=platform.trainer.runtime, trainer=custom_trainer(job, platform), options=options
    )
    return name


def custom_trainer(job: TrainingJob, platform: PlatformConfig) -> Any:
    """Return the kubeflow.trainer.CustomTrainer: function, image, resources and variables."""
    from kubeflow.trainer import CustomTrainer

    node = platform.step("train")
    requested = {"cpu": node.cpu, "memory": node.memory}
    if node.gpu:
        requested[node.gpu_type] = str(node.gpu)
    resources = {name: value for name, value in requested.items() if value}
    return CustomTrainer(
        func=train_on_ranks,
        image=platform.image,
        num_nodes=platform.trainer.num_nodes,
        resources_per_node=resources or None,
        env={**platform.env, "LONGREC_TRAIN": json.dumps(job.arguments)},
    )


def train_on_ranks() -> None:
    """Run the command in LONGREC_TRAIN as one of the processes that torchrun started.

    The SDK copies this source into a shell script. So it must not contain a dollar sign or a
    backtick, and must not use a name of this module.
    """
    import json
    import os
    import sys

    from longrec.cli.main import main

    sys.argv = json.loads(os.environ["LONGREC_TRAIN"])
    main()


def _train(client: Any, job: TrainingJob, platform: PlatformConfig, report: Reporter) -> None:
    """Wait for a TrainJob of a training, a live one or a new one.

    Raises:
        LongrecError: it failed.
    """
    name = _live_job(client, job) or submit(client, job, platform)
    trainer = platform.trainer
    report(f"TrainJob {name}: {trainer.num_nodes} nodes, runtime {trainer.runtime}")
    status = _wait(client, name, report)
    if status == COMPLETE:
        return
    lines = [line.strip() for line in client.get_job_logs(name) if line.strip()]
    last_lines = lines[-MAX_LOG_LINES:]
    report("\n".join(last_lines))
    raise LongrecError(
        f"TrainJob {name} ended as {status}",
        found=_cause(last_lines),
        fix="A restarted step resumes from the last checkpoint; "
        "`kubectl describe trainjob` shows more.",
    )


def _cause(lines: list[str]) -> str:
    """Return the last message of longrec in a log, or its last line."""
    for line in reversed(lines):
        if line.startswith("longrec"):
            return line
    return lines[-1] if lines else "no log"


def _train_report(meta: Mapping[str, Any]) -> TrainReport:
    names = {field.name for field in dataclasses.fields(TrainReport)}
    facts = {name: value for name, value in meta["facts"].items() if name in names}
    return TrainReport(**{**facts, "version": meta["version"]})


def _pod_options(client: Any, platform: PlatformConfig) -> list[Any]:
    """Return volumes, node placement, secrets and deadline, for a client of Kubernetes."""
    from kubeflow.trainer import options
    from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend

    if not isinstance(client.backend, KubernetesBackend):
        return []
    node = platform.step("train")
    pod = options.PodTemplatePatch(spec=_pod_spec(platform, node))
    job_template = options.JobTemplatePatch(spec=options.JobSpecPatch(pod))
    jobs = [options.ReplicatedJobPatch("node", job_template)]
    template = options.JobSetTemplatePatch(spec=options.JobSetSpecPatch(jobs))
    patch = options.RuntimePatch(options.TrainingRuntimeSpecPatch(template))
    if not node.timeout_seconds:  # The SDK refuses a deadline of 0 seconds.
        return [patch]
    return [patch, options.ActiveDeadlineSeconds(node.timeout_seconds)]


def _pod_spec(platform: PlatformConfig, node: StepConfig) -> Any:
    from kubeflow.trainer import options

    volumes, mounts = _volumes(platform, node.shared_memory)
    variables = _secret_variables(platform)
    container = options.ContainerPatch("node", env=variables or None, volume_mounts=mounts)
    return options.PodSpecPatch(
        volumes=volumes,
        containers=[container],
        image_pull_secrets=[{"name": name} for name in platform.image_pull_secrets] or None,
        node_selector=node.node_selector or None,
        service_account_name=platform.service_account or None,
        tolerations=[_toleration(entry) for entry in node.tolerations] or None,
    )


def _secret_variables(platform: PlatformConfig) -> list[dict[str, Any]]:
    variables = []
    for secret, names in platform.secrets.items():
        for key, name in names.items():
            reference = {"secretKeyRef": {"name": secret, "key": key}}
            variables.append({"name": name, "valueFrom": reference})
    return variables


def _volumes(
    platform: PlatformConfig, shared_memory: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the volumes of a pod and the mounts of its container: workdir and shared memory."""
    claim = {"claimName": platform.workdir_volume}
    volumes: list[dict[str, Any]] = [{"name": "workdir", "persistentVolumeClaim": claim}]
    mounts: list[dict[str, Any]] = [{"name": "workdir", "mountPath": platform.workdir}]
    if shared_memory:
        memory = {"medium": "Memory", "sizeLimit": shared_memory}
        volumes.append({"name": "shm", "emptyDir": memory})
        mounts.append({"name": "shm", "mountPath": SHARED_MEMORY_PATH})
    return volumes, mounts


def _toleration(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a toleration with the key names of a pod."""
    toleration = dict(entry)
    if "toleration_seconds" in toleration:
        toleration["tolerationSeconds"] = toleration.pop("toleration_seconds")
    return toleration


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


def _live_job(client: Any, job: TrainingJob) -> Optional[str]:
    """Return the name of a running TrainJob of this training, left by a killed step."""
    for entry in retried(client.list_jobs):
        is_ours = entry.name.startswith(job.prefix)
        if is_ours and retried(client.get_job, entry.name).status in LIVE_STATES:
            return str(entry.name)
    return None


def _wait(client: Any, name: str, report: Reporter) -> str:
    """Return the final status of a job; the job's own deadline bounds the wait."""
    previous = ""
    while True:
        status = str(retried(client.get_job, name).status)
        if status in (COMPLETE, FAILED):
            return status
        if status != previous:
            report(f"TrainJob {name}: {status}")
        previous = status
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn errors of the SDK into one line.

    Raises:
        LongrecError: in place of any other error.
    """
    try:
        yield
    except LongrecError:
        raise
    except Exception as error:
        found = _first_line(error)
        if error.__cause__ is not None:
            found += f"; {_first_line(error.__cause__)}"
        raise LongrecError(
            "Kubeflow Trainer refused the request",
            found=found,
            fix="Check that the Trainer is installed (kubectl get clustertrainingruntimes), and "
            "that this service account may create trainjobs and read runtimes, pods and logs.",
        ) from error


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's text; the name of its type if it has no text."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
