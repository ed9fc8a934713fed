"""What a pipeline made at one mount point is served at another one, from the exported bento.

The chain is that of docs/guides/kubeflow.md: the user of both images, a read-only root, the
variables and mounts of Dockerfile and manifests. Requirements and wheel of the bento are in an
environment of their own.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from longrec.data.store.versions import online_type
from longrec.release.bento_server import _free_port
from pipelines.platform_config import PlatformConfig
from pipelines.task_settings import store_variables
from tests.longrec.data import redis_server
from tests.pipelines.container import (
    USER,
    Container,
    fresh_environment,
    give_to_user,
    require_containers,
)
from tests.pipelines.test_end_to_end import CONFIG

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"
TOKEN = "a-token-of-the-tests"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def image_variables(dockerfile: Path) -> dict[str, str]:
    """Return the variables that the last stage of a Dockerfile sets."""
    stage = dockerfile.read_text().rpartition("\nFROM ")[2].replace("\\\n", " ")
    (line,) = re.findall(r"^ENV (.*)$", stage, re.M)
    variables = dict(pair.split("=", 1) for pair in line.split())
    path = variables["PATH"].replace("$PATH", "/usr/bin:/bin")
    return {**variables, "PATH": path}


def entrypoint(dockerfile: Path) -> list[str]:
    """Return the command of an image."""
    (line,) = re.findall(r"^ENTRYPOINT (.*)$", dockerfile.read_text(), re.M)
    command: list[str] = json.loads(line)
    return command


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A volume, and the containers that mount it.

    Args:
        folder: with the volume `home` and the environment `venv` of the bento.
    """

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def bento(self) -> Path:
        (found,) = self.home.glob("runs/[0-9]*/artifacts/*/package/bento")
        return found

    def summary(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(
            (self.home / "runs" / "latest" / "summary.json").read_text()
        )
        return content

    def longrec(self, platform: PlatformConfig, *arguments: str) -> None:
        """Run a command in the image of the steps, with the work directory where it mounts it."""
        image = image_variables(ROOT / "Dockerfile")
        variables = {
            **image,
            **store_variables(platform),
            "PATH": f"{ROOT}/.venv/bin:/usr/bin:/bin",
            "LONGREC_ROOT": str(ROOT),
        }
        container = Container(
            self.folder / "root", {str(ROOT): ROOT}, {platform.workdir: self.home}, variables
        )
        done = container.run("longrec", *arguments, "--workdir", platform.workdir)
        assert done.returncode == 0, done.stderr[-2000:]

    def rank(self, request: dict[str, Any], **settings: str) -> dict[str, Any]:
        """Return the answer of a new pod to a request.

        Args:
            request: body of POST /rank.
            settings: variables of the ConfigMap.
        """
        deployment = yaml.safe_load((MANIFESTS / "base" / "deployment.yaml").read_text())
        pod = deployment["spec"]["template"]["spec"]
        (described,) = pod["containers"]
        assert pod["securityContext"]["runAsUser"] == USER
        mounts = {mount["name"]: mount["mountPath"] for mount in described["volumeMounts"]}
        dockerfile = ROOT / "deploy" / "Dockerfile"
        container = Container(
            self.folder / "root",
            {
                "/venv": self.folder / "venv",
                "/bento": self.bento,
                mounts["token"]: self.folder / "secret",
            },
            {mounts["home"]: self.home},
            {
                **image_variables(dockerfile),
                **{variable["name"]: variable["value"] for variable in described["env"]},
                **settings,
                "LONGREC_STORE_TIMEOUT_MS": "20000",
                "LONGREC_TIMEOUT_MS": "60000",
            },
        )
        port = _free_port()
        command = [*entrypoint(dockerfile), "--host", "127.0.0.1", "--port", str(port)]
        log = self.folder / "log"
        with container.started(log, *command) as process:
            wait_until_ready(port, process, log)
            return post(f"http://127.0.0.1:{port}/rank", request)


def wait_until_ready(port: int, process: subprocess.Popen[Any], log: Path) -> None:
    for _ in range(900):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: dict[str, Any] = json.load(answer)
    return content


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A pipeline has run to its end, and its bento is installed."""
    require_containers()
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    cluster.home.mkdir()
    (cluster.home / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    (cluster.folder / "secret").mkdir()
    (cluster.folder / "secret" / "token").write_text(f"{TOKEN}\n")
    give_to_user(cluster.home)
    platform = PlatformConfig()
    config = f"{platform.workdir}/tiny.yaml"
    cluster.longrec(platform, "run", "--config", config, "--users", "60", "--events", "64")
    fresh_environment(cluster.folder / "venv", cluster.bento, "/venv")
    return cluster


@pytest.fixture(scope="module")
def answer(cluster: Cluster) -> dict[str, Any]:
    """The answer to the example of the run."""
    return cluster.rank(cluster.summary()["example"])


def test_the_service_reads_what_the_pipeline_wrote_at_another_mount_point(
    cluster: Cluster, answer: dict[str, Any]
) -> None:
    request = cluster.summary()["example"]
    assert answer["user_known"]
    assert answer["history_length"] > 0
    assert not answer["degraded"]
    assert len(answer["scores"]["label"]) == len(request["candidates"])
    assert online_type((cluster.home / "store" / "current").resolve()) == "sqlite"


def test_with_redis_the_answer_is_the_same(
    cluster: Cluster, answer: dict[str, Any], tmp_path: Path
) -> None:
    request = cluster.summary()["example"]
    dataset = cluster.summary()["dataset"]["path"]
    with redis_server.running(tmp_path) as address:
        platform = PlatformConfig(redis=address)
        config = f"{platform.workdir}/tiny.yaml"
        cluster.longrec(platform, "refresh", "--config", config, "--data", dataset)
        assert online_type((cluster.home / "store" / "current").resolve()) == "redis"
        assert cluster.rank(request, LONGREC_REDIS=address) == answer
