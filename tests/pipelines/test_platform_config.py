"""The section `platform`: Redis as the online store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from longrec.errors import ConfigError
from pipelines import compiler
from pipelines.platform_config import PlatformConfig

OVERLAY = {"name": "LONGREC_FEATURE_OVERLAY", "value": "redis"}
STEPS = ("publish", "retrieve", "package")


def steps_of(platform: PlatformConfig, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return containers and pods of the training pipeline by the names of their steps."""
    path = compiler.compile_to("training", folder / "training.yaml", platform)
    spec, platforms = yaml.safe_load_all(path.read_text())
    executors = spec["deploymentSpec"]["executors"]
    pods = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    containers = {name: executor["container"] for name, executor in executors.items()}
    return containers, pods


def test_the_address_of_redis_reaches_every_step_that_reads_the_store(tmp_path: Path) -> None:
    containers, _ = steps_of(PlatformConfig(redis="redis.rec:6379"), tmp_path)
    for step in STEPS:
        variables = containers[f"exec-{step}"]["env"]
        assert OVERLAY in variables
        assert {"name": "LONGREC_REDIS", "value": "redis.rec:6379"} in variables
    assert OVERLAY not in containers["exec-join-features"].get("env", [])


def test_an_address_with_a_password_comes_from_a_secret(tmp_path: Path) -> None:
    containers, pods = steps_of(PlatformConfig(redis_secret="redis"), tmp_path)
    for step in STEPS:
        variables = containers[f"exec-{step}"]["env"]
        assert OVERLAY in variables
        assert "LONGREC_REDIS" not in str(variables)
        (given,) = pods[f"exec-{step}"]["secretAsEnv"]
        assert given["secretName"] == "redis"
        assert given["keyToEnv"] == [{"secretKey": "address", "envVar": "LONGREC_REDIS"}]


def test_without_the_key_the_online_store_is_a_file(tmp_path: Path) -> None:
    containers, _ = steps_of(PlatformConfig(), tmp_path)
    assert "LONGREC_FEATURE_OVERLAY" not in str(containers)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"redis": "redis"}, "no address; found redis; expected host:port"),
        ({"redis": "redis:6379,password=x"}, "redis holds a password"),
        ({"redis": "redis:6379", "redis_secret": "redis"}, "not both"),
        ({"redis_secret": "Redis_1"}, "platform.redis_secret is no name"),
    ],
)
def test_a_wrong_address_of_redis_is_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PlatformConfig(**settings)
