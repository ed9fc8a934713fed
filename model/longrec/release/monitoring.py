"""Monitoring: a bounded log of what a service answered, and how far its scores and features lie
from what the model was evaluated on.

    service --a share of the answers--> LONGREC_HOME/requests/*.parquet --+
                          evaluation/predictions.parquet (the reference) --+--drift()--> report.html

A row of the log is one candidate of one answered request, with the columns of predictions.parquet
(without labels), the model version and
whether the answer was degraded. Compared are histograms, by PSI (longrec.data.quality.drift):
nothing is learned, nothing leaves the machine.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.config import DriftConfig
from longrec.data import files
from longrec.data.encoder import Encoder
from longrec.data.quality.drift import LENGTH_EDGES, histogram, psi, psi_noise, quantile_edges
from longrec.errors import CheckFailed, DataError
from longrec.release import registry
from longrec.reporting import page
from longrec.schema import ITEM_ID, TIMESTAMP, USER_ID

log = logging.getLogger("bentoml.longrec.monitor")

FILE_ROWS, FILE_SECONDS, MAX_FILES, MAX_PENDING = 20_000, 60.0, 64, 100_000
MAX_LOGGED_CANDIDATES = 50
NUM_VALUES = 20
"""Most frequent values of a feature with a bin of their own; the others share one."""

Counts = npt.NDArray[np.int64]


class RequestLog:
    """Writes a share of the answers to files of at most FILE_ROWS rows, of which the newest
    MAX_FILES of a work directory stay.

    Args:
        workdir: LONGREC_HOME.
        share: of the requests, 0 to 1.
    """

    def __init__(self, workdir: str | Path, share: float) -> None:
        self._folder, self._share = Path(workdir) / "requests", share
        self._rows: list[dict[str, Any]] = []
        self._lock, self._wake, self._is_ended = threading.Lock(), threading.Event(), False
        self._random = random.Random(os.getpid())  # noqa: S311
        self.num_dropped = 0
        self._thread = threading.Thread(
            target=self._run,
            name="requestlog",
            daemon=True,
        )
        if share > 0:
            self._thread.start()

    def add(
        self,
        user_id: int,
        request_time_ms: int,
        items: Sequence[int],
        scores: Mapping[str, Sequence[float]],
        **facts: Any,
    ) -> None:
        """Takes note of an answer, or not; never waits. At most MAX_LOGGED_CANDIDATES candidates,
        the first ones.

        Args:
            scores: per task, in the order of the items.
            facts: history_length, model_version, degraded.
        """
        if self._random.random() >= self._share:
            return
        if len(self._rows) > MAX_PENDING:
            self.num_dropped += 1
            return
        request = uuid.uuid4().int >> 65
        rows = [
            {
                "request_id": request,
                USER_ID: user_id,
                TIMESTAMP: request_time_ms,
                ITEM_ID: item,
                **facts,
                **{f"{task}_score": float(column[place]) for task, column in scores.items()},
            }
            for place, item in enumerate(items[:MAX_LOGGED_CANDIDATES])
        ]
        with self._lock:
            self._rows += rows
        if len(self._rows) >= FILE_ROWS:
            self._wake.set()

    def stop(self) -> None:
        """Writes what is left."""
        self._is_ended = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._is_ended:
            self._wake.wait(FILE_SECONDS)
            self._wake.clear()
            try:
                self._write()
            except OSError as error:
                log.warning("the log of requests cannot be written: %s", error)

    def _write(self) -> None:
        with self._lock:
            rows, self._rows = self._rows, []
        if not rows:
            return
        name = f"{time.time_ns() // 1_000_000:015d}-{socket.gethostname()}-{os.getpid()}.parquet"
        with files.replacing(self._folder / name) as temporary:
            pq.write_table(pa.Table.from_pylist(rows), temporary)
        for old in sorted(self._folder.glob("*.parquet"))[:-MAX_FILES]:
            old.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Compared:
    """One quantity of reference and live requests.

    Args:
        name: `score <task>`, `history length`, `user.<feature>`, `item.<feature>`.
        psi: population stability index; noise: what chance alone gives on average with these
            numbers of rows.
        bound: above which, noise added, it has drifted.
        bins: names of the bins; reference, live: counts per bin.
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
        return self.psi > self.bound + self.noise


@dataclasses.dataclass(frozen=True, slots=True)
class DriftReport:
    """How far live requests lie from the reference.

    Args:
        num_requests, num_scores: live ones that were compared: those of `model_version` within the
            window.
        model_version: the last one in the log.
        degraded_share: of the live requests.
        largest_score_psi, largest_feature_psi: over the quantities of each kind.
        drifted: names of quantities above their bound.
        is_enough: whether there were `min_requests`; below it nothing is called drifted.
        passed: nothing has drifted.
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


def drift(
    workdir: str | Path,
    evaluation_dir: str | Path,
    bundle_dir: str | Path,
    report_html: str | Path,
    config: DriftConfig,
) -> DriftReport:
    """Returns how far the logged requests of a work directory lie from the evaluation of a model, after
    writing the page.

    Args:
        workdir: LONGREC_HOME: requests/ as RequestLog wrote them, features/ as published.
        evaluation_dir: of the model; its predictions.parquet is the reference.
        bundle_dir: of the model; its encoder tells values of features apart as the model does.
        report_html: where the page goes.
        config: bounds and window.

    Raises:
        DataError: no request was logged, or a file is missing.
    """
    live, reference = (
        _live(Path(workdir) / "requests", config),
        pq.read_table(Path(evaluation_dir) / "predictions.parquet"),
    )
    encoder = Encoder.load(Path(bundle_dir) / "encoder")
    users = pq.read_table(Path(workdir) / "features" / "user_features.parquet")
    compared = list(_compared(reference, live, encoder, users, config))
    report = _report(live, compared, config)
    with files.replacing(report_html) as temporary:
        temporary.write_text(_page(report, compared, reference, config), encoding="utf-8")
    return report


def check_drift(workdir: str | Path, report_html: str | Path, config: DriftConfig) -> DriftReport:
    """Returns `drift` of the version that answered last, found in the BentoML store, from what
    `package` left of its evaluation in `workdir`.

    Raises:
        CheckFailed: something has drifted; the page has been written.
        DataError: no request was logged, or the version was not packaged for this work directory.
    """
    version = str(
        pq.read_table(_logged(Path(workdir) / "requests")[-1], columns=["model_version"])
        .column(0)[-1]
        .as_py()
    )
    reference = registry.reference_dir(workdir, version)
    if not reference.is_dir():
        raise DataError(
            f"nothing is known of the evaluation of {version}",
            found=f"no {reference}",
            fix="Package it again for this work directory: longrec run, or the training pipeline.",
        )
    report = drift(
        workdir, reference, registry.bundle_dir(registry.store_dir(), version), report_html, config
    )
    if not report.passed:
        raise CheckFailed(
            f"{len(report.drifted)} quantities of the requests of {version} have drifted",
            found=", ".join(report.drifted),
            fix="See the report: train again, or mend what feeds the service; bounds are those of drift.*.",
        )
    return report


def _logged(folder: Path) -> list[Path]:
    """Returns the files of the log, oldest first."""
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise DataError(
            "no request was logged",
            found=f"nothing in {folder}",
            fix="Serve with LONGREC_LOG_SHARE above 0.",
        )
    return paths


def _live(folder: Path, config: DriftConfig) -> pa.Table:
    """Returns the rows of the last model version within the window before the last request."""
    rows = pa.concat_tables(
        [pq.read_table(path) for path in _logged(folder)], promote_options="permissive"
    )
    times, versions = (
        rows.column(TIMESTAMP).to_numpy(),
        rows.column("model_version").to_numpy(zero_copy_only=False),
    )
    is_recent = times >= times.max() - round(3.6e6 * config.window_hours)
    return rows.filter(pa.array(is_recent & (versions == versions[-1])))


def _compared(
    reference: pa.Table, live: pa.Table, encoder: Encoder, users: pa.Table, config: DriftConfig
) -> Iterator[Compared]:
    both = (reference, live)
    for task in encoder.schema.task_names:
        scores = [table.column(f"{task}_score").to_numpy() for table in both]
        edges = quantile_edges(scores[0])
        names = [f"up to {edge:.4g}" for edge in edges] + ["more"]
        yield _one(
            f"score {task}",
            names,
            [histogram(side, edges) for side in scores],
            config.max_score_psi,
        )
    requests = [table.take(pa.array(_firsts(table))) for table in both]
    lengths = [
        histogram(table.column("history_length").to_numpy(), LENGTH_EDGES) for table in requests
    ]
    bins = ["0", *(f"up to {1 << power:,}" for power in range(21)), "more"]
    yield _one("history length", bins, lengths, config.max_feature_psi)
    found = [_rows_of(users, table.column(USER_ID).to_numpy()) for table in requests]
    codes = encoder.users(users)
    for place, feature in enumerate(encoder.schema.user):
        yield _codes(
            f"user.{feature.name}",
            [np.where(rows < 0, 0, codes[rows, place]) for rows in found],
            config,
        )
    items = [
        encoder.item_table[encoder.item_rows(table.column(ITEM_ID).to_numpy())] for table in both
    ]
    yield _codes(
        "item known",
        [
            (encoder.item_rows(table.column(ITEM_ID).to_numpy()) > 0).astype(np.int32)
            for table in both
        ],
        config,
    )
    for place, feature in enumerate(encoder.schema.item):
        if feature.name != ITEM_ID:
            yield _codes(f"item.{feature.name}", [side[:, place] for side in items], config)


def _codes(name: str, sides: Sequence[npt.NDArray[np.int32]], config: DriftConfig) -> Compared:
    """Returns the comparison of encoded values; rare ones of the reference share a bin."""
    values, counts = np.unique(sides[0], return_counts=True)
    kept = values[np.argsort(-counts, kind="stable")[:NUM_VALUES]]
    histograms = [
        np.array(
            [*(int((side == value).sum()) for value in kept), int((~np.isin(side, kept)).sum())]
        )
        for side in sides
    ]
    return _one(
        name, [*(f"code {value}" for value in kept), "others"], histograms, config.max_feature_psi
    )


def _one(
    name: str,
    bins: Sequence[str],
    sides: Sequence[Counts],
    bound: float,
) -> Compared:
    reference, live = sides
    counts = [tuple(side.tolist()) for side in sides]
    return Compared(
        name, psi(reference, live), psi_noise(reference, live), bound, tuple(bins), *counts
    )


def _firsts(table: pa.Table) -> npt.NDArray[np.int64]:
    """Returns one row of each request."""
    return np.sort(np.unique(table.column("request_id").to_numpy(), return_index=True)[1])


def _rows_of(users: pa.Table, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns the row of each user, -1 for one without."""
    known = users.column(USER_ID).to_numpy()
    order = np.argsort(known, kind="stable")
    places = np.minimum(np.searchsorted(known[order], ids), len(known) - 1)
    return np.where(known[order][places] == ids, order[places], -1)


def _report(live: pa.Table, compared: Sequence[Compared], config: DriftConfig) -> DriftReport:
    firsts = _firsts(live)
    is_enough = len(firsts) >= config.min_requests
    drifted = tuple(each.name for each in compared if each.has_drifted) if is_enough else ()
    largest = {
        kind: max(
            (each.psi for each in compared if each.name.startswith("score ") == kind), default=0.0
        )
        for kind in (True, False)
    }
    degraded = float(np.mean(live.column("degraded").to_numpy(zero_copy_only=False)[firsts]))
    return DriftReport(
        len(firsts),
        live.num_rows,
        str(live.column("model_version")[0].as_py()),
        degraded,
        largest[True],
        largest[False],
        drifted,
        is_enough,
        not drifted,
    )


def _page(
    report: DriftReport, compared: Sequence[Compared], reference: pa.Table, config: DriftConfig
) -> str:
    verdict = (
        (report.passed, "no drift" if report.passed else "drift")
        if report.is_enough
        else (False, "too few requests to tell")
    )
    rows = [[each.name, each.psi, each.noise, each.bound] for each in compared]
    marks = ["bad" if each.name in report.drifted else "" for each in compared]
    table = page.table(["quantity", "PSI", "by chance", "bound"], rows, marks)
    facts = page.facts(
        {
            "live requests": report.num_requests,
            "live scores": report.num_scores,
            "reference scores": reference.num_rows,
            "model version": report.model_version,
            "degraded": f"{100 * report.degraded_share:.2f} %",
        }
    )
    note = (
        f"Requests of the {config.window_hours:g} hours before the last one. "
        "PSI by custom: below 0.1 nothing happened, above 0.25 much did."
    )
    parts = [page.section("Against the evaluation of the model", facts, table, note=note)]
    parts += [_histogram(each) for each in sorted(compared, key=lambda each: -each.psi)]
    subtitle = f"{len(report.drifted)} of {len(compared)} quantities have drifted"
    return page.page("Drift of live requests", subtitle, page.Html("".join(parts)), verdict)


def _histogram(each: Compared) -> page.Html:
    totals = [max(sum(side), 1) for side in (each.reference, each.live)]
    rows = [
        [
            name,
            *(f"{100 * count / total:.2f} %" for count, total in zip(counts, totals, strict=True)),
        ]
        for name, *counts in zip(each.bins, each.reference, each.live, strict=True)
        if any(counts)
    ]
    return page.section(
        each.name, page.table(["", "reference", "live"], rows), note=f"PSI {each.psi:.4f}"
    )
