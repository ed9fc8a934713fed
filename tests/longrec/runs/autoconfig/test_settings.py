"""Settings that follow from a dataset, a machine and a budget."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from longrec.config import RunConfig
from longrec.config_file import build
from longrec.errors import ConfigError
from longrec.runs.autoconfig.log_facts import LogFacts
from longrec.runs.autoconfig.machine import Machine
from longrec.runs.autoconfig.repeats import RepeatRate
from longrec.runs.autoconfig.settings import derive
from longrec.runs.autoconfig.yaml_text import to_yaml

LAPTOP = Machine(num_cpus=2, memory_bytes=16 * 2**30)
GPU = dataclasses.replace(LAPTOP, has_gpu=True)
SHORT_LOG = LogFacts(
    name="short",
    num_events=228_329,
    num_users=25_156,
    num_items=7_583,
    num_requests=211_733,
    num_targets=228_329,
    history_length={"p10": 0, "p50": 5, "p90": 19, "p99": 48, "max": 140},
    tasks={"click": 0.4},
    repeats=(RepeatRate("item_id", 0.005, 0.007),),
)
LONG_LOG = dataclasses.replace(
    SHORT_LOG,
    name="long",
    num_events=2_790_011,
    num_requests=329_939,
    num_targets=5_080_182,
    history_length={"p10": 114, "p50": 644, "p90": 3_095, "p99": 16_053, "max": 49_559},
    repeats=(RepeatRate("item_id", 0.67, 0.11), RepeatRate("area_id", 0.95, 0.63)),
)


@st.composite
def _facts(draw: st.DrawFn) -> LogFacts:
    counts = st.integers(1, 10**9)
    lengths = sorted(draw(st.lists(st.integers(0, 10**6), min_size=5, max_size=5)))
    num_requests = draw(counts)
    share = st.floats(0, 1)
    return LogFacts(
        name=draw(st.text()),
        num_events=draw(counts),
        num_users=draw(counts),
        num_items=draw(counts),
        num_requests=num_requests,
        num_targets=num_requests * draw(st.integers(1, 64)),
        history_length=dict(zip(("p10", "p50", "p90", "p99", "max"), lengths, strict=True)),
        tasks={"label": draw(share)},
        repeats=(RepeatRate("item_id", draw(share), draw(share)),),
    )


@given(_facts(), st.integers(1, 128), st.booleans(), st.floats(1, 10**6))
def test_any_log_gets_a_valid_configuration_that_its_file_holds(
    facts: LogFacts, num_cpus: int, has_gpu: bool, budget: float
) -> None:
    derived = derive(facts, Machine(num_cpus, 2**34, has_gpu), budget)
    assert build(RunConfig, yaml.safe_load(to_yaml(derived, facts))) == derived.config
    assert derived.config.evaluate.lengths[-1] == derived.config.data.max_history
    assert derived.estimate.seconds <= budget


def test_short_histories_are_trained_whole() -> None:
    config = derive(SHORT_LOG, LAPTOP, 300).config
    assert config.lengths.distribution == "full"
    assert config.data.max_history == 256, "the longest history has 140 events"


def test_long_histories_are_trained_on_windows_and_served_whole() -> None:
    config = derive(LONG_LOG, LAPTOP, 300).config
    assert config.lengths.distribution == "beta"
    assert config.lengths.mean < 644
    assert config.data.max_history == config.evaluate.lengths[-1] == 10_000


def test_match_features_are_on_where_repeats_tell_positives_from_negatives() -> None:
    assert derive(LONG_LOG, LAPTOP, 300).config.model.matches
    assert not derive(SHORT_LOG, LAPTOP, 300).config.model.matches


def test_a_larger_budget_trains_on_more() -> None:
    few = derive(LONG_LOG, LAPTOP, 60)
    many = derive(LONG_LOG, LAPTOP, 600)
    assert 0 < few.config.data.max_requests < many.config.data.max_requests
    assert few.estimate.requests_per_epoch < many.estimate.requests_per_epoch


def test_five_minutes_of_two_cores_train_on_what_was_measured() -> None:
    """A request of 256 events and 15 targets took 4.1 ms of one core at width 64."""
    estimate = derive(LONG_LOG, LAPTOP, 300).estimate
    measured = 300 / (4.1e-3 / LAPTOP.num_cpus)
    assert 0.5 * measured < estimate.requests_per_epoch < measured


def test_a_gpu_trains_wider_models_on_longer_windows() -> None:
    cpu = derive(LONG_LOG, LAPTOP, 300).config
    gpu = derive(LONG_LOG, GPU, 300).config
    assert gpu.model.width > cpu.model.width
    assert gpu.lengths.mean > cpu.lengths.mean


def test_ids_of_a_small_log_stay_near_their_start() -> None:
    small = dataclasses.replace(SHORT_LOG, num_requests=25_000, num_targets=125_000)
    config = derive(small, LAPTOP, 300).config
    assert config.train.id_init == "lsa"
    larger = derive(SHORT_LOG, LAPTOP, 300).config
    assert config.train.embedding_learning_rate < larger.train.embedding_learning_rate
    assert config.model.id_std > larger.model.id_std


def test_rare_ids_are_hidden_in_training() -> None:
    assert derive(SHORT_LOG, LAPTOP, 300).config.train.id_dropout == 0
    rare = dataclasses.replace(SHORT_LOG, num_items=100_000)
    assert derive(rare, LAPTOP, 300).config.train.id_dropout > 0


def test_an_override_replaces_a_derived_setting_and_says_so() -> None:
    derived = derive(SHORT_LOG, LAPTOP, 300).override(["train.epochs=2", "checks.max_psi=0.5"])
    assert derived.config.train.epochs == 2
    assert derived.config.checks.max_psi == 0.5
    text = to_yaml(derived, SHORT_LOG)
    assert text.count("epochs:") == 1
    assert build(RunConfig, yaml.safe_load(text)) == derived.config


def test_an_unknown_override_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"train\.epochz.*epochs"):
        _ = derive(SHORT_LOG, LAPTOP, 300).override(["train.epochz=2"]).config
