"""Combine the feature tables of all shards into the tables of one build."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longrec.data import files
from longrec.data.columns import FEATURE_TABLES_FORMAT_VERSION
from longrec.data.features.manifest import FeatureReport, check_replaceable, write_manifest
from longrec.data.quality.drift import DriftProfile
from longrec.data.shards import Shard, part_name, shard_order
from longrec.errors import DataError

BUILD_AGAIN = "Build all shards again (step build-features of longrec run)."
_SHARED_KEYS = (
    "name",
    "fingerprint",
    "codec_version",
    "dataset_hash",
    "time_range_ms",
    "late_events",
)


def join_shards(shard_dirs: Sequence[str | Path], out_dir: str | Path) -> FeatureReport:
    """Combine the feature tables of all shards of a dataset and return counts.

    Tables and version equal those of one build.

    Args:
        shard_dirs: one directory per shard that `build_features` wrote, in any order.
        out_dir: new, empty, or feature tables to replace.

    Raises:
        DataError: a shard is missing, given twice or of another dataset, or two shards hold the
            same user.
    """
    directories = [Path(directory) for directory in shard_dirs]
    manifests = [_read_manifest(directory) for directory in directories]
    names = [manifest.get("shard", "1/1") for manifest in manifests]
    order = shard_order([Shard.parse(name) for name in names])
    directories = [directories[position] for position in order]
    manifests = [manifests[position] for position in order]
    first_entries = _shared_entries(manifests)
    check_replaceable(Path(out_dir))
    with files.atomic_replace(out_dir) as temporary:
        _copy_files(directories, manifests, temporary)
        counts = [manifest["counts"] for manifest in manifests]
        profiles = [DriftProfile.from_dict(manifest["profile"]) for manifest in manifests]
        return write_manifest(
            temporary,
            first_entries,
            num_late=sum(count["num_late"] for count in counts),
            history_bytes=sum(count["history_bytes"] for count in counts),
            profile=DriftProfile.merged(profiles),
        )


def _read_manifest(directory: Path) -> dict[str, Any]:
    return files.read_versioned_json(
        directory / "manifest.json",
        FEATURE_TABLES_FORMAT_VERSION,
        fix=BUILD_AGAIN,
    )


def _shared_entries(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the manifest entries that all shards share."""
    entries_of_shards = []
    for manifest in manifests:
        entries = {key: manifest[key] for key in _SHARED_KEYS}
        entries_of_shards.append(entries)
    first = entries_of_shards[0]
    if any(entries != first for entries in entries_of_shards):
        hashes = {str(entries["dataset_hash"])[:16] for entries in entries_of_shards}
        raise DataError(
            "these are not shards of one dataset",
            found=", ".join(sorted(hashes)),
            fix=BUILD_AGAIN,
        )
    return first


def _copy_files(
    directories: Sequence[Path],
    manifests: Sequence[Mapping[str, Any]],
    target: Path,
) -> None:
    """Copy the files of all shards, in order, to the paths that one build gives them."""
    history_dir = target / "user_history"
    history_dir.mkdir(parents=True)
    num_parts = 0
    for directory, manifest in zip(directories, manifests, strict=True):
        is_first = directory is directories[0]
        for name, expected_hash in sorted(manifest["files"].items()):
            source = directory / name
            if name.startswith("user_history/"):
                _copy_checked(source, history_dir / part_name(num_parts), expected_hash)
                num_parts += 1
            elif is_first:  # only the first shard holds user and item features
                _copy_checked(source, target / name, expected_hash)


def _copy_checked(
    source: Path,
    target: Path,
    expected_hash: str,
) -> None:
    shutil.copyfile(source, target)
    if files.sha256_of(target) != expected_hash:
        raise DataError(
            f"{source} was changed",
            fix="Build this shard again (step build-features of longrec run).",
        )
