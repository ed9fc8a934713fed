"""Fixtures that cost seconds and are shared by the tests of service, packaging and step: made once
per session, on first use.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer.testing
from hypothesis import settings
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from longrec.release.packaging import PackageReport

# Before torch is loaded: spinning threads starve each other on a shared machine. And one process a
# core tests; the small tensors of tests take longer on several threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

CHECKED = [
    "longrec.training.losses",
    *(
        f"longrec.nn.{name}"
        for name in (
            "layers",
            "time_gaps",
            "mixer",
            "ranker",
            "stca",
            "stca_layer",
            "tokens",
            "target_attention.inputs",
            "target_attention.reference",
            "target_attention.reordered",
        )
    ),
]
install_import_hook(CHECKED, "beartype.beartype")
"""Shapes in the annotations of these modules are checked in tests only; here, before any test
imports them.
"""

typer.testing._get_command = functools.cache(typer.main.get_command)  # type: ignore[attr-defined]
"""A process of the command makes its parser once; CliRunner would make it for each call."""

settings.load_profile("ci")  # Hypothesis: the same examples on every machine, and no deadline

ROOT = Path(__file__).parents[1]
VERSION = "tests-1"
LENGTH = 48
PATIENT = {
    "LONGREC_TIMEOUT_MS": "60000",
    "LONGREC_STORE_TIMEOUT_MS": "20000",
    "LONGREC_QUEUE_SECONDS": "60",
}
"""Variables of a service that answers, whole and not degraded, on a machine under load too."""


LONG_FILES = (
    "tests/pipelines/test_end_to_end.py",
    "tests/newcomer/test_newcomer.py",
    "tests/pipelines/test_drills.py",
    "tests/longrec/training/test_checkpoint.py",
    "tests/longrec/training/test_distributed.py",
    "tests/bento/test_operations.py",
)
"""Files whose tests take minutes, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: else one process tests long after the others have ended."""
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the collector of garbage away from the modules, while they are loaded and later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@dataclasses.dataclass(frozen=True)
class ServedWorld:
    """A synthetic dataset, published with a real Feast, and a small ranker trained on it.

    Args:
        path: directory of all that follows: dataset, features, home, histories, bundle, evaluation,
            bentoml.
        environment: BENTOML_HOME with the ranker as the model `longrec-ranker:tests-1`; no
            tracking.
    """

    path: Path

    @property
    def workdir(self) -> Path:
        return self.path / "home"

    @property
    def store(self) -> Path:
        return self.path / "bentoml"

    @property
    def environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("LONGREC_", "BENTOML_"))
        }
        return {
            **inherited,
            "BENTOML_HOME": str(self.store),
            "BENTOML_DO_NOT_TRACK": "True",
            "LONGREC_HOME": str(self.workdir),
        }


def make_world(path: Path, seed: int = 0) -> ServedWorld:
    """Returns a world without a model: dataset, features, feature store, histories."""
    from longrec.config import DataConfig
    from longrec.data import features
    from longrec.data.importers.synthetic import synthesize
    from longrec.data.store.publish import publish
    from longrec.data.store.retrieve import retrieve

    synthesize(path / "dataset", num_users=30, events_per_user=64, num_items=120, seed=seed)
    features.build_features(path / "dataset", path / "features", DataConfig())
    publish(path / "features", path / "home", ROOT / "feature_repo")
    retrieve(
        path / "dataset", path / "home", ROOT / "feature_repo", path / "histories", DataConfig(), 0
    )
    return ServedWorld(path)


@pytest.fixture(scope="session")
def served_world(tmp_path_factory: pytest.TempPathFactory) -> ServedWorld:
    from longrec.config import EvaluateConfig, GateConfig, LengthConfig, ModelConfig, TrainConfig
    from longrec.evaluation.evaluate import evaluate
    from longrec.training.train import train

    world = make_world(tmp_path_factory.mktemp("served"))
    model = ModelConfig(
        width=16, num_layers=2, num_heads=2, id_dim=8, feature_dim=4, mixer_layers=1
    )
    settings = TrainConfig(epochs=4, token_budget=2_000, learning_rate=1e-2, device="cpu")
    train(
        world.path / "histories",
        world.path / "bundle",
        model,
        lengths=LengthConfig("full", maximum=LENGTH),
        train=settings,
        served_lengths=[LENGTH],
        seed=0,
    )
    lenient = GateConfig(max_loss_to_baseline=1.0, min_calibration=0.0, max_calibration=100.0)
    evaluate(
        world.path / "bundle",
        world.path / "histories",
        world.path / "evaluation",
        config=EvaluateConfig(lengths=(LENGTH,), served_length=LENGTH, bootstrap_samples=5),
        gate=lenient,
        seed=0,
    )
    script = (
        "import bentoml, shutil, sys\nwith bentoml.models.create(sys.argv[1]) as model:\n"
        "    shutil.copytree(sys.argv[2], model.path_of('bundle'))\n"
    )
    command = [
        sys.executable,
        "-c",
        script,
        f"longrec-ranker:{VERSION}",
        str(world.path / "bundle"),
    ]
    subprocess.run(command, env=world.environment, check=True)
    return world


@dataclasses.dataclass(frozen=True)
class Packaged:
    """A bento of the served world, packaged for real.

    Args:
        report: of `longrec.release.packaging.package`.
        parity_path: where its parity.json is.
        store: BENTOML_HOME.
    """

    report: PackageReport
    parity_path: Path
    store: Path

    def listed(self) -> tuple[list[str], list[str]]:
        """Tags of the models and of the bentos in the store."""
        environment = {
            **os.environ,
            "BENTOML_HOME": str(self.store),
            "BENTOML_DO_NOT_TRACK": "True",
        }
        found = []
        for command in (["models", "list"], ["list"]):
            done = subprocess.run(
                [sys.executable, "-m", "bentoml", *command, "-o", "json"],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            )
            found.append([row["tag"] for row in json.loads(done.stdout)])
        return found[0], found[1]

    @staticmethod
    def again(world: ServedWorld, out: Path, *, workdir: Path) -> PackageReport:
        """Packages the bundle of a world, as version run-1, into the store that BENTOML_HOME
        names.
        """
        from longrec.config import GateConfig
        from longrec.release.packaging import package, register

        report = package(
            world.path / "bundle",
            world.path / "evaluation",
            world.path / "histories",
            out,
            parity_path=out.parent / "parity.json",
            version="run-1",
            workdir=workdir,
            repo_dir=ROOT / "feature_repo",
            gate=GateConfig(),
            seed=0,
        )
        register(out, world.path / "evaluation", workdir=workdir, repo_dir=ROOT / "feature_repo")
        return report


@pytest.fixture(scope="session")
def packaged(served_world: ServedWorld, tmp_path_factory: pytest.TempPathFactory) -> Packaged:
    folder = tmp_path_factory.mktemp("packaged")
    before = os.environ.get("BENTOML_HOME")
    os.environ["BENTOML_HOME"] = str(folder / "store")
    try:
        report = Packaged.again(served_world, folder / "bento", workdir=served_world.workdir)
    finally:
        if before is None:
            del os.environ["BENTOML_HOME"]
        else:
            os.environ["BENTOML_HOME"] = before
    return Packaged(report, folder / "parity.json", folder / "store")


@pytest.fixture(scope="session")
def server(served_world: ServedWorld) -> Iterator[str]:
    """URL of `bentoml serve bento.service:Ranker` in the root of the checkout."""
    from longrec.release.bento_server import serve_bento

    with serve_bento(
        "bento.service:Ranker",
        workdir=served_world.workdir,
        store=served_world.store,
        folder=ROOT,
        variables=PATIENT,
    ) as (host, port):
        yield f"http://{host}:{port}"
