"""Checks of a dataset and of histories: Great Expectations judges small profiles; a failing check
stops the pipeline.

The profiles are made by `longrec.data.quality.profiles`, the expectations by
`longrec.data.quality.suites`; this is the only file that imports
great_expectations. Its own page renderer loads styles and scripts from elsewhere, so the report is
a page of ours, made
from its JSON results.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from longrec.config import ChecksConfig
from longrec.data import files
from longrec.data.dataset import WHOLE, Dataset, Shard, in_order
from longrec.data.quality import drift, history_suites, suites
from longrec.data.quality.profiles import MAX_NAMED, SHARD, Measured
from longrec.data.quality.suites import Rule, Suite
from longrec.data.store.versions import Published
from longrec.errors import CheckFailed, DataError, StoreError
from longrec.reporting import page
from longrec.schema import Schema

logger = logging.getLogger(__name__)

Results: TypeAlias = "list[tuple[list[Finding], dict[str, Any]]]"

MEMORY_LIMIT = "2GB"
"""Of DuckDB; larger aggregates spill to a temporary directory."""
MAX_NAMED_FAILURES = 5
NOTHING = page.Html("")


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One expectation after it was judged.

    Args:
        suite, expectation, says: where, which Great Expectations type on which column, and the rule
            in words.
        observed, bound: what was found and what was allowed, as text.
        severity: `critical` or `warning`.
        passed: whether it held.
        culprits: at most ten rows to look at, when it did not.
    """

    suite: str
    expectation: str
    says: str
    observed: str
    bound: str
    severity: str
    passed: bool
    culprits: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Returns the broken rule in one line."""
        named = f" ({', '.join(self.culprits)})" if self.culprits else ""
        return f"{self.suite}, {self.expectation}: expected that {self.says} ({self.bound}), found {self.observed}{named}"


@dataclasses.dataclass(frozen=True, slots=True)
class CheckReport:
    """What the checks found; `path` is the HTML page.

    Args:
        passed: whether every critical expectation held (a report that is returned always passed;
            else CheckFailed is raised).
        num_expectations, num_warnings: sizes.
        failures, warnings: broken expectations, a sentence each.
        seconds: wall time.
        path: the report.
    """

    passed: bool
    num_expectations: int
    num_warnings: int
    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float
    path: str

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return dataclasses.asdict(self)


def check_events(
    dataset_dir: str | Path,
    report_html: str | Path,
    checks: ChecksConfig,
    workdir: str | Path | None = None,
) -> CheckReport:
    """Writes the report on a dataset: events, targets, items, users; and on its drift against the
    version that is published.

    Args:
        dataset_dir: a dataset (docs/architecture.md).
        report_html: page to write, also when a check fails.
        checks: bounds; those of features and tasks are in the schema of the dataset.
        workdir: LONGREC_HOME, where the version before was published; None for no comparison.

    Raises:
        CheckFailed: an expectation of critical severity does not hold; the report has been written.
        DataError: the dataset cannot be read at all.
    """
    started = time.perf_counter()
    return _check_events(
        [_profile_events(Path(dataset_dir), workdir, WHOLE)], report_html, checks, workdir, started
    )


def profile_events(
    dataset_dir: str | Path, out_dir: str | Path, workdir: str | Path | None, shard: Shard
) -> ProfileReport:
    """Returns counts after writing what the checks need to know of a shard of a dataset: one row
    per user, and some numbers.

    Args:
        dataset_dir: a dataset; its first shard reads items and users too.
        out_dir: the profile; replaced.
        workdir: as of `check_events`.
        shard: whose parts are read.

    Raises:
        DataError: the shard cannot be read at all.
    """
    profile = _profile_events(Path(dataset_dir), workdir, shard)
    profile.save(Path(out_dir))
    return ProfileReport(
        *(profile.tables[name].counts.get("num_rows", 0) for name in ("events", "targets"))
    )


def check_event_profiles(
    profile_dirs: Sequence[str | Path],
    report_html: str | Path,
    checks: ChecksConfig,
    workdir: str | Path | None = None,
) -> CheckReport:
    """Writes the report of `check_events` from the profiles of all shards, a directory each, in any
    order; rows are named with their shard.

    Args, Raises: as of `check_events`.
    """
    started, found = time.perf_counter(), [_Profile.load(Path(each)) for each in profile_dirs]
    return _check_events(
        [found[place] for place in in_order([each.shard for each in found])],
        report_html,
        checks,
        workdir,
        started,
    )


def check_histories(
    histories_dir: str | Path,
    report_html: str | Path,
    checks: ChecksConfig,
    profile_dirs: Sequence[str | Path] = (),
) -> CheckReport:
    """Writes the report on what training and evaluation will read: timelines, requests, targets,
    features.

    Args:
        histories_dir: output of the retrieval (docs/architecture.md).
        report_html: page to write, also when a check fails.
        checks: bounds; those of features and tasks are in the schema of the histories.
        profile_dirs: what `profile_histories` found in the timelines of each shard that was joined,
            in any order; they are not looked at
            again then. None where the histories were retrieved at once.

    Raises:
        CheckFailed: an expectation of critical severity does not hold, above all no event at or
            after its request; the
            report has been written.
        DataError: the histories cannot be read at all.
    """
    started, directory = time.perf_counter(), Path(histories_dir)
    manifest = _read_head(directory / "manifest.json", "schema", "max_history")
    shards = [_Profile.load(Path(each)) for each in profile_dirs]
    found = (
        [shards[place].tables for place in in_order([each.shard for each in shards])]
        if shards
        else []
    )
    found = found or [history_suites.measure_histories(directory, manifest)]
    measured = {name: Measured.merged([tables[name] for tables in found]) for name in found[0]}
    with _duckdb() as connection:
        suites_found, facts = history_suites.histories_suites(
            directory, manifest, checks, connection, measured
        )
        results = _judge(suites_found)
    facts = {**facts, **({"shards": len(found)} if len(found) > 1 else {})}
    return _conclude(
        f"Checks of the histories of {manifest['schema']['name']}",
        facts,
        results,
        report_html,
        started,
    )


def profile_histories(histories_dir: str | Path, out_dir: str | Path) -> ProfileReport:
    """Returns counts after writing what `check_histories` needs to know of the timelines of a
    shard.

    Args:
        histories_dir: output of the retrieval of a shard.
        out_dir: the profile; replaced.

    Raises:
        DataError: the histories cannot be read at all.
    """
    directory = Path(histories_dir)
    manifest = _read_head(directory / "manifest.json", "schema", "max_history", "counts")
    tables = history_suites.measure_histories(directory, manifest)
    _Profile(Shard.parse(manifest.get("shard", str(WHOLE))), {}, tables, None).save(Path(out_dir))
    return ProfileReport(
        tables["events"].counts["num_rows"], int(manifest["counts"]["num_targets"])
    )


@dataclasses.dataclass(frozen=True, slots=True)
class ProfileReport:
    """Rows of a shard that were looked at."""

    num_events: int
    num_targets: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Profile:
    """What the checks need to know of a shard of a dataset, or of the histories of one.

    Args:
        shard: which one.
        head: content of dataset.json; empty for histories.
        tables: what was measured, by table.
        drift: what is compared between versions; None where the dataset cannot be read as one, and
            `problem` says why.
    """

    shard: Shard
    head: dict[str, Any]
    tables: dict[str, Measured]
    drift: drift.Profile | None
    problem: str = ""

    def save(self, directory: Path) -> None:
        with files.replacing(directory) as temporary:
            temporary.mkdir()
            for name, measured in self.tables.items():
                measured.save(temporary, name)
            files.write_json(
                temporary / "profile.json",
                {
                    "shard": str(self.shard),
                    "head": self.head,
                    "tables": list(self.tables),
                    "problem": self.problem,
                    "drift": self.drift.to_dict() if self.drift else None,
                },
            )

    @classmethod
    def load(cls, directory: Path) -> _Profile:
        value = _read_head(
            directory / "profile.json", "shard", "head", "tables", "drift", "problem"
        )
        compared = drift.Profile.from_dict(value["drift"]) if value["drift"] else None
        return cls(
            Shard.parse(value["shard"]),
            value["head"],
            {name: Measured.load(directory, name) for name in value["tables"]},
            compared,
            value["problem"],
        )


def _profile_events(directory: Path, workdir: str | Path | None, shard: Shard) -> _Profile:
    head = _read_head(directory / "dataset.json", "schema")
    before = _before(head, workdir)[0]
    with _duckdb() as connection:
        tables = suites.measure_dataset(
            directory, head, connection, shard, before.items() if before else None
        )
    try:
        return _Profile(shard, head, tables, drift.Profile.of(Dataset.open(directory, shard)))
    except DataError as error:  # the checks say it better, where it is something that they look at
        return _Profile(shard, head, tables, None, str(error))


def _check_events(
    shards: Sequence[_Profile],
    report_html: str | Path,
    checks: ChecksConfig,
    workdir: str | Path | None,
    started: float,
) -> CheckReport:
    head, names = shards[0].head, dict.fromkeys(name for shard in shards for name in shard.tables)
    tables = {
        name: Measured.merged([shard.tables.get(name, Measured()) for shard in shards])
        for name in names
    }
    found, facts = suites.dataset_suites(tables, head, checks)
    results = _judge(found)
    compared, extra = ([], NOTHING) if _broken(results) else _drift(shards, tables, checks, workdir)
    facts = {**facts, **({"shards": len(shards)} if len(shards) > 1 else {})}
    return _conclude(
        f"Checks of the dataset {head.get('name', '')}",
        facts,
        [*results, *compared],
        report_html,
        started,
        extra,
    )


def _drift(
    shards: Sequence[_Profile],
    tables: Mapping[str, Measured],
    checks: ChecksConfig,
    workdir: str | Path | None,
) -> tuple[Results, page.Html]:
    """Findings against the version before, none where there is none, and the section of the report
    that says so.
    """
    if problems := [shard.problem for shard in shards if shard.problem]:
        raise DataError(problems[0])
    before, why = _before(shards[0].head, workdir)
    now = drift.Profile.merged([shard.drift for shard in shards if shard.drift])
    if before is None:
        return [], drift.section(now, before, why)
    return _judge(
        [drift.suite(now, tables["events"].users, tables["targets"].users, before, checks)]
    ), drift.section(now, before, why)


def _before(head: dict[str, Any], workdir: str | Path | None) -> tuple[drift.Before | None, str]:
    """The published version of the same data; or None, and why there is nothing to compare with."""
    if workdir is None:
        return None, "No feature store was named: nothing to compare with."
    try:
        published = Published.open(workdir)
    except StoreError:
        return None, "Nothing was published before: this is the first version."
    manifest, name = published.manifest, f"{published.manifest['name']} ({published.path.name})"
    if (manifest["name"], published.schema.fingerprint) != (
        head.get("name"),
        Schema.from_dict(head["schema"]).fingerprint,
    ):
        return (
            None,
            f"The published version {name} is of other data or of another schema: nothing to compare with.",
        )
    if "profile" not in manifest:
        return (
            None,
            f"The published version {name} was built without a profile: nothing to compare with.",
        )
    return drift.Before(
        published.path / "features", name, drift.Profile.from_dict(manifest["profile"])
    ), ""


def _read_head(path: Path, *keys: str) -> dict[str, Any]:
    """The JSON object that describes a directory; DataError when it lacks a key."""
    head = files.read_json(path)
    missing = [key for key in keys if not isinstance(head, dict) or key not in head]
    if missing:
        raise DataError(
            f"{path} is incomplete",
            found=f"no {', '.join(missing)}",
            fix="Run the step that wrote it again.",
        )
    found: dict[str, Any] = head
    return found


@contextlib.contextmanager
def _duckdb() -> Iterator[Any]:
    """A connection that spills; what it cannot read is a DataError."""
    import duckdb

    with (
        tempfile.TemporaryDirectory(prefix="longrec-checks-") as spill,
        duckdb.connect() as connection,
    ):
        connection.execute(
            f"set temp_directory = '{spill}'; set memory_limit = '{MEMORY_LIMIT}'; set preserve_insertion_order = false"
        )
        try:
            yield connection
        except (duckdb.Error, OSError) as error:
            raise DataError(
                "a table cannot be read",
                found=str(error).splitlines()[0],
                fix="Run the step that wrote it again.",
            ) from error


def _judge(found: Sequence[Suite]) -> Results:
    """Findings and the JSON result of Great Expectations per suite."""
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    source = context.data_sources.add_pandas("profiles")
    return [_judge_suite(suite, source) for suite in found]


def _judge_suite(suite: Suite, source: Any) -> tuple[list[Finding], dict[str, Any]]:
    import great_expectations as gx
    import great_expectations.expectations as gxe
    import pandas as pd

    expectations = [
        gxe.ExpectColumnValuesToBeBetween(
            column=rule.column,
            min_value=rule.minimum,
            max_value=rule.maximum,
            severity=rule.severity,
            meta={"says": rule.says, "index": index},
        )
        for index, rule in enumerate(suite.rules)
    ]
    whole = source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("all")
    batch = whole.get_batch({"dataframe": pd.DataFrame(suite.table)})
    wanted: dict[str, Any] = {"result_format": "BASIC"}
    if suite.key:
        names = [suite.key, *([SHARD] if SHARD in suite.table else [])]
        wanted = {
            "result_format": "SUMMARY",
            "partial_unexpected_count": MAX_NAMED,
            "unexpected_index_column_names": names,
        }
    result = batch.validate(
        gx.ExpectationSuite(suite.name, expectations=expectations), result_format=wanted
    ).to_json_dict()
    judged = sorted(
        result["results"], key=lambda entry: entry["expectation_config"]["meta"]["index"]
    )
    return [
        _finding(suite, rule, entry) for rule, entry in zip(suite.rules, judged, strict=True)
    ], result


def _finding(suite: Suite, rule: Rule, judged: dict[str, Any]) -> Finding:
    kind = judged["expectation_config"]["type"]
    problem = (
        judged["exception_info"].get("exception_message")
        if isinstance(judged.get("exception_info"), dict)
        else None
    )
    details, passed = judged.get("result") or {}, bool(judged["success"])
    observed = f"an error: {problem}" if problem else _observed(suite, rule, details)
    culprits: tuple[str, ...] = ()
    if not passed and rule.culprits is not None:
        culprits = tuple(rule.culprits())
    elif not passed and suite.key:
        rows = details.get("partial_unexpected_index_list") or []
        culprits = tuple(
            f"{suite.key.removesuffix('_id')} {row[suite.key]}"
            + (f" (shard {row[SHARD]})" if SHARD in row else "")
            for row in rows[:MAX_NAMED]
        )
    return Finding(
        suite.name,
        f"{kind} {rule.column}",
        rule.says,
        observed,
        _bound(rule),
        rule.severity,
        passed,
        culprits,
    )


def _observed(suite: Suite, rule: Rule, details: dict[str, Any]) -> str:
    if not suite.key:
        return _show(rule, suite.table[rule.column][0])
    bad, rows = int(details.get("unexpected_count") or 0), int(details.get("element_count") or 0)
    if not bad:
        return f"all of {rows:,} users within"
    return f"{bad:,} of {rows:,} users out of bounds, the worst with {_show(rule, max(suite.table[rule.column], key=abs))}"


def _bound(rule: Rule) -> str:
    low, high = _show(rule, rule.minimum), _show(rule, rule.maximum)
    if rule.minimum is not None and rule.maximum is not None:
        return low if low == high else f"{low} to {high}"
    return f"at least {low}" if rule.maximum is None else f"at most {high}"


def _show(rule: Rule, value: Any) -> str:
    """A value for people; a time as its date and its number, a share in percent."""
    number = value.item() if hasattr(value, "item") else value
    if rule.column.endswith("share") and number is not None:
        return f"{100 * number:.4g} %"
    return (
        f"{_request_time(number)} ({number})"
        if rule.column.endswith("(ms)") and number
        else str(page.format_value(number))
    )


def _conclude(
    title: str,
    facts: dict[str, Any],
    results: Results,
    report_html: str | Path,
    started: float,
    extra: page.Html = NOTHING,
) -> CheckReport:
    findings = [finding for group, _ in results for finding in group]
    failures = tuple(finding.sentence() for finding in _broken(results))
    warnings = tuple(
        finding.sentence()
        for finding in findings
        if not finding.passed and finding.severity != "critical"
    )
    seconds = time.perf_counter() - started
    with files.replacing(report_html) as temporary:
        temporary.write_text(_render(title, facts, results, seconds, extra), encoding="utf-8")
    for line in warnings:
        logger.warning("%s", line)
    if failures:
        raise _failure(title, failures, report_html)
    return CheckReport(
        True, len(findings), len(warnings), failures, warnings, seconds, str(report_html)
    )


def _broken(results: Results) -> list[Finding]:
    """The critical findings that do not hold."""
    return [
        finding
        for group, _ in results
        for finding in group
        if not finding.passed and finding.severity == "critical"
    ]


def _failure(title: str, failures: Sequence[str], report_html: str | Path) -> CheckFailed:
    more = (
        f"; and {len(failures) - MAX_NAMED_FAILURES} more"
        if len(failures) > MAX_NAMED_FAILURES
        else ""
    )
    lines = "; ".join(failures[:MAX_NAMED_FAILURES])
    return CheckFailed(
        f"{title}: {len(failures)} failed: {lines}{more}", fix=f"The report is {report_html}."
    )


def _render(
    title: str, facts: dict[str, Any], results: Results, seconds: float, extra: page.Html
) -> str:
    findings = [finding for group, _ in results for finding in group]
    failed = sum(not finding.passed and finding.severity == "critical" for finding in findings)
    warned = sum(not finding.passed and finding.severity != "critical" for finding in findings)
    words = "passed" if not failed else f"{failed} failed"
    subtitle = f"{len(findings)} expectations, {failed} failed, {warned} warnings, {seconds:.1f} s, Great Expectations {_version()}"
    shown = {
        name: _request_time(value) if name.endswith("event") or name.endswith("moment") else value
        for name, value in facts.items()
    }
    body = page.section("Data", page.tiles(shown))
    if failed or warned:
        body = page.Html(
            body
            + page.section(
                "Broken",
                _table([finding for finding in findings if not finding.passed], named=True),
            )
        )
    for group, _ in results:
        body = page.Html(body + page.section(group[0].suite.capitalize(), _table(group)))
    body = page.Html(body + extra)
    raw = page.details(
        "Results as Great Expectations gave them (JSON)",
        json.dumps([result for _, result in results], indent=1),
    )
    return page.document(title, subtitle, page.Html(body + raw), (not failed, words))


def _table(findings: Sequence[Finding], *, named: bool = False) -> page.Html:
    headers = [
        "",
        *(["Suite"] if named else []),
        "Expectation",
        "Column",
        "Observed",
        "Bound",
        "Severity",
    ]
    rows, classes = [], []
    for finding in findings:
        says: str = finding.says
        if finding.culprits:
            says = page.Html(
                f"{page.escape(says)}<br><span class=soft>{page.escape(', '.join(finding.culprits))}</span>"
            )
        state = (
            page.badge(True, "held")
            if finding.passed
            else page.Html('<span class="badge warn">warning</span>')
        )
        if not finding.passed and finding.severity == "critical":
            state = page.badge(False, "failed")
        column = finding.expectation.partition(" ")[2]
        rows.append(
            [
                state,
                *([finding.suite] if named else []),
                says,
                column,
                finding.observed,
                finding.bound,
                finding.severity,
            ]
        )
        classes.append(
            "" if finding.passed else ("bad" if finding.severity == "critical" else "warn")
        )
    return page.table(headers, rows, classes)


def _request_time(value: Any) -> Any:
    if value is None:
        return None
    try:
        return datetime.datetime.fromtimestamp(value / 1000, datetime.UTC).strftime(
            "%Y-%m-%d %H:%M"
        )
    except (OverflowError, ValueError, OSError):
        return f"{value} ms"


def _version() -> str:
    from importlib.metadata import version

    return version("great_expectations")
