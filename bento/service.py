"""The BentoML service: endpoints and life cycle.

    bentoml serve bento.service:Ranker      in a checkout: the model LONGREC_MODEL of the store
    bentoml serve longrec-ranker:<version>  a packaged bento: the model that it was built with
    bentoml serve /abs/exported/bento       the same, on a machine without a BentoML store

Histories and user features come from the Feast online store in LONGREC_HOME. The registry there
(`longrec models`) names the version that answers; the service follows it while it runs. Only
workers import torch and Feast. BentoML imports this module with its folder on sys.path and removes
the folder afterwards: other modules of this package must be imported here at the top.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bentoml
from starlette.responses import JSONResponse, Response

from bento import startup, traces, uvicorn_adapter
from bento.errors import HttpError, http_error_of
from bento.inference_protocol import Backend, InferenceProtocol
from bento.json_errors import JsonErrorsMiddleware
from bento.openapi import openapi_document
from bento.ranking import RequestRanker, add_id_texts
from bento.schemas import (
    ARROW_MEDIA_TYPE,
    ArrowAnswer,
    ArrowRequestBody,
    ExplainAnswer,
    ExplainRequestBody,
    RankAnswer,
    RankRequestBody,
    RequestBody,
)
from bento.settings import SETTINGS, feature_repo, model_tag, store_digest, workdir
from longrec.data.upkeep.forget_list import ForgetWatcher
from longrec.errors import LongrecError
from longrec.release import model_store
from longrec.release.request_log import RequestLog
from longrec.serving import arrow_codec
from longrec.serving.admission.concurrency import ConcurrencyLimit
from longrec.serving.admission.gate import AdmissionGate
from longrec.serving.auth import AuthMiddleware
from longrec.serving.prometheus.exposition import metrics_app
from longrec.serving.prometheus.http_metrics import HttpMetricsMiddleware, HttpTraffic
from longrec.serving.rollout.model_manager import ModelManager
from longrec.serving.web.app import PageSource, WebApp

if TYPE_CHECKING:
    from longrec.schema import Schema
    from longrec.serving.engine import Engine
    from longrec.serving.metrics import PrometheusMetrics
    from longrec.serving.requests import EncodedRequest

logger = logging.getLogger("bentoml.longrec")


class RankerModel(bentoml.models.BentoModel):
    """A model of the local BentoML store; it is never fetched from a remote registry."""

    def resolve(self, *args: Any, **kwargs: Any) -> Any:
        """Return the stored model.

        Raises:
            NotFound: the store has no such model.
        """
        if self.stored is None:
            raise bentoml.exceptions.NotFound(
                f"there is no model {self.tag} in the BentoML store. Make one with: longrec run"
            )
        return super().resolve(*args, **kwargs)


ACCESS_LOG = {"access": {"request_content_type": False}}
"""BentoML's log fails to decode a content type of other bytes than UTF-8, and breaks the answer."""
NO_METRICS_OF_BENTOML = {"enabled": False}
"""They have series for each path that a caller makes up."""
MODEL = RankerModel(model_tag())
WEB = WebApp(openapi_document)
CONCURRENCY = ConcurrencyLimit(SETTINGS.caller_requests)
GATE = AdmissionGate(CONCURRENCY)
TRAFFIC = HttpTraffic()
PROTOCOL = InferenceProtocol(model_store.MODEL_NAME)


@bentoml.service(
    name="longrec-ranker",
    traffic={"timeout": 60},
    logging=ACCESS_LOG,
    metrics=NO_METRICS_OF_BENTOML,
)
class Ranker:
    """Score candidates for a user by the user's long history."""

    model = MODEL

    def __init__(self) -> None:
        if startup.is_worker():
            startup.prepare_worker()
        try:
            self._start()
        except Exception as error:
            if not startup.is_worker():
                raise
            if isinstance(error, LongrecError):
                startup.stop_server(error)
            logger.exception("unexpected error")
            startup.stop_server(f"{type(error).__name__}: {error}")

    @bentoml.api(route="/rank", output_spec=RankAnswer)
    async def rank(self, request: RankRequestBody, /) -> Response:
        """Score candidates for a user, for example {"user_id": 1, "candidates": [11, 12, 13]}."""
        return await self._respond(request, _json_response)

    @bentoml.api(route="/rank_arrow", output_spec=ArrowAnswer)
    async def rank_arrow(self, request: ArrowRequestBody, /) -> Response:
        """Score candidates like /rank, Arrow in and out: for callers that count milliseconds."""
        return await self._respond(request, _arrow_response)

    @bentoml.api(route="/explain", output_spec=ExplainAnswer)
    async def explain(self, request: ExplainRequestBody, /) -> Response:
        """Name the events that each layer and head weighs most for a candidate.

        For example {"user_id": 1, "candidate": 11}.
        """
        return await self._respond(request, _json_response)

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Check tokens, model and feature store before any worker starts.

        Raises:
            BentoMLException: the reason, in one line.
        """
        startup.prepare_workers()
        try:
            bundle = MODEL.resolve().path_of(model_store.BUNDLE_FOLDER)
            startup.check_environment(Path(bundle))
        except LongrecError as error:
            raise bentoml.exceptions.BentoMLException(str(error)) from error

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Finish the accepted requests; the server accepts no more of them by now."""
        self._models.stop()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._models.engine.close)
        self._reader.close()
        self._log.stop()

    def _start(self) -> None:
        """Load everything that a worker needs."""
        from longrec.data.store.online_store import OnlineStore
        from longrec.nn import parallel
        from longrec.schema import Schema
        from longrec.serving.metrics import PrometheusMetrics
        from longrec.serving.store_reader import StoreReader

        parallel.set_num_threads(SETTINGS.num_threads)
        bundle = Path(self.model.path_of(model_store.BUNDLE_FOLDER))
        schema = Schema.load(bundle / "bundle.json")
        self._metrics = PrometheusMetrics(schema.task_names)
        self._reader = StoreReader(
            lambda: OnlineStore(workdir(), feature_repo(), schema=schema, digest=store_digest()),
            schema,
            timeout_seconds=SETTINGS.store_timeout_seconds,
            forgotten=ForgetWatcher(workdir()),
        )
        _freeze_modules()
        self._models = _manage_models(
            own_version=str(self.model.tag.version),
            own_bundle=bundle,
            schema=schema,
            metrics=self._metrics,
        )
        self._log = RequestLog(workdir(), SETTINGS.log_share)
        self._requests = RequestRanker(
            self._models,
            CONCURRENCY,
            self._reader,
            self._metrics,
            self._log,
        )
        GATE.count_rejected = self._metrics.count_rejected
        GATE.count_answer = TRAFFIC.count_rejected
        PROTOCOL.backend = Backend(self._models, self._respond)
        WEB.source = PageSource(workdir(), self._reader, self._models.acquire)
        self._models.start()
        logger.info("serving %s with %d threads", self._models.version, SETTINGS.num_threads)

    async def _respond(
        self,
        body: RequestBody | HttpError,
        to_response: Callable[[Mapping[str, Any]], Response],
    ) -> Response:
        """Return the answer to a request, or its error."""
        if isinstance(body, HttpError):
            return body.to_response()
        timeout_ms = None
        try:
            request = body.to_request()
            timeout_ms = request.timeout_ms
            if isinstance(body, ExplainRequestBody):
                answer = await self._requests.explain(request, body.top)
                if body.ids_as_text:
                    answer = add_id_texts(answer)
            else:
                answer = await self._requests.rank(request)
        except LongrecError as error:
            http_error = http_error_of(error, timeout_ms)
            if http_error.rejection:
                self._metrics.count_rejected(http_error.rejection)
            return http_error.to_response()
        return to_response(answer)


_service: Any = Ranker  # the decorator made a service of the class, which mypy does not see
_service.mount_asgi_app(metrics_app(startup.supervisor()))
_service.mount_asgi_app(WEB.app)
if SETTINGS.is_inference_protocol_on:
    _service.mount_asgi_app(PROTOCOL.app)
_service.add_asgi_middleware(HttpMetricsMiddleware, traffic=TRAFFIC)  # sees every answer
_service.add_asgi_middleware(JsonErrorsMiddleware)
_service.add_asgi_middleware(AuthMiddleware)
uvicorn_adapter.install(GATE.before, SETTINGS.keep_alive_seconds)
if startup.is_worker():
    traces.install()


def _json_response(answer: Mapping[str, Any]) -> Response:
    return JSONResponse(answer)


def _arrow_response(answer: Mapping[str, Any]) -> Response:
    facts = {name: value for name, value in answer.items() if name != "scores"}
    content = arrow_codec.write_answer(answer["scores"], facts)
    return Response(content, media_type=ARROW_MEDIA_TYPE)


def _freeze_modules() -> None:
    """Keep the garbage collector away from the objects of loaded modules.

    Walking through all of them stopped every request for 200 ms now and then. Models are loaded
    later, so they can still be freed.
    """
    gc.collect()
    gc.freeze()


def _manage_models(
    *,
    own_version: str,
    own_bundle: Path,
    schema: Schema,
    metrics: PrometheusMetrics,
) -> ModelManager[Engine]:
    """Return the engines of this worker.

    Args:
        own_version: version of the model that BentoML resolved.
        own_bundle: folder of its bundle; other versions are read from the BentoML store.
        schema: schema of the histories that this service reads.
        metrics: observes the engine that answers, and the rollout.
    """
    from longrec.serving.engine import Engine

    def load(version: str) -> Engine:
        if version == own_version:
            return _load_engine(own_bundle, schema)
        store = model_store.store_dir()
        return _load_engine(model_store.bundle_dir(store, version), schema)

    return ModelManager(
        workdir(),
        own_version,
        load,
        score=_score_in_shadow,
        close=Engine.close,
        activate=lambda engine: engine.set_metrics(metrics),
        listener=metrics,
        is_pinned=SETTINGS.is_pinned,
    )


def _load_engine(bundle: Path, schema: Schema) -> Engine:
    """Return the warm engine of a bundle; this takes seconds."""
    import torch

    from longrec.scoring.scorer import Scorer
    from longrec.serving.admission.limits import Limits
    from longrec.serving.engine import Engine

    precision = torch.float32 if SETTINGS.device == "cpu" else torch.bfloat16
    scorer = Scorer.load(
        bundle,
        SETTINGS.device,
        schema=schema,
        precision=precision,
    )
    limits = Limits(
        cache_bytes=SETTINGS.cache_bytes,
        queue_seconds=SETTINGS.queue_seconds,
    )
    engine = Engine(scorer, limits)
    engine.cache.forgotten = ForgetWatcher(workdir())
    return engine


def _score_in_shadow(engine: Engine, request: EncodedRequest) -> Any:
    """Return the scores of a mirrored request for each task, however long that takes."""
    from longrec.serving.requests import RankResult

    mirrored = dataclasses.replace(request, deadline=math.inf, trace=None)
    result = engine.submit(mirrored).result()
    assert isinstance(result, RankResult)
    return result.scores.T
