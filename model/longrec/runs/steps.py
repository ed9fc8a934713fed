"""The table of pipeline steps.

All facts about a step outside its component stand here: its code, resources, volumes, caching,
page and progress line. A new step is one entry and one component.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

HOUR_SECONDS = 3_600
DAY_SECONDS = 24 * HOUR_SECONDS
NO_RETRY = {"retries": 0}
"""For checks: they would fail again."""
TRAINING = {"shared_memory": "2Gi", "timeout_seconds": DAY_SECONDS}
"""A training takes hours. With several GPUs, NCCL exchanges data in shared memory."""
CHECKS_MODULE = "longrec.data.quality.checks"
PROJECT_FOLDERS = ("feature_repo", "bento")


@dataclasses.dataclass(frozen=True, slots=True)
class PipelineStep:
    """One step of the pipelines.

    Args:
        name: name in the graphs and in `platform.steps`, for example `build-features`.
        code_key: name of the output of the step `fingerprint` that holds the fingerprint of this
            step's code; empty for a step that is never cached and reads no code key.
        modules: modules of longrec that the component calls.
        folders: folders of the project that the step reads besides the library.
        reads_library: whether the step reads the files of the whole library, as `package` does.
        resources: defaults that differ from those of `pipelines.platform_config.StepConfig`.
        uses_workdir: whether the step needs more of the work directory than the record of its run.
        uses_data: whether the step needs the volume of the datasets.
        is_cached: whether a result of equal inputs is reused. If false, the step depends on
            something outside the pipeline.
        notifies: whether the step sends a message to the webhook, and so needs its address.
        is_shown: whether progress and summary list the step; false for one without work.
        page: name of the run's HTML page that copies the step's output `report`; empty for none.
    """

    name: str
    code_key: str = ""
    modules: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    reads_library: bool = False
    resources: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    uses_workdir: bool = False
    uses_data: bool = False
    is_cached: bool = True
    notifies: bool = False
    is_shown: bool = True
    page: str = ""

    @property
    def component(self) -> str:
        """Name of the component: module and function in `components`."""
        return self.name.replace("-", "_")


_TABLE = (
    PipelineStep(
        "fingerprint",
        resources={"timeout_seconds": HOUR_SECONDS},
        uses_workdir=True,
        uses_data=True,
        is_cached=False,
        is_shown=False,
    ),
    PipelineStep(
        "check-events",
        code_key="check_events",
        modules=(CHECKS_MODULE,),
        resources=NO_RETRY,
        uses_workdir=True,
        uses_data=True,
        page="check-events",
    ),
    PipelineStep(
        "build-features",
        code_key="build_features",
        modules=("longrec.data.features",),
        uses_data=True,
    ),
    PipelineStep("join-features", code_key="join_features", modules=("longrec.data.features",)),
    PipelineStep(
        "publish",
        code_key="publish",
        modules=("longrec.data.store.publish",),
        folders=("feature_repo",),
        uses_workdir=True,
        is_cached=False,  # The feature store is outside the pipeline.
    ),
    PipelineStep(
        "retrieve",
        code_key="retrieve",
        modules=("longrec.data.store.retrieve",),
        folders=("feature_repo",),
        uses_workdir=True,
        uses_data=True,
    ),
    PipelineStep(
        "check-histories",
        code_key="check_histories",
        modules=(CHECKS_MODULE,),
        resources=NO_RETRY,
        page="check-histories",
    ),
    PipelineStep(
        "train",
        code_key="train",
        modules=("longrec.training.train",),
        resources=TRAINING,
        uses_workdir=True,
    ),
    PipelineStep(
        "train-job",
        code_key="train",
        modules=("longrec.training.train",),
        resources={"timeout_seconds": DAY_SECONDS},
        uses_workdir=True,
    ),
    PipelineStep(
        "evaluate",
        code_key="evaluate",
        modules=("longrec.evaluation.evaluate",),
        uses_workdir=True,
        page="report",
    ),
    PipelineStep(
        "package",
        code_key="package",
        modules=("longrec.release.packaging", "longrec.scoring.scorer"),
        folders=PROJECT_FOLDERS,
        reads_library=True,
        uses_workdir=True,
    ),
    PipelineStep(
        "register",
        modules=("longrec.release.packaging",),
        uses_workdir=True,
        is_cached=False,  # Model store and registry are outside the pipeline.
    ),
    PipelineStep(
        "refuse",
        modules=("longrec.runs.outcome",),
        resources={"timeout_seconds": 600},
        is_cached=False,  # The webhook hears of every run.
        notifies=True,
        is_shown=False,
    ),
    PipelineStep(
        "drift",
        modules=("longrec.release.monitoring",),
        resources=NO_RETRY,
        uses_workdir=True,
        is_cached=False,  # It reads the log of answered requests.
        page="drift",
    ),
    PipelineStep("plan", code_key="study", modules=("longrec.study.trial",)),
    PipelineStep(
        "trial", code_key="study", modules=("longrec.study.run_trial",), resources=TRAINING
    ),
    PipelineStep(
        "collect",
        code_key="study",
        modules=("longrec.study.collect",),
        is_cached=False,  # It ends the study: its record tells that the run came that far.
    ),
    PipelineStep(
        "tune",
        code_key="study",
        modules=("longrec.study.share",),
        resources=TRAINING,
        uses_workdir=True,
        is_cached=False,  # The journal of the search is outside the pipeline.
    ),
    PipelineStep(
        "choose",
        code_key="study",
        modules=("longrec.study.share",),
        uses_workdir=True,
        is_cached=False,  # It reads that journal.
    ),
    PipelineStep(
        "finish",
        modules=("longrec.runs.outcome",),
        resources={"timeout_seconds": 600},
        is_cached=False,
        notifies=True,
        is_shown=False,
    ),
)

STEPS: Mapping[str, PipelineStep] = MappingProxyType({step.name: step for step in _TABLE})
"""All steps by name, in the order of execution."""


def is_shown(name: str) -> bool:
    """Return whether progress and summary list a step; steps outside the table are listed."""
    return name not in STEPS or STEPS[name].is_shown


def steps_by_code_key() -> dict[str, list[PipelineStep]]:
    """Return the steps of each code key, in the order of the outputs of the step `fingerprint`."""
    steps: dict[str, list[PipelineStep]] = {}
    for step in STEPS.values():
        if step.code_key:
            steps.setdefault(step.code_key, []).append(step)
    return steps
