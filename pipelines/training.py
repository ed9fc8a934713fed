"""The training pipeline: dataset -> features -> feature store -> histories -> bundle -> evaluation -> (gate) -> bento.

    dataset --> check-events --(report)--> build-features --> publish --> retrieve --> check-histories
                                                                              \\              |(report)
                                                                               \\---------> train --> evaluate --(passed?)--> package

The arrows are artifacts: the feature build needs the report of the passed checks of the events, training that of the histories.
`python -m pipelines.training` writes pipelines/compiled/training.yaml; so does `longrec compile`.
"""

import sys
import tempfile
from pathlib import Path

from kfp import compiler, dsl

from longrec.errors import LongrecError

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # `kfp dsl compile --py` puts this folder on the path, not the root
    sys.path.insert(0, str(ROOT))

from components.build_features import build_features  # noqa: E402
from components.check_events import check_events  # noqa: E402
from components.check_histories import check_histories  # noqa: E402
from components.evaluate import evaluate as evaluate_ranker  # noqa: E402
from components.package import package  # noqa: E402
from components.publish import publish  # noqa: E402
from components.retrieve import retrieve  # noqa: E402
from components.train import train as train_ranker  # noqa: E402

COMPILED = ROOT / "pipelines" / "compiled" / "training.yaml"


@dsl.pipeline(name="longrec-training", description="From a dataset to a checked, trained, evaluated and packaged ranker.")
def training(
    data_uri: str,
    run_id: str = "",
    home: str = "/var/lib/longrec",
    repo_dir: str = "/opt/longrec/feature_repo",
    seed: int = 0,
    served_length: int = 10_000,
    data: dict = {},
    checks: dict = {},
    model: dict = {},
    lengths: dict = {},
    train: dict = {},
    evaluate: dict = {},
    gate: dict = {},
):
    """Trains and packages a ranker.

    Args:
        data_uri: the dataset directory (`longrec import`, `longrec synth`) or its address in an object store.
        run_id: names the bento; empty for the id of the pipeline job.
        home: directory of the feature store (a volume that serving mounts too).
        repo_dir: directory of the feature repository in the image.
        seed: seeds everything that is random.
        served_length: the history length that ships; metrics and gate are taken at it.
        data, checks, model, lengths, train, evaluate, gate: the sections of the configuration (longrec.config); keys that
            are left out keep their defaults.
    """
    dataset = dsl.importer(artifact_uri=data_uri, artifact_class=dsl.Dataset, reimport=False)
    dataset.set_display_name("dataset")
    events_checked = check_events(dataset=dataset.output, checks=checks, home=home)
    features = build_features(dataset=dataset.output, events_report=events_checked.outputs["report"], data=data)
    published = publish(features=features.outputs["features"], home=home, repo_dir=repo_dir)
    retrieved = retrieve(
        dataset=dataset.output, published=published.outputs["published"], home=home, repo_dir=repo_dir, data=data, seed=seed
    )
    histories = retrieved.outputs["histories"]
    histories_checked = check_histories(histories=histories, checks=checks)
    trained = train_ranker(
        histories=histories, histories_report=histories_checked.outputs["report"], model=model, lengths=lengths, training=train,
        served_length=served_length, seed=seed,
    )
    evaluated = evaluate_ranker(
        bundle=trained.outputs["bundle"], histories=histories, evaluation_config=evaluate, gate=gate, served_length=served_length, seed=seed
    )
    with dsl.If(evaluated.outputs["Output"] == True, name="gate passed"):  # noqa: E712  (kfp overloads ==)
        package(
            bundle=trained.outputs["bundle"], evaluation=evaluated.outputs["evaluation"], histories=histories, gate=gate, run_id=run_id,
            job_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, home=home, repo_dir=repo_dir, seed=seed,
        )


def compile_to(path: Path) -> Path:
    """Returns `path` after writing the compiled pipeline to it: one YAML document (two where a step has platform options)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(training, str(path))
    return path


def check_compiled(path: Path) -> None:
    """Returns nothing when `path` is what compiling would write.

    Raises:
        LongrecError: it is missing or differs.
    """
    with tempfile.TemporaryDirectory() as folder:
        fresh = compile_to(Path(folder) / path.name).read_bytes()
    if not path.is_file() or path.read_bytes() != fresh:
        raise LongrecError(f"{path} is not up to date", fix="Run 'make compile' and commit the result.")


if __name__ == "__main__":
    compile_to(COMPILED)
