"""Bodies of requests and answers, as the interface describes them.

A JSON or Arrow body decodes to a CallerRequest; a bad one gives an HttpError. BentoML calls
`from_http_request` and passes what it returns to the endpoint. Its own decoding would log a stack
trace for each bad request.

BentoML's clients call with keywords, `rank(user_id=1, candidates=[2])`, or with one object,
`rank({"user_id": 1, "candidates": [2]})`. They send the object as the field `request` of a body.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Self, TypeVar

import bentoml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import from_json
from starlette.requests import Request
from typing_extensions import TypeAliasType

from bento.bodies import JSON_MEDIA_TYPE, read_body
from bento.errors import WHOLE_REQUEST, HttpError, first_problem
from bento.settings import BODY_LIMITS
from longrec.errors import DataError
from longrec.serving import arrow_codec
from longrec.serving.requests import CallerRequest
from longrec.times import datetime_to_ms

ARROW_MEDIA_TYPE = "application/vnd.apache.arrow.stream"
BENTOML_BYTES_TYPE = "text/plain"
"""Content type of bytes that BentoML's clients send."""
MAX_TIMEOUT_MS = 60_000
MAX_BYTES_ON_LOOP = 65_536
"""A larger body is decoded in a thread."""
MAX_ID_CHARACTERS = 1_024
MAX_INT64 = 2**63 - 1
MIN_INT64 = -(2**63)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Some programs write it before UTF-8."""

Decoded = TypeVar("Decoded")


def to_milliseconds(value: Any) -> Any:
    """Return an ISO 8601 text as ms since 1970 UTC, rounded down; other values as they are.

    Raises:
        ValueError: the text is not a time, or has no time zone.
    """
    if not isinstance(value, str):
        return value
    try:
        time = datetime.datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(
            "should be ISO 8601 with a time zone, or an integer of milliseconds since 1970 UTC"
        ) from error
    if time.tzinfo is None:
        raise ValueError("has no time zone; for UTC add Z")
    return datetime_to_ms(time)


Int64 = Annotated[int, Field(ge=MIN_INT64, le=MAX_INT64)]
Id = Int64 | Annotated[str, Field(max_length=MAX_ID_CHARACTERS)]
UserId = TypeAliasType(
    "UserId",
    Annotated[
        Id,
        Field(
            description=(
                "User to read the history of; an unknown user has an empty history. Ids are "
                "numbers, or texts: names in a log with text ids, else decimal digits."
            )
        ),
    ],
)
ItemId = TypeAliasType(
    "ItemId",
    Annotated[
        Id,
        Field(
            description=(
                "Item: a number, or a text: the name in a log with text ids, else decimal digits."
            )
        ),
    ],
)
RequestTime = TypeAliasType(
    "RequestTime",
    Annotated[
        int,
        BeforeValidator(to_milliseconds),
        Field(ge=MIN_INT64, le=MAX_INT64),
        WithJsonSchema(
            {
                "description": (
                    "From 1980 to 2099: ISO 8601 with a time zone, for example "
                    "2024-05-01T12:00:00Z, or milliseconds since 1970 UTC; default now."
                ),
                # Java of openapi-generator does not compile with the format date-time in a union.
                "oneOf": [{"type": "integer"}, {"type": "string"}],
                "nullable": True,
            }
        ),
    ],
)
History = TypeAliasType(
    "History",
    Annotated[
        dict[str, list[Any]],
        Field(
            description=(
                "Events to use instead of the stored ones, as columns of one length. event_seq "
                "orders equal times. Other columns are the event features of the log. The events "
                "are not cached."
            )
        ),
    ],
)


def _describe_as_list(schema: dict[str, Any]) -> None:
    """Describe the list of both types of ids; pydantic tries the one of integers first."""
    branches = schema.pop("anyOf")
    schema.update(branches[-1])
    schema["minItems"] = schema.pop("minLength")
    schema["maxItems"] = schema.pop("maxLength")


class _JsonRequestBody(bentoml.IODescriptor):
    """Fields of every JSON request."""

    model_config = ConfigDict(strict=True, extra="forbid")

    user_id: UserId
    request_time: RequestTime | None = None
    length: int | None = Field(
        None,
        ge=0,
        le=MAX_INT64,
        description="Most recent events to use; default: as the model was evaluated.",
    )
    timeout_ms: int | None = Field(
        None,
        ge=1,
        le=MAX_TIMEOUT_MS,
        description="The request is answered or rejected within this time.",
    )
    history: History | None = None

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        """Return the body, or the HttpError of a bad one."""
        content = await read_body(request, JSON_MEDIA_TYPE)
        if isinstance(content, HttpError):
            return content
        try:
            body = await _decode(content, cls._parse)
        except ValidationError as error:
            return HttpError(400, first_problem(error, cls.model_fields))
        return body

    @classmethod
    def from_inputs(cls, *args: Any, **kwargs: Any) -> Self:
        """Return the body of a call with keywords or with one object.

        BentoML makes bodies so for callers that hold the code of the service.

        Raises:
            TypeError: the call has both, or more than one object.
            ValidationError: a field is missing or of another type.
        """
        if len(args) + bool(kwargs) > 1:
            raise TypeError("call with either one object or keywords")
        fields = args[0] if args else kwargs.get(WHOLE_REQUEST, kwargs)
        body: Self = cls.model_validate(fields)
        return body

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the schema: for OpenAPI, which names references, or for BentoML's clients."""
        schema: dict[str, Any] = super().model_json_schema(*args, **kwargs)
        # With this mark, clients refuse keywords.
        schema.pop("root_input", None)
        if "ref_template" in kwargs:
            return schema
        # Clients name a positional argument by the first property, and refuse missing ones.
        del schema["required"]
        schema["properties"] = {WHOLE_REQUEST: {"type": "object"}, **schema["properties"]}
        return schema

    @classmethod
    def _parse(cls, content: bytes) -> Self:
        """Return the body; as the only field, an object in `request` stands for all fields.

        Raises:
            ValidationError: it is not such a body.
        """
        content = content.removeprefix(BYTE_ORDER_MARK)
        try:
            body: Self = cls.model_validate_json(content)
        except ValidationError:
            fields = _whole_request(content)
            if fields is None:
                raise
            body = cls.model_validate(fields)
        return body

    def _to_request(self, candidates: Sequence[int | str]) -> CallerRequest:
        return CallerRequest(
            user_id=self.user_id,
            candidates=candidates,
            request_time_ms=self.request_time,
            length=self.length,
            timeout_ms=self.timeout_ms,
            inline_history=self.history,
        )


class RankRequestBody(_JsonRequestBody):
    """Candidates to rank for a user; only events before the request time are used."""

    candidates: list[Int64] | list[ItemId] = Field(
        min_length=1,
        max_length=BODY_LIMITS.max_candidates,
        description="Item ids, in the order of the scores.",
        json_schema_extra=_describe_as_list,
    )

    def to_request(self) -> CallerRequest:
        """Return the request."""
        return self._to_request(self.candidates)


class ExplainRequestBody(_JsonRequestBody):
    """A candidate of a user, to be explained by the events that the model attends to."""

    candidate: ItemId
    ids_as_text: bool | None = Field(
        None,
        description=(
            "Whether the answer has each item id as decimal digits too, in item_id_text: for "
            "callers whose numbers are not exact beyond 2^53."
        ),
    )
    top: int = Field(
        10,
        ge=1,
        le=100,
        description="Events to name for each layer and head; default 10.",
    )

    def to_request(self) -> CallerRequest:
        """Return the request, with one candidate."""
        return self._to_request([self.candidate])


class _ArrowBody(bentoml.IODescriptor):
    """A binary body, described as bytes."""

    media_type: ClassVar[str | None] = ARROW_MEDIA_TYPE

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the schema of bytes."""
        return {
            "title": cls.__name__,
            "type": "string",
            "format": "binary",
            "description": cls.__doc__,
            # Clients then send one argument as it is.
            "root_input": True,
        }


class ArrowRequestBody(_ArrowBody):
    """An Arrow IPC stream of one record batch with the int64 column item_id: the candidates.

    The metadata of the schema holds, as texts, user_id and optionally request_time (ms since 1970
    UTC), length and timeout_ms. A history packed by longrec.data.history may follow the stream.
    """

    _request: CallerRequest = PrivateAttr()

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        """Return the body, or the HttpError of a bad one."""
        content = await read_body(request, ARROW_MEDIA_TYPE, BENTOML_BYTES_TYPE)
        if isinstance(content, HttpError):
            return content
        body = cls()
        try:
            body._request = await _decode(content, arrow_codec.read_request, BODY_LIMITS)
        except DataError as error:
            return HttpError(400, str(error))
        return body

    def to_request(self) -> CallerRequest:
        """Return the request.

        Raises:
            DataError: a field is out of bounds.
        """
        request = self._request
        _check_bounds("request_time", request.request_time_ms, MIN_INT64, MAX_INT64)
        _check_bounds("length", request.length, 0, MAX_INT64)
        _check_bounds("timeout_ms", request.timeout_ms, 1, MAX_TIMEOUT_MS)
        return request


RequestBody = RankRequestBody | ExplainRequestBody | ArrowRequestBody


class RankAnswer(bentoml.IODescriptor):
    """Scores of the candidates, in the order of the request, and facts about them."""

    scores: dict[str, list[float]] = Field(
        description="One probability for each candidate and task.",
    )
    model_version: str
    store_version: str = Field(
        description=(
            "Version of the published features that the user was read from; empty if the feature "
            "store was never reached. `longrec lineage` traces both versions to the dataset."
        ),
    )
    user_known: bool = Field(
        description="Whether the feature store knows the user, or the request holds events.",
    )
    history_length: int = Field(description="Events used.")
    unknown_candidates: int = Field(
        description="Candidates unknown to the model; they are scored as the unknown item.",
    )
    unknown_events: dict[str, int] = Field(
        description=(
            "Events used whose item, action or category is unknown to the model, by column of the "
            "history."
        ),
    )
    degraded: bool = Field(
        description=(
            "True when the feature store could not be read: the history is the last one read, "
            "or empty."
        ),
    )


class ArrowAnswer(_ArrowBody):
    """An Arrow IPC stream of one record batch with a float32 column for each task.

    The metadata of the schema holds the other keys of RankAnswer.
    """


class AttendedEvent(BaseModel):
    """An event and its attention weight in one head."""

    row: int = Field(description="In the history used; 0 is the oldest event.")
    item_id: int
    item_id_text: str = Field("", description="The digits of item_id, where the request asks.")
    timestamp: int = Field(description="Milliseconds since 1970 UTC.")
    weight: float = Field(description="The weights of all events used sum to 1.")


class HeadAttention(BaseModel):
    """Events that one head weighs most, largest weight first."""

    layer: int
    head: int
    events: list[AttendedEvent]


class ExplainAnswer(RankAnswer):
    """Scores of one candidate, and the events behind them."""

    attention: list[HeadAttention]


def _whole_request(content: bytes) -> dict[str, Any] | None:
    """Return the object in the only field of a body, `request`; None for another body."""
    try:
        body = from_json(content)
    except ValueError:
        return None
    if not isinstance(body, dict) or list(body) != [WHOLE_REQUEST]:
        return None
    fields = body[WHOLE_REQUEST]
    return fields if isinstance(fields, dict) else None


def _check_bounds(
    name: str,
    value: int | None,
    lowest: int,
    highest: int,
) -> None:
    """Raise DataError if a value is out of bounds; None is a missing value."""
    if value is None or lowest <= value <= highest:
        return
    raise DataError(
        f"{name}: out of bounds",
        found=value,
        expected=f"{lowest} to {highest}",
    )


async def _decode(
    content: bytes,
    decode: Callable[..., Decoded],
    *arguments: Any,
) -> Decoded:
    """Return what `decode` makes of a body; a large body does not block the event loop."""
    if len(content) <= MAX_BYTES_ON_LOOP:
        return decode(content, *arguments)
    return await asyncio.to_thread(decode, content, *arguments)
