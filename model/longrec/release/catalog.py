"""Registries of models behind one interface: the BentoML store, MLflow, Kubeflow Model Registry.

The work directory decides which version answers (`longrec.release.registry`), because services
follow it without another server. The other registries follow its decisions: they get each
registered version, and the aliases `champion` and `challenger`. Each is off without its variable.

A registry that cannot be reached is a warning. `synchronize` brings it up to date later, or takes
over the aliases that somebody moved there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, Protocol

from longrec.errors import LongrecError
from longrec.release import model_store

log = logging.getLogger(__name__)

Alias = Literal["champion", "challenger"]
ALIASES: tuple[Alias, ...] = ("champion", "challenger")
BENTOML = "bentoml"
MLFLOW = "mlflow"
KUBEFLOW = "kubeflow"
NAMES = (BENTOML, MLFLOW, KUBEFLOW)
MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"
KUBEFLOW_VARIABLE = "LONGREC_MODEL_REGISTRY"
"""Address of a Kubeflow Model Registry."""
RUN_VARIABLE = "LONGREC_RUN"
"""Id of the pipeline run that this process belongs to."""
VARIABLES = {MLFLOW: MLFLOW_VARIABLE, KUBEFLOW: KUBEFLOW_VARIABLE}
SYNCHRONIZE = "Later: longrec models sync"


class CatalogError(LongrecError):
    """A registry that is not configured, not installed, or lacks a version."""


@dataclasses.dataclass(frozen=True, slots=True)
class NewVersion:
    """A model that a registry gets.

    Args:
        version: of the bento and its model.
        bundle: folder of its bundle.
        labels: facts about it, as in the BentoML store.
        evaluation: folder of its evaluation; None if that is not at hand.
        run: id of the pipeline run that made it; empty if unknown.
    """

    version: str
    bundle: Path
    labels: Mapping[str, str]
    evaluation: Path | None = None
    run: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A version in a registry.

    Args:
        version: of the bento and its model.
        number: what the registry calls it.
        aliases: champion, challenger, both or none.
        labels: facts about it.
    """

    version: str
    number: str
    aliases: tuple[str, ...]
    labels: Mapping[str, str]


class ModelCatalog(Protocol):
    """A registry of models."""

    @property
    def name(self) -> str:
        """One of NAMES."""

    def add(self, new: NewVersion) -> None:
        """Register a version; one that is there stays as it is."""

    def entries(self) -> list[CatalogEntry]:
        """Return all versions, newest first."""

    def assign(self, alias: Alias, version: str | None) -> None:
        """Give an alias to a version; None removes it."""


@dataclasses.dataclass(frozen=True, slots=True)
class BentoCatalog:
    """The BentoML store, and the decisions of the work directory as its aliases.

    Args:
        workdir: LONGREC_HOME.
        store: the BentoML store.
        by, why: of the decisions that `assign` makes.
    """

    workdir: Path
    store: Path
    by: str = ""
    why: str = ""

    name = BENTOML

    def add(self, new: NewVersion) -> None:
        """Check that the store has the version; `longrec package` puts it there.

        Raises:
            ModelError: it has not.
        """
        model_store.bundle_dir(self.store, new.version)

    def entries(self) -> list[CatalogEntry]:
        """Return all versions, newest first."""
        from longrec.release.registry import list_models

        return [
            CatalogEntry(
                model.version,
                number=model.version,
                aliases=(model.role,) if model.role in ALIASES else (),
                labels=model.labels,
            )
            for model in list_models(self.workdir, self.store)
        ]

    def assign(self, alias: Alias, version: str | None) -> None:
        """Decide as `longrec models promote` and `longrec models shadow` do.

        Raises:
            LongrecError: the decision is refused.
        """
        from longrec.release import registry

        decision = {"by": self.by or registry.current_user(), "why": self.why}
        before = registry.read_registry(self.workdir)
        if getattr(before, alias) == version:
            return
        if alias == "challenger":
            self._shadow(version, decision)
        elif version is not None:  # A service always has a champion.
            registry.promote(self.workdir, self.store, version, **decision)

    def _shadow(self, version: str | None, decision: Mapping[str, str]) -> None:
        from longrec.release import registry

        if version is None:
            registry.stop_shadow(self.workdir, **decision)
            return
        share = registry.DEFAULT_MIRROR_SHARE
        registry.start_shadow(self.workdir, self.store, version, share, **decision)


def open_catalog(name: str, workdir: Path, store: Path, why: str = "") -> ModelCatalog:
    """Return a registry by its name.

    Args:
        name: one of NAMES.
        workdir, store: of the registry `bentoml`.
        why: reason of the decisions that are made in `bentoml`.

    Raises:
        CatalogError: it is unknown, or its variable is not set.
    """
    if name == BENTOML:
        return BentoCatalog(workdir, store, why=why)
    if name not in VARIABLES:
        raise CatalogError(
            f"there is no registry '{name}'",
            expected=", ".join(NAMES),
        )
    if not os.environ.get(VARIABLES[name], "").strip():
        raise CatalogError(
            f"the registry {name} is not configured",
            found=f"no {VARIABLES[name]}",
            fix="Set it to the address of the server.",
        )
    return _open(name)


def configured() -> list[str]:
    """Return the names of the registries whose variable is set."""
    return [name for name, variable in VARIABLES.items() if os.environ.get(variable, "").strip()]


def followers() -> list[ModelCatalog]:
    """Return the registries that follow the work directory."""
    return [_open(name) for name in configured()]


@contextlib.contextmanager
def server_errors(name: str) -> Iterator[None]:
    """Turn an error of a registry's client into a CatalogError.

    Args:
        name: of the registry.
    """
    try:
        yield
    except LongrecError:
        raise
    except Exception as error:  # Each client has types of its own.
        raise CatalogError(
            f"the registry {name} cannot be used",
            found=reason_of(error),
            fix=f"Check that the server at {VARIABLES.get(name, name)} runs.",
        ) from error


def reason_of(error: Exception) -> str:
    """Return the first line of an error of a client, or its type if it has none."""
    return str(error).partition("\n")[0] or type(error).__name__


def announce_version(new: NewVersion) -> None:
    """Register a version in all followers; a failure is a warning."""
    for catalog in followers():
        try:
            catalog.add(new)
        except Exception as error:  # Another server never fails a run.
            _warn(catalog, error)


def announce_aliases(aliases: Mapping[Alias, str | None]) -> None:
    """Give aliases to versions in all followers; a failure is a warning."""
    for catalog in followers():
        try:
            for alias, version in aliases.items():
                catalog.assign(alias, version)
        except Exception as error:  # Another server never undoes a decision.
            _warn(catalog, error)


def synchronize(source: ModelCatalog, target: ModelCatalog, store: Path) -> dict[str, str]:
    """Copy versions and aliases from one registry to another; return version by alias.

    Args:
        source: registry to read.
        target: registry to write.
        store: the BentoML store, with the bundles of the versions.

    Raises:
        LongrecError: the target lacks a version, or refuses a decision.
    """
    known = {entry.version for entry in target.entries()}
    entries = source.entries()
    for entry in reversed(entries):
        bundle = model_store.version_dir(store, entry.version) / model_store.BUNDLE_FOLDER
        if entry.version not in known and bundle.is_dir():
            target.add(NewVersion(entry.version, bundle, entry.labels))
    aliases = version_by_alias(entries)
    for alias in ALIASES:
        target.assign(alias, aliases.get(alias))
    return aliases


def version_by_alias(entries: Iterable[CatalogEntry]) -> dict[str, str]:
    """Return the version that has each alias."""
    return {alias: entry.version for entry in entries for alias in entry.aliases}


def _open(name: str) -> ModelCatalog:
    if name == MLFLOW:
        from longrec.release.mlflow_adapter import MlflowCatalog

        return MlflowCatalog()
    from longrec.release.kubeflow_adapter import KubeflowCatalog

    return KubeflowCatalog()


def _warn(catalog: ModelCatalog, error: Exception) -> None:
    log.warning(
        "the registry %s does not follow: %s. %s",
        catalog.name,
        reason_of(error),
        SYNCHRONIZE,
    )
