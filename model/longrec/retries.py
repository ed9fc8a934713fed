"""Retries of requests to object stores and other services that fail for a moment.

A step tries a request again where another attempt may succeed: no connection, no answer in time, a
busy server. What is missing, forbidden or malformed fails at once. Kubeflow's own retries of a step
do not do this on every server (docs/guides/kubeflow.md).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
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
Result = TypeVar("Result")

log = logging.getLogger(__name__)


def is_transient(error: BaseException) -> bool:
    """Return whether another attempt of a request may succeed."""
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
