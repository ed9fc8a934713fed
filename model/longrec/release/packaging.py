"""Packaging: a trained bundle becomes a versioned bento, if the three ways to score agree.

    bundle --stage--> build context --build--> exported folder --serve it--> parity --passed?--> BentoML store
                                               (a store of its own)

Nothing of a refused version is left: neither folder nor model nor bento. BentoML runs in processes of its own (bento/build.py,
`bentoml serve`); this module does not import it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longrec.config import GateConfig
from longrec.data import files
from longrec.errors import GateRefused
from longrec.release import registry
from longrec.release.parity import PackagingError, ParityReport, check_parity, last_line

log = logging.getLogger(__name__)

NAME = registry.NAME
EXTRA = "serve"
"""Extra of the wheel with what the service needs."""
LABEL_METRICS = ("auc", "gauc", "logloss", "ne", "calibration")


@dataclasses.dataclass(frozen=True, slots=True)
class StagedBento:
    """A build context: everything in a bento but the model.

    Args:
        path: directory with bentofile.yaml.
        tag: of the bento and of its model, `longrec-ranker:<version>`.
        labels: fingerprints and metrics, as texts.
        wheel: name of the wheel of longrec.
    """

    path: str
    tag: str
    labels: Mapping[str, str]
    wheel: str


@dataclasses.dataclass(frozen=True, slots=True)
class PackageReport:
    """A bento that passed.

    Args:
        tag: of bento and model in the BentoML store.
        path: the same bento as a folder; `bentoml serve <path>` works without the store.
        labels, wheel: see StagedBento.
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
) -> PackageReport:
    """Returns the report of a new bento: a folder at `out_dir`, and in the BentoML store
    (BENTOML_HOME) under its tag.

    The predictions of its evaluation are copied to the work directory, where the drift of its requests is
    measured against them.

    Args:
        bundle_dir, evaluation_dir, histories_dir: what was trained, what it reached, on what.
        out_dir: where the exported folder goes.
        parity_path: where parity.json goes, also when the bento is refused.
        version: of bento and model, never used twice; empty for one made of the fingerprints of
            bundle and code, under which the same
            bento may be made again.
        workdir: LONGREC_HOME with the published features.
        repo_dir: feature_repo of the checkout; pyproject.toml, model/ and bento/ are beside it.
        gate: its `max_parity_error` is the bound.
        seed: of the sample of requests.
        code_key: fingerprint of the code that packages.

    Raises:
        GateRefused: the evaluation did not pass its gate, or scores differ by more than the bound.
        PackagingError: the version exists already, or the bento cannot be built or served.
    """
    started, build_script = time.perf_counter(), checkout(repo_dir) / "bento" / "build.py"
    again, version = (
        not version,
        version
        or f"{files.read_json(Path(bundle_dir) / 'bundle.json')['version'][:12]}-{code_key[:6]}",
    )
    tag = f"{NAME}:{clean_version(version)}"
    _bentoml(build_script, "check", tag=tag, again=again)
    with (
        files.replacing(out_dir) as folder,
        tempfile.TemporaryDirectory(prefix="longrec-package-") as scratch,
    ):
        staged = stage(
            bundle_dir,
            evaluation_dir,
            Path(scratch) / "context",
            histories_dir=histories_dir,
            repo_dir=repo_dir,
            version=version,
        )
        _bentoml(
            build_script,
            "build",
            workdir=Path(scratch) / "store",
            tag=tag,
            bundle=str(Path(bundle_dir).resolve()),
            context=staged.path,
            labels=dict(staged.labels),
            out=str(folder.resolve()),
        )
        parity = check_parity(
            bundle_dir,
            histories_dir,
            folder,
            workdir=workdir,
            bound=gate.max_parity_error,
            seed=seed,
        )
        files.write_json(parity_path, dataclasses.asdict(parity))
        _refuse_unequal(parity)
        _bentoml(
            build_script,
            "keep",
            tag=tag,
            folder=str(folder.resolve()),
            again=again,
        )
    with files.replacing(registry.reference_dir(workdir, tag.partition(":")[2])) as reference:
        reference.mkdir()
        shutil.copy(Path(evaluation_dir) / "predictions.parquet", reference)
    if registry.adopt(
        workdir,
        registry.store_dir(),
        tag.partition(":")[2],
        why="the first model packaged for this work directory and schema",
    ):
        log.info("%s is the champion of %s, which had none that it could serve", tag, workdir)
    seconds = time.perf_counter() - started
    log.info(
        "packaged %s in %.1f s, scores differ by at most %.2g",
        tag,
        seconds,
        max(parity.scorer_error, parity.http_error),
    )
    return PackageReport(tag, str(out_dir), staged.labels, staged.wheel, parity, seconds)


def keep(tag: str, folder: str | Path, repo_dir: str | Path) -> None:
    """Puts a packaged bento back into the BentoML store, from the folder that `package` wrote;
    nothing is done where it is there.

    Raises:
        PackagingError: the folder holds no such bento.
    """
    name, _, version = tag.partition(":")
    store = registry.store_dir()
    if not all((store / kind / name / version).is_dir() for kind in ("bentos", "models")):
        _bentoml(
            checkout(repo_dir) / "bento" / "build.py",
            "keep",
            tag=tag,
            folder=str(Path(folder).resolve()),
            again=True,
        )


def stage(
    bundle_dir: str | Path,
    evaluation_dir: str | Path,
    out_dir: str | Path,
    *,
    histories_dir: str | Path,
    repo_dir: str | Path,
    version: str,
) -> StagedBento:
    """Returns the build context of a bento after writing it to `out_dir`: service, wheel, feature
    repository, requirements.

    Args:
        bundle_dir, evaluation_dir, histories_dir: what was trained, what it reached, on what.
        out_dir: replaced at once.
        repo_dir: feature_repo of the checkout.
        version: of the bento.

    Raises:
        GateRefused: the evaluation did not pass its gate.
        PackagingError: the evaluation is of another bundle, or the wheel cannot be built.
    """
    root, version = checkout(repo_dir), clean_version(version)
    bundle, evaluation = (
        files.read_json(Path(bundle_dir) / "bundle.json"),
        files.read_json(Path(evaluation_dir) / "metrics.json"),
    )
    _check_evaluation(bundle, evaluation)
    labels = make_labels(bundle, evaluation, files.read_json(Path(histories_dir) / "manifest.json"))
    with files.replacing(out_dir) as context:
        context.mkdir()
        wheel = build_wheel(root, context / "wheels")
        shutil.copyfile(root / "bento" / "service.py", context / "service.py")
        shutil.copyfile(Path(evaluation_dir) / "MODEL_CARD.md", context / "MODEL_CARD.md")
        shutil.copytree(
            repo_dir, context / "feature_repo", ignore=shutil.ignore_patterns("__pycache__", "data")
        )
        (context / "requirements.txt").write_text(
            "\n".join(pinned_requirements(wheel)) + "\n", encoding="utf-8"
        )
        files.write_json(context / "release.json", {"model": f"{NAME}:{version}", "labels": labels})
        files.write_json(
            context / "bentofile.yaml", _build_options(labels, wheel.name)
        )  # JSON is YAML
    return StagedBento(str(Path(out_dir).resolve()), f"{NAME}:{version}", labels, wheel.name)


def checkout(repo_dir: str | Path) -> Path:
    """Returns the folder that holds the feature repository, after checking that the other parts of
    a bento are in it too.
    """
    root = Path(repo_dir).resolve().parent
    for part in (
        "pyproject.toml",
        "model/longrec",
        "bento/service.py",
        "bento/build.py",
        "feature_repo/definitions.py",
    ):
        if not (root / part).exists():
            raise PackagingError(
                f"{root} is not a checkout of longrec",
                found=f"no {part}",
                fix="Give the feature_repo of a checkout.",
            )
    return root


def clean_version(version: str) -> str:
    """Returns a version as a BentoML tag takes it: lower case, at most 63 of letters, digits, `.`,
    `_` and `-`.

    Raises:
        PackagingError: nothing is left of it.
    """
    clean = re.sub(r"[^a-z0-9._-]+", "-", version.lower())[:63].strip("._-")
    if not clean or clean == "latest":
        raise PackagingError(
            "a bento needs a version", found=repr(version), expected="the id of a run"
        )
    if clean != version:
        log.warning("version %r is written %r", version, clean)
    return clean


def make_labels(
    bundle: Mapping[str, Any], evaluation: Mapping[str, Any], manifest: Mapping[str, Any]
) -> dict[str, str]:
    """Returns the labels of a bento: fingerprints of data, schema and bundle, the served length,
    and metrics as `<task>.<metric>`.
    """
    labels = {
        "dataset": manifest.get("dataset"),
        "data": (manifest.get("dataset_hash") or "unknown")[:16],
        "schema": bundle["schema_fingerprint"],
        "bundle": bundle["version"],
        "served_length": bundle["served_length"],
        "longrec": importlib.metadata.version("longrec"),
    }
    for task, row in evaluation["metrics"].items():
        labels |= {
            f"{task}.{name}": f"{row[name]:.5g}"
            for name in LABEL_METRICS
            if row.get(name) is not None
        }
    return {name: str(value) for name, value in labels.items()}


def build_wheel(root: Path, out_dir: Path) -> Path:
    """Returns the wheel of longrec built from a checkout, without the network.

    The sources are copied first: setuptools writes into the tree that it builds, and would pack
    what an older build left there.

    Raises:
        PackagingError: there is not exactly one wheel afterwards.
    """
    out_dir.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="longrec-wheel-") as scratch:
        sources = Path(scratch) / "sources"
        shutil.copytree(
            root / "model" / "longrec",
            sources / "model" / "longrec",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            if (root / name).is_file():
                shutil.copyfile(root / name, sources / name)
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-index",
            "--no-build-isolation",
            "--wheel-dir",
            str(out_dir),
            str(sources),
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
        )
    wheels = sorted(out_dir.glob("longrec-*.whl"))
    if done.returncode or len(wheels) != 1:
        raise PackagingError(
            "the wheel of longrec cannot be built",
            found=last_line(done.stdout + done.stderr) or f"{len(wheels)} wheels",
            fix="Building needs pip and setuptools 77 or newer: pip install 'setuptools>=77'.",
        )
    return wheels[0]


def pinned_requirements(wheel: Path, extra: str = EXTRA) -> list[str]:
    """Returns `name==version` of all that a wheel needs to serve, as installed here: what the
    parity check ran with.

    BentoML is left out, for it adds itself. A requirement that is not installed is returned as it
    was declared.
    """
    from packaging.requirements import Requirement

    (declared,) = importlib.metadata.distributions(path=[str(wheel)])
    todo = [(text, extra) for text in declared.requires or []]
    pins, seen = dict[str, str](), set[tuple[str, str]]()
    while todo:
        text, active = todo.pop()
        requirement = Requirement(text)
        if (text, active) in seen or (
            requirement.marker and not requirement.marker.evaluate({"extra": active})
        ):
            continue
        seen.add((text, active))
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        try:
            found = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            pins.setdefault(name, str(requirement))
            continue
        pins[name] = f"{name}=={found.version.partition('+')[0]}"
        todo += [
            (needed, each) for needed in found.requires or [] for each in ("", *requirement.extras)
        ]
    return [pins[name] for name in sorted(pins.keys() - {"bentoml", "longrec"})]


def _refuse_unequal(parity: ParityReport) -> None:
    if parity.passed:
        return
    found = (
        f"Scorer {parity.scorer_error:.2g}, HTTP {parity.http_error:.2g}"
        if not parity.problems
        else "; ".join(parity.problems[:3])
    )
    raise GateRefused(
        "training forward, Scorer and the served bento do not agree",
        found=found,
        expected=f"differences of probabilities of at most {parity.bound:g} from equal histories",
        fix="Nothing was packaged. Publish the features that the histories were made of, or raise gate.max_parity_error.",
    )


def _check_evaluation(bundle: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
    if evaluation["bundle"]["version"] != bundle["version"]:
        raise PackagingError(
            "the evaluation is of another bundle",
            found=evaluation["bundle"]["version"],
            expected=bundle["version"],
            fix="Evaluate this bundle.",
        )
    if not evaluation["gate"]["passed"]:
        raise GateRefused(
            "the model did not pass its gate", found="; ".join(evaluation["gate"]["reasons"])
        )


def _build_options(labels: Mapping[str, str], wheel: str) -> dict[str, Any]:
    """Returns the content of bentofile.yaml; packages are not locked by BentoML, which would ask
    the network, and are pinned already.
    """
    return {
        "service": "service:Ranker",
        "name": NAME,
        "labels": dict(labels),
        "description": "file:./MODEL_CARD.md",
        "include": ["service.py", "release.json", "MODEL_CARD.md", "feature_repo/**"],
        "python": {
            "requirements_txt": "requirements.txt",
            "wheels": [f"wheels/{wheel}"],
            "lock_packages": False,
        },
        "docker": {"python_version": f"{sys.version_info.major}.{sys.version_info.minor}"},
    }


def _bentoml(
    script: Path,
    verb: str,
    *,
    workdir: Path | None = None,
    **arguments: Any,
) -> None:
    """Runs bento/build.py on the store in `workdir`, by default on BENTOML_HOME."""
    environment = {
        **os.environ,
        "BENTOML_DO_NOT_TRACK": "True",
        **({"BENTOML_HOME": str(workdir)} if workdir else {}),
    }
    if workdir:
        workdir.mkdir()
    done = subprocess.run(
        [sys.executable, str(script), verb, json.dumps(arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        log.info("%s", done.stdout + done.stderr)
        found = last_line(done.stderr) or f"exit code {done.returncode}"
        raise PackagingError(
            f"bentoml could not {verb} {arguments['tag']}",
            found=found,
            fix="Give the run another id." if verb == "check" else "",
        )
