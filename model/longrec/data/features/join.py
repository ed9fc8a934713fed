"""Join: the feature tables of all shards become the tables of one build."""

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
_HEAD_KEYS = (
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
        shard_dirs: one directory per shard that `build` wrote, in any order.
        out_dir: new, empty, or feature tables to replace.

    Raises:
        DataError: a shard is missing, twice there or of another dataset, or a user is in two of
            them.
    """
    directories = [Path(directory) for directory in shard_dirs]
    manifests = [_read_manifest(directory) for directory in directories]
    names = [manifest.get("shard", "1/1") for manifest in manifests]
    order = shard_order([Shard.parse(name) for name in names])
    directories = [directories[position] for position in order]
    manifests = [manifests[position] for position in order]
    head = _common_head(manifests)
    check_replaceable(Path(out_dir))
    with files.atomic_replace(out_dir) as temporary:
        _copy_files(directories, manifests, temporary)
        counts = [manifest["counts"] for manifest in manifests]
        profiles = [DriftProfile.from_dict(manifest["profile"]) for manifest in manifests]
        return write_manifest(
            temporary,
            head,
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


def _common_head(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the manifest entries that all shards share."""
    heads = []
    for manifest in manifests:
        head = {key: manifest[key] for key in _HEAD_KEYS}
        heads.append(head)
    first = heads[0]
    if any(head != first for head in heads):
        hashes = {str(head["dataset_hash"])[:16] for head in heads}
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
            elif is_first:
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
