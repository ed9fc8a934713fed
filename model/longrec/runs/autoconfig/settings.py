"""Derive the settings of a run from a dataset, a machine and a time budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from longrec.config import ModelConfig, RunConfig
from longrec.config_file import build, parse_override, set_key
from longrec.nn.flops import TRAINING_FLOPS_FACTOR, forward_flops
from longrec.runs.autoconfig.log_facts import LogFacts
from longrec.runs.autoconfig.machine import Machine

DEFAULT_BUDGET_SECONDS = 300.0
MAX_HISTORY = 10_000
"""Longest stored history: the length that longrec is built for."""
SHORT_HISTORY = 512
"""Histories up to here are trained whole: a shorter window would save little."""
NUM_HEADS = 2
MAX_EPOCHS = 10
"""Early stopping ends most trainings sooner."""
MAX_EPOCHS_OF_LARGE_LOGS = 3
"""Both runs of KuaiRand with five passes were best after the third (docs/log.md)."""
MIN_REPEAT_CONTRAST = 0.05
"""Difference of the repeat rates of positives and negatives that match features pay for."""
EVALUATION_BUDGET_SHARE = 0.3
"""Share of the training's time that the evaluation may take."""
MIN_EVALUATED_REQUESTS = 1_000
HELD_OUT_SHARE = 0.3
"""Share of the requests for validation and evaluation, by default."""
SECONDS_PER_REQUEST = 1e-4
"""Time of a request in a batch of the training, apart from its matrix products."""
SECONDS_PER_SCORED_REQUEST = 1e-3
"""Time of a request in the evaluation, apart from its matrix products."""
PROCESS_BYTES = 0.8 * 2**30
"""Memory of a Python process with torch."""
ROWS_PER_EVENT = 40
"""Rows of the model's width that a batch stores for each event, with their gradients."""
SMALL_LOG_REQUESTS = 100_000
"""Requests below which ids are hardly learned. Sampled negatives add targets, not knowledge."""
NARROW_WIDTH = 32
"""Width on a CPU below a million targets; wider ones learned KuaiRand by heart (docs/log.md)."""
RARE_ITEM_EVENTS = 20
"""Events of an item below which its id says little."""
FIRST_LENGTH = 32
"""Shortest served length of the curve; the next is four times as long."""


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """One derived setting.

    Args:
        key: configuration key, for example `model.width`.
        value: its value, as YAML holds it.
        reason: why, in a few words.
    """

    key: str
    value: Any
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """What a training is expected to take.

    Args:
        seconds: time of the training.
        memory_bytes: memory of the ranker, its optimizer state and one batch.
        requests_per_epoch: training requests of an epoch.
        epochs: number of epochs at most.
    """

    seconds: float
    memory_bytes: float
    requests_per_epoch: int
    epochs: int


@dataclasses.dataclass(frozen=True, slots=True)
class Derived:
    """A configuration with the reason of each setting.

    Args:
        name: name of the run.
        choices: the derived settings; every other key has its default.
        estimate: of the training.
    """

    name: str
    choices: tuple[Choice, ...]
    estimate: Estimate

    @property
    def config(self) -> RunConfig:
        """The configuration of the run.

        Raises:
            ConfigError: an override names an unknown key, or its value is wrong.
        """
        value: dict[str, Any] = {"name": self.name}
        for choice in self.choices:
            set_key(value, choice.key, choice.value)
        return build(RunConfig, value)

    def override(self, overrides: Sequence[str]) -> Derived:
        """Return the settings with some of them replaced.

        Args:
            overrides: `section.key=value` texts.
        """
        choices = {choice.key: choice for choice in self.choices}
        for text in overrides:
            key, value = parse_override(text)
            choices[key] = Choice(key, value, "--set")
        sections = list(dict.fromkeys(key.partition(".")[0] for key in choices))
        ordered = sorted(
            choices.values(), key=lambda choice: sections.index(choice.key.partition(".")[0])
        )
        return dataclasses.replace(self, choices=tuple(ordered))


def derive(facts: LogFacts, machine: Machine, budget_seconds: float) -> Derived:
    """Return the settings of a run for a dataset on a machine.

    Args:
        facts: of the dataset.
        machine: where the training runs.
        budget_seconds: longest time of the training.
    """
    sizes = _Sizes.of(facts, machine)
    plan = _Plan.of(facts, machine, sizes, budget_seconds)
    choices = (
        *_data_choices(facts, sizes, plan),
        *_model_choices(facts, sizes),
        *_length_choices(sizes),
        *_train_choices(machine, sizes, plan, budget_seconds),
        *_id_choices(facts),
        *_evaluate_choices(sizes, plan),
    )
    estimate = Estimate(
        seconds=plan.seconds,
        memory_bytes=_memory_bytes(facts, sizes),
        requests_per_epoch=plan.train_requests,
        epochs=plan.epochs,
    )
    return Derived(facts.name, choices, estimate)


@dataclasses.dataclass(frozen=True, slots=True)
class _Sizes:
    """Sizes that several settings follow from.

    Args:
        max_history: stored events of a request.
        window: mean number of events of a request in training.
        longest_window: most events of a request in training.
        width: token width of the model.
        token_budget: events of a batch.
        matches: name and contrast of the column that repeats most, or None.
    """

    max_history: int
    window: int
    longest_window: int
    width: int
    token_budget: int
    matches: tuple[str, float] | None

    @classmethod
    def of(cls, facts: LogFacts, machine: Machine) -> _Sizes:
        longest = max(facts.history_length["max"], 1)
        max_history = min(MAX_HISTORY, _power_of_two_from(longest, FIRST_LENGTH))
        mean, most = (2_000, MAX_HISTORY) if machine.has_gpu else (256, 1_024)
        short = mean if machine.has_gpu else SHORT_HISTORY
        is_short = facts.history_length["p99"] <= short
        return cls(
            max_history=max_history,
            window=_mean_length(facts) if is_short else min(mean, _mean_length(facts)),
            longest_window=max_history if is_short else min(most, max_history),
            width=_width(facts, machine),
            token_budget=65_536 if machine.has_gpu else 8_192,
            matches=_strongest_repeat(facts),
        )

    @property
    def is_whole(self) -> bool:
        """Whether training reads whole histories."""
        return self.longest_window == self.max_history

    @property
    def model(self) -> ModelConfig:
        """Model of these sizes."""
        return ModelConfig(width=self.width, num_heads=NUM_HEADS)


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """How many requests a budget pays for.

    Args:
        max_requests: `data.max_requests`.
        train_requests: training requests of an epoch.
        epochs: passes over them at most.
        evaluated: `evaluate.max_requests`.
        seconds: expected time of the training.
    """

    max_requests: int
    train_requests: int
    epochs: int
    evaluated: int
    seconds: float

    @classmethod
    def of(cls, facts: LogFacts, machine: Machine, sizes: _Sizes, budget_seconds: float) -> _Plan:
        train_share = 1 - HELD_OUT_SHARE
        train_requests = max(round(facts.num_requests * train_share), 1)
        forward = _forward_seconds(facts, machine, sizes, sizes.window)
        seconds_each = TRAINING_FLOPS_FACTOR * (forward + SECONDS_PER_REQUEST)
        affordable = max(round(budget_seconds / seconds_each), MIN_EVALUATED_REQUESTS)
        max_requests = 0
        if affordable < train_requests:
            max_requests = _two_digits(affordable / train_share)
            train_requests = min(round(max_requests * train_share), train_requests)
        most = MAX_EPOCHS if _is_small(facts) else MAX_EPOCHS_OF_LARGE_LOGS
        epochs = min(max(affordable // train_requests, 1), most)
        served_length = min(_mean_length(facts), sizes.max_history)
        evaluation_each = _forward_seconds(facts, machine, sizes, served_length)
        evaluation_each += SECONDS_PER_SCORED_REQUEST
        evaluated = round(EVALUATION_BUDGET_SHARE * budget_seconds / evaluation_each)
        return cls(
            max_requests=max_requests,
            train_requests=train_requests,
            epochs=epochs,
            evaluated=_two_digits(max(evaluated, MIN_EVALUATED_REQUESTS)),
            seconds=min(seconds_each * train_requests * epochs, budget_seconds),
        )


def _forward_seconds(facts: LogFacts, machine: Machine, sizes: _Sizes, num_events: int) -> float:
    """Return the expected time of the forward pass of one request in a large batch."""
    num_targets = facts.targets_per_request
    flops = forward_flops(sizes.model, num_events, num_targets)
    return machine.forward_seconds(flops, num_events + num_targets)


def _data_choices(facts: LogFacts, sizes: _Sizes, plan: _Plan) -> Iterator[Choice]:
    longest = facts.history_length["max"]
    yield Choice("data.max_history", sizes.max_history, f"the longest history has {longest:,}")
    if plan.max_requests:
        yield Choice(
            "data.max_requests",
            plan.max_requests,
            f"of {facts.num_requests:,}: as many as the budget trains on once",
        )


def _model_choices(facts: LogFacts, sizes: _Sizes) -> Iterator[Choice]:
    yield Choice("model.width", sizes.width, f"for {facts.num_targets:,} targets on this machine")
    yield Choice("model.num_heads", NUM_HEADS, "heads of at least 16 values")
    yield Choice("model.uniform_heads", 1, "one head starts as the mean of the whole history")
    yield Choice("model.aux_loss_weight", 0.2, "a loss on the history alone steadies training")
    yield Choice("model.crosses", True, "products that the head would have to learn")
    yield Choice("model.item_rates", True, "mean labels of items, as known before each request")
    yield Choice("model.id_std", 0.5 if _is_small(facts) else 0.1, _id_reason(facts))
    if sizes.matches is None:
        reason = "repeats do not tell positives from negatives"
    else:
        column, contrast = sizes.matches
        reason = f"positives and negatives differ by {contrast:.0%} in repeats of {column}"
    yield Choice("model.matches", sizes.matches is not None, reason)


def _length_choices(sizes: _Sizes) -> Iterator[Choice]:
    if sizes.is_whole:
        yield Choice("lengths.distribution", "full", "histories are short: train on all events")
        return
    yield Choice("lengths.distribution", "beta", "train on short windows, serve long histories")
    yield Choice("lengths.mean", sizes.window, "mean events of a window that this machine affords")
    yield Choice("lengths.maximum", sizes.longest_window, "longest window")


def _train_choices(
    machine: Machine, sizes: _Sizes, plan: _Plan, budget_seconds: float
) -> Iterator[Choice]:
    yield Choice("train.epochs", plan.epochs, "at most; validation stops the training earlier")
    yield Choice("train.max_seconds", round(budget_seconds), "the budget")
    yield Choice("train.token_budget", sizes.token_budget, f"events of a batch, for {machine}")
    yield Choice("train.max_requests_per_batch", 128, "more steps with short histories")
    rate = 0.002 if sizes.width <= NARROW_WIDTH else 0.001
    yield Choice("train.learning_rate", rate, f"of a model of width {sizes.width}")
    yield Choice("train.token_dropout", 0.1, "items are not learned by heart")
    yield Choice("train.calibrate", True, "validation corrects the mean of the scores")
    yield Choice("train.patience", 3, "validations without gain that end the training")


def _id_choices(facts: LogFacts) -> Iterator[Choice]:
    yield Choice("train.id_init", "lsa", "items that occur together start close together")
    rate = 0.002 if _is_small(facts) else 0.01
    yield Choice("train.embedding_learning_rate", rate, _id_reason(facts))
    events_per_item = facts.num_events / max(facts.num_items, 1)
    if events_per_item < RARE_ITEM_EVENTS:
        reason = f"{events_per_item:.0f} events an item: most ids are rare or new"
        yield Choice("train.id_dropout", 0.5, reason)


def _is_small(facts: LogFacts) -> bool:
    return facts.num_requests < SMALL_LOG_REQUESTS


def _id_reason(facts: LogFacts) -> str:
    if _is_small(facts):
        return "a small log: ids stay near their start"
    return "many requests: ids are learned"


def _evaluate_choices(sizes: _Sizes, plan: _Plan) -> Iterator[Choice]:
    lengths = [FIRST_LENGTH]
    while lengths[-1] * 4 < sizes.max_history:
        lengths.append(lengths[-1] * 4)
    lengths = sorted({*lengths, sizes.max_history})
    yield Choice("evaluate.lengths", lengths, "served lengths of the curve")
    yield Choice("evaluate.served_length", 0, "chosen on validation data")
    yield Choice("evaluate.max_requests", plan.evaluated, "at most, a seeded sample")


def _mean_length(facts: LogFacts) -> int:
    """Return a rough mean of the events before a request, from its quantiles."""
    quantiles = facts.history_length
    # The trapezoids between p0, p10, p50, p90 and p99; the longest hundredth counts as p99.
    mean = 0.05 * quantiles["p10"]
    mean += 0.2 * (quantiles["p10"] + quantiles["p50"])
    mean += 0.2 * (quantiles["p50"] + quantiles["p90"])
    mean += 0.045 * (quantiles["p90"] + quantiles["p99"])
    mean += 0.01 * quantiles["p99"]
    return max(round(mean), 1)


def _width(facts: LogFacts, machine: Machine) -> int:
    if not machine.has_gpu:
        return NARROW_WIDTH if facts.num_targets < 1_000_000 else 64
    if facts.num_targets < 1_000_000:
        return 64
    return 128 if facts.num_targets < 20_000_000 else 256


def _strongest_repeat(facts: LogFacts) -> tuple[str, float] | None:
    """Return the column whose repeats tell positives from negatives best, if one does."""
    best: tuple[str, float] | None = None
    for rate in facts.repeats:
        contrast = abs(rate.positives - rate.negatives)
        if contrast >= MIN_REPEAT_CONTRAST and (best is None or contrast > best[1]):
            best = rate.column, contrast
    return best


def _memory_bytes(facts: LogFacts, sizes: _Sizes) -> float:
    model = sizes.model
    table = facts.num_items * (model.id_dim + 1) * 4
    batch = sizes.token_budget * model.width * ROWS_PER_EVENT * 4
    return table + batch + PROCESS_BYTES


def _power_of_two_from(number: int, least: int) -> int:
    """Return the smallest power of two of at least both numbers."""
    return 1 << (max(number, least) - 1).bit_length()


def _two_digits(number: float) -> int:
    """Return a number rounded to two significant digits."""
    magnitude = 10 ** max(math.floor(math.log10(max(number, 1))) - 1, 0)
    return int(round(number / magnitude) * magnitude)
