"""The outcome of a pipeline run: a small file that is always written, and a message to a webhook
that whoever is on duty reads.
"""

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
"""Address of the webhook where the pipeline's parameter is empty: a secret's place on a cluster."""
STATES = {"COMPLETE": "SUCCEEDED", "CACHED": "SUCCEEDED", "CANCELED": "CANCELLED"}
"""A Kubeflow server tells an exit task the state of its metadata store, and no error; kfp's local
runner the names on the right.
"""
ATTEMPTS, PAUSE_SECONDS, TIMEOUT_SECONDS = 3, 2.0, 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class OutcomeReport:
    """What was told to whom.

    Args:
        state: SUCCEEDED, FAILED or CANCELLED, or whatever else the platform said.
        delivered: whether the webhook took the message; False where there is none.
        problem: why it did not.
    """

    state: str
    delivered: bool
    problem: str = ""


def announce(path: str | Path, webhook: str, facts: Mapping[str, Any]) -> OutcomeReport:
    """Returns what was told after writing the outcome to `path` and sending it to the webhook, both
    as one JSON object.

    The file comes first. A webhook that cannot be reached is a warning and no error: the run's own
    state must not depend on it.

    Args:
        path: gets the JSON.
        webhook: http(s) address; empty for LONGREC_WEBHOOK, and for none where that is not set
            either.
        facts: `state`, `error` (empty or None where nothing is known), and what names the run
            (pipeline, run_id, data_uri, ...).
    """
    state = STATES.get(facts["state"], facts["state"])
    facts = {**facts, "state": state, "error": facts["error"] or ""}
    message = {
        **facts,
        "text": _sentence(facts),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_json(path, message)
    address = webhook or os.environ.get(VARIABLE, "")
    if not address:
        return OutcomeReport(state, False, "no webhook")
    problem = _post(address, message)
    if problem:
        log.warning(
            "the webhook at %s was not told that the run %s: %s",
            urllib.parse.urlsplit(address).hostname,
            state,
            problem,
        )
    return OutcomeReport(state, not problem, problem)


def _sentence(facts: Mapping[str, Any]) -> str:
    """Returns the line that a chat shows."""
    name = " ".join(str(facts[key]) for key in ("pipeline", "run_id") if facts.get(key))
    return f"{name}: {facts['state']}" + (f" ({facts['error']})" if facts.get("error") else "")


def _post(address: str, message: Mapping[str, Any]) -> str:
    """Returns why the message was not taken; an empty text when it was."""
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        return "the address must begin with http:// or https://"
    body, problem = json.dumps(message).encode(), ""
    for attempt in range(ATTEMPTS):
        request = urllib.request.Request(  # noqa: S310
            address, body, {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310
                return ""
        except urllib.error.HTTPError as error:
            problem = f"it answered {error.code}"
            if error.code < 500:
                return problem
        except OSError as error:
            problem = str(getattr(error, "reason", error))
        if attempt + 1 < ATTEMPTS:
            time.sleep(PAUSE_SECONDS)
    return problem
