"""HTTP status and body of each error."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Iterable

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails
from starlette.responses import JSONResponse

from longrec.errors import ConfigError, DataError, LongrecError
from longrec.serving.admission.errors import (
    DeadlineExceeded,
    EngineClosed,
    Overloaded,
    TooManyRequests,
)
from longrec.spelling import nearest_name

CLOSED_RETRY_SECONDS = 1.0
UNKNOWN = "extra_forbidden"
"""pydantic's type of the problem of an unknown field."""
WHOLE_REQUEST = "request"
"""Field of a body from BentoML's clients that holds the whole request as one object."""
MAX_SHOWN_CHARACTERS = 80
UNION_BRANCH = re.compile(r"constrained-|list\[")
"""Names that pydantic gives to the types of a union in a location."""


class ErrorAnswer(BaseModel):
    """The JSON body of every error."""

    error: str = Field(description="What was found, and what was expected.")


@dataclasses.dataclass(frozen=True, slots=True)
class HttpError:
    """Reason why a request is not answered.

    Args:
        status: status of the HTTP response.
        reason: error that the caller reads.
        retry_after_seconds: when to try again, None for a request that must change first.
        rejection: reason to count, one of longrec.serving.metrics.REJECTION_REASONS; empty for a
            fault of the request.
    """

    status: int
    reason: str
    retry_after_seconds: float | None = None
    rejection: str = ""

    def to_response(self) -> JSONResponse:
        """Return the response to send."""
        headers = {}
        if self.retry_after_seconds is not None:
            headers["Retry-After"] = str(math.ceil(self.retry_after_seconds))
        return JSONResponse({"error": self.reason}, self.status, headers)


def http_error_of(error: LongrecError, timeout_ms: int | None) -> HttpError:
    """Return the HTTP error of a request that failed.

    A fault of the request gives 400. A retry of 408, 429, 503 or 504 may succeed.

    Args:
        error: error of the request.
        timeout_ms: timeout that the request named, if any.

    Raises:
        LongrecError: the error itself, if it is not one that a request can cause.
    """
    reason = str(error)
    if isinstance(error, TooManyRequests):
        return HttpError(429, reason, error.retry_after_seconds, rejection="caller")
    if isinstance(error, Overloaded):
        return HttpError(503, reason, error.retry_after_seconds, rejection="overload")
    if isinstance(error, EngineClosed):
        # Not because another version took over: a request uses its engine until it is answered.
        reason = "the service stops: send the request to another one"
        return HttpError(503, reason, CLOSED_RETRY_SECONDS, rejection="closed")
    if isinstance(error, DeadlineExceeded):
        status = 504 if timeout_ms is None else 408
        return HttpError(status, reason, rejection="deadline")
    if isinstance(error, (ConfigError, DataError)):
        return HttpError(400, reason)
    raise error


def first_problem(error: ValidationError, known_fields: Iterable[str]) -> str:
    """Return the first problem of a body as `field: reason`, and the number of others.

    A misspelled field comes before all others, since its right name is then missing too.

    Args:
        error: of the body.
        known_fields: names that the body may have.
    """
    problems = error.errors(include_url=False, include_input=False)
    fields = [_field_of(problem["loc"]) for problem in problems]
    unknown = [
        field for field, problem in zip(fields, problems, strict=True) if problem["type"] == UNKNOWN
    ]
    misspelled = _misspelled(unknown, known_fields)
    if misspelled is not None:
        field, nearest = misspelled
        others = _num_others(fields, {field, nearest})
        return f"unknown field {field}; did you mean {nearest}{others}"
    first = fields[0]
    others = _num_others(fields, {first})
    if first in unknown:
        expected = ", ".join(known_fields)
        return f"unknown field {first}; expected {expected}{others}"
    # A value that is neither a number nor a text has one problem for each.
    reasons = [
        _reason_of(problem)
        for field, problem in zip(fields, problems, strict=True)
        if field == first
    ]
    reason = next(filter(None, reasons), problems[0]["msg"])
    return f"{first}: {reason}{others}"


def _misspelled(unknown: Iterable[str], known_fields: Iterable[str]) -> tuple[str, str] | None:
    """Return the first unknown field that is like a known one, and the known one."""
    for name in unknown:
        nearest = nearest_name(name, known_fields)
        if nearest and name != WHOLE_REQUEST:
            return name, nearest
    return None


def _reason_of(problem: ErrorDetails) -> str:
    """Return the reason of a problem, empty for a value of another type than one of a union."""
    kind = problem["type"]
    if kind.endswith("_type"):
        return ""
    if kind == "too_long":
        facts = problem["ctx"]
        return f"should have at most {facts['max_length']} items, not {facts['actual_length']}"
    return problem["msg"].removeprefix("Value error, ")


def _num_others(fields: Iterable[str], named: Collection[str]) -> str:
    """Return the number of fields with a problem beside those that are named, as text."""
    num_others = len(set(fields).difference(named))
    return f" (and {num_others} more)" if num_others else ""


def _field_of(location: tuple[int | str, ...]) -> str:
    """Return a location such as `candidates[1]`, without the branches of a union."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not UNION_BRANCH.match(part):
            path += f".{part}" if path else part
    if not path:
        return repr(path) if location else "body"
    return path[:MAX_SHOWN_CHARACTERS]
