"""The outcome of a pipeline run: a file that is always written, and a message to a webhook."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longrec.data.files import write_json

log = logging.getLogger(__name__)

VARIABLE = "LONGREC_WEBHOOK"
"""Address of the webhook if the pipeline's parameter is empty; a cluster sets it from a secret."""
STATES = {"COMPLETE": "SUCCEEDED", "CACHED": "SUCCEEDED", "CANCELED": "CANCELLED"}
"""State of a Kubeflow server's metadata store -> state in kfp's local runner.

A server passes the former to an exit task, and no error text.
"""
MAX_ATTEMPTS = 3
PAUSE_SECONDS = 2.0
TIMEOUT_SECONDS = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class OutcomeReport:
    """The result of announcing an outcome.

    Args:
        state: SUCCEEDED, FAILED or CANCELLED, or another state of the platform.
        delivered: whether the webhook accepted the message; false without a webhook.
        problem: the reason if it did not.
    """

    state: str
    delivered: bool
    problem: str = ""


def announce(path: str | Path, webhook: str, facts: Mapping[str, Any]) -> OutcomeReport:
    """Write the outcome to a file, then send it to the webhook, as one JSON object.

    An unreachable webhook is a warning and no error: the run's state must not depend on it.

    Args:
        path: of the JSON file.
        webhook: http(s) address; empty for the variable LONGREC_WEBHOOK, if that is set.
        facts: `state`, `error` (empty or None if unknown), and names of the run such as
            `pipeline`, `run_id` and `data_uri`.
    """
    state = STATES.get(facts["state"], facts["state"])
    facts = {**facts, "state": state, "error": facts["error"] or ""}
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    message = {**facts, "text": _chat_line(facts), "finished": finished}
    write_json(path, message)
    address = webhook or os.environ.get(VARIABLE, "")
    if not address:
        return OutcomeReport(state, False, "no webhook")
    problem = _post(address, message)
    if problem:
        host = urllib.parse.urlsplit(address).hostname
        log.warning("the webhook at %s did not receive that the run %s: %s", host, state, problem)
    return OutcomeReport(state, not problem, problem)


def _chat_line(facts: Mapping[str, Any]) -> str:
    names = [str(facts[key]) for key in ("pipeline", "run_id") if facts.get(key)]
    line = f"{' '.join(names)}: {facts['state']}"
    return f"{line} ({facts['error']})" if facts["error"] else line


def _post(address: str, message: Mapping[str, Any]) -> str:
    """Send the message, with retries; return the problem, or an empty text after success."""
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        return "the address must begin with http:// or https://"
    request = urllib.request.Request(  # noqa: S310  (the scheme is checked above)
        address,
        json.dumps(message).encode(),
        {"Content-Type": "application/json"},
        method="POST",
    )
    problem = ""
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        problem, is_final = _post_once(request)
        if is_final:
            break
    return problem


def _post_once(request: urllib.request.Request) -> tuple[str, bool]:
    """Return the problem of one attempt, and whether another attempt is useless."""
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310
            return "", True
    except urllib.error.HTTPError as error:
        return f"it answered {error.code}", error.code < 500
    except OSError as error:
        return str(getattr(error, "reason", error)), False
