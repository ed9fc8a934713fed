"""The configuration of a run: frozen dataclasses, one per pipeline step, read strictly from YAML.

`RunConfig` is the whole; each step gets its own section only, so that changing one section re-runs
only what depends on
it. Unknown keys and wrong types are errors. No section refers to a machine, a path or a library of
the platform.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from longrec.errors import ConfigError

S = TypeVar("S")


@dataclasses.dataclass(frozen=True, slots=True)
class DataConfig:
    """How histories are kept and requests are split.

    Args:
        max_history: events kept per request, the most recent ones; the longest length that can be
            trained or served.
        eval_fraction: share of the requests, the latest in time, kept for evaluation.
        warmup_fraction: share of the requests, the earliest in time, never trained on (their
            histories are too short).
        max_requests: most requests used, a seeded sample; 0 for all.
        shards: of users that the pipeline checks, builds and retrieves side by side, and then
            joins; more than the dataset has parts (of
            some two million events) gives empty ones.
        shard_users: users per group of the feature build and of the Feast retrieval; bounds the
            memory of both.
        late_events: for logs that say when a row came in (`created`): `hold` puts an event into the
            histories only from then on, so that
            no request sees what nobody knew; `ignore` takes its own time (for logs whose `created`
            is that of a later copy).
    """

    max_history: int = 10_000
    eval_fraction: float = 0.2
    warmup_fraction: float = 0.0
    max_requests: int = 0
    shards: int = 1
    shard_users: int = 2_000
    late_events: Literal["hold", "ignore"] = "hold"

    def __post_init__(self) -> None:
        _positive(self, "max_history", "shards", "shard_users")
        _share(self, "eval_fraction", "warmup_fraction")


@dataclasses.dataclass(frozen=True, slots=True)
class ChecksConfig:
    """Bounds of the data checks that are not properties of one feature (those are in the schema).

    Args:
        max_duplicate_share: largest share of events equal to another one in user, item, time and
            sequence.
        max_unknown_item_share: largest share of events or targets whose item is not in the item
            table.
        min_requests: fewest requests in each split.
        min_history: fewest events in the longest history.
        check_label_rates: whether label rates outside the bounds of the tasks fail the run (True)
            or only warn.
        check_drift: whether drift against the published version of the same data fails the run
            (True) or only warns; the bounds are:
        max_psi: largest population stability index of the history lengths.
        max_rate_change: largest change of a label's rate, as a share of the rarer outcome before.
        max_coverage_loss: largest fall of the share of events, and of targets, that have an item of
            the item table.
        max_new_item_share: largest share of targets with an item that the version before did not
            know.
    """

    max_duplicate_share: float = 0.0
    max_unknown_item_share: float = 0.05
    min_requests: int = 10
    min_history: int = 1
    check_label_rates: bool = True
    check_drift: bool = True
    max_psi: float = 0.25
    max_rate_change: float = 0.5
    max_coverage_loss: float = 0.05
    max_new_item_share: float = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and options of the ranker (docs/architecture.md and the spec's sections 1 and 2).

    Args:
        kind: how the history is read: `stca`, or one of its baselines in longrec.nn.baselines.
            `mean`, `transformer` and `hstu` have no
            logits that a gap bias could be added to, and take recency `token` or `none`.
        width: d, width of tokens; divisible by num_heads and by the 4 tokens of the mixer.
        num_layers: M, stacked target-to-history layers.
        num_heads: h.
        ffn_ratio: r, hidden width of the SwiGLU FFN over d.
        id_dim: width of one id embedding; feature_dim: width of one category or number embedding.
        mixer_layers: RankMixer blocks of the head.
        recency: `token` (time gap is part of the event token), `bias` (per-head bias of the
            attention logits by
            log-bucketed gap; event encodings never change), `none`.
        attention: order of computation: `plain`, `reordered`, or `auto` (chosen by m, L, d).
        share_ffn: whether history and query FFN of one layer share weights (the literal reading of
            the paper).
        fusion: whether event tokens are fused by a residual SwiGLU FFN of [item; action]
            (SequenceO1, appendix D).
        query_fusion: whether q_{i+1} sees all former outputs (True) or only the last one and the
            target: the same below three layers.
        output_norm: whether z passes a LayerNorm.
        aux_loss_weight: weight of the training-only logit from z alone; 0 for none.
        retrieved: events that `sim` attends to.
        matches: whether the head sees how often, and how long ago last, each feature of the target
            occurred in the history (nn/matches).
        id_std: initial deviation of id embeddings; near 1, ids that training never saw are random
            codes that attention can match.
        ffn: of the history and the queries: `swiglu` (the paper's), `plain` (GELU, two matrices, as
            many parameters), or `residual`
            (x + SwiGLU of x; ours). The kernels of a GPU know the first only.
    """

    kind: Literal[
        "stca", "mean", "din", "din_sum", "target_attention", "sim", "transformer", "hstu"
    ] = "stca"
    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    ffn_ratio: int = 2
    id_dim: int = 32
    feature_dim: int = 8
    mixer_layers: int = 2
    recency: Literal["token", "bias", "none"] = "bias"
    attention: Literal["auto", "plain", "reordered"] = "auto"
    share_ffn: bool = True
    fusion: bool = True
    query_fusion: bool = True
    output_norm: bool = False
    aux_loss_weight: float = 0.0
    retrieved: int = 128
    matches: bool = False
    id_std: float = 0.05
    ffn: Literal["swiglu", "plain", "residual"] = "swiglu"

    def __post_init__(self) -> None:
        _positive(
            self,
            "width",
            "num_layers",
            "num_heads",
            "ffn_ratio",
            "id_dim",
            "feature_dim",
            "mixer_layers",
            "retrieved",
            "id_std",
        )
        if self.kind in ("mean", "transformer", "hstu") and self.recency == "bias":
            raise ConfigError(
                f"model.kind {self.kind} has no attention logits of targets that a gap bias could be added to",
                found="model.recency=bias",
                expected="token or none",
                fix="Set model.recency=token.",
            )
        for divisor, name in ((self.num_heads, "num_heads"), (4, "the 4 mixer tokens")):
            if self.width % divisor:
                raise ConfigError(
                    f"model.width must be divisible by {name}",
                    found=self.width,
                    expected=f"a multiple of {divisor}",
                )


@dataclasses.dataclass(frozen=True, slots=True)
class LengthConfig:
    """The training-only training length distribution (spec section 4): how many recent events of a request one
    training step sees.

    Args:
        distribution: `beta` (pinned mean, the paper's), `two_point` (HSTU's), `fixed`, `uniform`, `full`.
        minimum, mean, maximum: L_min, L_avg, L_max in events.
        alpha: shape of `beta`; U-shaped below (mean - minimum) / (maximum - mean).
        multiple: lengths are rounded to a multiple of this.
        cut: which events stay: `suffix` (most recent), `random`, `prefix`.
    """

    distribution: Literal["beta", "two_point", "fixed", "uniform", "full"] = "beta"
    minimum: int = 0
    mean: int = 2_000
    maximum: int = 10_000
    alpha: float = 0.2
    multiple: int = 8
    cut: Literal["suffix", "random", "prefix"] = "suffix"

    def __post_init__(self) -> None:
        _positive(self, "maximum", "multiple", "alpha")
        if self.distribution != "full" and not 0 <= self.minimum <= self.mean <= self.maximum:
            found = f"{self.minimum}, {self.mean}, {self.maximum}"
            raise ConfigError("lengths must be ordered minimum <= mean <= maximum", found=found)


@dataclasses.dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training run.

    Args:
        epochs: passes over the training requests.
        max_steps: stop after this many optimizer steps; 0 for no bound.
        token_budget: events per batch at most (one request longer than it makes a batch of its
            own).
        max_requests_per_batch: requests per batch at most.
        learning_rate, weight_decay, betas: AdamW of the dense parameters.
        embedding_learning_rate: row-wise Adagrad of the id table.
        warmup_fraction: share of the steps with rising learning rate; cosine decay to 0.1 of the
            peak after it.
        clip_norm: bound of the dense gradient norm.
        loss: `request` (mean over targets, then over requests; the paper's) or `target` (mean over
            targets).
        precision: `float32`, `bfloat16`, or `auto` (bfloat16 on a GPU).
        device: `cpu`, `cuda`, or `auto`.
        recompute: whether the backward pass computes the history's FFN again instead of keeping its
            hidden rows: less memory, more time,
            equal values. Of model.kind `stca` only.
        log_every: steps between two rows of the training curve.
        checkpoint_every: steps between two checkpoints, besides those at the end of an epoch; 0 for
            none at all.
        num_workers: threads that pack batches ahead; the batches and their order do not depend on
            it.
        tensorboard: whether the curve is written for TensorBoard too, where it is installed.
        embedding_sharding: where the id tables lie when several processes train: `data_parallel`
            (each holds them whole) or `row_wise`
            (each holds a block of their rows; by TorchRec, see docs/distributed.md). TorchRec's
            names.
    """

    epochs: int = 1
    max_steps: int = 0
    token_budget: int = 65_536
    max_requests_per_batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    embedding_learning_rate: float = 0.05
    warmup_fraction: float = 0.05
    clip_norm: float = 1.0
    loss: Literal["request", "target"] = "request"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    recompute: bool = False
    log_every: int = 20
    checkpoint_every: int = 500
    num_workers: int = 1
    tensorboard: bool = True
    embedding_sharding: Literal["data_parallel", "row_wise"] = "data_parallel"

    def __post_init__(self) -> None:
        _positive(
            self,
            "epochs",
            "token_budget",
            "max_requests_per_batch",
            "learning_rate",
            "embedding_learning_rate",
            "log_every",
            "num_workers",
        )
        if self.checkpoint_every < 0:
            raise ConfigError(
                "train.checkpoint_every must not be negative",
                found=self.checkpoint_every,
                fix="0 writes no checkpoints.",
            )


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """What is measured on the evaluation split.

    Args:
        lengths: served lengths of the curve.
        served_length: the length that ships; metrics and gate are taken at it.
        max_requests: most evaluation requests used, the same seeded sample for every length; 0 for
            all.
        bootstrap_samples: user-level resamples of the confidence intervals (95 %).
    """

    lengths: tuple[int, ...] = (500, 1_000, 2_000, 5_000, 10_000)
    served_length: int = 10_000
    max_requests: int = 0
    bootstrap_samples: int = 200

    def __post_init__(self) -> None:
        _positive(self, "served_length", "bootstrap_samples")
        if not self.lengths or any(length < 0 for length in self.lengths):
            raise ConfigError(
                "evaluate.lengths must be one or more lengths of at least 0", found=self.lengths
            )


@dataclasses.dataclass(frozen=True, slots=True)
class GateConfig:
    """What a model must reach before it is packaged; bounds of a metric hold for every task, those
    of slices for the first.

    Args:
        min_auc: least AUC at the served length.
        min_gain_over_popularity: least AUC gain over the popularity baseline of the same split.
        min_calibration, max_calibration: bounds of mean prediction over mean label.
        max_ece: largest expected calibration error; 1 for no bound.
        against_champion: whether the model must also hold against the champion of the work directory
            (`longrec models`), if it can be served there.
        metric: what is compared with the champion: `auc` or `gauc`.
        max_loss_to_champion: largest loss of that metric that the 95 % interval of the paired
            difference may leave possible for the
            first task; a further task refuses the model when its whole interval lies below this
            loss.
        min_slice_targets: targets from which on a slice is looked at.
        min_slice_auc: least AUC of such a slice; 0 for no bound.
        max_slice_loss: a slice whose whole interval lies below this loss against the champion
            refuses the model.
        max_latency_ms: largest 95th percentile of scoring one request of the longest histories,
            where it is evaluated; 0 for no bound.
        max_unknown_item_share: largest share of targets whose item the encoder does not know; 1 for
            no bound.
        max_parity_error: largest absolute difference of a probability between training forward,
            Scorer and HTTP.
    """

    min_auc: float = 0.5
    min_gain_over_popularity: float = 0.0
    min_calibration: float = 0.5
    max_calibration: float = 2.0
    max_ece: float = 1.0
    against_champion: bool = False
    metric: Literal["auc", "gauc"] = "auc"
    max_loss_to_champion: float = 0.005
    min_slice_targets: int = 1_000
    min_slice_auc: float = 0.0
    max_slice_loss: float = 0.02
    max_latency_ms: float = 0.0
    max_unknown_item_share: float = 1.0
    max_parity_error: float = 1e-4


@dataclasses.dataclass(frozen=True, slots=True)
class DriftConfig:
    """When live requests have drifted from what a model was evaluated on
    (`longrec.release.monitoring`).

    Args:
        max_score_psi, max_feature_psi: largest population stability index of the scores of a task;
            of a feature, or of the history lengths.
        window_hours: before the last request, of the requests that are looked at.
        min_requests: below which nothing is called drifted.
    """

    max_score_psi: float = 0.25
    max_feature_psi: float = 0.25
    window_hours: float = 24.0
    min_requests: int = 200

    def __post_init__(self) -> None:
        _positive(self, "max_score_psi", "max_feature_psi", "window_hours", "min_requests")


@dataclasses.dataclass(frozen=True, slots=True)
class StepConfig:
    """What the platform gives one step of the pipeline; an empty text or 0 asks for nothing.

    Args:
        cpu, memory: requested, for example `4` and `16Gi`; memory is the limit too.
        gpu, gpu_type: number of accelerators and their resource name.
        shared_memory: size of /dev/shm, for example `8Gi`; the loader's processes hand batches over
            through it.
        retries: how often a step that ended with an error is started again, first after
            `backoff_seconds`, then after twice that, ...
        timeout_seconds: a step that runs longer is stopped.
        cache: whether a result of equal inputs, data and code is used again.
        node_selector: labels that a node must have.
        tolerations: taints of nodes that do not matter, as in a pod (key, operator, value, effect,
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
        for name, (form, example) in _QUANTITIES.items():
            if getattr(self, name) and not re.fullmatch(form, getattr(self, name)):
                raise ConfigError(
                    f"{name} is no quantity of Kubernetes",
                    found=getattr(self, name),
                    expected=example,
                )
        for toleration in self.tolerations:
            if unknown := set(toleration) - TOLERATION_KEYS:
                raise ConfigError(
                    "a toleration has an unknown key",
                    found=", ".join(sorted(unknown)),
                    expected=", ".join(TOLERATION_KEYS),
                )
            for key, values in _TOLERATIONS.items():
                if toleration.get(key) not in (None, *values):
                    raise ConfigError(
                        f"{key} of a toleration is unknown",
                        found=toleration[key],
                        expected=", ".join(values),
                    )


TOLERATION_KEYS = frozenset({"key", "operator", "value", "effect", "toleration_seconds"})
_TOLERATIONS = {
    "operator": ("Exists", "Equal"),
    "effect": ("NoSchedule", "NoExecute", "PreferNoSchedule"),
}
_SIZE = r"[0-9]+[EPTGMK]i?|[0-9]+"
_QUANTITIES = {
    "cpu": (r"([0-9]*\.)?[0-9]+m?", "for example 4 or 500m"),
    "memory": (_SIZE, "for example 16Gi"),
    "shared_memory": (_SIZE, "for example 8Gi"),
    "gpu_type": (r"[a-z0-9.-]+/[a-zA-Z0-9._-]+", "for example nvidia.com/gpu"),
}
_NAME = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
STEPS: Mapping[str, Mapping[str, Any]] = {
    "fingerprint": {"cache": False, "timeout_seconds": 3_600},
    "profile-events": {},
    "check-events": {"retries": 0},
    "build-features": {},
    "join-features": {},
    "publish": {"cache": False},
    "retrieve": {},
    "profile-histories": {},
    "join-histories": {},
    "check-histories": {"retries": 0},
    "train": {"shared_memory": "2Gi", "timeout_seconds": 24 * 3_600},
    "train-job": {"timeout_seconds": 24 * 3_600},
    "evaluate": {},
    "package": {},
    "drift": {"cache": False, "retries": 0},
    "plan": {},
    "trial": {"shared_memory": "2Gi", "timeout_seconds": 24 * 3_600},
    "collect": {},
    "finish": {"cache": False, "timeout_seconds": 600},
}
"""Steps of the pipelines, and where they differ from the defaults of StepConfig. Checks are not
retried: they would say the same again.
`drift` is about what was answered lately, which no input tells.
`publish` is never skipped, for its result is outside of the pipeline; it does nothing where the
store is as it should be."""


@dataclasses.dataclass(frozen=True, slots=True)
class TrainerConfig:
    """Who runs the training step on a cluster.

    What a node gets (cpu, memory, gpu, shared_memory, node_selector, tolerations) is
    `platform.steps.train`. Kubeflow Trainer starts
    one process per GPU of a node, on nodes without GPUs one per requested CPU.

    Args:
        engine: `local` (the step itself, one process) or `kubeflow` (a TrainJob of Kubeflow
            Trainer, waited for by the step).
        num_nodes: of the TrainJob.
        runtime: name of its TrainingRuntime or ClusterTrainingRuntime; one of torchrun.
        namespace: of the TrainJob; empty for the one of the step.
    """

    engine: Literal["local", "kubeflow"] = "local"
    num_nodes: int = 1
    runtime: str = "torch-distributed"
    namespace: str = ""

    def __post_init__(self) -> None:
        _positive(self, "num_nodes")


@dataclasses.dataclass(frozen=True, slots=True)
class PlatformConfig:
    """What a cluster gives the pipelines; applied when one is compiled, ignored on one machine.

    Args:
        image: of every step (docs/kubeflow.md).
        image_pull_secrets: names of secrets that the registry asks for.
        service_account: of the pods; empty for the pipeline server's default.
        workdir_volume, workdir: PersistentVolumeClaim of the feature store, and where it is mounted;
            ReadWriteMany where nodes differ.
        data_volume, data: the same for datasets that lie on a volume; without one they are read
            from an object store.
        env: plain variables of every step, for example AWS_ENDPOINT_URL.
        secrets: per name of a secret, the variable that each of its keys becomes, for example {s3:
            {accesskey: AWS_ACCESS_KEY_ID}}.
        webhook_secret: name of the secret whose key `url` is told how a run ended.
        parallelism: how many shards, or trainings of a study, run at the same time.
        steps: per step what differs from the defaults (StepConfig); `all` is for every step.
        trainer: who runs the training step.
    """

    image: str = "longrec/python-ml:0.1.0"
    image_pull_secrets: tuple[str, ...] = ()
    service_account: str = ""
    workdir_volume: str = "longrec-home"
    workdir: str = "/var/lib/longrec"
    data_volume: str = ""
    data: str = "/data"
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    webhook_secret: str = ""
    parallelism: int = 8
    steps: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    trainer: TrainerConfig = dataclasses.field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        if "python" not in self.image:
            raise ConfigError(
                "platform.image must have 'python' in its name",
                found=self.image,
                fix="kfp's local runner asks for it.",
            )
        names = {
            "workdir_volume": [self.workdir_volume],
            "data_volume": [self.data_volume],
            "webhook_secret": [self.webhook_secret],
            "service_account": [self.service_account],
            "image_pull_secrets": self.image_pull_secrets,
            "secrets": self.secrets,
        }
        for key, entries in names.items():
            if wrong := [entry for entry in entries if entry and not re.fullmatch(_NAME, entry)]:
                raise ConfigError(
                    f"platform.{key} is no name of Kubernetes",
                    found=", ".join(wrong),
                    expected="lower case letters, digits, - and .",
                )
        for name in ("workdir", "data"):
            if not getattr(self, name).startswith("/"):
                raise ConfigError(
                    f"platform.{name} is no absolute path",
                    found=getattr(self, name),
                    expected="where the volume is mounted",
                )
        for name in self.steps:
            if name not in ("all", *STEPS):
                raise ConfigError(f"there is no step '{name}'", expected=f"all, {', '.join(STEPS)}")
            self.step(name)

    def step(self, name: str) -> StepConfig:
        """Returns what a step gets: the defaults, what every step gets, what it gets itself."""
        value = {**STEPS.get(name, {}), **self.steps.get("all", {}), **self.steps.get(name, {})}
        return build(StepConfig, value, where=f"platform.steps.{name}")


@dataclasses.dataclass(frozen=True, slots=True)
class RunConfig:
    """The whole configuration; `name` names the run's experiment and `seed` seeds everything that
    is random.
    """

    name: str = "longrec"
    seed: int = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    checks: ChecksConfig = dataclasses.field(default_factory=ChecksConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    lengths: LengthConfig = dataclasses.field(default_factory=LengthConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    gate: GateConfig = dataclasses.field(default_factory=GateConfig)
    drift: DriftConfig = dataclasses.field(default_factory=DriftConfig)
    platform: PlatformConfig = dataclasses.field(default_factory=PlatformConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**53:  # KFP carries every number as a double
            raise ConfigError(
                "seed is out of bounds",
                found=self.seed,
                expected="a whole number from 0 to 2^53 - 1",
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form (tuples become lists)."""
        return plain(self)


def build(cls: type[S], value: Mapping[str, Any], *, where: str = "") -> S:
    """Returns a section of the configuration from its JSON form.

    Whole floats become ints where an int is declared: KFP carries every number as a double.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is out of its bounds.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where or cls.__name__} must be a mapping", found=repr(value))
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, entry in value.items():
        path = f"{where}.{key}" if where else key
        if key not in hints:
            close = difflib.get_close_matches(key, hints, 1)
            fix = f"Did you mean '{close[0]}'?" if close else f"Known keys: {', '.join(hints)}."
            raise ConfigError(f"unknown configuration key '{path}'", fix=fix)
        arguments[key] = _convert(hints[key], entry, path)
    return cls(**arguments)


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the configuration in a YAML file (the defaults for None) after `key.sub=value`
    overrides (values are YAML too).

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is wrong.
    """
    value = (from_yaml(text_of(path), str(path)) if path else None) or {}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path} is no configuration",
            found=type(value).__name__,
            expected="a mapping of keys",
            fix="See configs/.",
        )
    for override in overrides:
        key, entry = override_of(override)
        *parents, last = key.split(".")
        section = value
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(
                    f"'{key}' does not name a configuration key",
                    fix=f"'{parent}' is a single value.",
                )
        section[last] = entry
    return build(RunConfig, value)


def override_of(text: str) -> tuple[str, Any]:
    """Returns key and value of `key=value`; the value is YAML.

    Raises:
        ConfigError: there is no `=`, or what is behind it is not YAML.
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(
            "an override must look like key=value", found=text, fix="For example train.epochs=2."
        )
    return key.strip(), from_yaml(value, f"the value of {key.strip()}")


def text_of(path: str | Path) -> str:
    """Returns the text of a configuration's file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"no configuration at {path}",
            fix="Give one with --config; the checkout's configs/ has examples.",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read",
            found=getattr(error, "strerror", None) or error,
            expected="a YAML file in UTF-8",
            fix="See configs/ for examples.",
        ) from error


def from_yaml(text: str, what: str) -> Any:
    """Returns the value of a YAML text; `what` names it.

    Raises:
        ConfigError: it is not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} is not YAML", found=" ".join(str(error).split())) from error


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), value, where=path)
    if origin is Literal:
        if value in typing.get_args(hint):
            return value
        raise ConfigError(
            f"{path} is not one of its choices",
            found=repr(value),
            expected=", ".join(map(str, typing.get_args(hint))),
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} must be a mapping", found=repr(value))
        return {
            str(key): _convert(typing.get_args(hint)[1], entry, f"{path}.{key}")
            for key, entry in value.items()
        }
    if origin is tuple:
        items = typing.get_args(hint)
        if not isinstance(value, (list, tuple)) or (
            Ellipsis not in items and len(value) != len(items)
        ):
            raise ConfigError(f"{path} must be a list", found=repr(value), expected=str(hint))
        return tuple(_convert(items[0], entry, path) for entry in value)
    if origin is types.UnionType:
        return None if value is None else _convert(typing.get_args(hint)[0], value, path)
    return _convert_scalar(hint, value, path)


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{path} has the wrong type", found=repr(value), expected=hint.__name__)


def plain(section: Any) -> dict[str, Any]:
    """Returns the JSON form of a section of the configuration (tuples become lists)."""
    return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(section)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _positive(section: object, *names: str) -> None:
    for name in names:
        if not getattr(section, name) > 0:
            raise ConfigError(f"{name} must be positive", found=getattr(section, name))


def _share(section: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(section, name) < 1:
            raise ConfigError(f"{name} must be a share in [0, 1)", found=getattr(section, name))
