"""Retries of requests to object stores and other services that fail for a moment.

A step tries a request again where another attempt may succeed: no connection, no answer in time, a
busy server. What is missing, forbidden or malformed fails at once. Kubeflow's own retries of a step
do not do this on every server (docs/guides/kubeflow.md).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tenacity

VARIABLE = "LONGREC_RETRY_SECONDS"
"""Variable with the longest time of all attempts together; 0 or unset for one attempt."""
STEP_SECONDS = "120"
"""Default of the variable inside a step of a pipeline."""
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 20.0
TRANSIENT = re.compile(
    r"NETWORK_CONNECTION|curlCode: |HTTP status (408|429|5\d\d)|SLOW_DOWN|SlowDown|THROTTLING"
    r"|SERVICE_UNAVAILABLE|REQUEST_TIMEOUT|INTERNAL_FAILURE|InternalError"
    r"|\bUNAVAILABLE\b|DEADLINE_EXCEEDED|[Cc]onnection (reset|refused|aborted|closed)|[Tt]imed out"
)
"""Texts of errors of pyarrow's S3, GCS and Azure file systems that another attempt may not meet."""
TRANSIENT_TYPES = frozenset(
    {
        "redis.exceptions.ConnectionError",
        "redis.exceptions.TimeoutError",
        "redis.exceptions.BusyLoadingError",
        "urllib3.exceptions.MaxRetryError",
        "urllib3.exceptions.ProtocolError",
        "urllib3.exceptions.ReadTimeoutError",
    }
)
"""Errors of clients of Redis and Kubernetes, by name: longrec does not import them here."""
TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP status of an answer of Kubernetes that another attempt may not get."""
Result = TypeVar("Result")

log = logging.getLogger(__name__)


def is_transient(error: BaseException) -> bool:
    """Return whether another attempt of a request may succeed, by the error or its cause."""
    return any(_is_transient(each) for each in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _is_transient(error: BaseException) -> bool:
    kind = type(error)
    if f"{kind.__module__}.{kind.__name__}" in TRANSIENT_TYPES:
        return True
    if kind.__module__.startswith("kubernetes."):
        return getattr(error, "status", None) in TRANSIENT_STATUS
    if isinstance(error, (FileNotFoundError, PermissionError, FileExistsError)):
        return False
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    return isinstance(error, OSError) and TRANSIENT.search(str(error)) is not None


def retried(call: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """Return the result of a call, repeated with growing pauses after transient faults.

    The call must leave the same behind however often it begins.

    Raises:
        Exception: that of the last attempt.
    """
    seconds = float(os.environ.get(VARIABLE) or 0)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        stop=tenacity.stop_after_delay(seconds) if seconds else tenacity.stop_after_attempt(1),
        wait=tenacity.wait_random_exponential(FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS),
        before_sleep=_log_pause,
        reraise=True,
    )
    return retrying(call, *arguments, **options)


def _log_pause(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    pause = state.next_action.sleep if state.next_action else 0.0
    text = str(error).partition("\n")[0]
    log.warning("attempt %d failed: %s; again in %.0f s", state.attempt_number, text, pause)
