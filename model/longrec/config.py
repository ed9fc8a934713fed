"""The configuration of a run: one frozen dataclass per section.

`RunConfig` holds all sections. A pipeline step receives only its own sections, so a changed section
re-runs only the steps that depend on it. No section names a machine, a path or a platform.

`longrec.config_file` reads these classes from YAML. This module imports the standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, cast

from longrec.errors import ConfigError

MAX_SEED = 2**53 - 1
"""Largest seed: Kubeflow Pipelines carries every number as a double."""
NUM_MIXER_TOKENS = 4
"""Tokens of the head: z, user, target and context."""
MODEL_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "paper": {
        "recency": "token",
        "share_ffn": True,
        "fusion": True,
        "query_fusion": True,
        "output_norm": False,
        "output_residual": False,
        "uniform_heads": 0,
        "aux_loss_weight": 0.0,
        "matches": False,
        "item_rates": False,
        "crosses": False,
        "ffn": "swiglu",
    },
}
"""Settings of the model by value of `model.preset`.

Source of `paper`: arXiv 2511.06077, STCA.
"""
KINDS_WITHOUT_TARGET_LOGITS = ("mean", "transformer", "hstu")
"""Values of `model.kind` without attention logits between target and history."""
SHARES = ("token_dropout", "head_dropout", "id_dropout", "attention_dropout", "ema_decay")
"""Settings of the training from 0 to below 1."""
OFF_AT_ZERO = (
    "validate_every",
    "patience",
    "max_seconds",
    "user_embedding_learning_rate",
    "feature_learning_rate",
    "id_weight_decay",
    "id_min_count",
)
"""Settings of the training that 0 turns off."""


@dataclasses.dataclass(frozen=True, slots=True)
class DataConfig:
    """How histories are stored and requests are split.

    Args:
        max_history: most recent events stored per request. This bounds trained and served lengths.
        split: how requests are divided. `time`: the latest requests are evaluated, and those
            directly before them validate the training. `user`: of each user, the last
            `leave_last` requests are evaluated, and as many before them validate.
        share_of: what the three fractions count: `requests` or `targets`.
        eval_fraction: share of the latest requests, used for evaluation with `split: time`.
        validation_fraction: share of the requests before the evaluation. The training stops early
            and the served length is chosen by them; 0 for none, with `split: user` too.
        leave_last: requests of each user in the evaluation, with `split: user`. Users with too
            few requests for all parts are only trained on.
        warmup_fraction: share of the earliest requests, never used for training. Their histories
            are too short.
        max_requests: maximum number of requests, chosen by a seeded sample; 0 for all.
        shards: number of user shards. The pipeline builds the features of several in parallel.
            Shards beyond the dataset's number of parts (about two million events each) are empty.
        shard_users: users per group of the feature build and of the Feast retrieval. It bounds
            the memory of both.
        late_events: treatment of events with a `created` time. `hold` adds an event to histories
            only after it was created, so a request sees only known events. `ignore` uses the
            event's own time; it suits logs whose `created` is the time of a later copy.
    """

    max_history: int = 10_000
    split: Literal["time", "user"] = "time"
    share_of: Literal["requests", "targets"] = "requests"
    eval_fraction: float = 0.2
    validation_fraction: float = 0.1
    leave_last: int = 1
    warmup_fraction: float = 0.0
    max_requests: int = 0
    shards: int = 1
    shard_users: int = 2_000
    late_events: Literal["hold", "ignore"] = "hold"

    def __post_init__(self) -> None:
        _require_positive("data", self, "max_history", "shards", "shard_users", "leave_last")
        fractions = ("warmup_fraction", "validation_fraction", "eval_fraction")
        _require_fraction("data", self, *fractions)
        total = sum(getattr(self, name) for name in fractions)
        if self.split == "time" and total >= 1:
            raise ConfigError(
                "no request is left to train on",
                found=f"{' + '.join(fractions)} of data = {total:g}",
                expected="less than 1",
                fix="Lower data.eval_fraction or data.validation_fraction.",
            )


@dataclasses.dataclass(frozen=True, slots=True)
class ChecksConfig:
    """Bounds of the data checks. Bounds of a single feature stand in the schema.

    Args:
        max_duplicate_share: largest share of duplicate events: equal user, item, time and sequence.
        max_unknown_item_share: largest share of events or targets without a row in the item table.
        min_requests: minimum number of requests in each split.
        min_history: minimum number of events in the longest history.
        check_label_rates: whether a label rate outside its task's bounds fails the run. If false,
            it only warns.
        check_drift: whether drift from the published version of the data fails the run. If false,
            it only warns. The four bounds below define drift.
        max_psi: largest population stability index of the history lengths.
        max_rate_change: largest change of a label rate, relative to its rarer outcome before.
        max_coverage_loss: largest drop of the share of events or targets with a known item.
        max_new_item_share: largest share of targets whose item the version before did not contain.
        evidently: folder for a report of Evidently on the drift; relative to the work directory,
            empty for none.
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
    evidently: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and options of the ranker (equations in docs/concepts/stca.md).

    Args:
        kind: history encoder: `stca` or a baseline of longrec.nn.baselines. `mean`, `transformer`
            and `hstu` have no target logits for a gap bias: they need recency `token` or `none`.
        width: d, token width; divisible by num_heads and by the 4 tokens of the mixer.
        num_layers: M, number of stacked target-to-history layers.
        num_heads: h, number of attention heads.
        ffn_ratio: r, hidden width of the SwiGLU FFN divided by d.
        id_dim: width of one id embedding.
        feature_dim: width of one category or number embedding.
        mixer_layers: number of RankMixer blocks in the head.
        recency: encoding of the time gap. `token` adds it to the event token, `bias` adds a
            per-head bias by log-bucketed gap to the attention logits, `none` leaves it out.
        attention: order of computation: `plain`, `reordered`, or `auto` (chosen by m, L and d).
        share_ffn: whether the history and query FFN of a layer share weights, as the paper reads.
        fusion: whether a residual SwiGLU FFN fuses [item; action] into the event token
            (SequenceO1, appendix D).
        query_fusion: whether q_{i+1} reads all earlier outputs. If false, it reads the last one
            and the target; both are equal below three layers.
        output_norm: whether z passes a LayerNorm.
        output_residual: whether z adds the input of its FFN (ours), so that pooled values reach the
            head in a straight line.
        uniform_heads: number of heads whose attention starts uniform (ours). Such a head pools the
            whole history, as mean pooling does, until training sharpens it.
        aux_loss_weight: weight of the training-only logit from z alone; 0 for none.
        retrieved: number of events that `sim` attends to.
        matches: whether the head reads match features: how often and how long ago the history
            contained each feature value of the target (longrec.nn.match_features).
        item_rates: whether the head reads item rates: the mean labels of the target's item and of
            each of its features in the training (longrec.nn.item_rates).
        id_std: initial standard deviation of id embeddings. Near 1, unseen ids are random codes
            that attention can match.
        crosses: whether the head reads products of the target with the user and with z (DCN V2).
        ffn: form of the history and query FFN: `swiglu` (the paper's), `plain` (GELU, two
            matrices, as many parameters) or `residual` (x + SwiGLU(x), ours). GPU kernels support
            `swiglu` only.
        preset: settings that the keys of this section which are not given take: `default` those
            below, `paper` those of STCA's paper, without anything of ours.
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
    output_residual: bool = False
    uniform_heads: int = 0
    aux_loss_weight: float = 0.0
    retrieved: int = 128
    matches: bool = False
    item_rates: bool = False
    id_std: float = 0.05
    crosses: bool = False
    ffn: Literal["swiglu", "plain", "residual"] = "swiglu"
    preset: Literal["default", "paper"] = "default"

    def __post_init__(self) -> None:
        _require_positive("model", self, "width", "num_layers", "num_heads", "ffn_ratio")
        _require_positive("model", self, "id_dim", "feature_dim", "mixer_layers", "retrieved")
        _require_positive("model", self, "id_std")
        if self.kind in KINDS_WITHOUT_TARGET_LOGITS and self.recency == "bias":
            raise ConfigError(
                f"model.kind {self.kind} has no attention logits for a gap bias",
                found="model.recency=bias",
                expected="token or none",
                fix="Set model.recency=token.",
            )
        if not 0 <= self.uniform_heads <= self.num_heads:
            raise ConfigError(
                "model.uniform_heads is a number of heads",
                found=self.uniform_heads,
                expected=f"0 to model.num_heads={self.num_heads}",
            )
        self._require_divisible_width(self.num_heads, "num_heads")
        self._require_divisible_width(NUM_MIXER_TOKENS, "the 4 mixer tokens")

    def _require_divisible_width(self, divisor: int, name: str) -> None:
        if self.width % divisor:
            raise ConfigError(
                f"model.width must be divisible by {name}",
                found=self.width,
                expected=f"a multiple of {divisor}",
            )


@dataclasses.dataclass(frozen=True, slots=True)
class LengthConfig:
    """Distribution of the history lengths during training (docs/concepts/length-extrapolation.md).

    Args:
        distribution: `beta` (pinned mean, the paper's), `two_point` (HSTU's), `fixed`, `uniform`
            or `full`.
        minimum: L_min, smallest length in events.
        mean: L_avg, mean length in events.
        maximum: L_max, largest length in events.
        alpha: shape of `beta`; U-shaped below (mean - minimum) / (maximum - mean).
        multiple: lengths are rounded to a multiple of this.
        cut: which events remain: `suffix` (the most recent), `random` or `prefix`.
    """

    distribution: Literal["beta", "two_point", "fixed", "uniform", "full"] = "beta"
    minimum: int = 0
    mean: int = 2_000
    maximum: int = 10_000
    alpha: float = 0.2
    multiple: int = 8
    cut: Literal["suffix", "random", "prefix"] = "suffix"

    def __post_init__(self) -> None:
        _require_positive("lengths", self, "maximum", "multiple", "alpha")
        is_ordered = 0 <= self.minimum <= self.mean <= self.maximum
        if self.distribution != "full" and not is_ordered:
            raise ConfigError(
                "lengths must be ordered",
                found=f"{self.minimum}, {self.mean}, {self.maximum}",
                expected="0 <= minimum <= mean <= maximum",
            )


@dataclasses.dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings of one training run.

    Args:
        epochs: passes over the training requests.
        max_steps: maximum number of optimizer steps; 0 for no bound.
        token_budget: maximum number of events per batch. A longer request is a batch of its own.
        max_requests_per_batch: maximum number of requests per batch.
        accumulate_steps: batches whose gradients are added up for one optimizer step. A step then
            equals that of one batch with all their requests, in the memory of one of them. Other
            numbers of steps count optimizer steps.
        learning_rate: learning rate of AdamW, for the dense parameters.
        weight_decay: weight decay of AdamW.
        betas: betas of AdamW.
        embedding_learning_rate: learning rate of row-wise Adagrad, for the id tables.
        user_embedding_learning_rate: the same for the id tables of users; 0 for
            `embedding_learning_rate`.
        feature_learning_rate: learning rate of AdamW, for the tables of categories, numbers and
            times; 0 for `learning_rate`.
        id_weight_decay: L2 penalty of the id rows that a step touches, added to their gradients
            (row-wise Adagrad); 0 for none.
        schedule: learning rate after the warm-up. `cosine` decays to 0.1 of the peak; where
            `max_seconds` ends the training earlier, by then. `constant` stays at the peak.
            `plateau` lowers the rate when validations stop to improve (torch's
            ReduceLROnPlateau).
        plateau_factor: factor of the rate when that happens.
        plateau_patience: validations without improvement that are accepted before that; below
            `patience - 1`, or the training ends first.
        warmup_fraction: share of the steps with a rising learning rate.
        token_dropout: dropout of the item tokens of targets and events.
        head_dropout: dropout of the tokens that enter the head.
        id_dropout: share of the items whose id is hidden in a step, in targets and histories
            alike. They fall back on their other features, as new items do.
        id_min_count: smallest number of events and targets of the training window with which an
            item id gets an embedding of its own. Rarer items share those of unknown ids and fall
            back on their other features. 0 for the schema's `min_count`, which it can only raise.
        attention_dropout: dropout of the attention weights of events, after the softmax. Only
            model.kind `stca`, `target_attention` and `sim` have it, and GPU kernels do not.
        id_init: initial embeddings of item ids: `random`, or `lsa` for items that occur together in
            the training histories to start close together (longrec.training.id_init).
        redraw_ids: whether each epoch after the first starts with new random embeddings of all
            ids, so that the rest of the model cannot lean on ids that it knows by heart.
        calibrate: whether a shift of each task's logit, after the last step, makes the mean score
            of validation requests equal to their mean label.
        ema_decay: decay of an exponential moving average of all weights over the steps, which
            validations and the bundle use; 0 for none. It averages over about 1 / (1 - decay)
            steps (torch's AveragedModel).
        clip_norm: bound of the dense gradient norm.
        loss: `request` (mean over targets, then over requests; the paper's) or `target` (mean
            over targets).
        precision: `float32`, `bfloat16`, or `auto` (bfloat16 on a GPU).
        device: `cpu`, `cuda`, or `auto`.
        recompute: whether the backward pass recomputes the hidden rows of the history FFN. It
            needs less memory and more time, with equal values. Only model.kind `stca` supports it.
        log_every: steps between two rows of the training curve.
        validation_requests: largest number of validation requests, a seeded sample, whose AUC and
            log loss are measured after each epoch and at the end. The weights with the best AUC of
            the first task are kept.
        validate_every: further steps between two such measurements; 0 for none.
        patience: measurements without improvement that end the training; 0 to train to the end.
        max_seconds: time of the training loop and its measurements that ends the training, with
            the best weights; 0 for no bound. Such a training cannot be repeated exactly.
        checkpoint_every: steps between two checkpoints; each epoch ends with one too. 0 for none.
        num_workers: threads that pack batches ahead. Batches and their order do not depend on it.
        tensorboard: whether the curve is also written for TensorBoard, if that is installed.
        embedding_sharding: layout of the id tables over several processes: `data_parallel` (a
            full copy each) or `row_wise` (a block of rows each, by TorchRec;
            docs/guides/train-distributed.md).
    """

    epochs: int = 1
    max_steps: int = 0
    token_budget: int = 65_536
    max_requests_per_batch: int = 64
    accumulate_steps: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    embedding_learning_rate: float = 0.05
    user_embedding_learning_rate: float = 0.0
    feature_learning_rate: float = 0.0
    id_weight_decay: float = 0.0
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    plateau_factor: float = 0.1
    plateau_patience: int = 0
    warmup_fraction: float = 0.05
    token_dropout: float = 0.0
    head_dropout: float = 0.0
    id_dropout: float = 0.0
    attention_dropout: float = 0.0
    id_min_count: int = 0
    id_init: Literal["random", "lsa"] = "random"
    redraw_ids: bool = False
    calibrate: bool = False
    ema_decay: float = 0.0
    clip_norm: float = 1.0
    loss: Literal["request", "target"] = "request"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    recompute: bool = False
    log_every: int = 20
    validation_requests: int = 2_000
    validate_every: int = 0
    patience: int = 2
    max_seconds: float = 0.0
    checkpoint_every: int = 500
    num_workers: int = 1
    tensorboard: bool = True
    embedding_sharding: Literal["data_parallel", "row_wise"] = "data_parallel"

    def __post_init__(self) -> None:
        _require_positive("train", self, "epochs", "token_budget", "max_requests_per_batch")
        _require_positive("train", self, "learning_rate", "embedding_learning_rate")
        _require_positive("train", self, "log_every", "num_workers", "validation_requests")
        _require_positive("train", self, "accumulate_steps")
        for name in SHARES:
            share = getattr(self, name)
            if not 0 <= share < 1:
                raise ConfigError(
                    f"train.{name} is a share", found=share, expected="0 <= share < 1"
                )
        for name in OFF_AT_ZERO:
            value = getattr(self, name)
            if value < 0:
                raise ConfigError(
                    f"train.{name} must not be negative",
                    found=value,
                    fix="0 turns it off.",
                )
        self._check_schedule()
        self._check_sharding()
        if self.redraw_ids and self.id_init == "lsa":
            raise ConfigError(
                "train.redraw_ids draws random embeddings",
                found="train.id_init=lsa",
                fix="Set train.id_init=random.",
            )
        if self.checkpoint_every < 0:
            raise ConfigError(
                "train.checkpoint_every must not be negative",
                found=self.checkpoint_every,
                fix="0 writes no checkpoints.",
            )

    def _check_sharding(self) -> None:
        """Refuse what sharded id tables cannot do: a backward pass updates them at once."""
        if self.embedding_sharding != "row_wise":
            return
        if self.ema_decay or self.accumulate_steps > 1:
            raise ConfigError(
                "train.embedding_sharding=row_wise updates id tables in each backward pass",
                found=f"ema_decay {self.ema_decay}, accumulate_steps {self.accumulate_steps}",
                expected="ema_decay 0, accumulate_steps 1",
                fix="Set train.embedding_sharding=data_parallel.",
            )

    def _check_schedule(self) -> None:
        """Check that `schedule: plateau` can lower the rate."""
        if not 0 < self.plateau_factor < 1 or self.plateau_patience < 0:
            raise ConfigError(
                "train.plateau_factor or train.plateau_patience is out of bounds",
                found=f"{self.plateau_factor}, {self.plateau_patience}",
                expected="0 < factor < 1, patience of at least 0",
            )
        if self.schedule != "plateau":
            return
        if self.epochs == 1 and not self.validate_every:
            raise ConfigError(
                "train.schedule=plateau needs several validations",
                found="1, at the end of the only epoch",
                fix="Raise train.epochs, or set train.validate_every.",
            )
        if 0 < self.patience <= self.plateau_patience + 1:
            raise ConfigError(
                "the training would end before train.schedule=plateau lowers the rate",
                found=f"patience {self.patience}, plateau_patience {self.plateau_patience}",
                expected="patience above plateau_patience + 1, or 0",
                fix="Raise train.patience.",
            )


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """Settings of the evaluation on the evaluation split.

    Args:
        lengths: served history lengths of the curve.
        served_length: history length of the service. Metrics and gate use it. 0 chooses the
            shortest of `lengths` that validation requests do not distinguish from the best one.
        max_requests: maximum number of evaluation requests, the same seeded sample at every
            length; 0 for all.
        bootstrap_samples: user-level resamples of the 95 % confidence intervals.
    """

    lengths: tuple[int, ...] = (500, 1_000, 2_000, 5_000, 10_000)
    served_length: int = 0
    max_requests: int = 0
    bootstrap_samples: int = 200

    def __post_init__(self) -> None:
        _require_positive("evaluate", self, "bootstrap_samples")
        if not self.lengths or min(self.lengths) < 0:
            raise ConfigError(
                "evaluate.lengths must be one or more lengths of at least 0", found=self.lengths
            )
        if self.served_length < 0 or max(self.lengths) == self.served_length == 0:
            raise ConfigError(
                "evaluate.served_length must be positive, or 0 to choose one of evaluate.lengths",
                found=f"{self.served_length}, lengths {list(self.lengths)}",
                fix="Name a length above 0.",
            )

    @property
    def served_lengths(self) -> tuple[int, ...]:
        """The lengths that the service may have, rising; one if it is set."""
        if self.served_length:
            return (self.served_length,)
        return tuple(sorted({length for length in self.lengths if length}))


@dataclasses.dataclass(frozen=True, slots=True)
class GateConfig:
    """Bounds that a model must reach to be packaged.

    By default they are relative: the model must not lose against the champion or, without one,
    against the best baseline. Bounds of a metric hold for every task. Bounds of slices hold for the
    first task.

    Args:
        min_auc: smallest AUC at the served length; 0 for no bound.
        min_gain_over_popularity: smallest AUC gain over the better of the baselines `item rate` and
            `item count`; -1 for no bound.
        max_loss_to_baseline: bound of the AUC loss against the best baseline, judged like
            `max_loss_to_champion`; 1 for no bound. It counts where there is no champion to compare
            with.
        min_calibration: lower bound of mean prediction over mean label. The model is refused when
            the whole 95 % interval lies below it.
        max_calibration: upper bound of mean prediction over mean label. The model is refused when
            the whole 95 % interval lies above it.
        max_ece: largest expected calibration error; 1 for no bound.
        against_champion: whether the model is compared with the champion of the work directory
            (`longrec models`), if that can serve these requests.
        metric: metric of the comparison with the champion: `auc` or `gauc`.
        max_loss_to_champion: bound of the loss of that metric. The first task refuses the model
            when the 95 % interval of the paired difference reaches below this loss; a further
            task when its whole interval lies below it.
        min_slice_targets: minimum number of targets of a checked slice.
        min_slice_auc: smallest AUC of a checked slice; 0 for no bound.
        max_slice_loss: largest loss of a slice against the champion. A slice refuses the model
            when its whole interval lies below this loss.
        max_latency_ms: largest 95th percentile latency of scoring one request with the longest
            histories, measured during the evaluation; 0 for no bound.
        max_unknown_item_share: largest share of targets with an item unknown to the encoder; 1 for
            no bound.
        max_parity_error: largest absolute difference of a probability between training forward,
            Scorer and HTTP.
    """

    min_auc: float = 0.0
    min_gain_over_popularity: float = -1.0
    max_loss_to_baseline: float = 0.002
    min_calibration: float = 0.8
    max_calibration: float = 1.25
    max_ece: float = 1.0
    against_champion: bool = True
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
    """Bounds of the drift between live requests and a model's evaluation.

    `longrec.release.monitoring` measures it.

    Args:
        max_score_psi: largest population stability index of a task's scores.
        max_feature_psi: largest population stability index of a feature or of history lengths.
        window_hours: hours before the last request that are compared.
        min_requests: minimum number of requests for a verdict.
        evidently: folder for a report of Evidently; relative to the work directory, empty for none.
    """

    max_score_psi: float = 0.25
    max_feature_psi: float = 0.25
    window_hours: float = 24.0
    min_requests: int = 200
    evidently: str = ""

    def __post_init__(self) -> None:
        _require_positive("drift", self, "max_score_psi", "max_feature_psi")
        _require_positive("drift", self, "window_hours", "min_requests")


@dataclasses.dataclass(frozen=True, slots=True)
class RunConfig:
    """The whole configuration of a run.

    Args:
        name: name of the run's experiment.
        seed: seeds everything random.
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

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(
                "seed is out of bounds",
                found=self.seed,
                expected="a whole number from 0 to 2^53 - 1",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; tuples become lists."""
        return to_dict(self)


def to_dict(section: Any) -> dict[str, Any]:
    """Return the JSON form of a configuration dataclass; tuples become lists."""
    return cast("dict[str, Any]", _to_json(dataclasses.asdict(section)))


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(entry) for entry in value]
    return value


def _require_positive(path: str, section: object, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if not value > 0:
            raise ConfigError(f"{path}.{name} must be positive", found=value)


def _require_fraction(path: str, section: object, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if not 0 <= value < 1:
            raise ConfigError(f"{path}.{name} must be at least 0 and below 1", found=value)
