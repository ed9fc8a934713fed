"""The service: POST /rank turns a user and candidates into scores per task. Request -> rows ->
Scorer -> response.

    bentoml serve bento.service:Ranker      from the root of a checkout: the model LONGREC_MODEL of
    the BentoML store
    bentoml serve longrec-ranker:<version>  a bento: the model that it was built with
    bentoml serve /abs/exported/bento       the same on a machine without a store

Histories and user features come from the Feast online store below LONGREC_HOME; the registry there
(`longrec models`) says which version
answers, and is followed while the service runs. torch and Feast are imported by the workers only.
"""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import datetime
import gc
import json
import logging
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NoReturn

import bentoml
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
)
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from longrec.errors import ConfigError, DataError, LongrecError, SchemaMismatch
from longrec.release import registry
from longrec.release.monitoring import RequestLog
from longrec.schema import ITEM_ID, TIMESTAMP
from longrec.serving import arrow_codec
from longrec.serving.auth import Door, Tokens
from longrec.serving.rollout import Versions
from longrec.serving.web import Source, Web

if TYPE_CHECKING:
    from longrec.schema import Schema
    from longrec.serving.engine import Engine, Explained, Query, Ticket
    from longrec.serving.reader import Fetched

logger = logging.getLogger("bentoml.longrec")

HERE = Path(__file__).resolve().parent
RELEASE = HERE / "release.json"
"""Written into a bento by longrec.release.packaging: the model that it was built with."""
MAX_CANDIDATES = int(os.environ.get("LONGREC_MAX_CANDIDATES", "2048"))
MAX_EVENTS = int(os.environ.get("LONGREC_MAX_EVENTS", "16384"))
"""Events that a request may bring along, about."""
MAX_BODY_BYTES = 65_536 + 32 * MAX_CANDIDATES + 128 * MAX_EVENTS
MAX_TIMEOUT_MS = 60_000
ARROW = "application/vnd.apache.arrow.stream"
NUM_THREADS = int(os.environ.get("LONGREC_THREADS", str(min(2, os.cpu_count() or 1))))
"""Threads that share the big pieces of a forward pass in a worker (longrec.nn.parallel)."""
DEVICE = os.environ.get("LONGREC_DEVICE", "cpu")
"""Where a worker scores: cpu in float32, or cuda with products in bfloat16 and captured graphs; the
kept histories are there too.
"""
CACHE_BYTES = int(float(os.environ.get("LONGREC_CACHE_MB", "1024")) * 2**20)
"""Of the kept keys and values of histories, in each worker."""
TIMEOUT_SECONDS = float(os.environ.get("LONGREC_TIMEOUT_MS", "5000")) / 1e3
"""Within which a request is answered, or shed, that does not say it itself."""
STORE_SECONDS = float(os.environ.get("LONGREC_STORE_TIMEOUT_MS", "500")) / 1e3
"""Longest wait for the feature store before an answer is a degraded one."""
FETCH_SHARE = 0.5
"""Of a request's time, that the feature store may take."""
QUEUE_SECONDS = float(os.environ.get("LONGREC_QUEUE_SECONDS", "1"))
"""Of work, that may be waiting before more is refused."""
CALLER_REQUESTS = int(os.environ.get("LONGREC_CALLER_REQUESTS", "64"))
"""Requests that one caller may have under way; a caller is who the header `x-caller` names, else an
address.
"""
LOG_SHARE = float(os.environ.get("LONGREC_LOG_SHARE", "0"))
"""Of the answers, that are written to LONGREC_HOME/requests for the drift job."""
IS_PINNED = os.environ.get("LONGREC_FOLLOW", "1") == "0" or bool(os.environ.get("LONGREC_MODEL"))
"""Whether the service keeps its own version, whatever the registry says."""
INT64 = 2**63
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999
"""The years 1 to 9999."""
REFUSED_FILE = "LONGREC_REFUSED_FILE"
"""Variable that tells a worker where to leave the reason why it cannot start."""
MAKE_ONE = "Make one with: longrec run"


def _request_time_ms(value: Any) -> Any:
    """Returns a time of a request as int ms since 1970 UTC; ISO 8601 texts are rounded down to the
    millisecond.
    """
    if not isinstance(value, str):
        return value
    try:
        request_time = datetime.datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(
            "should be ISO 8601 with a time zone, or an integer of milliseconds since 1970 UTC"
        ) from error
    if request_time.tzinfo is None:
        raise ValueError("has no time zone; for UTC add Z")
    return (request_time - EPOCH) // datetime.timedelta(milliseconds=1)


Id = Annotated[int, Field(ge=-INT64, le=INT64 - 1)]
Moment = Annotated[
    int,
    BeforeValidator(_request_time_ms),
    Field(ge=FIRST_MS, le=LAST_MS),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string", "format": "date-time"}]}),
]


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered, with its HTTP status; `shed` is what is counted where the
    service is at fault.
    """

    status: int
    reason: str
    retry_after_seconds: float | None = None
    shed: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A request as the service works on it, whatever form it came in.

    Args:
        user_id: whose history is read.
        candidates: int64 [m].
        request_time_ms: its time, None for now.
        length: most recent events used, None for the served length.
        timeout_ms: within which it is to be answered, None for the default.
        caller: who asks.
        bring: makes the events that it brings along, None for those of the feature store.
    """

    user_id: int
    candidates: npt.NDArray[np.int64]
    request_time_ms: int | None
    length: int | None
    timeout_ms: int | None
    caller: str
    bring: Callable[[Schema], pa.RecordBatch] | None


class _UserRequest(bentoml.IODescriptor):
    """What every request says of the user and the moment."""

    model_config = ConfigDict(strict=True, extra="forbid")

    user_id: Id = Field(description="Whose history is read; an unknown user has an empty one.")
    request_time: Moment | None = Field(
        None, description="ISO 8601 with a time zone, or milliseconds since 1970 UTC; default now."
    )
    length: int | None = Field(
        None,
        ge=0,
        le=INT64 - 1,
        description="Most recent events used; default what the model was evaluated at.",
    )
    timeout_ms: int | None = Field(
        None, ge=1, le=MAX_TIMEOUT_MS, description="Answered, or refused, within this time."
    )
    history: dict[str, list[Any]] | None = Field(
        None,
        description="Events to use instead of the stored ones, as columns: item_id and timestamp (ms since 1970 UTC), event_seq "
        "where times tie, event features; nothing is kept of them.",
    )
    _caller: str = PrivateAttr("")

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        """Returns the request in a JSON body, or what is wrong with it (BentoML would log a stack
        trace per bad request).
        """
        body = await _body(request)
        if isinstance(body, Refusal):
            return body
        try:
            asked = cls.model_validate_json(body)
        except ValidationError as error:
            return Refusal(400, _reason(error))
        asked._caller = _caller_of(request)
        return asked

    def asked_of(self, candidates: list[int]) -> Asked:
        """Returns the request with these candidates."""
        columns, bring = self.history, None
        if columns is not None:
            bring = lambda schema: arrow_codec.inline_history(columns, schema)  # noqa: E731
        return Asked(
            self.user_id,
            np.array(candidates, np.int64),
            self.request_time,
            self.length,
            self.timeout_ms,
            self._caller,
            bring,
        )


class RankRequest(_UserRequest):
    """Candidates to be ranked for a user at a moment; only events strictly before the moment
    count.
    """

    model_config = ConfigDict(
        json_schema_extra={"example": {"user_id": 1, "candidates": [11, 12, 13]}}
    )

    candidates: list[Id] = Field(
        min_length=1,
        max_length=MAX_CANDIDATES,
        description="Item ids, in the order of the scores wanted.",
    )

    def asked(self) -> Asked:
        """Returns the request."""
        return self.asked_of(self.candidates)


class ExplainRequest(_UserRequest):
    """A candidate of a user at a moment, to be explained by the events that the model attends
    to.
    """

    model_config = ConfigDict(
        json_schema_extra={"example": {"user_id": 1, "candidate": 11, "top": 3}}
    )

    candidate: Id = Field(description="Item id.")
    top: int = Field(
        10,
        ge=1,
        le=100,
        description="Events named per layer and head.",
    )

    def asked(self) -> Asked:
        """Returns the request."""
        return self.asked_of([self.candidate])


class ArrowRequest(bentoml.IODescriptor):
    """An Arrow IPC stream of one record batch with the int64 column item_id (the candidates); the
    schema's metadata holds user_id, and
    optional request_time (ms since 1970 UTC), length and timeout_ms, as texts. A history packed by
    longrec.data.history may follow."""

    media_type: ClassVar[str | None] = ARROW
    _body: bytes = PrivateAttr(b"")
    _caller: str = PrivateAttr("")

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns the schema of bytes."""
        return {
            "title": cls.__name__,
            "type": "string",
            "format": "binary",
            "description": cls.__doc__,
        }

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        """Returns the body as it is, or why it is too large."""
        body = await _body(request)
        if isinstance(body, Refusal):
            return body
        asked = cls()
        asked._body, asked._caller = body, _caller_of(request)
        return asked

    def asked(self) -> Asked:
        """Returns the request.

        Raises:
            DataError: the body is none.
        """
        found = arrow_codec.read_request(self._body)
        values, packed = found.parameters, found.history
        bounds = {
            "user_id": (-INT64, INT64 - 1),
            "request_time": (FIRST_MS, LAST_MS),
            "length": (0, INT64 - 1),
            "timeout_ms": (1, MAX_TIMEOUT_MS),
            "candidates": (1, MAX_CANDIDATES),
        }
        for name, value in {**values, "candidates": len(found.candidates)}.items():
            if not bounds[name][0] <= value <= bounds[name][1]:
                raise DataError(
                    f"{name}: out of bounds",
                    found=value,
                    expected=f"{bounds[name][0]} to {bounds[name][1]}",
                )
        bring = (lambda schema: arrow_codec.unpacked(packed, schema)) if packed else None
        return Asked(
            values["user_id"],
            found.candidates,
            values.get("request_time"),
            values.get("length"),
            values.get("timeout_ms"),
            self._caller,
            bring,
        )


class ArrowAnswer(bentoml.IODescriptor):
    """An Arrow IPC stream of one record batch with a float32 column per task; the facts of
    RankResponse are in the schema's metadata.
    """

    media_type: ClassVar[str | None] = ARROW

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns the schema of bytes."""
        return {
            "title": cls.__name__,
            "type": "string",
            "format": "binary",
            "description": cls.__doc__,
        }


class RankResponse(bentoml.IODescriptor):
    """Scores of the candidates in the order asked for, and what they were computed from."""

    scores: dict[str, list[float]] = Field(description="One probability per candidate and task.")
    model_version: str
    user_known: bool = Field(
        description="Whether the feature store knows the user, or the request brought events along."
    )
    history_length: int = Field(description="Events used.")
    unknown_candidates: int = Field(
        description="Candidates that the model does not know; they are scored as the unknown item."
    )
    degraded: bool = Field(
        description="True when the feature store could not be read: the history is what was read last, or empty."
    )


class AttendedEvent(BaseModel):
    """An event and its share of the attention of one head."""

    row: int = Field(description="In the history used; 0 is the oldest event.")
    item_id: int
    timestamp: int = Field(description="Milliseconds since 1970 UTC.")
    weight: float = Field(description="All events' weights of a head sum to 1.")


class HeadAttention(BaseModel):
    """What one head of one layer attends to most, most first."""

    layer: int
    head: int
    events: list[AttendedEvent]


class ExplainResponse(RankResponse):
    """Scores of one candidate, and the events that they come from."""

    attention: list[HeadAttention]


class RankerModel(bentoml.models.BentoModel):
    """A model of the BentoML store; a missing one is told in one line, nothing is asked of a remote
    registry.
    """

    def resolve(self, *args: Any, **kwargs: Any) -> Any:
        if self.stored is None:
            raise bentoml.exceptions.NotFound(
                f"there is no model {self.tag} in the BentoML store. {MAKE_ONE}"
            )
        return super().resolve(*args, **kwargs)


def model_tag() -> str:
    """Returns the model that is served: in a bento its own, in a checkout LONGREC_MODEL or the
    latest.
    """
    named = os.environ.get("LONGREC_MODEL")
    if not RELEASE.is_file():
        return named or "longrec-ranker:latest"
    tag = str(json.loads(RELEASE.read_text(encoding="utf-8"))["model"])
    if named not in (None, tag):
        logger.warning(
            "LONGREC_MODEL=%s is ignored: this bento serves its own model %s", named, tag
        )
    return tag


MODEL = RankerModel(model_tag())


WEB = Web()


@bentoml.service(name="longrec-ranker", traffic={"timeout": 60})
class Ranker:
    """Scores candidates for a user by the user's long history."""

    model = MODEL

    def __init__(self) -> None:
        try:
            self._open()
        except Exception as error:
            if REFUSED_FILE not in os.environ:
                raise  # not a worker of `bentoml serve`
            if not isinstance(error, LongrecError):
                logger.exception("unexpected")
            _stop_server(
                error if isinstance(error, LongrecError) else f"{type(error).__name__}: {error}"
            )

    @bentoml.api(route="/rank", output_spec=RankResponse)
    async def rank(self, request: RankRequest, /) -> Response:
        """Scores candidates for a user, for example {"user_id": 1, "candidates": [11, 12, 13]}."""
        return await self._answer(request, _as_json)

    @bentoml.api(route="/rank_arrow", output_spec=ArrowAnswer)
    async def rank_arrow(self, request: ArrowRequest, /) -> Response:
        """Scores candidates like /rank, for callers that count milliseconds: Arrow in, Arrow
        out.
        """
        return await self._answer(request, _as_arrow)

    @bentoml.api(route="/explain", output_spec=ExplainResponse)
    async def explain(self, request: ExplainRequest, /) -> Response:
        """Names the events that each layer and head attends to most for a candidate, for example
        {"user_id": 1, "candidate": 11}.
        """
        return await self._answer(request, _as_json)

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Refuses to start, in one line and before any worker, when model and feature store are not
        there or do not fit.
        """
        workdir = os.environ["LONGREC_HOME"] = str(
            _workdir()
        )  # for the workers, which start in another folder
        os.environ.setdefault(
            "OMP_WAIT_POLICY", "PASSIVE"
        )  # threads of torch that wait sleep; read when a worker loads torch
        os.environ.setdefault(
            "THP_MEM_ALLOC_ENABLE", "1"
        )  # torch asks for huge pages: kept histories are read from end to end each time
        os.environ[REFUSED_FILE] = refused = tempfile.mkstemp(prefix="longrec-refused-")[1]
        atexit.register(_exit_refused, Path(refused))
        try:
            Tokens(os.environ)
            _check_schemas(Path(MODEL.resolve().path_of(registry.BUNDLE)), workdir)
        except LongrecError as error:
            raise bentoml.exceptions.BentoMLException(str(error)) from error

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Ends what was accepted; the server takes no more requests by now."""
        self._versions.stop()
        await asyncio.get_running_loop().run_in_executor(None, self._versions.engine.close)
        self._reader.close()
        self._log.stop()

    def _open(self) -> None:
        from longrec.data.store.reader import OnlineStore
        from longrec.nn import parallel
        from longrec.schema import Schema
        from longrec.serving.engine import Engine
        from longrec.serving.metrics import Metrics
        from longrec.serving.reader import StoreReader

        parallel.share(NUM_THREADS)
        workdir, own, bundle = (
            _workdir(),
            str(self.model.tag.version),
            Path(self.model.path_of(registry.BUNDLE)),
        )
        schema = Schema.load(bundle / "bundle.json")
        self._metrics = Metrics(schema.task_names)
        self._reader = StoreReader(
            lambda: OnlineStore(workdir, _feature_repo(), schema=schema),
            schema,
            timeout_seconds=STORE_SECONDS,
        )
        gc.collect()
        # looking through all modules now and then stopped every request for 200 ms; models are
        # loaded after it, and can go
        gc.freeze()
        self._versions = Versions(
            workdir,
            own,
            lambda version: _engine(bundle if version == own else None, version, schema),
            score=_scores,
            close=Engine.close,
            take=lambda engine: engine.measured_by(self._metrics),
            note=self._metrics,
            is_pinned=IS_PINNED,
        )
        self._log = RequestLog(workdir, LOG_SHARE)
        WEB.source = Source(workdir, self._reader, self._versions.lease)
        self._versions.start()
        logger.info("serving %s with %d threads", self._versions.version, NUM_THREADS)

    async def _answer(
        self,
        request: RankRequest | ExplainRequest | ArrowRequest | Refusal,
        written: Callable[[Mapping[str, Any]], Response],
    ) -> Response:
        """Returns the answer to a request in one of its forms, or why there is none."""
        if isinstance(request, Refusal):
            return _refused(request)
        timeout_ms = None
        try:
            top = request.top if isinstance(request, ExplainRequest) else 0
            timeout_ms = (asked := request.asked()).timeout_ms
            return written(await self._rank(asked, top))
        except LongrecError as error:
            refusal = _refusal(error, timeout_ms)
            if refusal.shed:
                self._metrics.shed(refusal.shed)
            return _refused(refusal)

    async def _rank(self, asked: Asked, top: int) -> dict[str, Any]:
        """Returns the body of the answer; with `top` the candidate is explained."""
        deadline = time.monotonic() + (
            TIMEOUT_SECONDS if asked.timeout_ms is None else asked.timeout_ms / 1e3
        )
        with self._versions.lease() as (
            version,
            engine,
        ):  # another one may take its place while this request is under way
            ticket = self._admit(engine, asked, deadline)
            try:
                fetched, query = await self._query(engine, asked, deadline)
                return await self._ranked((version, engine), ticket, fetched, query, top)
            finally:
                engine.leave(ticket)

    def _admit(
        self,
        engine: Engine,
        asked: Asked,
        deadline: float,
    ) -> Ticket:
        """Returns a place in the engine for a request whose history is known by its last reading,
        or not at all.
        """
        length = engine.scorer.bundle.served_length if asked.length is None else asked.length
        known = self._reader.num_events(asked.user_id)
        num_events = min(length, engine.mean_events if known is None else known)
        is_kept = asked.bring is None and asked.user_id in engine.cache
        return engine.admit(
            len(asked.candidates),
            num_events,
            is_kept=is_kept,
            deadline=deadline,
            caller=asked.caller,
        )

    async def _query(
        self,
        engine: Engine,
        asked: Asked,
        deadline: float,
    ) -> tuple[Fetched, Query]:
        """Returns what was read of the user, and the request with it."""
        from longrec.scoring.scorer import RequestRows
        from longrec.serving.engine import Query

        request_time = (
            time.time_ns() // 1_000_000 if asked.request_time_ms is None else asked.request_time_ms
        )
        with self._metrics.timed("fetch"):
            fetched = await self._reader.fetch(
                asked.user_id, FETCH_SHARE * (deadline - time.monotonic())
            )
        if asked.bring is not None:
            events = await asyncio.to_thread(asked.bring, engine.scorer.bundle.schema)
            fetched = dataclasses.replace(
                fetched, rows=dataclasses.replace(fetched.rows, history=events)
            )
        if fetched.degraded:
            self._metrics.degraded(fetched.rows.history.num_rows)
        rows = RequestRows(
            fetched.rows.history, fetched.rows.features, request_time, asked.candidates
        )
        return fetched, Query(
            rows, asked.length, asked.user_id if asked.bring is None else None, deadline
        )

    async def _ranked(
        self, served: tuple[str, Engine], ticket: Ticket, fetched: Fetched, query: Query, top: int
    ) -> dict[str, Any]:
        (version, engine), started, attention = served, time.perf_counter(), {}
        if top:
            explained = await engine.explain(query, top, ticket)
            ranked, attention = (
                explained.ranked,
                {"attention": _attention(explained, query.rows.history)},
            )
        else:
            ranked = await engine.rank(query, ticket)
        scores = {
            task: ranked.scores[:, column].tolist()
            for column, task in enumerate(engine.scorer.task_names)
        }
        if not top:
            self._versions.mirror(
                query, version, ranked.scores.T, 1e3 * (time.perf_counter() - started)
            )
            self._log.add(
                fetched.rows.user_id,
                query.rows.request_time_ms,
                query.rows.candidates.tolist(),
                scores,
                history_length=ranked.num_events,
                model_version=version,
                degraded=bool(fetched.degraded),
            )
        is_known = fetched.rows.features is not None or fetched.rows.history.num_rows > 0
        return {
            "scores": scores,
            "model_version": version,
            "user_known": is_known,
            "history_length": ranked.num_events,
            "unknown_candidates": ranked.num_unknown,
            "degraded": bool(fetched.degraded),
            **attention,
        }


Ranker.mount_asgi_app(WEB.app)
Ranker.add_asgi_middleware(Door)


def _as_json(answer: Mapping[str, Any]) -> Response:
    return JSONResponse(answer)


def _as_arrow(answer: Mapping[str, Any]) -> Response:
    facts = {name: value for name, value in answer.items() if name != "scores"}
    return Response(arrow_codec.write_answer(answer["scores"], facts), media_type=ARROW)


def _attention(explained: Explained, timeline: pa.RecordBatch) -> list[dict[str, Any]]:
    """Returns the JSON form of what was attended to."""
    used = timeline.slice(*explained.events)
    items, times = (used.column(name).to_numpy() for name in (ITEM_ID, TIMESTAMP))
    return [
        {
            "layer": part.layer,
            "head": part.head,
            "events": [
                {
                    "row": row,
                    "item_id": int(items[row]),
                    "timestamp": int(times[row]),
                    "weight": weight,
                }
                for row, weight in zip(part.rows.tolist(), part.weights.tolist(), strict=True)
            ],
        }
        for part in explained.attended
    ]


async def _body(request: Request) -> bytes | Refusal:
    """Returns the body of a request, or a refusal as soon as it is too large."""
    parts, total = [], 0
    async for chunk in request.stream():
        parts.append(chunk)
        total += len(chunk)
        if total > MAX_BODY_BYTES:
            return Refusal(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    return b"".join(parts)


def _engine(bundle: Path | None, version: str, schema: Schema) -> Engine:
    """Returns the engine of a version, warm; costs seconds.

    Args:
        bundle: where it is; None to look in the BentoML store.
        version: of the model.
        schema: of the histories that this service reads.
    """
    import torch

    from longrec.scoring.scorer import Scorer
    from longrec.serving.engine import Engine, Limits

    precision = torch.float32 if DEVICE == "cpu" else torch.bfloat16
    scorer = Scorer.load(
        bundle or registry.bundle_dir(registry.store_dir(), version),
        DEVICE,
        schema=schema,
        precision=precision,
    )
    return Engine(
        scorer,
        Limits(
            cache_bytes=CACHE_BYTES, queue_seconds=QUEUE_SECONDS, caller_requests=CALLER_REQUESTS
        ),
    )


def _scores(engine: Engine, query: Query) -> Any:
    """Returns the scores of a mirrored request per task, however long it takes."""
    from longrec.serving.engine import Ranked

    ranked = engine.submit(dataclasses.replace(query, deadline=math.inf)).result()
    assert isinstance(ranked, Ranked)
    return ranked.scores.T


def _refusal(error: LongrecError, timeout_ms: int | None) -> Refusal:
    """Returns how a caller is told of an error: what is the request's own fault 400, or 408 when
    the time that it gave was too short; what
    another time would mend 429 or 503."""
    from longrec.serving.engine import DeadlineExceeded, EngineClosed, Overloaded, TooManyRequests

    if isinstance(error, Overloaded):
        is_caller = isinstance(error, TooManyRequests)
        return Refusal(
            429 if is_caller else 503,
            str(error),
            error.retry_after_seconds,
            "caller" if is_caller else "overload",
        )
    if isinstance(error, EngineClosed):
        return Refusal(503, "the service ends; ask another one", 1.0, "closed")
    if isinstance(error, DeadlineExceeded):
        return Refusal(504 if timeout_ms is None else 408, str(error), None, "deadline")
    if isinstance(error, (ConfigError, DataError)):
        return Refusal(400, str(error))
    raise error


def _refused(refusal: Refusal) -> JSONResponse:
    headers = (
        {}
        if refusal.retry_after_seconds is None
        else {"Retry-After": str(math.ceil(refusal.retry_after_seconds))}
    )
    return JSONResponse({"error": refusal.reason}, refusal.status, headers)


def _caller_of(request: Request) -> str:
    """Returns who asks: a name in the header x-caller, else an address."""
    return request.headers.get("x-caller") or (request.client.host if request.client else "")


def _check_schemas(bundle: Path, workdir: str) -> None:
    """Raises LongrecError when nothing is published at `workdir`, or it was published for another
    schema than the bundle's.
    """
    from longrec.data.store.versions import Published
    from longrec.schema import Schema

    wanted, published = Schema.load(bundle / "bundle.json"), Published.open(workdir)
    if lines := wanted.differences(published.schema):
        raise SchemaMismatch(
            f"the feature store at {workdir} was published for another schema than the model's",
            found="; ".join(lines),
            fix="Set LONGREC_HOME to the feature store of the model, or publish its features.",
        )


def _workdir() -> Path:
    """Returns LONGREC_HOME, in a checkout by default its .longrec."""
    named = os.environ.get("LONGREC_HOME")
    if named:
        return Path(named).resolve()
    if RELEASE.is_file():
        raise bentoml.exceptions.BentoMLException(
            "LONGREC_HOME is not set. Set it to the directory of the feature store to be read."
        )
    return HERE.parent / ".longrec"


def _feature_repo() -> Path:
    """Returns LONGREC_FEATURE_REPO, by default the repository in the bento or in the checkout."""
    named = os.environ.get("LONGREC_FEATURE_REPO")
    staged = HERE / "feature_repo"
    return Path(named) if named else staged if staged.is_dir() else HERE.parent / "feature_repo"


def _reason(error: ValidationError) -> str:
    """Returns the first mistake in a request: field, what is wrong with it; and how many more there
    are.
    """
    found = error.errors(
        include_url=False,
        include_context=False,
        include_input=False,
    )
    place = "".join(f"[{part}]" if isinstance(part, int) else part for part in found[0]["loc"])
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{place or 'body'}: {found[0]['msg'].removeprefix('Value error, ')}{more}"


def _stop_server(error: object) -> NoReturn:
    """Ends this worker and its supervisor, which would start it again for ever."""
    Path(os.environ[REFUSED_FILE]).write_text(
        f"Error: longrec cannot serve: {error}\n", encoding="utf-8"
    )
    os.kill(os.getppid(), signal.SIGTERM)
    os._exit(1)


def _exit_refused(path: Path) -> None:
    """Ends the supervisor with what a worker could not do, and exit code 1, where one left a word
    about it.
    """
    reason = path.read_text(encoding="utf-8")
    path.unlink()
    if reason:
        sys.stderr.write(reason)
        sys.stderr.flush()
        os._exit(1)
