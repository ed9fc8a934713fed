"""Package a trained bundle as a versioned bento, if the three ways to score agree.

    bundle -> build context -> exported folder -> parity check -> BentoML store

A refused version leaves no folder, no model and no bento. BentoML runs in processes of its own
(bento/build.py, `bentoml serve`); this module does not import it.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from longrec.config import GateConfig
from longrec.data import files
from longrec.errors import GateRefused
from longrec.release import model_store, registry
from longrec.release.build_context import PASSED_LABEL, clean_version, stage
from longrec.release.build_script import BuildScript
from longrec.release.model_store import MODEL_NAME
from longrec.release.parity import ParityReport, check_parity

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class PackageReport:
    """A bento that passed the parity check.

    Args:
        tag: of bento and model in the BentoML store.
        path: the same bento as a folder; `bentoml serve <path>` works without the store.
        labels, wheel: see `StagedBento`.
        parity: the check that it passed.
        seconds: wall time.
    """

    tag: str
    path: str
    labels: Mapping[str, str]
    wheel: str
    parity: ParityReport
    seconds: float


def package(
    bundle_dir: str | Path,
    evaluation_dir: str | Path,
    histories_dir: str | Path,
    out_dir: str | Path,
    *,
    parity_path: str | Path,
    version: str,
    workdir: str | Path,
    repo_dir: str | Path,
    gate: GateConfig,
    seed: int,
    code_key: str = "",
    force: bool = False,
) -> PackageReport:
    """Package a bundle as a bento: a folder at `out_dir` and a tag in the BentoML store.

    The evaluation's predictions are copied to the work directory, as the reference of live drift.

    Args:
        bundle_dir, evaluation_dir, histories_dir: the model, its evaluation and its data.
        out_dir: the exported folder.
        parity_path: file for the parity report, also if the bento is refused.
        version: of bento and model, never used twice. Empty: made of the fingerprints of bundle
            and code; the same bento may then be packaged again.
        workdir: LONGREC_HOME with the published features.
        repo_dir: feature_repo of a checkout or of an installed wheel; bento/ is in the same folder.
        gate: `max_parity_error` is the bound of the parity check.
        seed: of the sample of requests.
        code_key: fingerprint of the code that packages.
        force: whether a model that failed its gate is packaged too. It is marked and never becomes
            the champion by itself. The check of its scores stays.

    Raises:
        GateRefused: the evaluation failed its gate, without `force`, or scores differ by more than
            the bound.
        PackagingError: the version exists already, or the bento cannot be built or served.
    """
    started = time.perf_counter()
    script = BuildScript.of_project(repo_dir)
    is_content_version = not version
    version = clean_version(version or _content_version(Path(bundle_dir), code_key))
    tag = f"{MODEL_NAME}:{version}"
    if not is_content_version:
        script.check(tag)
    with (
        files.atomic_replace(out_dir) as folder,
        tempfile.TemporaryDirectory(prefix="longrec-package-") as scratch,
    ):
        staged = stage(
            bundle_dir,
            evaluation_dir,
            Path(scratch) / "context",
            histories_dir=histories_dir,
            repo_dir=repo_dir,
            version=version,
            force=force,
        )
        script.build(staged, bundle_dir, folder, store=Path(scratch) / "store")
        parity = check_parity(
            bundle_dir,
            histories_dir,
            folder,
            workdir=workdir,
            bound=gate.max_parity_error,
            seed=seed,
        )
        files.write_json(parity_path, dataclasses.asdict(parity))
        _require_parity(parity)
        script.import_folder(tag, folder, replace=is_content_version)
    _store_reference(workdir, version, Path(evaluation_dir))
    if staged.labels["gate"] == PASSED_LABEL:
        _adopt_if_first(workdir, version)
    seconds = time.perf_counter() - started
    error = max(parity.scorer_error, parity.http_error)
    log.info("packaged %s in %.1f s, scores differ by at most %.2g", tag, seconds, error)
    return PackageReport(tag, str(out_dir), staged.labels, staged.wheel, parity, seconds)


def restore_bento(
    tag: str,
    folder: str | Path,
    repo_dir: str | Path,
) -> None:
    """Put a packaged bento back into the BentoML store, if it is not there.

    Args:
        tag: of bento and model.
        folder: the exported folder that `package` wrote.
        repo_dir: see `package`.

    Raises:
        PackagingError: the folder holds no such bento.
    """
    name, _, version = tag.partition(":")
    store = model_store.store_dir()
    folders = [store / kind / name / version for kind in ("bentos", "models")]
    if not all(path.is_dir() for path in folders):
        BuildScript.of_project(repo_dir).import_folder(tag, Path(folder), replace=True)


def _content_version(bundle_dir: Path, code_key: str) -> str:
    """Return a version made of the fingerprints of bundle and code."""
    bundle = files.read_json(bundle_dir / "bundle.json")
    return f"{bundle['version'][:12]}-{code_key[:6]}"


def _store_reference(
    workdir: str | Path,
    version: str,
    evaluation_dir: Path,
) -> None:
    with files.atomic_replace(registry.reference_dir(workdir, version)) as reference:
        reference.mkdir()
        shutil.copy(evaluation_dir / "predictions.parquet", reference)


def _adopt_if_first(workdir: str | Path, version: str) -> None:
    """Make the model the champion of the work directory if it has none that can be served."""
    is_adopted = registry.adopt_first_champion(
        workdir,
        model_store.store_dir(),
        version,
        why="the first model packaged for this work directory and schema",
    )
    if is_adopted:
        log.info(
            "%s is now the champion of %s: there was none that could be served",
            version,
            workdir,
        )


def _require_parity(parity: ParityReport) -> None:
    if parity.passed:
        return
    found = f"Scorer {parity.scorer_error:.2g}, HTTP {parity.http_error:.2g}"
    if parity.problems:
        found = "; ".join(parity.problems[:3])
    raise GateRefused(
        "training forward, Scorer and the served bento do not agree",
        found=found,
        expected=f"differences of probabilities of at most {parity.bound:g} from equal histories",
        fix="Nothing was packaged. Publish the features that the histories were made of, "
        "or raise gate.max_parity_error.",
    )
