"""The service: POST /rank turns a user and candidates into scores per task. Request -> rows -> Scorer -> response.

    bentoml serve bento.service:Ranker      from the root of a checkout: the model LONGREC_MODEL of the BentoML store
    bentoml serve longrec-ranker:<version>  a bento: the model that it was built with
    bentoml serve /abs/exported/bento       the same on a machine without a store

Histories and user features come from the Feast online store below LONGREC_HOME. torch and Feast are imported by the workers only.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import dataclasses
import datetime
import json
import logging
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import bentoml
import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.requests import Request
from starlette.responses import JSONResponse

from longrec.data import history
from longrec.errors import DataError, LongrecError, SchemaMismatch, StoreError

if TYPE_CHECKING:
    from longrec.data.store import UserRows

logger = logging.getLogger("bentoml.longrec")

HERE = Path(__file__).resolve().parent
RELEASE = HERE / "release.json"
"""Written into a bento by longrec.packaging: the model that it was built with."""
BUNDLE = "bundle"
"""Folder of the model in the BentoML store that holds the bundle of longrec."""
MAX_CANDIDATES = int(os.environ.get("LONGREC_MAX_CANDIDATES", "2048"))
MAX_BODY_BYTES = 65_536 + 32 * MAX_CANDIDATES
NUM_THREADS = int(os.environ.get("LONGREC_THREADS", "1"))
"""Threads of one forward pass in a worker. On two busy cores one took 37 ms (p50, 1K events x 100), two 48 ms, two that spin 342 ms."""
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


Id = Annotated[int, Field(ge=-INT64, lt=INT64)]
Moment = Annotated[
    int, BeforeValidator(_moment_ms), Field(ge=FIRST_MS, le=LAST_MS),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string", "format": "date-time"}]})]


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered, with its HTTP status."""

    status: int
    reason: str


class RankRequest(bentoml.IODescriptor):
    """Candidates to be ranked for a user at a moment; only events strictly before the moment count."""

    model_config = ConfigDict(strict=True, extra="forbid", json_schema_extra={"example": {"user_id": 1, "candidates": [11, 12, 13]}})

    user_id: Id = Field(description="Whose history is read; an unknown user has an empty one.")
    candidates: list[Id] = Field(min_length=1, max_length=MAX_CANDIDATES, description="Item ids, in the order of the scores wanted.")
    request_time: Moment | None = Field(None, description="ISO 8601 with a time zone, or milliseconds since 1970 UTC; default now.")
    length: int | None = Field(None, ge=0, lt=INT64, description="Most recent events used; default what the model was evaluated at.")

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> RankRequest | Refusal:
        """Returns the request in a JSON body, or what is wrong with it (BentoML would log a stack trace per bad request)."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return Refusal(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        try:
            return cast("RankRequest", cls.model_validate_json(body))
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


@bentoml.service(name="longrec-ranker", traffic={"timeout": 30})
class Ranker:
    """Scores candidates for a user by the user's long history."""

    model = MODEL

    def __init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "rank")  # torch and SQLite want to stay in one thread
        try:
            self._thread.submit(self._open).result()
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
            return JSONResponse({"error": request.reason}, request.status)
        return JSONResponse(await asyncio.get_running_loop().run_in_executor(self._thread, self._rank, request))

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Refuses to start, in one line and before any worker, when model and feature store are not there or do not fit."""
        home = os.environ["LONGREC_HOME"] = str(_home())  # for the workers, which start in another folder
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads of torch that wait sleep; read when a worker loads torch
        os.environ[REFUSED_FILE] = refused = tempfile.mkstemp(prefix="longrec-refused-")[1]
        atexit.register(_exit_refused, Path(refused))
        try:
            _check_schemas(Path(MODEL.resolve().path_of(BUNDLE)), home)
        except LongrecError as error:
            raise bentoml.exceptions.BentoMLException(str(error)) from error

    def _open(self) -> None:
        import torch

        from longrec.data.store import OnlineStore
        from longrec.scorer import Scorer

        torch.set_num_threads(NUM_THREADS)
        self._scorer = Scorer.load(self.model.path_of(BUNDLE))
        self._schema, self._version = self._scorer.bundle.schema, str(self.model.tag.version)
        self._store = OnlineStore(_home(), _feature_repo(), schema=self._schema)
        self._rank(RankRequest(user_id=0, candidates=[0]))  # the first call of torch is slow
        logger.info("serving %s with %d threads and the features of %s", self.model.tag, NUM_THREADS, self._store.version)

    def _rank(self, request: RankRequest) -> dict[str, Any]:
        """Returns the body of the answer."""
        from longrec.scorer import RequestRows

        moment = time.time_ns() // 1_000_000 if request.request_time is None else request.request_time
        length = self._scorer.bundle.served_length if request.length is None else request.length
        candidates = np.array(request.candidates, np.int64)
        rows, is_degraded = self._fetch(request.user_id)
        events = history.most_recent(history.prefix_before(rows.history, moment), length)
        scores = self._scorer.score([RequestRows(events, rows.features, moment, candidates)], length)[0]
        return {
            "scores": {task: scores[:, column].tolist() for column, task in enumerate(self._scorer.task_names)},
            "model_version": self._version, "user_known": rows.features is not None or rows.history.num_rows > 0,
            "history_length": events.num_rows,
            "unknown_candidates": int((self._scorer.bundle.encoder.item_rows(candidates) == 0).sum()), "degraded": is_degraded}

    def _fetch(self, user_id: int) -> tuple[UserRows, bool]:
        """Returns what the feature store knows of a user, or nothing and True when it cannot be read."""
        from longrec.data.store import UserRows

        try:
            return self._store.fetch([user_id])[0], False
        except (StoreError, DataError, SchemaMismatch) as error:
            logger.error("degraded answer, the feature store cannot be read: %s", error)
            return UserRows(user_id, history.empty(self._schema), None), True


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
