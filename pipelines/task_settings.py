"""Platform settings of a task: image, resources, volumes, secrets, retries, timeouts, caching."""

from typing import Optional

from kfp import dsl, kubernetes

from longrec.errors import LongrecError
from longrec.runs.outcome import UI_VARIABLE
from longrec.runs.record.attempts import RUN_VARIABLE, WORKDIR_VARIABLE
from longrec.runs.steps import STEPS, PipelineStep
from pipelines.kfp_fixes import quick_settings
from pipelines.platform_config import PlatformConfig, StepConfig

BACKOFF_FACTOR = 2.0
MAX_BACKOFF = "600s"
SHARED_MEMORY_PATH = "/dev/shm"  # noqa: S108
WEBHOOK_VARIABLE = "LONGREC_WEBHOOK"
RUN_LABEL = "metadata.labels['pipeline/runid']"
"""Field of a pod with the id of its run."""
REDIS_VARIABLE = "LONGREC_REDIS"


def configure(task: dsl.PipelineTask, platform: Optional[PlatformConfig]) -> dsl.PipelineTask:
    """Apply the platform's settings to the task of a step, and return the task.

    Args:
        task: its component is in the table of steps.
        platform: settings of a cluster; None for one machine, where only caching applies.

    Raises:
        LongrecError: the table of steps has no such step.
    """
    step = _step_of(task)
    if platform is None:
        return task.set_caching_options(step.is_cached)
    settings = platform.step(step.name)
    task.set_caching_options(settings.cache and step.is_cached)
    _set_container(task, step, platform, settings)
    _set_volumes(task, step, platform, settings)
    _set_pod(task, step, platform, settings)
    return task


def parallelism(platform: Optional[PlatformConfig]) -> int:
    """Return how many iterations of a loop run at the same time on a cluster.

    kfp's local runner has its own limit.
    """
    return (platform or PlatformConfig()).parallelism


def default_workdir(platform: Optional[PlatformConfig]) -> str:
    """Return the default of the pipelines' parameter `workdir`."""
    return (platform or PlatformConfig()).workdir


def pipeline_config(platform: Optional[PlatformConfig]) -> Optional[dsl.PipelineConfig]:
    """Return the settings of a whole pipeline: its workspace; None for none."""
    if platform is None or not platform.workspace:
        return None
    claim = dsl.KubernetesWorkspaceConfig(pvcSpecPatch=dict(platform.workspace_claim))
    workspace = dsl.WorkspaceConfig(size=platform.workspace, kubernetes=claim)
    return dsl.PipelineConfig(workspace=workspace)


def store_variables(platform: PlatformConfig) -> dict[str, str]:
    """Return the variables by which a step finds the online store; none for SQLite."""
    if not platform.redis and not platform.redis_secret:
        return {}
    variables = {"LONGREC_FEATURE_OVERLAY": "redis"}
    if platform.redis:
        variables[REDIS_VARIABLE] = platform.redis
    return variables


def _step_of(task: dsl.PipelineTask) -> PipelineStep:
    name = task.component_spec.name
    if name not in STEPS:
        raise LongrecError(
            f"the table of steps has no step '{name}'",
            expected=", ".join(STEPS),
            fix="Add it to longrec.runs.steps.",
        )
    return STEPS[name]


@quick_settings()
def _set_container(
    task: dsl.PipelineTask, step: PipelineStep, platform: PlatformConfig, settings: StepConfig
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
            backoff_factor=BACKOFF_FACTOR,
            backoff_max_duration=MAX_BACKOFF,
        )
    variables = {}
    if platform.workdir_volume or platform.workspace:
        variables[WORKDIR_VARIABLE] = platform.workdir
    if platform.workdir_volume and step.uses_workdir:
        variables["BENTOML_HOME"] = f"{platform.workdir}/bentoml"
    if platform.ui and step.notifies:
        variables[UI_VARIABLE] = platform.ui
    if step.uses_workdir:
        variables.update(store_variables(platform))
    variables.update(platform.env)
    for name, value in variables.items():
        task.set_env_variable(name, value)
    kubernetes.use_field_path_as_env(task, RUN_VARIABLE, RUN_LABEL)


def _set_volumes(
    task: dsl.PipelineTask, step: PipelineStep, platform: PlatformConfig, settings: StepConfig
) -> None:
    if settings.shared_memory:
        kubernetes.empty_dir_mount(
            task, "shm", SHARED_MEMORY_PATH, medium="Memory", size_limit=settings.shared_memory
        )
    if platform.workdir_volume:  # Every step writes the record of the run.
        kubernetes.mount_pvc(task, pvc_name=platform.workdir_volume, mount_path=platform.workdir)
    if platform.data_volume and step.uses_data:
        kubernetes.mount_pvc(task, pvc_name=platform.data_volume, mount_path=platform.data)


def _set_pod(
    task: dsl.PipelineTask, step: PipelineStep, platform: PlatformConfig, settings: StepConfig
) -> None:
    if settings.timeout_seconds:
        kubernetes.set_timeout(task, settings.timeout_seconds)
    for label, value in settings.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for toleration in settings.tolerations:
        kubernetes.add_toleration(task, **toleration)
    for secret, variables in platform.secrets.items():
        kubernetes.use_secret_as_env(task, secret, dict(variables))
    if platform.redis_secret and step.uses_workdir:
        kubernetes.use_secret_as_env(task, platform.redis_secret, {"address": REDIS_VARIABLE})
    if platform.webhook_secret and step.notifies:
        kubernetes.use_secret_as_env(task, platform.webhook_secret, {"url": WEBHOOK_VARIABLE})
    if platform.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(platform.image_pull_secrets))
