"""Routes of the page, in Starlette; this module knows no BentoML.

    GET /                 the page, one file that loads nothing else
    GET /docs             the API, in the Swagger UI of BentoML, without its tracking
    GET /docs.json        the API, as the OpenAPI document of the service
    GET /page/examples    users with long histories, candidates, a time after the last event
    GET /page/history     events of a user before a time, as columns to draw
    POST /page/whatif     scores as if one more event had happened

Those of /page serve the page alone and may change with it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from longrec.data import history
from longrec.errors import DataError, LongrecError
from longrec.serving.web.http import (
    html_response,
    id_parameter,
    int64_parameter,
    json_endpoint,
    optional_length,
    page_id,
    read_json_object,
)
from longrec.serving.web.page import DOCS_PAGE, main_page
from longrec.serving.web.timeline_view import append_event, shown_id, timeline_view
from longrec.times import require_time

if TYPE_CHECKING:
    from longrec.serving.engine import Engine
    from longrec.serving.requests import EncodedRequest, RankResult
    from longrec.serving.store_reader import StoreReader

NUM_EXAMPLE_USERS = 12
NUM_EXAMPLE_CANDIDATES = 40
NUM_EXAMINED_USERS = 20_000
"""Users of the first published file among which examples are chosen."""
MAX_CANDIDATES = 2_048
TIMEOUT_SECONDS = 5.0
log = logging.getLogger(__name__)
ExampleUser = dict[str, Any]
"""`user_id`, `history_length`."""


@dataclasses.dataclass(frozen=True, slots=True)
class PageSource:
    """What the page reads.

    Args:
        workdir: LONGREC_HOME.
        reader: reader of the feature store.
        acquire: gives the current version and its engine for the time of a `with` block.
    """

    workdir: Path
    reader: StoreReader
    acquire: Callable[[], AbstractContextManager[tuple[str, Engine]]]


class WebApp:
    """The application to mount at `/`; the service sets `source` once it is ready.

    Args:
        document: returns the OpenAPI document of the service.
    """

    def __init__(self, document: Callable[[], dict[str, Any]]) -> None:
        from starlette.applications import Starlette
        from starlette.routing import Route

        self.source: PageSource | None = None
        self._document = document
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/docs", self._docs),
                Route("/docs.json", self._docs_json),
                Route("/page/examples", json_endpoint(self._examples)),
                Route("/page/history", json_endpoint(self._history)),
                Route("/page/whatif", json_endpoint(self._whatif), methods=["POST"]),
            ]
        )

    async def _page(self, _: Any) -> Any:
        return html_response(main_page())

    async def _docs(self, _: Any) -> Any:
        return html_response(DOCS_PAGE)

    async def _docs_json(self, _: Any) -> Any:
        from starlette.responses import JSONResponse

        return JSONResponse(self._document(), headers={"Cache-Control": "no-cache"})

    async def _examples(self, _: Any) -> dict[str, Any]:
        source = self._ready_source()
        users, time_ms = _published_users(source.workdir)
        with source.acquire() as (_version, engine):
            encoder = engine.scorer.bundle.encoder
        text_ids = encoder.schema.text_ids
        items = _evenly_spread(encoder.item_ids).tolist()
        return {
            "users": [
                {**user, "user_id": shown_id(user["user_id"], is_text="user" in text_ids)}
                for user in users
            ],
            "moment": time_ms,
            "candidates": [shown_id(item, is_text="item" in text_ids) for item in items],
            "text_ids": list(text_ids),
        }

    async def _history(self, request: Any) -> dict[str, Any]:
        source = self._ready_source()
        parameters = dict(request.query_params)
        user_id = id_parameter(parameters, "user_id", is_text=self._has_text("user"))
        time_ms = int64_parameter(parameters, "request_time")
        length = optional_length(parameters)
        rows = (await source.reader.fetch(user_id)).rows
        with source.acquire() as (_version, engine):
            bundle = engine.scorer.bundle
            time_ms = _request_time(time_ms, engine)
            if length is None:
                length = bundle.served_length
            earlier = history.events_before(rows.history, time_ms)
            events = history.most_recent(earlier, length)
            is_known = rows.features is not None or rows.history.num_rows > 0
            return {"user_known": is_known, **timeline_view(events, bundle.encoder)}

    async def _whatif(self, request: Any) -> dict[str, Any]:
        from longrec.scoring.request import RequestRows
        from longrec.serving.requests import EncodedRequest

        source = self._ready_source()
        body = await read_json_object(request)
        are_items_text = self._has_text("item")
        user_id = id_parameter(body, "user_id", is_text=self._has_text("user"))
        time_ms = int64_parameter(body, "request_time")
        item = id_parameter(body, "item_id", is_text=are_items_text)
        length = optional_length(body)
        candidates = _candidates(body, is_text=are_items_text)
        rows = (await source.reader.fetch(user_id)).rows
        with source.acquire() as (version, engine):
            time_ms = _request_time(time_ms, engine)
            events = append_event(
                history.events_before(rows.history, time_ms),
                item,
                time_ms - 1,
                kind=body.get("kind"),
                encoder=engine.scorer.bundle.encoder,
            )
            result = await _rank(
                engine,
                EncodedRequest(
                    rows=RequestRows(events, rows.features, time_ms, candidates),
                    length=length,
                    deadline=time.monotonic() + TIMEOUT_SECONDS,
                ),
            )
            columns = result.scores.T.tolist()
            scores = dict(zip(engine.scorer.task_names, columns, strict=True))
        return {
            "scores": scores,
            "model_version": version,
            "history_length": result.num_events,
        }

    def _has_text(self, key: str) -> bool:
        """Return whether the log names users (`user`) or items (`item`) by text."""
        with self._ready_source().acquire() as (_version, engine):
            return key in engine.scorer.bundle.schema.text_ids

    def _ready_source(self) -> PageSource:
        if self.source is None:
            raise LongrecError("the service is not ready yet")
        return self.source


def _request_time(time_ms: int, engine: Engine) -> int:
    return require_time("request_time", time_ms, engine.scorer.bundle.schema.time_origin_ms)


async def _rank(engine: Engine, request: EncodedRequest) -> RankResult:
    ticket = engine.admission.admit(
        len(request.rows.candidates),
        request.rows.history.num_rows,
        is_cached=False,
        deadline=request.deadline,
    )
    try:
        return await engine.rank(request, ticket)
    finally:
        engine.admission.release(ticket)


def _candidates(body: Mapping[str, Any], *, is_text: bool) -> npt.NDArray[np.int64]:
    """Return the candidates of a body, int64 [m]."""
    values = body.get("candidates")
    if not isinstance(values, list) or not 0 < len(values) <= MAX_CANDIDATES:
        raise DataError(f"candidates should be a list of 1 to {MAX_CANDIDATES} item ids")
    items = [page_id(value, "candidates", is_text=is_text) for value in values]
    return np.array(items, np.int64)


def _evenly_spread(item_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return example candidates, evenly spread over the known items."""
    num_items = len(item_ids)
    if num_items == 0:
        return item_ids
    count = min(NUM_EXAMPLE_CANDIDATES, num_items)
    places = np.linspace(0, num_items - 1, count)
    chosen = item_ids[places.astype(np.int64)]
    return np.unique(chosen)


def _published_users(workdir: Path) -> tuple[list[ExampleUser], int | None]:
    """Return example users; none while the files of the store are gone."""
    from longrec.data.store.versions import PublishedVersion

    try:
        published = PublishedVersion.open(workdir)
        return _example_users(published.path / "features" / "user_history")
    except (LongrecError, OSError, ValueError) as error:
        log.warning("the page has no example users: %s", error)
        return [], None


@functools.lru_cache(maxsize=2)
def _example_users(folder: Path) -> tuple[list[ExampleUser], int | None]:
    """Return users with long histories, and a time after their last event.

    Args:
        folder: published histories; only the first users of the first file are read.
    """
    import pyarrow.parquet as pq

    columns = ["user_id", "history_length", "event_timestamp"]
    for path in sorted(folder.glob("part-*.parquet")):
        batches = pq.ParquetFile(path).iter_batches(NUM_EXAMINED_USERS, columns=columns)
        batch = next(batches, None)
        if batch is None or batch.num_rows == 0:
            continue
        rows = sorted(batch.to_pylist(), key=lambda row: -row["history_length"])
        last_time = max(row["event_timestamp"] for row in rows)
        users = [_example_user(row) for row in rows[:NUM_EXAMPLE_USERS]]
        return users, int(last_time.timestamp() * 1000) + 1
    return [], None


def _example_user(row: Mapping[str, Any]) -> ExampleUser:
    return {
        "user_id": row["user_id"],
        "history_length": row["history_length"],
    }
