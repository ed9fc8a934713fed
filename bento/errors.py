"""HTTP status and body of each error."""

from __future__ import annotations

import dataclasses
import math
import re

from pydantic import BaseModel, Field, ValidationError
from starlette.responses import JSONResponse

from longrec.errors import ConfigError, DataError, LongrecError

CLOSED_RETRY_SECONDS = 1.0
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
    from longrec.serving.admission import EngineClosed, Overloaded, TooManyRequests
    from longrec.serving.engine import DeadlineExceeded

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


def first_problem(error: ValidationError) -> str:
    """Return the first problem of a body as `field: reason`, and the number of others."""
    problems = error.errors(
        include_url=False,
        include_context=False,
        include_input=False,
    )
    fields = [_field_of(problem["loc"]) for problem in problems]
    field = fields[0]
    reason = problems[0]["msg"].removeprefix("Value error, ")
    # A value that is neither a number nor a text has one problem for each.
    num_others = len(dict.fromkeys(fields)) - 1
    others = f" (and {num_others} more)" if num_others else ""
    return f"{field}: {reason}{others}"


def _field_of(location: tuple[int | str, ...]) -> str:
    """Return a location such as `candidates[1]`, without the branches of a union."""
    parts = []
    for part in location:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif not UNION_BRANCH.match(part):
            parts.append(part)
    return "".join(parts) or "body"
