"""Open Inference Protocol v2, as KServe and Triton speak it: another form of POST /rank.

    GET   /v2, /v2/health/live, /v2/health/ready
    GET   /v2/models/NAME[/versions/VERSION], .../ready
    POST  /v2/models/NAME[/versions/VERSION]/infer

The tensors of a request are the fields of /rank: they become its body and have its bounds, its
admission control and its errors. Tensors are JSON; the binary tensor extension is refused.

Source: https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bento.bodies import JSON_MEDIA_TYPE, read_body
from bento.errors import HttpError, first_problem
from bento.schemas import MAX_BYTES_ON_LOOP, RankRequestBody
from bento.settings import BODY_LIMITS
from longrec.errors import DataError

if TYPE_CHECKING:
    from longrec.serving.engine import Engine
    from longrec.serving.rollout.model_manager import ModelManager

INTEGERS = "INT64"
TEXTS = "BYTES"
SCORES = "FP32"
DATA_TYPES: dict[str, type] = {
    INTEGERS: int,
    TEXTS: str,
}
LIST_TENSOR = "candidates"
TENSORS = (
    "user_id",
    LIST_TENSOR,
    "request_time",
    "length",
    "timeout_ms",
)
"""Tensors of a request: fields of RankRequestBody."""
MODEL_PATHS = (
    "/v2/models/{name}",
    "/v2/models/{name}/versions/{version}",
)
MAX_DIMENSIONS = 2
Size = Annotated[int, Field(ge=-(2**31), lt=2**31)]
"""Size of a dimension; one that does not fit is refused later, with the name of its tensor."""
MAX_ID_CHARACTERS = 256
BINARY_HEADER = "inference-header-content-length"
BINARY_REFUSED = (
    "binary tensor data is not read here: send the tensors as JSON, for example by "
    "set_data_from_numpy(..., binary_data=False)"
)
SCALAR_FACTS = (
    "store_version",
    "user_known",
    "history_length",
    "unknown_candidates",
    "degraded",
)
"""Keys of an answer of /rank that become parameters of the answer."""
ToResponse = Callable[[Mapping[str, Any]], Response]


class InferTensor(BaseModel):
    """A tensor of a request; its data is flat."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Literal[TENSORS]  # type: ignore[valid-type]
    shape: list[Size] = Field(min_length=1, max_length=MAX_DIMENSIONS)
    datatype: Literal["INT64", "BYTES"]
    parameters: dict[str, Any] | None = None
    data: list[Any]


class InferOutput(BaseModel):
    """An output that a request asks for: the name of a task."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(BaseModel):
    """A request; its parameters are hints that do not matter here."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: str | None = Field(None, max_length=MAX_ID_CHARACTERS)
    parameters: dict[str, Any] | None = None
    inputs: list[InferTensor] = Field(min_length=1, max_length=len(TENSORS))
    outputs: list[InferOutput] | None = Field(None, max_length=MAX_ID_CHARACTERS)


@dataclasses.dataclass(frozen=True, slots=True)
class Backend:
    """What answers.

    Args:
        models: gives the engine of the current version.
        respond: answers a body of /rank, in the form that its second argument makes.
    """

    models: ModelManager[Engine]
    respond: Callable[[RankRequestBody | HttpError, ToResponse], Awaitable[Response]]


class InferenceProtocol:
    """The application to mount at `/`; the service sets `backend` once it is ready.

    Args:
        name: of the model.
    """

    def __init__(self, name: str) -> None:
        self.backend: Backend | None = None
        self._name = name
        routes = [
            Route("/v2", self._server),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
        ]
        for model in MODEL_PATHS:
            routes += [
                Route(model, self._model),
                Route(f"{model}/ready", self._model_ready),
                Route(f"{model}/infer", self._infer, methods=["POST"]),
            ]
        self.app = Starlette(routes=routes)
        self.app.router.redirect_slashes = False

    async def _server(self, _: Request) -> Response:
        version = importlib.metadata.version("longrec")
        description = {
            "name": "longrec",
            "version": version,
            "extensions": [],
        }
        return JSONResponse(description)

    async def _live(self, _: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, _: Request) -> Response:
        is_ready = self.backend is not None
        status = 200 if is_ready else 503
        return JSONResponse({"ready": is_ready}, status)

    async def _model(self, request: Request) -> Response:
        backend = self._find(request)
        if isinstance(backend, HttpError):
            return backend.to_response()
        with backend.models.acquire() as (version, engine):
            scorer = engine.scorer
            texts = scorer.bundle.schema.text_ids
            outputs = [_tensor(task, SCORES, -1) for task in scorer.task_names]
        user_type = TEXTS if "user" in texts else INTEGERS
        item_type = TEXTS if "item" in texts else INTEGERS
        inputs = [
            _tensor("user_id", user_type, 1),
            _tensor(LIST_TENSOR, item_type, -1),
        ]
        return JSONResponse(
            {
                "name": self._name,
                "versions": [version],
                "platform": "longrec",
                "inputs": inputs,
                "outputs": outputs,
            }
        )

    async def _model_ready(self, request: Request) -> Response:
        backend = self._find(request)
        if isinstance(backend, HttpError):
            return backend.to_response()
        return JSONResponse({"name": self._name, "ready": True})

    async def _infer(self, request: Request) -> Response:
        backend = self._find(request)
        if isinstance(backend, HttpError):
            return backend.to_response()
        read = await _read_request(request)
        if isinstance(read, HttpError):
            return read.to_response()
        requested_version = request.path_params.get("version")

        def to_response(answer: Mapping[str, Any]) -> Response:
            version = answer["model_version"]
            if requested_version not in (None, version):
                return _other_version(requested_version, version).to_response()
            return _to_response(self._name, read, answer)

        return await backend.respond(_to_body(read), to_response)

    def _find(self, request: Request) -> Backend | HttpError:
        """Return what answers for the model in a path, or why there is none."""
        name = request.path_params["name"]
        if name != self._name:
            shown = repr(name[:MAX_ID_CHARACTERS])
            reason = f"there is no model {shown}; expected {self._name!r}"
            return HttpError(404, reason)
        if self.backend is None:
            return HttpError(503, "the service is not ready yet", retry_after_seconds=1.0)
        version = self.backend.models.version
        requested = request.path_params.get("version")
        if requested not in (None, version):
            return _other_version(requested, version)
        return self.backend


async def _read_request(request: Request) -> InferRequest | HttpError:
    if BINARY_HEADER in request.headers:
        return HttpError(400, BINARY_REFUSED)
    content = await read_body(request, JSON_MEDIA_TYPE)
    if isinstance(content, HttpError):
        return content
    try:
        if len(content) <= MAX_BYTES_ON_LOOP:
            return InferRequest.model_validate_json(content)
        return await asyncio.to_thread(InferRequest.model_validate_json, content)
    except ValidationError as error:
        return HttpError(400, first_problem(error, InferRequest.model_fields))


def _to_body(request: InferRequest) -> RankRequestBody | HttpError:
    """Return the tensors of a request as the body of /rank."""
    fields: dict[str, Any] = {}
    outputs = [output.name for output in request.outputs or ()]
    try:
        if len(set(outputs)) < len(outputs):
            raise DataError("outputs: a name comes twice")
        for tensor in request.inputs:
            if tensor.name in fields:
                raise DataError(f"{tensor.name}: comes twice")
            fields[tensor.name] = _value_of(tensor)
        body: RankRequestBody = RankRequestBody.model_validate(fields)
    except ValidationError as error:
        return HttpError(400, first_problem(error, TENSORS))
    except DataError as error:
        return HttpError(400, str(error))
    return body


def _value_of(tensor: InferTensor) -> Any:
    """Return the list or the only value of a tensor.

    Raises:
        DataError: shape, type and data do not agree.
    """
    found = len(tensor.data)
    most = BODY_LIMITS.max_candidates
    if found > most:  # before anything looks at each value
        raise DataError(f"{tensor.name}: should have at most {most} items, not {found}")
    kind = DATA_TYPES[tensor.datatype]
    has_negative_size = min(tensor.shape) < 0
    if has_negative_size or math.prod(tensor.shape) != found:
        reason = f"shape {tensor.shape} is not that of its {found} values"
        raise DataError(f"{tensor.name}: {reason}")
    # A bool is an int to isinstance.
    are_of_kind = [type(value) is kind for value in tensor.data]
    if not all(are_of_kind):
        raise DataError(f"{tensor.name}: not every value is {tensor.datatype}, in a flat list")
    if tensor.name == LIST_TENSOR:
        return tensor.data
    if found != 1:
        raise DataError(f"{tensor.name}: expected one value", found=found)
    return tensor.data[0]


def _to_response(
    name: str,
    request: InferRequest,
    answer: Mapping[str, Any],
) -> Response:
    """Return an answer of /rank in the form of the protocol."""
    scores: Mapping[str, Sequence[float]] = answer["scores"]
    requested = [output.name for output in request.outputs or ()]
    names = requested or list(scores)
    unknown = [task for task in names if task not in scores]
    if unknown:
        expected = ", ".join(scores)
        shown = repr(unknown[0][:MAX_ID_CHARACTERS])
        reason = f"outputs: there is no {shown}; expected {expected}"
        return HttpError(400, reason).to_response()
    outputs = []
    for task in names:
        data = scores[task]
        tensor = _tensor(task, SCORES, len(data))
        outputs.append({**tensor, "data": data})
    identity = {}
    if request.id is not None:
        identity["id"] = request.id
    facts = {fact: answer[fact] for fact in SCALAR_FACTS}
    content = {
        "model_name": name,
        "model_version": answer["model_version"],
        **identity,
        "parameters": facts,
        "outputs": outputs,
    }
    return JSONResponse(content)


def _tensor(
    name: str,
    datatype: str,
    size: int,
) -> dict[str, Any]:
    """Return the description of a tensor; -1 is any size."""
    return {
        "name": name,
        "datatype": datatype,
        "shape": [size],
    }


def _other_version(requested: str | None, version: str) -> HttpError:
    shown = repr((requested or "")[:MAX_ID_CHARACTERS])
    return HttpError(404, f"version {shown} does not answer here; {version!r} does")
