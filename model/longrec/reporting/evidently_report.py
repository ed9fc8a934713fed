"""Evidently: reports on drift in the format of https://docs.evidentlyai.com.

No other file imports Evidently, and this one only when a report is asked for. A report is made on
this machine: it loads nothing from elsewhere and sends nothing.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

METHOD = "longrec_psi"
"""Name of the gate's index among Evidently's methods."""
MAX_ROWS = 2_000_000
"""Largest number of rows of a column. Longer ones are thinned, each bin in proportion."""
INSTALL = "pip install 'longrec[evidently]'"

Counts: TypeAlias = npt.NDArray[np.int64]
Index: TypeAlias = Callable[[npt.ArrayLike, npt.ArrayLike], float]


@dataclasses.dataclass(frozen=True, slots=True)
class Quantity:
    """A quantity of the reference and of the current rows: a column of the report.

    Args:
        name: of the column.
        bins: their names, in order.
        reference, current: rows per bin.
        bound: largest index that is no drift; None for no verdict.
    """

    name: str
    bins: tuple[str, ...]
    reference: tuple[int, ...]
    current: tuple[int, ...]
    bound: float | None


def require_evidently(key: str, folder: Path) -> None:
    """Make the folder for a report; raise if there can be none.

    Args:
        key: the setting that asks for a report.
        folder: for the report.

    Raises:
        ConfigError: Evidently is not installed, or the folder cannot be made.
    """
    if importlib.util.find_spec("evidently") is None:
        raise ConfigError(f"{key} is set, but Evidently is not installed", fix=INSTALL)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{key} names no folder that can be written",
            found=f"{folder}: {error.strerror}",
            expected="a folder, relative to the work directory",
        ) from error


def write_evidently(
    quantities: Sequence[Quantity],
    html: Path,
    json: Path,
    *,
    index: Index,
    name: str,
    metadata: Mapping[str, str],
    max_rows: int = MAX_ROWS,
) -> None:
    """Write a report as a page and as JSON.

    Each row becomes a row of Evidently's data sets, with the name of its bin as the value.

    Args:
        quantities: at least one.
        html, json: files to write.
        index: distance of two histograms, the one of the gate.
        name: title of the report.
        metadata: facts of the report, for example the model version.
        max_rows: see MAX_ROWS.
    """
    from evidently import Report

    reference = {}
    current = {}
    for entry in quantities:
        reference[entry.name] = _rows(entry.bins, _thin(entry.reference, max_rows))
        current[entry.name] = _rows(entry.bins, _thin(entry.current, max_rows))
    _register(index)
    metrics = [_metric(entry) for entry in quantities]
    report = Report(metrics, include_tests=True)
    snapshot = report.run(
        _dataset(current),
        _dataset(reference),
        name=name,
        metadata=dict(metadata),
    )
    snapshot.save_html(str(html))
    snapshot.save_json(str(json))


def _metric(quantity: Quantity) -> Any:
    """Return the metric of a column, without a test if there is no bound."""
    from evidently.metrics import ValueDrift

    if quantity.bound is None:
        return ValueDrift(column=quantity.name, method=METHOD, tests=[])
    return ValueDrift(column=quantity.name, method=METHOD, threshold=quantity.bound)


def _register(index: Index) -> None:
    """Make the index of the gate a method of Evidently.

    Evidently's own `psi` counts an empty bin as a share of 0.0001, so it depends less on the number
    of rows. Without empty bins both are equal.
    """
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    def compare(
        reference: pd.Series,
        current: pd.Series,
        column_type: ColumnType,
        bound: float,
    ) -> tuple[float, bool]:
        old = reference.value_counts()
        new = current.value_counts()
        old, new = old.align(new, fill_value=0)
        value = index(old, new)
        return value, value > bound

    method = StatTest(
        name=METHOD,
        display_name="population stability index (longrec)",
        allowed_feature_types=[ColumnType.Categorical],
    )
    register_stattest(method, compare)


def _rows(bins: Sequence[str], counts: Counts) -> pd.Series:
    """Return the name of the bin of each row."""
    import pandas as pd

    in_order = [f"{place:02} {text}" for place, text in enumerate(bins)]
    names = np.array(in_order, object)
    return pd.Series(np.repeat(names, counts))


def _dataset(columns: Mapping[str, pd.Series]) -> Any:
    """Return a data set; shorter columns end with nulls, which Evidently leaves out."""
    import pandas as pd
    from evidently import DataDefinition, Dataset

    names = list(columns)
    definition = DataDefinition(categorical_columns=names)
    return Dataset.from_pandas(pd.DataFrame(columns), definition)


def _thin(counts: Sequence[int], max_rows: int) -> Counts:
    """Return counts of about max_rows rows in all; a bin with a row keeps one."""
    all_rows = np.array(counts)
    num_rows = int(all_rows.sum())
    if num_rows <= max_rows:
        return all_rows
    log.info("a report of Evidently shows %d of %d rows", max_rows, num_rows)
    share = max_rows / num_rows
    kept = np.rint(all_rows * share)
    is_used = all_rows > 0
    return np.where(is_used, np.maximum(kept, 1), 0).astype(np.int64)
