"""The chain from a version back to the dataset, by the records of all runs of a work directory.

Each attempt names what it read and what it wrote (`longrec.runs.record.attempts`), so the record of
an earlier run tells where a cached result came from. No lineage server is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from longrec.errors import LongrecError
from longrec.openlineage import LineageDataset
from longrec.release.registry import Decision, read_decisions
from longrec.runs.record.attempts import RUNS_FOLDER, STEPS_FOLDER, Attempt, read

Key: TypeAlias = tuple[str, str]
"""Kind and version."""
ORDER = ("bento", "evaluation", "bundle", "histories", "store", "features", "dataset")
"""Kinds from the answer back to the dataset."""


class LineageError(LongrecError):
    """A version that no record names."""


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """A version and the step that made it.

    Args:
        kind, version, uri, name: see `longrec.openlineage.LineageDataset`.
        run, step, ended: what made it, and when; empty for the dataset, and for what no record
            of a step names.
        inputs: kind and version of what the step read.
    """

    kind: str
    version: str
    uri: str = ""
    name: str = ""
    run: str = ""
    step: str = ""
    ended: str = ""
    inputs: tuple[Key, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Chain:
    """A version, what it was made of, and where it was deployed.

    Args:
        version: as asked for.
        links: from the version back to the dataset.
        decisions: that made it the champion, or a challenger, oldest first.
    """

    version: str
    links: tuple[Link, ...]
    decisions: tuple[Decision, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether the chain ends at a dataset, and no link is without its origin."""
        ends = [link for link in self.links if not link.inputs]
        return bool(ends) and all(link.kind == "dataset" for link in ends)


@dataclasses.dataclass(frozen=True, slots=True)
class _Made:
    """A version as a record of a run names it."""

    dataset: LineageDataset
    run: str
    attempt: Attempt


def trace(workdir: str | Path, version: str) -> Chain:
    """Return the chain of a version: of a bento, or of anything on the way to the dataset.

    Args:
        workdir: the work directory.
        version: as `/rank` answers it, a tag `name:version`, or a version in a chain.

    Raises:
        LineageError: no record names the version.
    """
    version = version.rpartition(":")[2]
    made, known = _index(Path(workdir))
    starts = [key for key in known if key[1] == version]
    if not starts:
        raise LineageError(
            f"no record of a run names the version {version or repr(version)}",
            found=f"{len(known)} versions in {Path(workdir) / RUNS_FOLDER}",
            fix="Take a version of `longrec models list`. A model from an earlier longrec, and one "
            "whose runs were removed, has no lineage: run the pipeline again.",
        )
    links = tuple(sorted(_walk(starts, made, known), key=_place))
    decisions = [entry for entry in read_decisions(workdir) if entry.version == version]
    return Chain(version, links, tuple(decisions))


def _index(workdir: Path) -> tuple[dict[Key, _Made], dict[Key, LineageDataset]]:
    """Return what made each version, and all versions that steps read or wrote."""
    made: dict[Key, _Made] = {}
    known: dict[Key, LineageDataset] = {}
    for run, attempt in _attempts(workdir):
        for dataset in _datasets(attempt.inputs):
            known.setdefault(_key(dataset), dataset)
        for dataset in _datasets(attempt.outputs):
            known[_key(dataset)] = dataset
            made[_key(dataset)] = _Made(dataset, run, attempt)
    return made, known


def _attempts(workdir: Path) -> Iterator[tuple[str, Attempt]]:
    """Yield run and attempt of all steps that ended well, oldest run first."""
    for folder in sorted((workdir / RUNS_FOLDER).glob(f"*/{STEPS_FOLDER}")):
        if folder.parent.is_symlink():  # `latest`
            continue
        for attempt in read(folder):
            if attempt.ended and not attempt.error:
                yield folder.parent.name, attempt


def _datasets(entries: Iterable[Mapping[str, str]]) -> Iterator[LineageDataset]:
    names = {field.name for field in dataclasses.fields(LineageDataset)}
    for entry in entries:
        yield LineageDataset(**{name: entry[name] for name in names & set(entry)})


def _key(dataset: LineageDataset) -> Key:
    return dataset.kind, dataset.version


def _walk(
    starts: Iterable[Key], made: Mapping[Key, _Made], known: Mapping[Key, LineageDataset]
) -> Iterator[Link]:
    """Yield the links of some versions and of all that they were made of."""
    pending = list(starts)
    seen = set(pending)
    while pending:
        key = pending.pop()
        link = _link(known[key], made.get(key))
        yield link
        for source in link.inputs:
            if source not in seen:
                seen.add(source)
                pending.append(source)


def _link(dataset: LineageDataset, made: _Made | None) -> Link:
    fields = dataclasses.asdict(dataset)
    if made is None:
        return Link(**fields)
    # What a step passes on unchanged is no origin of itself.
    sources = {_key(source) for source in _datasets(made.attempt.inputs)} - {_key(dataset)}
    return Link(
        **fields,
        run=made.run,
        step=made.attempt.step,
        ended=made.attempt.ended,
        inputs=tuple(sorted(sources)),
    )


def _place(link: Link) -> tuple[int, bool, str]:
    """Return the place of a link in the chain; joined features stand before those of shards."""
    is_shard = link.step == "build-features"
    return ORDER.index(link.kind), is_shard, link.version
