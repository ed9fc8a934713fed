"""What a cluster gives the steps of a pipeline: image, resources, volumes, secrets, retries,
timeouts, caching.
"""

from typing import Optional

from kfp import dsl

from longrec.config import PlatformConfig, StepConfig

WORKDIR_STEPS = (
    "fingerprint",
    "profile-events",
    "check-events",
    "publish",
    "retrieve",
    "train",
    "train-job",
    "evaluate",
    "package",
    "drift",
)
"""Steps that use the work directory: the feature store, the checkpoints of trainings, the registry of models
and the BentoML store.
"""
DATA_STEPS = ("fingerprint", "profile-events", "build-features", "retrieve")
"""Steps that read the dataset."""
UNCACHED = ("fingerprint", "publish", "drift", "finish")
"""Steps that are about the world outside of the pipeline: a result of before says nothing of it."""


def parallelism(platform: Optional[PlatformConfig]) -> int:
    """Returns how many iterations of a loop run at the same time; on one machine kfp runs two."""
    return (platform or PlatformConfig()).parallelism


def place(
    task: dsl.PipelineTask, step: str, platform: Optional[PlatformConfig]
) -> dsl.PipelineTask:
    """Returns the task of a step after giving it what the platform says; on one machine (None) only
    whether its result is used again.
    """
    settings = StepConfig() if platform is None else platform.step(step)
    task.set_caching_options(settings.cache and step not in UNCACHED)
    if platform is not None:
        _set_container(task, step, platform, settings)
        _set_pod(task, step, platform, settings)
    return task


def _set_container(
    task: dsl.PipelineTask, step: str, platform: PlatformConfig, settings: StepConfig
) -> None:
    task.set_container_image(platform.image)
    if settings.cpu:
        task.set_cpu_request(settings.cpu)
    if settings.memory:
        task.set_memory_request(settings.memory).set_memory_limit(settings.memory)
    if settings.gpu:
        task.set_accelerator_type(settings.gpu_type).set_accelerator_limit(settings.gpu)
    if settings.retries:
        task.set_retry(
            settings.retries,
            backoff_duration=f"{settings.backoff_seconds}s",
            backoff_factor=2.0,
            backoff_max_duration="600s",
        )
    store = (
        {"BENTOML_HOME": f"{platform.workdir}/bentoml"}
        if platform.workdir_volume and step in WORKDIR_STEPS
        else {}
    )
    for name, value in (store | platform.env).items():
        task.set_env_variable(name, value)


def _set_pod(
    task: dsl.PipelineTask, step: str, platform: PlatformConfig, settings: StepConfig
) -> None:
    from kfp import kubernetes

    if settings.timeout_seconds:
        kubernetes.set_timeout(task, settings.timeout_seconds)
    if settings.shared_memory:
        kubernetes.empty_dir_mount(
            task,
            "shm",
            "/dev/shm",  # noqa: S108
            medium="Memory",
            size_limit=settings.shared_memory,
        )
    for volume, path, steps in (
        (platform.workdir_volume, platform.workdir, WORKDIR_STEPS),
        (platform.data_volume, platform.data, DATA_STEPS),
    ):
        if volume and step in steps:
            kubernetes.mount_pvc(task, pvc_name=volume, mount_path=path)
    for label, value in settings.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for toleration in settings.tolerations:
        kubernetes.add_toleration(task, **toleration)
    for secret, variables in platform.secrets.items():
        kubernetes.use_secret_as_env(task, secret, dict(variables))
    if platform.webhook_secret and step == "finish":
        kubernetes.use_secret_as_env(task, platform.webhook_secret, {"url": "LONGREC_WEBHOOK"})
    if platform.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(platform.image_pull_secrets))
