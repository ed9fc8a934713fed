"""The outcome of a pipeline run: a file that is always written, and a message to a webhook."""

from __future__ import annotations

import dataclasses
import datetime
import http.client
import json
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tenacity

from longrec.data.files import read_json, write_json

log = logging.getLogger(__name__)

VARIABLE = "LONGREC_WEBHOOK"
"""Address of the webhook if the pipeline's parameter is empty; a cluster sets it from a secret."""
STATES = {"COMPLETE": "SUCCEEDED", "CACHED": "SUCCEEDED", "CANCELED": "CANCELLED"}
"""State of a Kubeflow server's metadata store -> state in kfp's local runner.

A server passes the former to an exit task, and no error text.
"""
REFUSED = "REFUSED"
"""State of a model that the gate refused; the run itself succeeds."""
MISSED_COLUMNS = ("name", "value", "missed_by", "sentence")
MAX_ATTEMPTS = 3
PAUSE_SECONDS = 2.0
TIMEOUT_SECONDS = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class OutcomeReport:
    """The result of announcing an outcome.

    Args:
        state: SUCCEEDED, FAILED or CANCELLED, or another state of the platform.
        delivered: whether the webhook accepted the message; false without a webhook.
        problem: the reason if it did not; it never contains the address, which may be secret.
    """

    state: str
    delivered: bool
    problem: str = ""


def announce(path: str | Path, webhook: str, facts: Mapping[str, Any]) -> OutcomeReport:
    """Write the outcome to a file, then send it to the webhook, as one JSON object.

    A webhook that cannot be reached, or a malformed address, is a warning and no error: the run's
    state must not depend on it.

    Args:
        path: path of the JSON file.
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
        host = _host(address)
        log.warning("the webhook at %s did not receive that the run %s: %s", host, state, problem)
    return OutcomeReport(state, not problem, problem)


def announce_refusal(
    path: str | Path,
    webhook: str,
    evaluation_dir: str | Path,
    facts: Mapping[str, Any],
) -> OutcomeReport:
    """Announce that the gate refused a model: the bounds, by how much they were missed, the remedy.

    Args:
        path, webhook: see `announce`.
        evaluation_dir: the evaluation of the model.
        facts: names of the run, as for `announce`.
    """
    gate = read_json(Path(evaluation_dir) / "metrics.json")["gate"]
    missed = [criterion for criterion in gate["criteria"] if not criterion["passed"]]
    remedy = {
        "missed": [{name: row[name] for name in MISSED_COLUMNS} for row in missed],
        "look": "report.html of the run, or the output report of the step evaluate",
        "package": f"longrec package --run {facts['run_id']} --force",
    }
    error = " ".join(gate["reasons"])
    return announce(path, webhook, {**facts, "state": REFUSED, "error": error, "gate": remedy})


def _chat_line(facts: Mapping[str, Any]) -> str:
    names = [str(facts[key]) for key in ("pipeline", "run_id") if facts.get(key)]
    line = f"{' '.join(names)}: {facts['state']}"
    return f"{line} ({facts['error']})" if facts["error"] else line


def _host(address: str) -> str:
    """Return the host of an address; the path is not for the log, it may be secret."""
    try:
        return urllib.parse.urlsplit(address).hostname or "an address without a host"
    except ValueError:
        return "a malformed address"


def _post(address: str, message: Mapping[str, Any]) -> str:
    """Send the message; return the problem, or an empty text after success."""
    if not address.lower().startswith(("http://", "https://")):
        return "the address must begin with http:// or https://"
    try:
        _send(address, json.dumps(message).encode())
    except urllib.error.HTTPError as error:
        return f"it answered {error.code}"
    except OSError as error:
        return str(getattr(error, "reason", error))
    except (http.client.InvalidURL, ValueError):
        return "the address is malformed"
    except http.client.HTTPException as error:
        return f"it did not answer in HTTP ({type(error).__name__})"
    return ""


def _is_temporary(error: BaseException) -> bool:
    """Return whether another attempt may succeed."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500
    if isinstance(error, http.client.InvalidURL):
        return False
    return isinstance(error, (OSError, http.client.HTTPException))


@tenacity.retry(
    retry=tenacity.retry_if_exception(_is_temporary),
    stop=tenacity.stop_after_attempt(MAX_ATTEMPTS),
    wait=tenacity.wait_fixed(PAUSE_SECONDS),
    reraise=True,
)
def _send(address: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, body, headers, method="POST")  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310
        pass
