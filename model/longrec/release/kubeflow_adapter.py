"""Kubeflow Model Registry, by its client `model-registry`. No other file imports it.

LONGREC_MODEL_REGISTRY is the address of the server; the client reads a token from the file that
KF_PIPELINES_SA_TOKEN_PATH names. That registry has no aliases, so a version has the custom property
`champion` or `challenger` with the value true.
"""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from longrec.release.catalog import (
    ALIASES,
    KUBEFLOW,
    KUBEFLOW_VARIABLE,
    Alias,
    CatalogEntry,
    CatalogError,
    NewVersion,
)
from longrec.release.model_store import MODEL_NAME

if TYPE_CHECKING:
    from model_registry import ModelRegistry

INSTALL = "pip install 'longrec[model-registry]'"
FORMAT_NAME = "safetensors"
TIMEOUT_SECONDS = 20.0
"""For each request; the client itself waits five minutes."""


class KubeflowCatalog:
    """The registered model `longrec-ranker` of a Kubeflow Model Registry."""

    name = KUBEFLOW

    def add(self, new: NewVersion) -> None:
        """Register a version with the address of its bundle, once."""
        client = _open_client()
        if _find(client, new.version) is not None:
            return
        client.register_model(
            MODEL_NAME,
            new.bundle.absolute().as_uri(),
            version=new.version,
            model_format_name=FORMAT_NAME,
            model_format_version="1",
            metadata={**new.labels, "run": new.run},
        )

    def entries(self) -> list[CatalogEntry]:
        """Return all versions, newest first."""
        found = []
        for entry in _versions(_open_client()):
            properties = entry.custom_properties or {}
            labels = {name: str(value) for name, value in properties.items() if name not in ALIASES}
            aliases = tuple(alias for alias in ALIASES if properties.get(alias) is True)
            found.append(CatalogEntry(entry.name, str(entry.id), aliases, labels))
        return sorted(found, key=lambda entry: int(entry.number), reverse=True)

    def assign(self, alias: Alias, version: str | None) -> None:
        """Set the property of an alias on a version, and remove it from the others.

        Raises:
            CatalogError: the registry does not know the version.
        """
        client = _open_client()
        if version is not None and _find(client, version) is None:
            raise CatalogError(
                f"Kubeflow Model Registry has no version {version} of {MODEL_NAME}",
                fix="Register it: longrec models sync",
            )
        for entry in _versions(client):
            properties = dict(entry.custom_properties or {})
            is_assigned = entry.name == version
            if properties.get(alias, False) == is_assigned:
                continue
            # The server keeps a property that an update does not name.
            entry.custom_properties = {**properties, alias: is_assigned}
            client.update(entry)


def _open_client() -> ModelRegistry:
    try:
        from model_registry import ModelRegistry
    except ModuleNotFoundError as error:
        raise CatalogError(
            f"{KUBEFLOW_VARIABLE} is set, but its client is not installed", fix=INSTALL
        ) from error
    from longrec.release.registry import current_user

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns without a token, which a server may not need.
        return ModelRegistry(
            os.environ[KUBEFLOW_VARIABLE],
            author=current_user(),
            log_level=logging.ERROR,  # It warns of each port that does not end with 80.
            async_runner=_run,
        )


def _run(request: Coroutine[Any, Any, Any]) -> Any:
    """Run a request of the client; its default would patch asyncio for the whole process."""
    return asyncio.run(asyncio.wait_for(request, TIMEOUT_SECONDS))


def _versions(client: ModelRegistry) -> list[Any]:
    if client.get_registered_model(MODEL_NAME) is None:
        return []
    return list(client.get_model_versions(MODEL_NAME))


def _find(client: ModelRegistry, version: str) -> Any:
    """Return a version; None if there is none."""
    if client.get_registered_model(MODEL_NAME) is None:
        return None
    return client.get_model_version(MODEL_NAME, version)
