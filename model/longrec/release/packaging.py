"""Package a trained bundle as a versioned bento, if the three ways to score agree.

    package     bundle -> build context -> exported folder -> parity check
    register    exported folder -> BentoML store, reference of live drift, first champion

A refused version leaves no folder, no model and no bento. BentoML runs in processes of its own
(bento/build.py, `bentoml serve`); this module does not import it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from longrec.config import GateConfig
from longrec.data import files
from longrec.data.upkeep.forget_list import forgotten_users
from longrec.data.upkeep.row_removal import remove_from_file
from longrec.errors import GateRefused
from longrec.release import model_store, registry
from longrec.release.build_context import PASSED_LABEL, clean_version, stage
from longrec.release.build_script import BuildScript
from longrec.release.catalog import RUN_VARIABLE, NewVersion, announce_version
from longrec.release.model_store import MODEL_NAME
from longrec.release.parity import ParityReport, check_parity

log = logging.getLogger(__name__)

RELEASE_FILE = "release.json"
"""File of a bento's sources with the tag of its model."""
BENTO_FILE = "bento.yaml"
"""File of a bento with all that BentoML knows of it."""
PREDICTIONS_FILE = "predictions.parquet"


@dataclasses.dataclass(frozen=True, slots=True)
class PackageReport:
    """A bento that passed the parity check.

    Args:
        tag: of bento and model.
        path: the bento as a folder; `bentoml serve <path>` works without a store.
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


@dataclasses.dataclass(frozen=True, slots=True)
class RegisterReport:
    """A bento that a work directory knows.

    Args:
        tag: of bento and model in the BentoML store.
        was_stored: whether the store held this very bento before.
        was_adopted: whether the model became the champion, because there was none.
    """

    tag: str
    was_stored: bool
    was_adopted: bool


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
    """Package a bundle as a bento, a folder at `out_dir`; `register` makes it known.

    Nothing else is written, so a cached result is as good as a new one.

    Args:
        bundle_dir, evaluation_dir, histories_dir: the model, its evaluation and its data.
        out_dir: the exported folder.
        parity_path: file for the parity report, also if the bento is refused.
        version: of bento and model, never used twice. Empty: made of the fingerprints of bundle
            and code; the same bento may then be packaged again.
        workdir: LONGREC_HOME with the published features; it is only read.
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
    seconds = time.perf_counter() - started
    error = max(parity.scorer_error, parity.http_error)
    log.info("packaged %s in %.1f s, scores differ by at most %.2g", tag, seconds, error)
    return PackageReport(tag, str(out_dir), staged.labels, staged.wheel, parity, seconds)


def register(
    bento_dir: str | Path,
    evaluation_dir: str | Path,
    *,
    workdir: str | Path,
    repo_dir: str | Path,
) -> RegisterReport:
    """Make a packaged bento known to a work directory; what is there already stays.

    It goes to the BentoML store, the predictions of its evaluation become the reference of live
    drift, and the first model that passed its gate becomes the champion. So this runs after every
    packaging, also where the folder comes from a cache and the work directory is a new one.

    Args:
        bento_dir: the exported folder that `package` wrote.
        evaluation_dir, workdir, repo_dir: as for `package`.

    Raises:
        PackagingError: the folder holds no bento, or it cannot be stored.
    """
    folder = Path(bento_dir)
    release = files.read_json(folder / "src" / RELEASE_FILE)
    tag = release["model"]
    version = tag.partition(":")[2]
    was_stored = _is_stored(tag, folder)
    if not was_stored:
        BuildScript.of_project(repo_dir).import_folder(tag, folder, replace=True)
    _store_reference(workdir, version, Path(evaluation_dir))
    announce_version(
        NewVersion(
            version,
            bundle=model_store.bundle_dir(model_store.store_dir(), version),
            labels=release["labels"],
            evaluation=Path(evaluation_dir),
            run=os.environ.get(RUN_VARIABLE, ""),
        )
    )
    has_passed = release["labels"]["gate"] == PASSED_LABEL
    was_adopted = has_passed and _adopt_if_first(workdir, version)
    return RegisterReport(tag, was_stored, was_adopted)


def _is_stored(tag: str, folder: Path) -> bool:
    """Return whether the BentoML store holds the very bento of a folder, and its model."""
    name, _, version = tag.partition(":")
    store = model_store.store_dir()
    stored = store / "bentos" / name / version / BENTO_FILE
    model = store / "models" / name / version / model_store.BUNDLE_FOLDER
    if not stored.is_file() or not model.is_dir():
        return False
    return stored.read_bytes() == (folder / BENTO_FILE).read_bytes()


def _content_version(bundle_dir: Path, code_key: str) -> str:
    """Return a version made of the fingerprints of bundle and code."""
    bundle = files.read_json(bundle_dir / "bundle.json")
    return f"{bundle['version'][:12]}-{code_key[:6]}"


def _store_reference(
    workdir: str | Path,
    version: str,
    evaluation_dir: Path,
) -> None:
    """Copy the predictions of an evaluation to the work directory, without forgotten users."""
    with files.atomic_replace(registry.reference_dir(workdir, version)) as reference:
        reference.mkdir()
        shutil.copy(evaluation_dir / PREDICTIONS_FILE, reference)
        remove_from_file(reference / PREDICTIONS_FILE, forgotten_users(workdir))


def _adopt_if_first(workdir: str | Path, version: str) -> bool:
    """Make the model the champion of the work directory if it has none that can be served.

    Returns:
        Whether it became the champion.
    """
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
    return is_adopted


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
