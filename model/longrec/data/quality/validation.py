"""Validation of suites by Great Expectations; no other file of the package imports it."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Sequence
from typing import Any

from longrec.data.quality.check_report import ExpectationResult, SuiteResult
from longrec.data.quality.column_profiles import MAX_EXAMPLES
from longrec.data.quality.expectations import Expectation, Suite
from longrec.data.quality.user_profiles import SHARD
from longrec.reporting import page


def validate(suites: Sequence[Suite]) -> list[SuiteResult]:
    """Return the results of all suites."""
    # Importing Great Expectations logs some 200 lines about its own classes.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    import great_expectations as gx

    # This logger sets its own level at import.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    source = context.data_sources.add_pandas("profiles")
    return [_validate_suite(suite, source) for suite in suites]


def great_expectations_version() -> str:
    """Return the installed version of Great Expectations."""
    from importlib.metadata import version

    return version("great_expectations")


def format_minute(value: Any) -> Any:
    """Return a time in ms as its UTC date, hour and minute; None for None."""
    if value is None:
        return None
    try:
        time = datetime.datetime.fromtimestamp(value / 1000, datetime.UTC)
        return time.strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return f"{value} ms"


def _validate_suite(suite: Suite, source: Any) -> SuiteResult:
    import great_expectations as gx
    import great_expectations.expectations as gxe
    import pandas as pd

    expectations = [
        gxe.ExpectColumnValuesToBeBetween(
            column=expectation.column,
            min_value=expectation.minimum,
            max_value=expectation.maximum,
            severity=expectation.severity,
            meta={"description": expectation.description, "index": index},
        )
        for index, expectation in enumerate(suite.expectations)
    ]
    asset = source.add_dataframe_asset(suite.name)
    batch_definition = asset.add_batch_definition_whole_dataframe("all")
    batch = batch_definition.get_batch({"dataframe": pd.DataFrame(suite.table)})
    validation = batch.validate(
        gx.ExpectationSuite(suite.name, expectations=expectations),
        result_format=_result_format(suite),
    )
    result = validation.to_json_dict()
    entries = sorted(result["results"], key=_expectation_index)
    results = [
        _expectation_result(suite, expectation, entry)
        for expectation, entry in zip(suite.expectations, entries, strict=True)
    ]
    return SuiteResult(suite.name, results, result)


def _result_format(suite: Suite) -> dict[str, Any]:
    """Return the details that Great Expectations reports; failed rows for a profile of users."""
    if not suite.key:
        return {"result_format": "BASIC"}
    index_columns = [suite.key]
    if SHARD in suite.table:
        index_columns.append(SHARD)
    return {
        "result_format": "SUMMARY",
        "partial_unexpected_count": MAX_EXAMPLES,
        "unexpected_index_column_names": index_columns,
    }


def _expectation_index(entry: dict[str, Any]) -> int:
    index: int = entry["expectation_config"]["meta"]["index"]
    return index


def _expectation_result(
    suite: Suite,
    expectation: Expectation,
    entry: dict[str, Any],
) -> ExpectationResult:
    details = entry.get("result") or {}
    passed = bool(entry["success"])
    exception_info = entry.get("exception_info")
    message = None
    if isinstance(exception_info, dict):
        message = exception_info.get("exception_message")
    observed = f"an error: {message}" if message else _observed(suite, expectation, details)
    failed_rows: Sequence[str] = ()
    if not passed:
        failed_rows = _failed_rows(suite, expectation, details)
    return ExpectationResult(
        suite=suite.name,
        expectation_type=entry["expectation_config"]["type"],
        column=expectation.column,
        description=expectation.description,
        observed=observed,
        bound=_bound(expectation),
        severity=expectation.severity,
        passed=passed,
        failed_rows=tuple(failed_rows),
    )


def _failed_rows(
    suite: Suite,
    expectation: Expectation,
    details: dict[str, Any],
) -> Sequence[str]:
    """Return failed rows in words, by the expectation itself or by Great Expectations."""
    if expectation.failed_rows is not None:
        return expectation.failed_rows()
    if not suite.key:
        return ()
    rows = details.get("partial_unexpected_index_list") or []
    noun = suite.key.removesuffix("_id")
    texts = []
    for row in rows[:MAX_EXAMPLES]:
        text = f"{noun} {row[suite.key]}"
        if SHARD in row:
            text += f" (shard {row[SHARD]})"
        texts.append(text)
    return texts


def _observed(
    suite: Suite,
    expectation: Expectation,
    details: dict[str, Any],
) -> str:
    values = suite.table[expectation.column]
    if not suite.key:
        return _format_value(expectation, values[0])
    num_failed = int(details.get("unexpected_count") or 0)
    num_rows = int(details.get("element_count") or 0)
    if not num_failed:
        return f"all {num_rows:,} users within bounds"
    worst = _format_value(expectation, max(values, key=abs))
    return f"{num_failed:,} of {num_rows:,} users out of bounds, the worst with {worst}"


def _bound(expectation: Expectation) -> str:
    minimum = _format_value(expectation, expectation.minimum)
    maximum = _format_value(expectation, expectation.maximum)
    if expectation.maximum is None:
        return f"at least {minimum}"
    if expectation.minimum is None:
        return f"at most {maximum}"
    if minimum == maximum:
        return minimum
    return f"{minimum} to {maximum}"


def _format_value(expectation: Expectation, value: Any) -> str:
    """Return a value as text: a share in percent, a time as its date and number."""
    number = value.item() if hasattr(value, "item") else value
    if expectation.unit == "share" and number is not None:
        return page.format_percent(number, ".4g")
    if expectation.unit == "ms" and number:  # a bound of 0 is no date
        return f"{format_minute(number)} ({number})"
    return page.format_value(number)
