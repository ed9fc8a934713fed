"""Measure how far live requests drifted from the requests that a model was evaluated on.

    service -> LONGREC_HOME/requests/*.parquet ------+
    evaluation/predictions.parquet (the reference) --+-> measure_drift -> report.html
                                                                      (and a report of Evidently)

Histograms of scores and features are compared by the population stability index, PSI
(longrec.data.quality.drift). Nothing is learned and nothing leaves the machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.config import DriftConfig
from longrec.data import files
from longrec.data.encoder import Encoder
from longrec.data.quality.drift import LARGEST_LENGTHS, LENGTH_EDGES
from longrec.data.quality.psi import histogram, psi, psi_noise, quantile_edges
from longrec.errors import CheckFailed, DataError
from longrec.release import model_store, registry
from longrec.release.request_log import log_files
from longrec.reporting import evidently_report, page
from longrec.schema import ITEM_ID, REQUEST_ID, TIMESTAMP, USER_ID

MAX_VALUE_BINS = 20
"""Most frequent values of a feature with a bin of their own; the others share one."""
HOUR_MS = 3.6e6
SCORE_PREFIX = "score "
"""Start of the names of the compared scores; all other quantities are features."""

Counts: TypeAlias = npt.NDArray[np.int64]
Int: TypeAlias = npt.NDArray[np.int64]
Codes: TypeAlias = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True, slots=True)
class DriftComparison:
    """One quantity of the reference and of the live requests.

    Args:
        name: `score <task>`, `history length`, `item known`, `user.<feature>`, `item.<feature>`.
        psi: population stability index.
        noise: mean index by chance alone at these numbers of rows.
        bound: largest index, without the noise, that is no drift.
        bins: names of the bins.
        reference, live: counts per bin.
    """

    name: str
    psi: float
    noise: float
    bound: float
    bins: tuple[str, ...]
    reference: tuple[int, ...]
    live: tuple[int, ...]

    @property
    def has_drifted(self) -> bool:
        """Whether the index is above bound and noise."""
        return self.psi > self.bound + self.noise

    @property
    def is_score(self) -> bool:
        """Whether the quantity is a score and not a feature."""
        return self.name.startswith(SCORE_PREFIX)


@dataclasses.dataclass(frozen=True, slots=True)
class DriftReport:
    """How far live requests drifted from the reference.

    Args:
        num_requests: compared live requests, those of `model_version` within the window.
        num_scores: number of their logged candidates.
        model_version: the last one in the log.
        degraded_share: share of the live requests with a degraded answer.
        largest_score_psi, largest_feature_psi: over the quantities of each kind.
        drifted: names of the quantities above their bound.
        is_enough: whether there were `min_requests`; with fewer, nothing has drifted.
        passed: whether nothing has drifted.
    """

    num_requests: int
    num_scores: int
    model_version: str
    degraded_share: float
    largest_score_psi: float
    largest_feature_psi: float
    drifted: tuple[str, ...]
    is_enough: bool
    passed: bool


def check_drift(
    workdir: str | Path,
    report_html: str | Path,
    config: DriftConfig,
) -> DriftReport:
    """Measure the drift of the version that answered last; raise if there is any.

    The model is found in the BentoML store, its reference in the work directory, where `package`
    stored it.

    Args:
        workdir: LONGREC_HOME.
        report_html: file for the page.
        config: bounds and window.

    Raises:
        CheckFailed: something has drifted; the page has been written.
        DataError: no request was logged, or the version was not packaged for this work directory.
    """
    version = _last_version(workdir)
    reference = registry.reference_dir(workdir, version)
    if not reference.is_dir():
        raise DataError(
            f"the evaluation of {version} is not in this work directory",
            found=f"no {reference}",
            fix="Package it again for this work directory: longrec run, or the training pipeline.",
        )
    report = measure_drift(
        workdir,
        evaluation_dir=reference,
        bundle_dir=model_store.bundle_dir(model_store.store_dir(), version),
        report_html=report_html,
        config=config,
    )
    if not report.passed:
        raise CheckFailed(
            f"{len(report.drifted)} quantities of the requests of {version} have drifted",
            found=", ".join(report.drifted),
            fix="See the report. Train again, or fix the input of the service; "
            "drift.* holds the bounds.",
        )
    return report


def measure_drift(
    workdir: str | Path,
    *,
    evaluation_dir: str | Path,
    bundle_dir: str | Path,
    report_html: str | Path,
    config: DriftConfig,
) -> DriftReport:
    """Compare the logged requests with the evaluation of a model; write the page.

    Args:
        workdir: LONGREC_HOME with requests/ and the published features/.
        evaluation_dir: of the model; its predictions.parquet is the reference.
        bundle_dir: of the model; its encoder makes the codes of feature values.
        report_html: file for the page.
        config: bounds and window.

    Raises:
        ConfigError: a report of Evidently is asked for, and cannot be written.
        DataError: no request was logged, or a file is missing.
    """
    if config.evidently:
        folder = Path(workdir) / config.evidently
        evidently_report.require_evidently("drift.evidently", folder)
    live = _live_requests(workdir, config)
    reference = pq.read_table(Path(evaluation_dir) / "predictions.parquet")
    encoder = Encoder.load(Path(bundle_dir) / "encoder")
    users = pq.read_table(Path(workdir) / "features" / "user_features.parquet")
    comparisons = [
        *_compare_scores(reference, live, encoder, config),
        *_compare_requests(reference, live, encoder, users=users, config=config),
        *_compare_items(reference, live, encoder, config),
    ]
    report = _summarize(live, comparisons, config)
    text = _render(report, comparisons, reference.num_rows, config)
    files.write_text(report_html, text)
    if config.evidently:
        _write_evidently(Path(workdir) / config.evidently, report, comparisons)
    return report


def _require_log_files(workdir: str | Path) -> list[Path]:
    paths = log_files(workdir)
    if not paths:
        raise DataError(
            "no request was logged",
            found=f"nothing in {Path(workdir) / 'requests'}",
            fix="Serve with LONGREC_LOG_SHARE above 0.",
        )
    return paths


def _last_version(workdir: str | Path) -> str:
    """Return the model version of the last logged row."""
    path = _require_log_files(workdir)[-1]
    versions = pq.read_table(path, columns=["model_version"]).column(0)
    return str(versions[-1].as_py())


def _live_requests(workdir: str | Path, config: DriftConfig) -> pa.Table:
    """Return the rows of the last model version, within the window before the last request."""
    tables = [pq.read_table(path) for path in _require_log_files(workdir)]
    rows = pa.concat_tables(tables, promote_options="permissive")
    times = rows.column(TIMESTAMP).to_numpy()
    versions = rows.column("model_version").to_numpy(zero_copy_only=False)
    window_ms = round(HOUR_MS * config.window_hours)
    is_recent = times >= times.max() - window_ms
    is_last_version = versions == versions[-1]
    return rows.filter(pa.array(is_recent & is_last_version))


def _compare_scores(
    reference: pa.Table,
    live: pa.Table,
    encoder: Encoder,
    config: DriftConfig,
) -> Iterator[DriftComparison]:
    for task in encoder.schema.task_names:
        column = f"{task}_score"
        expected = reference.column(column).to_numpy()
        edges = quantile_edges(expected)
        bins = [f"up to {edge:.4g}" for edge in edges] + ["more"]
        yield _compare(
            f"{SCORE_PREFIX}{task}",
            bins,
            histogram(expected, edges),
            histogram(live.column(column).to_numpy(), edges),
            bound=config.max_score_psi,
        )


def _compare_requests(
    reference: pa.Table,
    live: pa.Table,
    encoder: Encoder,
    *,
    users: pa.Table,
    config: DriftConfig,
) -> Iterator[DriftComparison]:
    """Yield the history length and the user features, one row per request."""
    reference = reference.take(pa.array(_first_rows(reference)))
    live = live.take(pa.array(_first_rows(live)))
    lengths = [
        histogram(table.column("history_length").to_numpy(), LENGTH_EDGES)
        for table in (reference, live)
    ]
    upper_ends = [f"up to {length:,}" for length in LARGEST_LENGTHS[1:]]
    bins = ["0", *upper_ends, "more"]
    yield _compare("history length", bins, *lengths, bound=config.max_feature_psi)
    codes = encoder.users(users)
    reference_rows = _user_rows(users, reference.column(USER_ID).to_numpy())
    live_rows = _user_rows(users, live.column(USER_ID).to_numpy())
    for column, feature in enumerate(encoder.schema.user):
        yield _compare_codes(
            f"user.{feature.name}",
            _codes_of(codes[:, column], reference_rows),
            _codes_of(codes[:, column], live_rows),
            config,
        )


def _compare_items(
    reference: pa.Table,
    live: pa.Table,
    encoder: Encoder,
    config: DriftConfig,
) -> Iterator[DriftComparison]:
    """Yield whether the item is known and the item features, one row per candidate."""
    reference_rows = encoder.item_rows(reference.column(ITEM_ID).to_numpy())
    live_rows = encoder.item_rows(live.column(ITEM_ID).to_numpy())
    yield _compare_codes(
        "item known",
        (reference_rows > 0).astype(np.int32),
        (live_rows > 0).astype(np.int32),
        config,
    )
    for column, feature in enumerate(encoder.schema.item):
        if feature.name == ITEM_ID:
            continue
        codes = encoder.item_table[:, column]
        yield _compare_codes(
            f"item.{feature.name}",
            codes[reference_rows],
            codes[live_rows],
            config,
        )


def _codes_of(codes: Codes, rows: Int) -> Codes:
    """Return the code of each row; 0, the code of an unknown value, for an unknown user (-1)."""
    return np.where(rows < 0, 0, codes[rows])


def _compare_codes(
    name: str,
    reference: Codes,
    live: Codes,
    config: DriftConfig,
) -> DriftComparison:
    """Return the comparison of encoded values; rare values of the reference share a bin."""
    values, counts = np.unique(reference, return_counts=True)
    by_count = np.argsort(-counts, kind="stable")
    frequent = values[by_count[:MAX_VALUE_BINS]]
    return _compare(
        name,
        [*(f"code {value}" for value in frequent), "others"],
        _count_values(reference, frequent),
        _count_values(live, frequent),
        bound=config.max_feature_psi,
    )


def _count_values(codes: Codes, values: Codes) -> Counts:
    """Return how often each value occurs, and the number of other codes last."""
    counts = [int((codes == value).sum()) for value in values]
    num_others = len(codes) - sum(counts)
    return np.array([*counts, num_others])


def _compare(
    name: str,
    bins: Sequence[str],
    reference: Counts,
    live: Counts,
    *,
    bound: float,
) -> DriftComparison:
    return DriftComparison(
        name=name,
        psi=psi(reference, live),
        noise=psi_noise(reference, live),
        bound=bound,
        bins=tuple(bins),
        reference=tuple(reference.tolist()),
        live=tuple(live.tolist()),
    )


def _first_rows(table: pa.Table) -> Int:
    """Return the first row of each request, int64, rising."""
    _, first = np.unique(table.column(REQUEST_ID).to_numpy(), return_index=True)
    return np.sort(first)


def _user_rows(users: pa.Table, user_ids: Int) -> Int:
    """Return the row of each user in the feature table, int64; -1 for an unknown user."""
    known = users.column(USER_ID).to_numpy()
    order = np.argsort(known, kind="stable")
    sorted_ids = known[order]
    indices = np.minimum(np.searchsorted(sorted_ids, user_ids), len(known) - 1)
    return np.where(sorted_ids[indices] == user_ids, order[indices], -1)


def _summarize(
    live: pa.Table,
    comparisons: Sequence[DriftComparison],
    config: DriftConfig,
) -> DriftReport:
    first_rows = _first_rows(live)
    is_degraded = live.column("degraded").to_numpy(zero_copy_only=False)[first_rows]
    is_enough = len(first_rows) >= config.min_requests
    drifted: tuple[str, ...] = ()
    if is_enough:
        drifted = tuple(entry.name for entry in comparisons if entry.has_drifted)
    score_psi = [entry.psi for entry in comparisons if entry.is_score]
    feature_psi = [entry.psi for entry in comparisons if not entry.is_score]
    return DriftReport(
        num_requests=len(first_rows),
        num_scores=live.num_rows,
        model_version=str(live.column("model_version")[0].as_py()),
        degraded_share=float(np.mean(is_degraded)),
        largest_score_psi=max(score_psi, default=0.0),
        largest_feature_psi=max(feature_psi, default=0.0),
        drifted=drifted,
        is_enough=is_enough,
        passed=not drifted,
    )


def _render(
    report: DriftReport,
    comparisons: Sequence[DriftComparison],
    num_reference_scores: int,
    config: DriftConfig,
) -> str:
    """Return the page."""
    values = {
        "live requests": report.num_requests,
        "live scores": report.num_scores,
        "reference scores": num_reference_scores,
        "model version": report.model_version,
        "degraded": page.format_percent(report.degraded_share),
    }
    return page.render(
        "drift.html.jinja",
        title="Drift of live requests",
        subtitle=f"{len(report.drifted)} of {len(comparisons)} quantities have drifted",
        date=page.current_minute(),
        verdict=_verdict(report),
        values=values,
        window_hours=config.window_hours,
        comparisons=comparisons,
        report=report,
    )


def _write_evidently(
    folder: Path,
    report: DriftReport,
    comparisons: Sequence[DriftComparison],
) -> None:
    """Write drift.html and drift.json of Evidently; with too few requests, no verdict."""
    quantities = [
        evidently_report.Quantity(
            entry.name,
            entry.bins,
            entry.reference,
            entry.live,
            bound=entry.bound + entry.noise if report.is_enough else None,
        )
        for entry in comparisons
    ]
    facts = {"model_version": report.model_version, "verdict": _verdict(report)[1]}
    with (
        files.atomic_replace(folder / "drift.html") as html,
        files.atomic_replace(folder / "drift.json") as json,
    ):
        evidently_report.write_evidently(
            quantities,
            html,
            json,
            index=psi,
            name="Drift of live requests",
            metadata=facts,
        )


def _verdict(report: DriftReport) -> tuple[bool, str]:
    if not report.is_enough:
        return False, "too few requests to tell"
    return report.passed, "no drift" if report.passed else "drift"
