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
from longrec.data.store.versions import release
from longrec.runs.record.attempts import note, read, record_folder
from longrec.runs.record.nodes import FAILED
from longrec.runs.record.tracking import end_tracking
from longrec.runs.record.verdict import REFUSED, judge
from longrec.runs.record.workflow import own_nodes

log = logging.getLogger(__name__)

VARIABLE = "LONGREC_WEBHOOK"
"""Address of the webhook if the pipeline's parameter is empty; a cluster sets it from a secret."""
UI_VARIABLE = "LONGREC_UI"
"""Address of Kubeflow's web interface, for the link in a message (`platform.ui`)."""
NAMES = (
    "pipeline",
    "run_id",
    "job_id",
    "data_uri",
)
GATED = "evaluate"
"""The step whose gate refuses a model."""
MISSED_COLUMNS = (
    "name",
    "value",
    "missed_by",
    "sentence",
)
MAX_ATTEMPTS = 3
PAUSE_SECONDS = 2.0
TIMEOUT_SECONDS = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class OutcomeReport:
    """The result of announcing an outcome.

    Args:
        state: SUCCEEDED, REFUSED, FAILED, CANCELLED or UNKNOWN.
        delivered: whether the webhook accepted the message; false without a webhook.
        problem: the reason if it did not; it never contains the address, which may be secret.
    """

    state: str
    delivered: bool
    problem: str = ""


def conclude(path: str | Path, webhook: str, facts: Mapping[str, Any]) -> OutcomeReport:
    """Find out how a run ended, and announce it.

    Args:
        path, webhook: see `announce`.
        facts: names of the run (`pipeline`, `run_id`, `job_id`, `data_uri`); what the platform
            tells (`state`, `error`); and `workflow`, the name of the workflow.
    """
    told_state = str(facts["state"])
    told_error = str(facts["error"] or "")
    names = {name: facts[name] for name in NAMES}
    folder = record_folder()
    verdict = judge(
        names["pipeline"],
        told_state,
        read(folder),
        own_nodes(str(facts["workflow"])),
    )
    error = verdict.error
    if verdict.state == FAILED and not verdict.step:
        error = told_error or error
    outcome = {
        **names,
        "state": verdict.state,
        "step": verdict.step,
        "error": error,
        "link": _link(str(facts["job_id"]), folder),
        "told": told_state,
        "steps": dict(verdict.steps),
        "sources": dict(verdict.sources),
    }
    if verdict.gate:
        outcome["gate"] = dict(verdict.gate)
    log.info("outcome: %s", json.dumps(outcome))
    _release_features(folder)
    end_tracking(verdict.state)
    return announce(path, webhook, outcome)


def _release_features(record: Path | None) -> None:
    """Let go of the version of the features that the run of a record published."""
    if record is None:
        return
    run = record.parent
    try:
        release(run.parents[1], run.name)
    except OSError as error:
        log.warning("the features of run %s stay for now: %s", run.name, error)


def refuse(
    path: str | Path, webhook: str, evaluation_dir: str | Path, facts: Mapping[str, Any]
) -> OutcomeReport:
    """Record that the gate refused a model: the bounds, by how much they were missed, the remedy.

    The last step of the run announces it. Without a record, this step does.

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
    outcome = {
        **facts,
        "state": REFUSED,
        "step": GATED,
        "error": error,
        "gate": remedy,
    }
    if note(error=error, gate=remedy):
        write_json(path, outcome)
        return OutcomeReport(REFUSED, False, "the last step sends it")
    return announce(path, webhook, outcome)


def announce(path: str | Path, webhook: str, outcome: Mapping[str, Any]) -> OutcomeReport:
    """Write an outcome to a file, then send it to the webhook, as one JSON object.

    A webhook that cannot be reached, or a malformed address, is a warning and no error: the run's
    state must not depend on it.

    Args:
        path: path of the JSON file.
        webhook: http(s) address; empty for the variable LONGREC_WEBHOOK, if that is set.
        outcome: `state`, `step`, `error`, `link` (empty or absent if unknown), and names of the run
            such as `pipeline`, `run_id`, `job_id` and `data_uri`.
    """
    state = str(outcome["state"])
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    message = {**outcome, "text": _chat_line(outcome), "finished": finished}
    write_json(path, message)
    address = webhook or os.environ.get(VARIABLE, "")
    if not address:
        return OutcomeReport(state, False, "no webhook")
    problem = _post(address, message)
    if problem:
        host = _host(address)
        log.warning(
            "the webhook at %s did not receive that the run %s: %s",
            host,
            state,
            problem,
        )
    return OutcomeReport(state, not problem, problem)


def _link(job_id: str, folder: Path | None) -> str:
    """Return the address of a run's page, or else the folder of the run in the work directory."""
    address = os.environ.get(UI_VARIABLE, "")
    if address:
        return f"{address.rstrip('/')}/#/runs/details/{job_id}"
    return "" if folder is None else str(folder.parent)


def _chat_line(outcome: Mapping[str, Any]) -> str:
    """Return one line for a chat: pipeline, run, state, step, error and link."""
    run = outcome.get("run_id") or outcome.get("job_id")
    names = [str(name) for name in (outcome.get("pipeline"), run) if name]
    line = f"{' '.join(names)}: {outcome['state']}"
    if outcome.get("step"):
        line += f" in {outcome['step']}"
    if outcome.get("error"):
        line += f" ({outcome['error']})"
    return f"{line} {outcome['link']}" if outcome.get("link") else line


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
