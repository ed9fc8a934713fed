"""Record which packaged model is the champion, and who decided that, when and why.

    LONGREC_HOME/models/registry.json     the champion now: a ModelRegistry, replaced by one rename
    LONGREC_HOME/models/log.jsonl         all decisions, one Decision per line, append-only
    LONGREC_HOME/models/reference/        predictions.parquet of each version's evaluation
                                          (longrec.release.monitoring)
    LONGREC_HOME/models/workers/*.json    state of each worker of a service: version, refusals and
                                          its part of the shadow report

Shadow: a challenger answers copies of some requests; nobody sees its answers. A service reads
registry.json once a second. Nothing is promoted automatically: a person or a pipeline decides and
gives a reason. The models themselves are in the BentoML store
(longrec.release.model_store).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import getpass
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from longrec.config import GateConfig
from longrec.data import files
from longrec.errors import DataError, LongrecError
from longrec.openlineage import LineageDataset, LineageJob, LineageRun, emitted
from longrec.release import model_store
from longrec.release.catalog import announce_aliases
from longrec.release.model_store import MODEL_NAME, ModelError

FORMAT_VERSION = 1
"""Version of the format of registry.json."""
MIN_SHADOW_PAIRS = 100
"""Mirrored requests that a shadow report needs; with fewer it says that it knows little."""
MAX_DECISION_SECONDS = 60.0
"""Longest wait for another decision; one takes less than a second."""
DEFAULT_MIRROR_SHARE = 0.1
LOG_FILE = "log.jsonl"
Action = Literal["adopt", "promote", "rollback", "shadow", "unshadow"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """A change of the registry.

    Args:
        generation: number of the decision in its work directory, from 1.
        action: kind of the change.
        version: the version that it concerns; None for the end of a shadow.
        replaced: the champion before; for a shadow, the challenger before.
        by: who decided.
        why: the reason given.
        at: time, ISO 8601, UTC.
    """

    generation: int
    action: Action
    version: str | None
    replaced: str | None
    by: str
    why: str
    at: str


@dataclasses.dataclass(frozen=True, slots=True)
class ModelRegistry:
    """The content of registry.json: the champion and its challenger.

    Args:
        champion: version that answers; None before the first model, when a service uses its own.
        previous: champion before it, the target of a rollback.
        challenger: version that gets a copy of some requests; nobody sees its answers.
        mirror_share: share of the requests that are copied, 0 to 1.
        last: the latest decision; None before the first.
    """

    champion: str | None = None
    previous: str | None = None
    challenger: str | None = None
    mirror_share: float = 0.0
    last: Decision | None = None

    @property
    def generation(self) -> int:
        """Number of decisions so far."""
        return 0 if self.last is None else self.last.generation

    def with_champion(self, version: str) -> ModelRegistry:
        """Return the registry with another champion, which is no challenger any more."""
        after = dataclasses.replace(
            self,
            champion=version,
            previous=self.champion,
        )
        return after.without_challenger() if self.challenger == version else after

    def without_challenger(self) -> ModelRegistry:
        """Return the registry without a shadow."""
        return dataclasses.replace(self, challenger=None, mirror_share=0.0)


@dataclasses.dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in the BentoML store.

    Args:
        version: behind the colon of its tag.
        created: ISO 8601, as BentoML wrote it.
        schema: fingerprint of the schema that it was trained for.
        bundle: version of the bundle; equal ones give equal scores.
        labels: as packaged: fingerprints, `<task>.<metric>`.
        role: champion, previous, challenger or empty.
        problem: why it cannot be served from this work directory; empty if it can.
    """

    version: str
    created: str
    schema: str
    bundle: str
    labels: Mapping[str, str]
    role: str
    problem: str


def registry_path(workdir: str | Path) -> Path:
    """Return the file that records the champion; services watch it."""
    return Path(workdir) / "models" / "registry.json"


def reference_dir(workdir: str | Path, version: str) -> Path:
    """Return the folder of a version's evaluation predictions, the reference of live drift."""
    return Path(workdir) / "models" / "reference" / version


def read_registry(workdir: str | Path) -> ModelRegistry:
    """Return the registry of a work directory; empty before the first decision.

    Raises:
        DataError: the file is damaged, or has an unknown format version.
    """
    path = registry_path(workdir)
    if not path.exists():
        return ModelRegistry()
    content = files.read_json(path)
    fix = f"The last line of {path.with_name(LOG_FILE)} is the latest decision."
    if not isinstance(content, dict):
        raise DataError(
            f"{path} is damaged",
            found=type(content).__name__,
            fix=fix,
        )
    format_version = content.pop("format_version", None)
    if format_version != FORMAT_VERSION:
        raise DataError(
            f"{path} has an unknown format version",
            found=format_version,
            expected=FORMAT_VERSION,
            fix="Use the longrec that wrote it, or remove the file and choose the champion again: "
            "longrec models promote VERSION --why REASON.",
        )
    try:
        last = content.pop("last")
        decision = None if last is None else Decision(**last)
        return ModelRegistry(**content, last=decision)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged",
            found=str(error),
            fix=fix,
        ) from error


def read_decisions(workdir: str | Path) -> list[Decision]:
    """Return all decisions of a work directory, oldest first."""
    path = registry_path(workdir).with_name(LOG_FILE)
    decisions = [Decision(**json.loads(line)) for line in _whole_lines(path)]
    # A kill may have come between writing the registry and its line in the log.
    last = read_registry(workdir).last
    if last is None:
        return decisions
    is_logged = bool(decisions) and decisions[-1].generation >= last.generation
    return decisions if is_logged else [*decisions, last]


def _whole_lines(path: Path) -> list[str]:
    """Return the complete lines of the log; a kill may leave half a line."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.endswith("}")]


def list_models(workdir: str | Path, store: str | Path) -> list[StoredModel]:
    """Return the models of a store, newest first, as seen from a work directory."""
    registry = read_registry(workdir)
    roles = {
        registry.previous: "previous",
        registry.challenger: "challenger",
        registry.champion: "champion",
    }
    found = []
    for path in sorted((Path(store) / "models" / MODEL_NAME).glob("*/model.yaml")):
        role = roles.get(path.parent.name, "")
        found.append(_stored_model(workdir, store, path, role))
    return sorted(
        found,
        key=lambda model: (model.created, model.version),
        reverse=True,
    )


def _stored_model(
    workdir: str | Path,
    store: str | Path,
    path: Path,
    role: str,
) -> StoredModel:
    """Return one model of the store.

    Args:
        workdir: the work directory that would serve it.
        store: the BentoML store.
        path: model.yaml of the model.
        role: its role in the work directory.
    """
    import yaml

    version = path.parent.name
    # BaseLoader makes every value a text and no objects.
    text = path.read_text(encoding="utf-8")
    description = yaml.load(text, yaml.BaseLoader)  # noqa: S506
    bundle: dict[str, Any] = {}
    problem = ""
    try:
        folder = model_store.bundle_dir(store, version)
        bundle = files.read_json(folder / "bundle.json")
        model_store.check_schema(folder, model_store.published_schema(workdir))
    except LongrecError as error:
        problem = str(error)
    return StoredModel(
        version=version,
        created=str(description.get("creation_time", "")),
        schema=str(bundle.get("schema_fingerprint", "")),
        bundle=str(bundle.get("version", "")),
        labels=dict(description.get("labels") or {}),
        role=role,
        problem=problem,
    )


def promote(
    workdir: str | Path,
    store: str | Path,
    version: str,
    *,
    by: str,
    why: str,
) -> ModelRegistry:
    """Make a version the champion; return the new registry.

    A challenger that is promoted leaves the shadow.

    Raises:
        ModelError: it is the champion already, or it is not in the store.
        SchemaMismatch, DataError: it is for another schema than the published features, or damaged.
    """
    model_store.check_servable(workdir, store, version)
    with _locked_registry(workdir) as before:
        if before.champion == version:
            raise ModelError(f"{version} is the champion already")
        return _record(
            workdir,
            before,
            before.with_champion(version),
            action="promote",
            version=version,
            replaced=before.champion,
            by=by,
            why=why,
        )


def rollback(
    workdir: str | Path,
    store: str | Path,
    *,
    by: str,
    why: str,
) -> ModelRegistry:
    """Swap the champion and the previous one; return the new registry.

    A second rollback undoes the first.

    Raises:
        ModelError: there is no previous champion, or it is no longer in the store.
        SchemaMismatch, DataError: it no longer fits the published features, or it is damaged.
    """
    with _locked_registry(workdir) as before:
        version = before.previous
        if version is None:
            raise ModelError(
                "there is no champion to go back to",
                found=f"champion {before.champion}",
                fix="See: longrec models list",
            )
        model_store.check_servable(workdir, store, version)
        return _record(
            workdir,
            before,
            before.with_champion(version),
            action="rollback",
            version=version,
            replaced=before.champion,
            by=by,
            why=why,
        )


def start_shadow(
    workdir: str | Path,
    store: str | Path,
    version: str,
    share: float,
    *,
    by: str,
    why: str,
) -> ModelRegistry:
    """Send a copy of some requests to a challenger; return the new registry.

    Its answers are only compared with those of the champion.

    Args:
        workdir: LONGREC_HOME.
        store: the BentoML store.
        version: the challenger.
        share: share of the requests that are copied, above 0, at most 1.
        by, why: who decides, and the reason.

    Raises:
        ModelError: it is the champion, it is not in the store, or the share is out of range.
        SchemaMismatch, DataError: it is for another schema than the published features, or damaged.
    """
    if not 0 < share <= 1:
        raise ModelError(
            "the share of mirrored requests is out of range",
            found=share,
            expected="above 0, at most 1",
        )
    model_store.check_servable(workdir, store, version)
    with _locked_registry(workdir) as before:
        if before.champion == version:
            raise ModelError(f"{version} is the champion: there is nothing to compare it with")
        return _record(
            workdir,
            before,
            dataclasses.replace(
                before,
                challenger=version,
                mirror_share=share,
            ),
            action="shadow",
            version=version,
            replaced=before.challenger,
            by=by,
            why=why,
        )


def stop_shadow(workdir: str | Path, *, by: str, why: str) -> ModelRegistry:
    """End the shadow and return the new registry; its report stays until the next one.

    Raises:
        ModelError: no version runs in the shadow.
    """
    with _locked_registry(workdir) as before:
        if before.challenger is None:
            raise ModelError("no version runs in the shadow")
        return _record(
            workdir,
            before,
            before.without_challenger(),
            action="unshadow",
            version=None,
            replaced=before.challenger,
            by=by,
            why=why,
        )


def adopt_first_champion(
    workdir: str | Path,
    store: str | Path,
    version: str,
    *,
    why: str,
) -> bool:
    """Make a version the champion if the work directory has none; return whether it was made.

    A champion for another schema than the published features does not count: no service could load
    it from this work directory.
    """
    with _locked_registry(workdir) as before:
        champion = before.champion
        is_servable = champion is not None and not model_store.has_other_schema(
            workdir,
            store,
            champion,
        )
        if is_servable:
            return False
        after = dataclasses.replace(before.without_challenger(), champion=version)
        _record(
            workdir,
            before,
            after,
            action="adopt",
            version=version,
            replaced=champion,
            by=current_user(),
            why=why,
        )
        return True


def compared_champion(workdir: str | Path, gate: GateConfig) -> str:
    """Return the version of the champion that the gate compares with; empty without one."""
    if not gate.against_champion:
        return ""
    return read_registry(workdir).champion or ""


def champion_bundle(
    workdir: str | Path,
    store: str | Path,
    version: str,
) -> Path | None:
    """Return the bundle of the champion for the gate; None if there is nothing to compare.

    There is nothing without a version, if it is not in the store, or if it has another schema than
    the published features.

    Args:
        workdir: LONGREC_HOME.
        store: the BentoML store.
        version: the champion's version; empty without one.
    """
    if not version or model_store.has_other_schema(workdir, store, version):
        return None
    try:
        return model_store.bundle_dir(store, version)
    except ModelError as error:
        logger.warning("the gate compares with no champion: %s", error)
        return None


def current_user() -> str:
    """Return who runs this process: $USER, else the name of its user."""
    with contextlib.suppress(OSError, KeyError, ImportError):
        return os.environ.get("USER") or getpass.getuser()
    return f"uid {os.getuid()}"


@contextlib.contextmanager
def _locked_registry(workdir: str | Path) -> Iterator[ModelRegistry]:
    """Yield the registry; other decisions wait until the block ends.

    Raises:
        ModelError: another decision took longer than MAX_DECISION_SECONDS.
    """
    path = registry_path(workdir)
    path.parent.mkdir(parents=True, exist_ok=True)
    busy = ModelError("another decision about the models is in progress", fix="Try again.")
    with files.locked(path.with_name(".lock"), busy, MAX_DECISION_SECONDS):
        before = read_registry(workdir)
        _complete_log(path.with_name(LOG_FILE), read_decisions(workdir))
        yield before


def _record(
    workdir: str | Path,
    before: ModelRegistry,
    after: ModelRegistry,
    **decision: Any,
) -> ModelRegistry:
    """Write the registry, then append to the log; return the registry as it was written.

    Args:
        workdir: LONGREC_HOME.
        before: the registry until now.
        after: the registry from now on, without its decision.
        decision: action, version, replaced, by and why of the `Decision`.
    """
    why = decision.pop("why").strip()
    if not why:
        raise ModelError("a decision needs a reason", fix="Give it with --why.")
    now = datetime.datetime.now(datetime.UTC)
    last = Decision(
        generation=before.generation + 1,
        why=why,
        at=now.isoformat(timespec="seconds"),
        **decision,
    )
    after = dataclasses.replace(after, last=last)
    path = registry_path(workdir)
    content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(after)}
    with emitted(LineageJob(f"models.{last.action}"), _lineage(last)):
        files.write_json(path, content)
        _append(path.with_name(LOG_FILE), last)
    announce_aliases(
        {
            "champion": after.champion,
            "challenger": after.challenger,
        }
    )
    return after


def _lineage(decision: Decision) -> LineageRun:
    """Return what a decision reads and writes: a bento, and the deployment or the shadow."""
    if decision.version is None:
        return LineageRun()
    kind = "shadow" if decision.action == "shadow" else "deployment"
    bento = LineageDataset("bento", decision.version)
    return LineageRun([bento], [LineageDataset(kind, decision.version)])


def _complete_log(path: Path, decisions: list[Decision]) -> None:
    """Append the last decision if a kill came between writing the registry and the log."""
    if len(decisions) <= len(_whole_lines(path)):
        return
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    ends_in_half_a_line = bool(text) and not text.endswith("\n")
    _append(path, decisions[-1], start="\n" if ends_in_half_a_line else "")


def _append(path: Path, decision: Decision, start: str = "") -> None:
    line = json.dumps(dataclasses.asdict(decision), ensure_ascii=False)
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(f"{start}{line}\n")
        stream.flush()
        os.fsync(stream.fileno())
