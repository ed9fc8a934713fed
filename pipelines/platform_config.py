"""The section `platform` of a configuration: what a Kubernetes cluster provides to a pipeline.

It is compiled into the pipeline. A run on one machine ignores it.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from longrec.config_file import build
from longrec.errors import ConfigError
from longrec.runs.steps import STEPS

TOLERATION_KEYS = frozenset({"key", "operator", "value", "effect", "toleration_seconds"})
TOLERATION_CHOICES = {
    "operator": ("Exists", "Equal"),
    "effect": ("NoSchedule", "NoExecute", "PreferNoSchedule"),
}
SIZE = r"[0-9]+[EPTGMK]i?|[0-9]+"
QUANTITIES = {
    "cpu": (r"([0-9]*\.)?[0-9]+m?", "for example 4 or 500m"),
    "memory": (SIZE, "for example 16Gi"),
    "shared_memory": (SIZE, "for example 8Gi"),
    "gpu_type": (r"[a-z0-9.-]+/[a-zA-Z0-9._-]+", "for example nvidia.com/gpu"),
}
"""Field of StepConfig -> regular expression of a Kubernetes quantity, and an example."""
OBJECT_NAME = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
WORKSPACE_PATH = "/kfp-workspace"
"""Where Kubeflow mounts the workspace of a run, in steps with an input below this path."""
REDIS_ADDRESS = r"[^\s,:]+:[0-9]+(,[a-z_]+=[^\s,]+)*"
ALL_STEPS = "all"
"""Key of `platform.steps` for the settings of every step."""


@dataclasses.dataclass(frozen=True, slots=True)
class StepConfig:
    """Resources and limits of one step; an empty text or 0 requests nothing.

    Args:
        cpu: requested, for example `4`.
        memory: requested, for example `16Gi`; also the limit.
        gpu: number of accelerators.
        gpu_type: resource name of the accelerators.
        shared_memory: size of /dev/shm, for example `8Gi`. NCCL exchanges data in it.
        retries: maximum number of restarts after an error.
        backoff_seconds: delay before the first restart; each further delay doubles.
        timeout_seconds: a step that runs longer is stopped.
        cache: whether a result of equal inputs, data and code is reused.
        node_selector: labels that a node must have.
        tolerations: tolerated node taints, as in a pod (key, operator, value, effect,
            toleration_seconds).
    """

    cpu: str = ""
    memory: str = ""
    gpu: int = 0
    gpu_type: str = "nvidia.com/gpu"
    shared_memory: str = ""
    retries: int = 2
    backoff_seconds: int = 30
    timeout_seconds: int = 6 * 3_600
    cache: bool = True
    node_selector: dict[str, str] = dataclasses.field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for name in ("gpu", "retries", "backoff_seconds", "timeout_seconds"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative", found=getattr(self, name))
        for name, (pattern, example) in QUANTITIES.items():
            quantity = getattr(self, name)
            if quantity and not re.fullmatch(pattern, quantity):
                raise ConfigError(
                    f"{name} is no quantity of Kubernetes", found=quantity, expected=example
                )
        for toleration in self.tolerations:
            _check_toleration(toleration)


@dataclasses.dataclass(frozen=True, slots=True)
class TrainerConfig:
    """Engine of the training step on a cluster.

    `platform.steps.train` sets the resources of a node. Kubeflow Trainer starts one process per GPU
    of a node, or one per requested CPU on nodes without GPUs.

    Args:
        engine: `local` (the step itself, one process) or `kubeflow` (the step submits a TrainJob
            of Kubeflow Trainer and waits for it).
        num_nodes: number of nodes of the TrainJob.
        runtime: name of a TrainingRuntime or ClusterTrainingRuntime for torchrun.
        namespace: namespace of the TrainJob; empty for the step's own.
    """

    engine: Literal["local", "kubeflow"] = "local"
    num_nodes: int = 1
    runtime: str = "torch-distributed"
    namespace: str = ""

    def __post_init__(self) -> None:
        if self.num_nodes < 1:
            raise ConfigError("platform.trainer.num_nodes must be positive", found=self.num_nodes)


@dataclasses.dataclass(frozen=True, slots=True)
class PlatformConfig:
    """Image, volumes, secrets and resources of the pipelines on a cluster.

    Args:
        image: container image of every step (docs/guides/kubeflow.md).
        image_pull_secrets: names of the secrets that the registry requires.
        service_account: service account of the pods; empty for the pipeline server's default.
        workdir_volume: PersistentVolumeClaim of the work directory; ReadWriteMany across nodes.
        workdir: mount path of the work directory.
        workspace: size of a volume that Kubeflow makes for each run and removes after it, for
            example `50Gi`, in place of `workdir_volume`; empty for none. Nothing is served from
            it, and no run finds the features and the champion of another.
        workspace_claim: fields of that volume's claim, for example {storageClassName: fast,
            accessModes: [ReadWriteMany]}.
        data_volume: PersistentVolumeClaim of the datasets; empty for datasets in an object store.
        data: mount path of the datasets.
        env: plain variables of every step, for example AWS_ENDPOINT_URL.
        secrets: per name of a secret, the variable for each of its keys, for example {s3:
            {accesskey: AWS_ACCESS_KEY_ID}}.
        redis: address of Redis as the online store, `host:port[,db=0]`; empty for SQLite, a file in
            the work directory, which is enough for one replica of the service.
        redis_secret: name of the secret whose key `address` holds that address with a password,
            for example `redis:6379,password=...`; in place of `redis`.
        webhook_secret: name of the secret whose key `url` is notified of a run's outcome.
        ui: address of Kubeflow's web interface, for the link in that message, for example
            https://kubeflow.example/pipeline; empty for none.
        parallelism: number of shards, or trials of a study, that run at the same time.
        steps: per step the settings that differ from the defaults (StepConfig); `all` applies to
            every step.
        trainer: engine of the training step.
    """

    image: str = "longrec/python-ml:0.1.0"
    image_pull_secrets: tuple[str, ...] = ()
    service_account: str = ""
    workdir_volume: str = "longrec-home"
    workdir: str = "/var/lib/longrec"
    workspace: str = ""
    workspace_claim: dict[str, Any] = dataclasses.field(default_factory=dict)
    data_volume: str = ""
    data: str = "/data"
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    redis: str = ""
    redis_secret: str = ""
    webhook_secret: str = ""
    ui: str = ""
    parallelism: int = 8
    steps: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    trainer: TrainerConfig = dataclasses.field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        if "python" not in self.image:  # The local runner reads the image of a component too.
            raise ConfigError(
                "platform.image must have 'python' in its name",
                found=self.image,
                fix="kfp's local runner requires it.",
            )
        if self.trainer.engine == "kubeflow" and not self.workdir_volume:
            raise ConfigError(
                "platform.trainer.engine=kubeflow needs a volume of the work directory",
                found="an empty platform.workdir_volume",
                expected="the name of a PersistentVolumeClaim",
            )
        self._check_redis()
        self._check_workspace()
        self._check_object_names()
        for name in ("workdir", "data"):
            path = getattr(self, name)
            if not path.startswith("/"):
                raise ConfigError(
                    f"platform.{name} is no absolute path",
                    found=path,
                    expected="the mount path of the volume",
                )
        for name in self.steps:
            if name != ALL_STEPS and name not in STEPS:
                names = ", ".join([ALL_STEPS, *STEPS])
                raise ConfigError(f"there is no step '{name}'", expected=names)
            self.step(name)

    def step(self, name: str) -> StepConfig:
        """Return the settings of a step: its defaults, those of `all`, and its own."""
        defaults = STEPS[name].resources if name in STEPS else {}
        settings = {**defaults, **self.steps.get(ALL_STEPS, {}), **self.steps.get(name, {})}
        return build(StepConfig, settings, where=f"platform.steps.{name}")

    def _check_workspace(self) -> None:
        if not self.workspace:
            return
        if not re.fullmatch(SIZE, self.workspace):
            raise ConfigError(
                "platform.workspace is no size of a volume",
                found=self.workspace,
                expected="for example 50Gi",
            )
        if self.workdir_volume or self.workdir != WORKSPACE_PATH:
            raise ConfigError(
                "platform.workspace takes the place of the volume of the work directory",
                found=f"workdir_volume '{self.workdir_volume}' and workdir {self.workdir}",
                expected=f"workdir_volume '' and workdir {WORKSPACE_PATH}",
                fix="Set these keys of `platform` too.",
            )

    def _check_redis(self) -> None:
        if self.redis and self.redis_secret:
            raise ConfigError("give platform.redis or platform.redis_secret, not both")
        if self.redis and not re.fullmatch(REDIS_ADDRESS, self.redis):
            raise ConfigError(
                "platform.redis is no address",
                found=self.redis,
                expected="host:port, for example redis.longrec:6379",
            )
        if "password=" in self.redis:
            raise ConfigError(
                "platform.redis holds a password, which would be compiled into the pipeline",
                expected="the address in a secret",
                fix="Store the address in the key `address` of a secret, and give the secret's "
                "name as platform.redis_secret.",
            )

    def _check_object_names(self) -> None:
        names: dict[str, Iterable[str]] = {
            "workdir_volume": [self.workdir_volume],
            "data_volume": [self.data_volume],
            "redis_secret": [self.redis_secret],
            "webhook_secret": [self.webhook_secret],
            "service_account": [self.service_account],
            "image_pull_secrets": self.image_pull_secrets,
            "secrets": self.secrets,
        }
        for key, entries in names.items():
            invalid = [name for name in entries if name and not re.fullmatch(OBJECT_NAME, name)]
            if invalid:
                raise ConfigError(
                    f"platform.{key} is no name of a Kubernetes object",
                    found=", ".join(invalid),
                    expected="lower case letters, digits, - and .",
                )


def build_platform(section: Mapping[str, Any]) -> PlatformConfig:
    """Return the platform's configuration from the section `platform` of a file.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is out of bounds.
    """
    return build(PlatformConfig, section, where="platform")


def _check_toleration(toleration: Mapping[str, Any]) -> None:
    unknown = sorted(set(toleration) - TOLERATION_KEYS)
    if unknown:
        raise ConfigError(
            "a toleration has an unknown key",
            found=", ".join(unknown),
            expected=", ".join(sorted(TOLERATION_KEYS)),
        )
    for key, choices in TOLERATION_CHOICES.items():
        if toleration.get(key) not in (None, *choices):
            raise ConfigError(
                f"{key} of a toleration is unknown",
                found=toleration[key],
                expected=", ".join(choices),
            )
