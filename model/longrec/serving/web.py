"""The page at `/` and what it asks for: a user's events as a picture, examples to begin with, one
more event. Starlette, no BentoML.

    GET /                 page.html, one file, nothing from anywhere else (its
    Content-Security-Policy forbids it)
    GET /docs             the interface, by the Swagger UI that BentoML brings, without the tracking
    of BentoML's own page
    GET /page/examples    users with long histories, candidates, a moment after the last event
    GET /page/history     events of a user before a moment, as columns to be drawn
    POST /page/whatif     scores as if one more event had happened

The last three are the page's own; they may change with it.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longrec.data import history
from longrec.data.encoder import Encoder, Vocabulary
from longrec.errors import ConfigError, DataError, LongrecError
from longrec.schema import EVENT_SEQ, ITEM_ID, TIMESTAMP, Feature

if TYPE_CHECKING:
    from longrec.data.store.reader import UserRows
    from longrec.serving.engine import Engine
    from longrec.serving.reader import StoreReader

PAGE = Path(__file__).with_name("page.html")
NUM_USERS, NUM_CANDIDATES, NUM_LANES, NUM_KINDS = 12, 40, 20, 8
USERS_LOOKED_AT = 20_000
MAX_BODY_BYTES = 65_536
TIMEOUT_SECONDS = 5.0
INT64 = 2**63
OTHERS = "all others"
DOCS = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>longrec: API</title>
<link rel="stylesheet" href="./static_content/swagger-ui.css"></head><body><div id="swagger-ui"></div>
<script src="./static_content/swagger-ui-bundle.js"></script><script src="./static_content/swagger-ui-standalone-preset.js"></script>
<script src="./static_content/swagger-initializer.js"></script></body></html>
"""
DOCS_POLICY = "default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'self'; style-src 'self' 'unsafe-inline'"


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """What the page is made of.

    Args:
        workdir: LONGREC_HOME.
        reader: of the feature store.
        lease: gives the version and the engine that answer now, for as long as the block lasts.
    """

    workdir: Path
    reader: StoreReader
    lease: Callable[[], AbstractContextManager[tuple[str, Engine]]]


class Web:
    """The app to be mounted at `/`; `source` is set when the service is ready."""

    def __init__(self) -> None:
        from starlette.applications import Starlette
        from starlette.routing import Route

        self.source: Source | None = None
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/docs", self._docs),
                Route("/page/examples", _json(self._examples)),
                Route("/page/history", _json(self._history)),
                Route("/page/whatif", _json(self._whatif), methods=["POST"]),
            ]
        )

    async def _page(self, _: Any) -> Any:
        return _html(*_page())

    async def _docs(self, _: Any) -> Any:
        return _html(DOCS, DOCS_POLICY)

    async def _examples(self, _: Any) -> dict[str, Any]:
        from longrec.data.store.versions import Published

        source = self._source()
        users, request_time = _some_users(
            Published.open(source.workdir).path / "features" / "user_history"
        )
        with source.lease() as (_version, engine):
            ids = engine.scorer.bundle.encoder.item_ids
        chosen = (
            ids[np.linspace(0, len(ids) - 1, min(NUM_CANDIDATES, len(ids))).astype(np.int64)]
            if len(ids)
            else ids
        )
        return {
            "users": users,
            "moment": request_time,
            "candidates": [str(each) for each in np.unique(chosen)],
        }

    async def _history(self, request: Any) -> dict[str, Any]:
        source, asked = self._source(), dict(request.query_params)
        user, request_time = _whole(asked, "user_id"), _whole(asked, "request_time")
        length = _whole(asked, "length") if "length" in asked else None
        rows = (await source.reader.fetch(user)).rows
        with source.lease() as (_version, engine):
            events = _used(
                rows, request_time, engine.scorer.bundle.served_length if length is None else length
            )
            return {
                "user_known": rows.features is not None or rows.history.num_rows > 0,
                **picture(events, engine.scorer.bundle.encoder),
            }

    async def _whatif(self, request: Any) -> dict[str, Any]:
        from longrec.scoring.scorer import RequestRows
        from longrec.serving.engine import Query

        source, asked = self._source(), await _body(request)
        user, request_time, item = (
            _whole(asked, name) for name in ("user_id", "request_time", "item_id")
        )
        length = _whole(asked, "length") if "length" in asked else None
        candidates = asked.get("candidates")
        if not isinstance(candidates, list) or not 0 < len(candidates) <= 2_048:
            raise DataError("candidates should be a list of 1 to 2048 item ids")
        ids = np.array(
            [_whole({"candidates": each}, "candidates") for each in candidates], np.int64
        )
        rows = (await source.reader.fetch(user)).rows
        with source.lease() as (version, engine):
            before = history.prefix_before(rows.history, request_time)
            after = with_event(
                before, item, request_time - 1, asked.get("kind"), engine.scorer.bundle.encoder
            )
            deadline = time.monotonic() + TIMEOUT_SECONDS
            ticket = engine.admit(
                len(ids), after.num_rows, is_kept=False, deadline=deadline, caller="page"
            )
            try:
                ranked = await engine.rank(
                    Query(
                        RequestRows(after, rows.features, request_time, ids),
                        length,
                        deadline=deadline,
                    ),
                    ticket,
                )
            finally:
                engine.leave(ticket)
            scores = {
                task: ranked.scores[:, column].tolist()
                for column, task in enumerate(engine.scorer.task_names)
            }
        return {"scores": scores, "model_version": version, "history_length": ranked.num_events}

    def _source(self) -> Source:
        if self.source is None:
            raise ConfigError("the service is not ready yet")
        return self.source


def picture(events: pa.RecordBatch, encoder: Encoder) -> dict[str, Any]:
    """Returns the columns that the page draws: times, item ids as text, and per event its lane and
    its kind.

    A lane is a value of the items' first category, a kind one of the events' first category; the
    rarest share one.
    """
    lane, kind = _first_category(encoder.schema.item), _first_category(encoder.schema.event)
    codes = encoder.item_table[encoder.item_rows(events.column(ITEM_ID).to_numpy())]
    lanes = (
        _lanes([str(code) for code in range(1)], np.zeros(events.num_rows, np.int64), "")
        if lane is None
        else _lanes(
            _names(encoder, "item", lane), codes[:, lane], encoder.schema.item[lane].name, NUM_LANES
        )
    )
    kinds = (
        _lanes([""], np.zeros(events.num_rows, np.int64), "")
        if kind is None
        else _lanes(
            _names(encoder, "event", kind),
            encoder.events(events)[1][:, kind],
            encoder.schema.event[kind].name,
            NUM_KINDS,
        )
    )
    choices = (
        []
        if kind is None
        else _names(encoder, "event", kind)[1 + encoder.schema.event[kind].num_oov :][:50]
    )
    return {
        "timestamps": history.timestamps(events).tolist(),
        "items": [str(each) for each in events.column(ITEM_ID).to_pylist()],
        "lanes": lanes,
        "kinds": {**kinds, "choices": choices},
    }


def with_event(
    events: pa.RecordBatch, item: int, time_ms: int, kind: Any, encoder: Encoder
) -> pa.RecordBatch:
    """Returns a history with one more event at its newest end; of its features only the kind is
    known, where one is given.

    Raises:
        DataError: the kind is not one of the events' first category.
    """
    schema, wanted = encoder.schema, history.arrow_schema(encoder.schema)
    last = events.num_rows - 1
    order = events.column(EVENT_SEQ)[last].as_py() + 1 if events.num_rows else 0
    values: dict[str, Any] = {name: 0 for name in wanted.names if not wanted.field(name).nullable}
    values |= {
        ITEM_ID: item,
        TIMESTAMP: max(
            time_ms, events.column(TIMESTAMP)[last].as_py() if events.num_rows else time_ms
        ),
    }
    values[EVENT_SEQ] = min(order, INT64 - 1)
    place = _first_category(schema.event)
    if kind is not None and place is not None:
        known = dict(
            zip(
                map(str, _rule(encoder, "event", place).values.to_pylist()),
                _rule(encoder, "event", place).values.to_pylist(),
                strict=True,
            )
        )
        if kind not in known:
            raise DataError(
                "kind is none of the known ones",
                found=repr(kind)[:80],
                expected=", ".join(list(known)[:10]),
            )
        values[schema.event[place].name] = known[kind]
    row = pa.record_batch(
        [_one(values.get(field.name), field.type) for field in wanted], schema=wanted
    )
    return history.joined([events, row], schema)


def _one(value: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array([value], kind.value_type).dictionary_encode().cast(kind)
    return pa.array([value], kind)


def _used(rows: UserRows, request_time: int, length: int) -> pa.RecordBatch:
    """Returns the events that a request at a moment uses."""
    if length < 0:
        raise DataError("length should not be negative", found=length)
    return history.most_recent(history.prefix_before(rows.history, request_time), length)


def _first_category(features: tuple[Feature, ...]) -> int | None:
    return next(
        (place for place, feature in enumerate(features) if feature.kind == "category"), None
    )


def _rule(encoder: Encoder, group: str, place: int) -> Vocabulary:
    rule = encoder.rules[group][place]
    assert isinstance(rule, Vocabulary)
    return rule


def _names(encoder: Encoder, group: str, place: int) -> list[str]:
    """Returns the text of each index of a category."""
    rule = _rule(encoder, group, place)
    names = ["missing", *["unknown"] * rule.feature.num_oov, *[""] * len(rule.values)]
    for index, value in zip(rule.indices.tolist(), rule.values.to_pylist(), strict=True):
        names[index] = str(value)
    return names


def _lanes(
    names: list[str], codes: npt.NDArray[Any], feature: str, most: int = 1
) -> dict[str, Any]:
    """Returns the names of lanes, most frequent first, and the lane of each event; what is too rare
    shares the last one.
    """
    found, positions, counts = np.unique(codes, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    lane = np.empty(len(found), np.int64)
    lane[order] = np.minimum(np.arange(len(found)), most - 1)
    kept = [names[int(found[place])] for place in order]
    texts = kept if len(kept) <= most else [*kept[: most - 1], OTHERS]
    return {"feature": feature, "names": texts, "of": lane[positions].tolist()}


@functools.lru_cache(maxsize=2)
def _some_users(folder: Path) -> tuple[list[dict[str, Any]], int | None]:
    """Returns users with the longest histories among the first of the published ones, and a moment
    after the last of their events.
    """
    import pyarrow.parquet as pq

    for path in sorted(folder.glob("part-*.parquet")):
        columns = ["user_id", "history_length", "event_timestamp"]
        batch = next(pq.ParquetFile(path).iter_batches(USERS_LOOKED_AT, columns=columns), None)
        if batch is not None and batch.num_rows:
            rows = sorted(batch.to_pylist(), key=lambda row: -row["history_length"])
            last = max(row["event_timestamp"] for row in rows)
            users = [
                {"user_id": str(row["user_id"]), "history_length": row["history_length"]}
                for row in rows[:NUM_USERS]
            ]
            return users, int(last.timestamp() * 1000) + 1
    return [], None


@functools.cache
def _page() -> tuple[str, str]:
    """Returns the page and its policy: only the script and the style in it, only this service to
    talk to.
    """
    text = PAGE.read_text(encoding="utf-8")
    script, style = (
        _hash(re.search(f"<{tag}>(.*?)</{tag}>", text, re.S)) for tag in ("script", "style")
    )
    # Widths of bars are set by the script through the DOM, which a policy of styles does not
    # forbid.
    return (
        text,
        f"default-src 'none'; connect-src 'self'; script-src {script}; style-src {style}; base-uri 'none'; form-action 'none'",
    )


def _hash(found: re.Match[str] | None) -> str:
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"


def _html(text: str, policy: str) -> Any:
    from starlette.responses import HTMLResponse

    return HTMLResponse(
        text, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
    )


def _json(answer: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a handler that answers with JSON; a mistake of the caller is 400, an overloaded
    service 503.
    """
    from starlette.responses import JSONResponse

    async def handler(request: Any) -> JSONResponse:
        try:
            return JSONResponse(await answer(request), headers={"Cache-Control": "no-store"})
        except LongrecError as error:
            return JSONResponse(
                {"error": str(error)}, 400 if isinstance(error, (ConfigError, DataError)) else 503
            )

    return handler


async def _body(request: Any) -> Mapping[str, Any]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise DataError(f"the body is larger than {MAX_BODY_BYTES} bytes")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError("the body is not JSON") from error
    if not isinstance(found, dict):
        raise DataError("the body should be a JSON object")
    return found


def _whole(asked: Mapping[str, Any], name: str) -> int:
    """Returns an int64 of a request."""
    value = asked.get(name)
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not -INT64 <= value < INT64:
        raise DataError(f"{name} should be a whole number", found=repr(value)[:80])
    return value
