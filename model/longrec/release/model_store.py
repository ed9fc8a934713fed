"""Find packaged models in the BentoML store and check that they can be served.

    BENTOML_HOME/models/longrec-ranker/<version>/bundle/    the bundle of a version

Each work directory has a store of its own, `<workdir>/bentoml`, unless BENTOML_HOME names another.

This module reads the folders of the store and does not import BentoML.
"""

from __future__ import annotations

import os
from pathlib import Path

from longrec.errors import LongrecError, SchemaMismatch

MODEL_NAME = "longrec-ranker"
"""Name of the model and of the bento in the BentoML store; a tag is `<name>:<version>`."""
BUNDLE_FOLDER = "bundle"
"""Folder of a stored model that holds the bundle."""


class ModelError(LongrecError):
    """A version that cannot be promoted, rolled back to or compared."""


def store_dir(workdir: str | Path | None = None) -> Path:
    """Return the folder of the BentoML store: BENTOML_HOME, by default `bentoml` of `workdir`.

    Args:
        workdir: the work directory; None for LONGREC_HOME, and without that for ~.
    """
    named = os.environ.get("BENTOML_HOME")
    if named:
        return Path(named)
    return Path(workdir or os.environ.get("LONGREC_HOME") or Path.home()) / "bentoml"


def version_dir(store: str | Path, version: str) -> Path:
    """Return the folder of a version; the store may lack it."""
    return Path(store) / "models" / MODEL_NAME / version


def bundle_dir(store: str | Path, version: str) -> Path:
    """Return the folder of a version's bundle.

    Raises:
        ModelError: the store has no such version.
    """
    path = version_dir(store, version) / BUNDLE_FOLDER
    is_plain_name = "/" not in version
    if not is_plain_name or not path.is_dir():
        raise ModelError(
            f"there is no model {MODEL_NAME}:{version} in the BentoML store",
            found=f"nothing in {Path(store) / 'models'}",
            fix="See: longrec models list",
        )
    return path


def published_schema(workdir: str | Path) -> Path:
    """Return the schema file of the published features.

    Raises:
        StoreError: nothing is published in the work directory.
    """
    from longrec.data.store.versions import PublishedVersion

    return PublishedVersion.open(workdir).path / "features" / "schema.json"


def check_servable(
    workdir: str | Path,
    store: str | Path,
    version: str,
) -> None:
    """Check everything that a service needs to load a version.

    Raises:
        ModelError: the store has no such version.
        SchemaMismatch: it was trained for another schema than that of the published features.
        DataError: its files are damaged.
        StoreError: nothing is published in the work directory.
    """
    from longrec.scoring.bundle import Bundle

    bundle = bundle_dir(store, version)
    check_schema(bundle, published_schema(workdir))
    Bundle.load(bundle)


def check_schema(bundle: Path, published: Path) -> None:
    """Check that a bundle and the published features have one schema.

    Args:
        bundle: folder of the bundle.
        published: schema file of the published features.

    Raises:
        SchemaMismatch: they differ; the message names the fields.
    """
    from longrec.schema import Schema

    model_schema = Schema.load(bundle / "bundle.json")
    differences = model_schema.differences(Schema.load(published))
    if differences:
        raise SchemaMismatch(
            "the model is for another schema than the feature store's",
            found="; ".join(differences),
            fix="Publish the features of the model, or train one on these.",
        )


def has_other_schema(
    workdir: str | Path,
    store: str | Path,
    version: str,
) -> bool:
    """Return whether a stored version is for another schema than the published features.

    Also False if that cannot be told: the version is not in the store or nothing is published.
    """
    try:
        check_schema(bundle_dir(store, version), published_schema(workdir))
    except SchemaMismatch:
        return True
    except LongrecError:
        return False
    return False
