"""The service: POST /rank turns a user and candidates into scores per task. Request -> rows -> Scorer -> response.

    bentoml serve bento.service:Ranker      from the root of a checkout: the model LONGREC_MODEL of the BentoML store
    bentoml serve longrec-ranker:<version>  a bento: the model that it was built with
    bentoml serve /abs/exported/bento       the same on a machine without a store

Histories and user features come from the Feast online store below LONGREC_HOME; the registry there (`longrec models`) says which version
answers, and is followed while the service runs. torch and Feast are imported by the workers only.
"""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import datetime
import json
import logging
import math
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import bentoml
import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, WithJsonSchema
from starlette.requests import Request
from starlette.responses import JSONResponse

from longrec import models
from longrec.errors import ConfigError, DataError, LongrecError, SchemaMismatch
from longrec.monitor import RequestLog
from longrec.serving.door import Door, Tokens
from longrec.serving.web import Source, Web
from longrec.versions import Versions

if TYPE_CHECKING:
    from longrec.schema import Schema
    from longrec.serving.engine import Engine, Query, Ticket

logger = logging.getLogger("bentoml.longrec")

HERE = Path(__file__).resolve().parent
RELEASE = HERE / "release.json"
"""Written into a bento by longrec.packaging: the model that it was built with."""
MAX_CANDIDATES = int(os.environ.get("LONGREC_MAX_CANDIDATES", "2048"))
MAX_BODY_BYTES = 65_536 + 32 * MAX_CANDIDATES
NUM_THREADS = int(os.environ.get("LONGREC_THREADS", "1"))
"""Threads of one forward pass in a worker. On two busy cores one took 37 ms (p50, 1K events x 100), two 48 ms, two that spin 342 ms."""
CACHE_BYTES = int(float(os.environ.get("LONGREC_CACHE_MB", "1024")) * 2**20)
"""Of the kept keys and values of histories, in each worker."""
TIMEOUT_SECONDS = float(os.environ.get("LONGREC_TIMEOUT_MS", "5000")) / 1e3
"""Within which a request is answered, or shed, that does not say it itself."""
STORE_SECONDS = float(os.environ.get("LONGREC_STORE_TIMEOUT_MS", "500")) / 1e3
"""Longest wait for the feature store before an answer is a degraded one."""
FETCH_SHARE = 0.5
"""Of a request's time, that the feature store may take."""
CALLER_REQUESTS = int(os.environ.get("LONGREC_CALLER_REQUESTS", "64"))
"""Requests that one caller may have under way; a caller is who the header `x-caller` names, else an address."""
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


def _moment_ms(value: Any) -> Any:
    """Returns a time of a request as int ms since 1970 UTC; ISO 8601 texts are rounded down to the millisecond."""
    if not isinstance(value, str):
        return value
    try:
        moment = datetime.datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError("should be ISO 8601 with a time zone, or an integer of milliseconds since 1970 UTC") from error
    if moment.tzinfo is None:
        raise ValueError("has no time zone; for UTC add Z")
    return (moment - EPOCH) // datetime.timedelta(milliseconds=1)


Id = Annotated[int, Field(ge=-INT64, le=INT64 - 1)]
Moment = Annotated[
    int, BeforeValidator(_moment_ms), Field(ge=FIRST_MS, le=LAST_MS),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string", "format": "date-time"}]})]


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered, with its HTTP status."""

    status: int
    reason: str
    retry_after_seconds: float | None = None


class RankRequest(bentoml.IODescriptor):
    """Candidates to be ranked for a user at a moment; only events strictly before the moment count."""

    model_config = ConfigDict(strict=True, extra="forbid", json_schema_extra={"example": {"user_id": 1, "candidates": [11, 12, 13]}})

    user_id: Id = Field(description="Whose history is read; an unknown user has an empty one.")
    candidates: list[Id] = Field(min_length=1, max_length=MAX_CANDIDATES, description="Item ids, in the order of the scores wanted.")
    request_time: Moment | None = Field(None, description="ISO 8601 with a time zone, or milliseconds since 1970 UTC; default now.")
    length: int | None = Field(None, ge=0, le=INT64 - 1, description="Most recent events used; default what the model was evaluated at.")
    _caller: str = PrivateAttr("")

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> RankRequest | Refusal:
        """Returns the request in a JSON body, or what is wrong with it (BentoML would log a stack trace per bad request)."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return Refusal(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        try:
            asked = cast("RankRequest", cls.model_validate_json(body))
            asked._caller = _caller_of(request)
            return asked
        except ValidationError as error:
            return Refusal(400, _reason(error))


class RankResponse(bentoml.IODescriptor):
    """Scores of the candidates in the order asked for, and what they were computed from."""

    scores: dict[str, list[float]] = Field(description="One probability per candidate and task.")
    model_version: str
    user_known: bool = Field(description="Whether the feature store knows the user.")
    history_length: int = Field(description="Events used.")
    unknown_candidates: int = Field(description="Candidates that the model does not know; they are scored as the unknown item.")
    degraded: bool = Field(description="True when the feature store could not be read and the history was left empty.")


class RankerModel(bentoml.models.BentoModel):
    """A model of the BentoML store; a missing one is told in one line, nothing is asked of a remote registry."""

    def resolve(self, *args: Any, **kwargs: Any) -> Any:
        if self.stored is None:
            raise bentoml.exceptions.NotFound(f"there is no model {self.tag} in the BentoML store. {MAKE_ONE}")
        return super().resolve(*args, **kwargs)


def model_tag() -> str:
    """Returns the model that is served: in a bento its own, in a checkout LONGREC_MODEL or the latest."""
    named = os.environ.get("LONGREC_MODEL")
    if not RELEASE.is_file():
        return named or "longrec-ranker:latest"
    tag = str(json.loads(RELEASE.read_text(encoding="utf-8"))["model"])
    if named not in (None, tag):
        logger.warning("LONGREC_MODEL=%s is ignored: this bento serves its own model %s", named, tag)
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
            _stop_server(error if isinstance(error, LongrecError) else f"{type(error).__name__}: {error}")

    @bentoml.api(route="/rank", output_spec=RankResponse)
    async def rank(self, request: RankRequest, /) -> JSONResponse:
        """Scores candidates for a user, for example {"user_id": 1, "candidates": [11, 12, 13]}."""
        if isinstance(request, Refusal):
            return _refused(request)
        try:
            return JSONResponse(await self._rank(request))
        except LongrecError as error:
            return _refused(_refusal(error))

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Refuses to start, in one line and before any worker, when model and feature store are not there or do not fit."""
        home = os.environ["LONGREC_HOME"] = str(_home())  # for the workers, which start in another folder
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads of torch that wait sleep; read when a worker loads torch
        os.environ[REFUSED_FILE] = refused = tempfile.mkstemp(prefix="longrec-refused-")[1]
        atexit.register(_exit_refused, Path(refused))
        try:
            Tokens(os.environ)
            _check_schemas(Path(MODEL.resolve().path_of(models.BUNDLE)), home)
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
        import torch

        from longrec.data.store import OnlineStore
        from longrec.schema import Schema
        from longrec.serving.engine import Engine
        from longrec.serving.reader import StoreReader

        torch.set_num_threads(NUM_THREADS)
        home, own, bundle = _home(), str(self.model.tag.version), Path(self.model.path_of(models.BUNDLE))
        schema = Schema.load(bundle / "bundle.json")
        self._versions = Versions(home, own, lambda version: _engine(bundle if version == own else None, version, schema),
                                  score=_scores, close=Engine.close, is_pinned=IS_PINNED)
        self._reader = StoreReader(lambda: OnlineStore(home, _feature_repo(), schema=schema), schema, timeout_seconds=STORE_SECONDS)
        self._log = RequestLog(home, LOG_SHARE)
        WEB.source = Source(home, self._reader, self._versions.lease)
        self._versions.start()
        logger.info("serving %s with %d threads", self._versions.version, NUM_THREADS)

    async def _rank(self, request: RankRequest) -> dict[str, Any]:
        """Returns the body of the answer."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        with self._versions.lease() as (version, engine):  # another one may take its place while this request is under way
            ticket = self._admit(engine, request, deadline)
            try:
                return await self._ranked((version, engine), ticket, request, deadline)
            finally:
                engine.leave(ticket)

    def _admit(self, engine: Engine, request: RankRequest, deadline: float) -> Ticket:
        """Returns a place in the engine for a request whose history is known by its last reading, or not at all."""
        length = engine.scorer.bundle.served_length if request.length is None else request.length
        known = self._reader.num_events(request.user_id)
        num_events = min(length, engine.mean_events if known is None else known)
        return engine.admit(len(request.candidates), num_events, is_kept=request.user_id in engine.cache, deadline=deadline,
                            caller=request._caller)

    async def _ranked(self, served: tuple[str, Engine], ticket: Ticket, request: RankRequest, deadline: float) -> dict[str, Any]:
        from longrec.scorer import RequestRows
        from longrec.serving.engine import Query

        moment = time.time_ns() // 1_000_000 if request.request_time is None else request.request_time
        fetched = await self._reader.fetch(request.user_id, FETCH_SHARE * (deadline - time.monotonic()))
        rows = RequestRows(fetched.rows.history, fetched.rows.features, moment, np.array(request.candidates, np.int64))
        (version, engine), query, started = served, Query(rows, request.length, request.user_id, deadline), time.perf_counter()
        ranked = await engine.rank(query, ticket)
        scores = {task: ranked.scores[:, column].tolist() for column, task in enumerate(engine.scorer.task_names)}
        self._versions.mirror(query, version, ranked.scores.T, 1e3 * (time.perf_counter() - started))
        self._log.add(request.user_id, moment, request.candidates, scores, history_length=ranked.num_events, model_version=version,
                      degraded=bool(fetched.degraded))
        return {
            "scores": scores, "model_version": version, "user_known": rows.user_features is not None or rows.history.num_rows > 0,
            "history_length": ranked.num_events, "unknown_candidates": ranked.num_unknown, "degraded": bool(fetched.degraded)}


Ranker.mount_asgi_app(WEB.app)
Ranker.add_asgi_middleware(Door)


def _engine(bundle: Path | None, version: str, schema: Schema) -> Engine:
    """Returns the engine of a version, warm; costs seconds.

    Args:
        bundle: where it is; None to look in the BentoML store.
        version: of the model.
        schema: of the histories that this service reads.
    """
    from longrec.scorer import Scorer
    from longrec.serving.engine import Engine, Limits

    scorer = Scorer.load(bundle or models.bundle_dir(models.store_dir(), version), schema=schema)
    return Engine(scorer, Limits(cache_bytes=CACHE_BYTES, caller_requests=CALLER_REQUESTS))


def _scores(engine: Engine, query: Query) -> Any:
    """Returns the scores of a mirrored request per task, however long it takes."""
    from longrec.serving.engine import Ranked

    ranked = engine.submit(dataclasses.replace(query, deadline=math.inf)).result()
    assert isinstance(ranked, Ranked)
    return ranked.scores.T


def _refusal(error: LongrecError) -> Refusal:
    """Returns how a caller is told of an error: what is the request's own fault 400, what another time would mend 429 or 503."""
    from longrec.serving.engine import DeadlineExceeded, EngineClosed, Overloaded, TooManyRequests

    if isinstance(error, Overloaded):
        return Refusal(429 if isinstance(error, TooManyRequests) else 503, str(error), error.retry_after_seconds)
    if isinstance(error, EngineClosed):
        return Refusal(503, "the service ends; ask another one", 1.0)
    if isinstance(error, DeadlineExceeded):
        return Refusal(504, str(error))
    if isinstance(error, (ConfigError, DataError)):
        return Refusal(400, str(error))
    raise error


def _refused(refusal: Refusal) -> JSONResponse:
    headers = {} if refusal.retry_after_seconds is None else {"Retry-After": str(math.ceil(refusal.retry_after_seconds))}
    return JSONResponse({"error": refusal.reason}, refusal.status, headers)


def _caller_of(request: Request) -> str:
    """Returns who asks: a name in the header x-caller, else an address."""
    return request.headers.get("x-caller") or (request.client.host if request.client else "")


def _check_schemas(bundle: Path, home: str) -> None:
    """Raises LongrecError when nothing is published at `home`, or it was published for another schema than the bundle's."""
    from longrec.data.store import Published
    from longrec.schema import Schema

    wanted, published = Schema.load(bundle / "bundle.json"), Published.open(home)
    if lines := wanted.differences(published.schema):
        raise SchemaMismatch(f"the feature store at {home} was published for another schema than the model's", found="; ".join(lines),
                             fix="Set LONGREC_HOME to the feature store of the model, or publish its features.")


def _home() -> Path:
    """Returns LONGREC_HOME, in a checkout by default its .longrec."""
    named = os.environ.get("LONGREC_HOME")
    if named:
        return Path(named).resolve()
    if RELEASE.is_file():
        raise bentoml.exceptions.BentoMLException("LONGREC_HOME is not set. Set it to the directory of the feature store to be read.")
    return HERE.parent / ".longrec"


def _feature_repo() -> Path:
    """Returns LONGREC_FEATURE_REPO, by default the repository in the bento or in the checkout."""
    named = os.environ.get("LONGREC_FEATURE_REPO")
    staged = HERE / "feature_repo"
    return Path(named) if named else staged if staged.is_dir() else HERE.parent / "feature_repo"


def _reason(error: ValidationError) -> str:
    """Returns the first mistake in a request: field, what is wrong with it; and how many more there are."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    place = "".join(f"[{part}]" if isinstance(part, int) else part for part in found[0]["loc"])
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{place or 'body'}: {found[0]['msg'].removeprefix('Value error, ')}{more}"


def _stop_server(error: object) -> NoReturn:
    """Ends this worker and its supervisor, which would start it again for ever."""
    Path(os.environ[REFUSED_FILE]).write_text(f"Error: longrec cannot serve: {error}\n", encoding="utf-8")
    os.kill(os.getppid(), signal.SIGTERM)
    os._exit(1)


def _exit_refused(path: Path) -> None:
    """Ends the supervisor with what a worker could not do, and exit code 1, where one left a word about it."""
    reason = path.read_text(encoding="utf-8")
    path.unlink()
    if reason:
        sys.stderr.write(reason)
        sys.stderr.flush()
        os._exit(1)
