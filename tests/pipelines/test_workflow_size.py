"""The model of a workflow's size: true for a recorded run, and what our runs need."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from longrec.config import DataConfig, RunConfig
from longrec.runs.run import pipeline_arguments
from pipelines import compiler
from pipelines.platform_config import build_platform
from pipelines.workflow_size import MAX_BYTES, workflow_size

RECORD = Path(__file__).parent / "recorded_workflow.json"
"""A run of one shard on Kubeflow Pipelines 2.17: what was compiled, and the size of its nodes."""


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(RECORD.read_text())
    return value


def test_the_model_gives_the_size_of_a_recorded_run(record: dict[str, Any]) -> None:
    size = workflow_size(record["pipeline_spec"], record["platform_spec"], record["arguments"])
    assert size.num_bytes == pytest.approx(record["bytes"], rel=0.05)
    assert size.num_nodes == record["nodes"]


def test_the_model_gives_the_size_of_a_recorded_run_of_four_shards(record: dict[str, Any]) -> None:
    arguments = {**record["arguments"], "shards": ["1/4", "2/4", "3/4", "4/4"]}
    size = workflow_size(record["pipeline_spec"], record["platform_spec"], arguments)
    assert size.num_bytes == pytest.approx(1_614_761, rel=0.05)
    assert size.num_nodes == 259


def _size_of(name: str, shards: int) -> int:
    graph, platform = yaml.safe_load_all((compiler.FOLDER / f"{name}.yaml").read_text())
    config = dataclasses.replace(RunConfig(), data=DataConfig(shards=shards))
    known = graph["root"]["inputDefinitions"]["parameters"]
    arguments = pipeline_arguments(config, "s3://bucket/dataset", only=known)
    return workflow_size(graph, platform, arguments).num_bytes


@pytest.mark.parametrize("name", ["training", "refresh"])
def test_a_run_of_32_shards_in_eight_items_stays_readable(name: str) -> None:
    assert _size_of(name, shards=32) < 0.9 * MAX_BYTES, "the rest is for secrets and variables"


def test_a_run_of_32_shards_with_a_store_and_its_secrets_stays_readable() -> None:
    """As the guide sets up a cluster; the specification of the workflow counts too."""
    platform = build_platform(
        {
            "env": {"AWS_ENDPOINT_URL": "http://minio-service.kubeflow:9000"},
            "secrets": {
                "s3": {"accesskey": "AWS_ACCESS_KEY_ID", "secretkey": "AWS_SECRET_ACCESS_KEY"}
            },
            "webhook_secret": "longrec-webhook",
        }
    )
    made = compiler.pipeline("training", platform)
    spec = compiler.specification(made)
    config = dataclasses.replace(RunConfig(), data=DataConfig(shards=32))
    arguments = pipeline_arguments(config, "s3://bucket/dataset", only=made.component_spec.inputs)
    size = workflow_size(spec["pipeline_spec"], spec["platform_spec"], arguments)
    assert not size.is_too_large


def test_more_shards_make_no_larger_workflow() -> None:
    assert _size_of("training", shards=1_000) < 1.01 * _size_of("training", shards=8)


def test_trials_of_a_study_count() -> None:
    graph, platform = yaml.safe_load_all((compiler.FOLDER / "study.yaml").read_text())
    arguments = {"data_uri": "s3://bucket/dataset", "study": "name: x", "shards": ["1/1"]}
    sizes = [
        workflow_size(graph, platform, arguments, outputs={"plan.Output": ["{}"] * count})
        for count in (0, 1, 3)
    ]
    first, second, third = [size.num_bytes for size in sizes]
    assert third - second == pytest.approx(2 * (second - first), rel=0.01)
