"""Checks of a dataset and of histories; a failed check stops the pipeline.

Each check makes or loads small profiles, validates them with Great Expectations (see
`validation`) and writes an HTML report. Profiles of shards can be made by separate processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from longrec.config import ChecksConfig
from longrec.data import files
from longrec.data.dataset import Dataset
from longrec.data.location import local_directory
from longrec.data.quality import history_profiles
from longrec.data.quality.check_page import render_check_page
from longrec.data.quality.check_report import CheckReport, SuiteResult, all_results
from longrec.data.quality.dataset_profiles import profile_dataset
from longrec.data.quality.dataset_suites import suites_of_dataset
from longrec.data.quality.drift import (
    DriftProfile,
    PreviousVersion,
    compare_versions,
    drift_suite,
    write_evidently_of_versions,
)
from longrec.data.quality.history_suites import suites_of_histories
from longrec.data.quality.shard_profile import (
    ShardProfile,
    load_shards,
    merge_tables,
    read_json_object,
)
from longrec.data.quality.table_profile import TableProfile
from longrec.data.quality.validation import validate
from longrec.data.shards import WHOLE_DATASET, Shard, parse_shards, shard_folders
from longrec.data.store.versions import PublishedVersion
from longrec.errors import CheckFailed, DataError, StoreError
from longrec.reporting.evidently_report import require_evidently
from longrec.schema import Schema

logger = logging.getLogger(__name__)

DUCKDB_MEMORY = "2GB"
"""Memory limit of DuckDB; larger aggregates spill to a temporary directory."""
MAX_LISTED_FAILURES = 5
"""Largest number of failures in an error message."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProfileReport:
    """Numbers of rows that were profiled."""

    num_events: int
    num_targets: int


def check_events(
    dataset_dir: str | Path,
    report_html: str | Path,
    checks: ChecksConfig,
    workdir: str | Path | None = None,
) -> CheckReport:
    """Check a dataset, and its drift from the published version; write the report.

    Args:
        dataset_dir: a dataset (docs/concepts/architecture.md).
        report_html: page to write, also when a check fails.
        checks: bounds; those of features and tasks are in the schema of the dataset.
        workdir: work directory with the previous version; None for no comparison.

    Raises:
        CheckFailed: a critical expectation failed; the report has been written.
        DataError: the dataset is unreadable.
    """
    started = time.perf_counter()
    profile = _profile_shard(
        Path(dataset_dir),
        workdir,
        WHOLE_DATASET,
    )
    return _check_shard_profiles(
        [profile],
        Path(report_html),
        checks,
        workdir=workdir,
        started=started,
    )


def profile_events(
    dataset_dir: str | Path,
    out_dir: str | Path,
    workdir: str | Path | None,
    shard: Shard,
) -> ProfileReport:
    """Write the profile of a shard of a dataset; return the numbers of its rows.

    Args:
        dataset_dir: a dataset. Items and users are read with the first shard.
        out_dir: the profile, replaced.
        workdir: as in `check_events`.
        shard: the shard to profile.

    Raises:
        DataError: the shard is unreadable.
    """
    profile = _profile_shard(Path(dataset_dir), workdir, shard)
    profile.save(Path(out_dir))
    return ProfileReport(
        num_events=profile.tables["events"].counts.get("num_rows", 0),
        num_targets=profile.tables["targets"].counts.get("num_rows", 0),
    )


def check_shards(
    data_uri: str,
    items: Iterable[str],
    report_html: str | Path,
    checks: ChecksConfig,
    workdir: str | Path | None = None,
) -> CheckReport:
    """Check a dataset shard by shard, as `check_events` does.

    Memory and temporary files are those of one shard.

    Args:
        data_uri: the dataset (`longrec.data.location`).
        items: all its shards (`longrec.data.shards.shard_items`).
        report_html, checks, workdir: as in `check_events`.

    Raises:
        CheckFailed, DataError: as in `check_events`.
    """
    shards = [shard for item in items for shard in parse_shards(item)]
    with tempfile.TemporaryDirectory(prefix="longrec-profiles-") as folder:
        for shard in shards:
            with local_directory(data_uri, shard) as dataset:
                profile_events(dataset, shard.folder(folder), workdir, shard)
        return check_event_profiles(shard_folders(folder), report_html, checks, workdir)


def check_event_profiles(
    profile_dirs: Sequence[str | Path],
    report_html: str | Path,
    checks: ChecksConfig,
    workdir: str | Path | None = None,
) -> CheckReport:
    """Check a dataset by the profiles of its shards, as `check_events` does.

    Args:
        profile_dirs: profiles of all shards, in any order. Failed rows are named with their
            shard.
        report_html, checks, workdir: as in `check_events`.

    Raises:
        CheckFailed, DataError: as in `check_events`.
    """
    started = time.perf_counter()
    shards = load_shards(profile_dirs)
    return _check_shard_profiles(
        shards,
        Path(report_html),
        checks,
        workdir=workdir,
        started=started,
    )


def check_histories(
    histories_dir: str | Path,
    report_html: str | Path,
    checks: ChecksConfig,
) -> CheckReport:
    """Check the input of training and evaluation; write the report.

    Args:
        histories_dir: output of the retrieval (docs/concepts/architecture.md).
        report_html: page to write, also when a check fails.
        checks: bounds; those of features and tasks are in the schema of the histories.

    Raises:
        CheckFailed: a critical expectation failed, above all that no history holds the future.
            The report has been written.
        DataError: the histories are unreadable.
    """
    started = time.perf_counter()
    directory = Path(histories_dir)
    manifest = read_json_object(
        directory / "manifest.json",
        "schema",
        "max_history",
    )
    with _duckdb() as connection:
        suites, facts = suites_of_histories(
            directory,
            manifest,
            checks,
            connection=connection,
            profiles=history_profiles.profile_histories(directory, manifest),
        )
        results = validate(suites)
    report = _CheckResults(
        title=f"Checks of the histories of {manifest['schema']['name']}",
        facts=facts,
        suites=results,
    )
    return report.write(Path(report_html), started)


def _profile_shard(
    directory: Path,
    workdir: str | Path | None,
    shard: Shard,
) -> ShardProfile:
    metadata = read_json_object(directory / "dataset.json", "schema")
    previous, _ = _previous_version(metadata, workdir)
    with _duckdb() as connection:
        tables = profile_dataset(
            directory,
            metadata,
            connection,
            shard=shard,
            previous_items=previous.items() if previous else None,
        )
    try:
        drift = DriftProfile.of(Dataset.open(directory, shard))
    except DataError as error:
        # Do not fail here: the expectations run first and explain most mistakes better.
        # `_check_drift` raises this error if they all pass.
        return ShardProfile(
            shard,
            metadata,
            tables,
            read_error=str(error),
        )
    return ShardProfile(shard, metadata, tables, drift)


def _check_shard_profiles(
    shards: Sequence[ShardProfile],
    report_html: Path,
    checks: ChecksConfig,
    *,
    workdir: str | Path | None,
    started: float,
) -> CheckReport:
    if checks.evidently:
        folder = Path(workdir or "") / checks.evidently
        require_evidently("checks.evidently", folder)
    metadata = shards[0].metadata
    tables = merge_tables([shard.tables for shard in shards])
    suites, facts = suites_of_dataset(tables, metadata, checks)
    results = validate(suites)
    previous: Mapping[str, Any] | None = None
    if not any(result.is_failure for result in all_results(results)):
        drift_results, previous = _check_drift(shards, tables, checks, workdir)
        results += drift_results
    report = _CheckResults(
        title=f"Checks of the dataset {metadata.get('name', '')}",
        facts={**facts, **_shard_facts(shards)},
        suites=results,
        previous=previous,
    )
    return report.write(report_html, started)


def _shard_facts(shards: Sequence[object]) -> dict[str, int]:
    return {"shards": len(shards)} if len(shards) > 1 else {}


def _check_drift(
    shards: Sequence[ShardProfile],
    tables: Mapping[str, TableProfile],
    checks: ChecksConfig,
    workdir: str | Path | None,
) -> tuple[list[SuiteResult], dict[str, Any]]:
    """Return the results of the drift suite and what the report shows of both versions.

    There are no results without a previous version; the report then says why.

    Raises:
        DataError: the dataset cannot be opened.
    """
    errors = [shard.read_error for shard in shards if shard.read_error]
    if errors:
        raise DataError(errors[0])
    profile = DriftProfile.merged([shard.drift for shard in shards if shard.drift])
    previous, reason = _previous_version(shards[0].metadata, workdir)
    comparison = compare_versions(profile, previous, reason)
    if previous is None:
        return [], comparison
    if checks.evidently:
        folder = Path(workdir or "") / checks.evidently
        write_evidently_of_versions(folder, profile, previous, checks)
    suite = drift_suite(
        profile,
        previous,
        checks,
        events=tables["events"].users,
        targets=tables["targets"].users,
    )
    return validate([suite]), comparison


def _previous_version(
    metadata: Mapping[str, Any], workdir: str | Path | None
) -> tuple[PreviousVersion | None, str]:
    """Return the published version of the same data, or None and why there is none."""
    if workdir is None:
        return None, "No feature store was named: nothing to compare with."
    try:
        published = PublishedVersion.open(workdir)
    except StoreError:
        return None, "Nothing was published before: this is the first version."
    manifest = published.manifest
    name = f"{manifest['name']} ({published.path.name})"
    schema = Schema.from_dict(metadata["schema"])
    has_same_name = manifest["name"] == metadata.get("name")
    if not has_same_name or published.schema.fingerprint != schema.fingerprint:
        difference = "is of other data or of another schema"
        return None, f"The published version {name} {difference}: nothing to compare with."
    if "profile" not in manifest:
        difference = "was built without a profile"
        return None, f"The published version {name} {difference}: nothing to compare with."
    previous = PreviousVersion(
        published.path / "features",
        name,
        profile=DriftProfile.from_dict(manifest["profile"]),
    )
    return previous, ""


@contextlib.contextmanager
def _duckdb() -> Iterator[Any]:
    """Yield a connection that spills to disk; raise a DataError for an unreadable table."""
    import duckdb

    with (
        tempfile.TemporaryDirectory(prefix="longrec-checks-") as spill,
        duckdb.connect(
            config={"temp_directory": spill, "memory_limit": DUCKDB_MEMORY},
        ) as connection,
    ):
        connection.execute("set preserve_insertion_order = false")
        try:
            yield connection
        except (duckdb.Error, OSError) as error:
            raise DataError(
                "a table cannot be read",
                found=str(error).splitlines()[0],
                fix="Run the step that wrote it again.",
            ) from error


@dataclasses.dataclass(frozen=True, slots=True)
class _CheckResults:
    """Results of a check, to be written.

    Args:
        title: headline of the page.
        facts: name -> value, at the head of the page.
        suites: the results.
        previous: comparison with the previous version, for the page.
    """

    title: str
    facts: Mapping[str, Any]
    suites: Sequence[SuiteResult]
    previous: Mapping[str, Any] | None = None

    def write(self, path: Path, started: float) -> CheckReport:
        """Write the page, log the warnings and return the report.

        Raises:
            CheckFailed: a critical expectation failed.
        """
        results = all_results(self.suites)
        failures = tuple(result.sentence() for result in results if result.is_failure)
        warnings = tuple(result.sentence() for result in results if result.is_warning)
        seconds = time.perf_counter() - started
        content = render_check_page(
            self.title,
            self.facts,
            self.suites,
            seconds=seconds,
            previous=self.previous,
        )
        files.write_text(path, content)
        for warning in warnings:
            logger.warning("%s", warning)
        if failures:
            raise self._failure(failures, path)
        return CheckReport(
            passed=True,
            num_expectations=len(results),
            num_warnings=len(warnings),
            failures=failures,
            warnings=warnings,
            seconds=seconds,
            path=str(path),
        )

    def _failure(self, failures: Sequence[str], path: Path) -> CheckFailed:
        listed = "; ".join(failures[:MAX_LISTED_FAILURES])
        num_more = len(failures) - MAX_LISTED_FAILURES
        more = f"; and {num_more} more" if num_more > 0 else ""
        return CheckFailed(
            f"{self.title}: {len(failures)} failed: {listed}{more}",
            fix=f"The report is {path}.",
        )
