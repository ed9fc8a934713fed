"""Versions: which packaged model answers, which did before, which one runs in its shadow; and who
decided that, when and why.

    LONGREC_HOME/models/registry.json    what holds now, replaced by one rename (Registry)
    LONGREC_HOME/models/log.jsonl        one Change per line, only ever appended to
    LONGREC_HOME/models/reference/       per version, predictions.parquet of its evaluation
    (longrec.release.monitoring)
    LONGREC_HOME/models/workers/*.json   what each worker of a service says of itself: version,
    refusals, its part of the shadow's report

The models are those of the BentoML store (BENTOML_HOME); this module reads their folders and does
not import BentoML. A service looks at
registry.json once a second. Nothing is decided here by the clock or by a metric: a person or a
pipeline decides, and says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import getpass
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from longrec.data import files
from longrec.errors import DataError, LongrecError, SchemaMismatch

NAME = "longrec-ranker"
"""Of model and bento in the BentoML store; a version is what stands behind the colon."""
BUNDLE = "bundle"
"""Folder of a model in the store that holds the bundle."""
FORMAT_VERSION = 1
PAIRS_WANTED = 100
"""Mirrored requests below which a shadow's report says that it knows little."""
Action = Literal["adopt", "promote", "rollback", "shadow", "unshadow"]


class ModelError(LongrecError):
    """A version that cannot be promoted, rolled back to or run in the shadow."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One decision.

    Args:
        generation: counts the decisions of a work directory from 1.
        action: what was done.
        version: what it was done with; None where a shadow was ended.
        replaced: champion (of a shadow: challenger) before.
        by, why: who decided, and the reason given.
        at: ISO 8601, UTC.
    """

    generation: int
    action: Action
    version: str | None
    replaced: str | None
    by: str
    why: str
    at: str


@dataclasses.dataclass(frozen=True, slots=True)
class Registry:
    """What holds in a work directory.

    Args:
        champion: version that answers; None before the first model: a service takes its own one.
        previous: champion before it, to which a rollback goes.
        challenger: version that gets a copy of some requests; nobody sees its answers.
        mirror_share: share of the requests that are copied, 0 to 1.
        last: the decision that led here; None where there was none.
    """

    champion: str | None = None
    previous: str | None = None
    challenger: str | None = None
    mirror_share: float = 0.0
    last: Change | None = None

    @property
    def generation(self) -> int:
        return 0 if self.last is None else self.last.generation


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A model in the store.

    Args:
        version: behind the colon of its tag.
        created: ISO 8601, as BentoML wrote it.
        schema: fingerprint that it was trained for.
        bundle: version of the bundle: equal ones give equal scores.
        labels: as packaged: fingerprints, `<task>.<metric>`.
        role: champion, previous, challenger or nothing.
        problem: why it cannot be served from this work directory; nothing where it can.
    """

    version: str
    created: str
    schema: str
    bundle: str
    labels: Mapping[str, str]
    role: str
    problem: str


def registry_path(workdir: str | Path) -> Path:
    """Returns the file that a service watches."""
    return Path(workdir) / "models" / "registry.json"


def read(workdir: str | Path) -> Registry:
    """Returns what holds in a work directory, an empty registry where nothing was decided yet.

    Raises:
        DataError: the file is damaged.
    """
    path = registry_path(workdir)
    if not path.exists():
        return Registry()
    found = files.read_json(path)
    try:
        if found.pop("format_version") != FORMAT_VERSION:
            raise TypeError("another format version")
        last = found.pop("last")
        return Registry(**found, last=None if last is None else Change(**last))
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged",
            found=str(error),
            fix=f"Its last good state is the last line of {path.parent / 'log.jsonl'}.",
        ) from error


def log(workdir: str | Path) -> list[Change]:
    """Returns all decisions of a work directory, the oldest first."""
    path = registry_path(workdir).with_name("log.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    changes = [
        Change(**json.loads(line)) for line in lines if line.endswith("}")
    ]  # a kill may leave half a line
    last = read(workdir).last
    return (
        changes
        if last is None or (changes and changes[-1].generation >= last.generation)
        else [*changes, last]
    )


def store_dir() -> Path:
    """Returns the BentoML store: BENTOML_HOME, by default ~/bentoml."""
    return Path(os.environ.get("BENTOML_HOME") or Path.home() / "bentoml")


def reference_dir(workdir: str | Path, version: str) -> Path:
    """Returns the folder in which `package` leaves predictions.parquet of a version's evaluation:
    what drift is measured against.
    """
    return Path(workdir) / "models" / "reference" / version


def bundle_dir(store: str | Path, version: str) -> Path:
    """Returns the folder of a version's bundle.

    Raises:
        ModelError: the store has no such version.
    """
    path = Path(store) / "models" / NAME / version / BUNDLE
    if "/" in version or not path.is_dir():
        raise ModelError(
            f"there is no model {NAME}:{version} in the BentoML store",
            found=f"nothing in {Path(store) / 'models'}",
            fix="See: longrec models list",
        )
    return path


def candidates(workdir: str | Path, store: str | Path) -> list[Candidate]:
    """Returns the models of a store, the newest first, with their role in a work directory and whether they
    could be served from it.
    """
    registry = read(workdir)
    roles = {
        registry.previous: "previous",
        registry.challenger: "challenger",
        registry.champion: "champion",
    }
    folders = sorted((Path(store) / "models" / NAME).glob("*/model.yaml"))
    found = [_candidate(workdir, store, path, roles) for path in folders]
    return sorted(found, key=lambda each: (each.created, each.version), reverse=True)


def promote(
    workdir: str | Path,
    store: str | Path,
    version: str,
    *,
    by: str,
    why: str,
) -> Registry:
    """Returns the registry after making a version the champion; a challenger that is promoted
    leaves the shadow.

    Raises:
        ModelError: it is the champion already, or it is not in the store.
        SchemaMismatch, DataError: it is for another schema than the published features, or damaged.
    """
    check(workdir, store, version)
    with _changing(workdir) as before:
        if before.champion == version:
            raise ModelError(f"{version} is the champion already")
        shadow = (
            (None, 0.0)
            if before.challenger == version
            else (before.challenger, before.mirror_share)
        )
        return _decide(
            workdir,
            before,
            "promote",
            version,
            before.champion,
            by,
            why,
            Registry(version, before.champion, *shadow),
        )


def rollback(
    workdir: str | Path,
    store: str | Path,
    *,
    by: str,
    why: str,
) -> Registry:
    """Returns the registry after champion and previous champion changed places; a second rollback
    undoes the first.

    Raises:
        ModelError: there is no previous champion, or the store has it no more.
        SchemaMismatch, DataError: it does not fit the published features any more, or it is
            damaged.
    """
    with _changing(workdir) as before:
        if before.previous is None:
            raise ModelError(
                "there is no champion to go back to",
                found=f"champion {before.champion}",
                fix="See: longrec models list",
            )
        check(workdir, store, before.previous)
        shadow = (
            (None, 0.0)
            if before.challenger == before.previous
            else (before.challenger, before.mirror_share)
        )
        after = Registry(before.previous, before.champion, *shadow)
        return _decide(
            workdir, before, "rollback", before.previous, before.champion, by, why, after
        )


def shadow(
    workdir: str | Path, store: str | Path, version: str, share: float, *, by: str, why: str
) -> Registry:
    """Returns the registry after sending a copy of a share of the requests to a version, whose
    answers are only compared.

    Raises:
        ModelError: it is the champion, or it is not in the store, or the share is none.
        SchemaMismatch, DataError: it is for another schema than the published features, or damaged.
    """
    if not 0 < share <= 1:
        raise ModelError(
            "the share of mirrored requests is out of range",
            found=share,
            expected="above 0, at most 1",
        )
    check(workdir, store, version)
    with _changing(workdir) as before:
        if before.champion == version:
            raise ModelError(f"{version} is the champion: there is nothing to compare it with")
        after = dataclasses.replace(before, challenger=version, mirror_share=share)
        return _decide(workdir, before, "shadow", version, before.challenger, by, why, after)


def unshadow(workdir: str | Path, *, by: str, why: str) -> Registry:
    """Returns the registry after ending the shadow; its report stays until the next one.

    Raises:
        ModelError: no version runs in the shadow.
    """
    with _changing(workdir) as before:
        if before.challenger is None:
            raise ModelError("no version runs in the shadow")
        after = dataclasses.replace(before, challenger=None, mirror_share=0.0)
        return _decide(workdir, before, "unshadow", None, before.challenger, by, why, after)


def adopt(
    workdir: str | Path,
    store: str | Path,
    version: str,
    *,
    why: str,
) -> bool:
    """Makes a version the champion of a work directory that has none; returns whether it did. For `package`:
    the first model needs no decision.

    A champion for another schema than that of the published features counts for nothing: no service
    could load it from this work directory.
    """
    with _changing(workdir) as before:
        if before.champion is not None and not _is_foreign(workdir, store, before.champion):
            return False
        after = dataclasses.replace(
            before,
            champion=version,
            challenger=None,
            mirror_share=0.0,
        )
        _decide(workdir, before, "adopt", version, before.champion, user(), why, after)
        return True


def comparable(workdir: str | Path, store: str | Path, version: str) -> Path | None:
    """Returns the bundle of a version, a champion, for the gate to compare with; None where there
    is nothing to compare.

    That is so without a version, where the store does not hold it, and where it is for another
    schema than the published features.
    """
    if not version or _is_foreign(workdir, store, version):
        return None
    try:
        return bundle_dir(store, version)
    except ModelError as error:
        logging.getLogger(__name__).warning("the gate compares with no champion: %s", error)
        return None


def _is_foreign(workdir: str | Path, store: str | Path, version: str) -> bool:
    """Returns whether a version of the store is for another schema than that of the published
    features.
    """
    from longrec.data.store.versions import Published

    try:
        check_schema(
            bundle_dir(store, version), Published.open(workdir).path / "features" / "schema.json"
        )
    except SchemaMismatch:
        return True
    except LongrecError:
        return False  # it is not there, or nothing is published: then nothing is known
    return False


def check(workdir: str | Path, store: str | Path, version: str) -> None:
    """Raises when a version cannot be served from a work directory: everything that a service would find when
    it loads it.

    Raises:
        ModelError: the store has no such version.
        SchemaMismatch: it was trained for another schema than that of the published features.
        DataError: its files are damaged.
        StoreError: nothing is published in the work directory.
    """
    from longrec.data.store.versions import Published
    from longrec.scoring.bundle import Bundle

    check_schema(
        bundle_dir(store, version), Published.open(workdir).path / "features" / "schema.json"
    )
    Bundle.load(bundle_dir(store, version))


def check_schema(bundle: Path, published: Path) -> None:
    """Raises SchemaMismatch, with the fields, when a bundle is for another schema than the
    published one.
    """
    from longrec.schema import Schema

    if lines := Schema.load(bundle / "bundle.json").differences(Schema.load(published)):
        raise SchemaMismatch(
            "the model is for another schema than the feature store's",
            found="; ".join(lines),
            fix="Publish the features of the model, or train one on these.",
        )


def user() -> str:
    """Returns who is asking: $USER, else the name of the process's user."""
    with contextlib.suppress(OSError, KeyError, ImportError):
        return os.environ.get("USER") or getpass.getuser()
    return f"uid {os.getuid()}"


@contextlib.contextmanager
def _changing(workdir: str | Path) -> Iterator[Registry]:
    """Yields the registry and keeps other decisions out until the block ends."""
    path = registry_path(workdir)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(".lock"), "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        before = read(workdir)
        _complete_log(path.with_name("log.jsonl"), log(workdir))
        yield before


def _complete_log(path: Path, changes: list[Change]) -> None:
    """Appends the last decision where a kill came between its rename and its line."""
    lines = path.read_text(encoding="utf-8") if path.exists() else ""
    if len(changes) > len([line for line in lines.splitlines() if line.endswith("}")]):
        _append(path, changes[-1], start="" if lines.endswith("\n") or not lines else "\n")


def _append(path: Path, change: Change, start: str = "") -> None:
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(f"{start}{json.dumps(dataclasses.asdict(change), ensure_ascii=False)}\n")
        stream.flush()
        os.fsync(stream.fileno())


def _decide(
    workdir: str | Path,
    before: Registry,
    action: Action,
    version: str | None,
    replaced: str | None,
    by: str,
    why: str,
    after: Registry,
) -> Registry:
    """Returns the registry `after` as it was written: first the file that counts, then the log."""
    if not why.strip():
        raise ModelError("a decision needs a reason", fix="Say it with --why.")
    request_time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    change = Change(before.generation + 1, action, version, replaced, by, why.strip(), request_time)
    after = dataclasses.replace(after, last=change)
    path = registry_path(workdir)
    files.write_json(path, {"format_version": FORMAT_VERSION, **dataclasses.asdict(after)})
    _append(path.with_name("log.jsonl"), change)
    return after


def _candidate(
    workdir: str | Path, store: str | Path, path: Path, roles: Mapping[str | None, str]
) -> Candidate:
    import yaml

    from longrec.data.store.versions import Published

    version = path.parent.name
    described = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)  # noqa: S506  every value a text; it makes no objects
    meta: dict[str, Any] = {}
    try:
        meta = files.read_json(bundle_dir(store, version) / "bundle.json")
        check_schema(
            bundle_dir(store, version), Published.open(workdir).path / "features" / "schema.json"
        )
        problem = ""
    except LongrecError as error:
        problem = str(error)
    fingerprint, bundle = (str(meta.get(name, "")) for name in ("schema_fingerprint", "version"))
    return Candidate(
        version,
        str(described.get("creation_time", "")),
        fingerprint,
        bundle,
        dict(described.get("labels") or {}),
        roles.get(version, ""),
        problem,
    )
