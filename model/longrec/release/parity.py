"""Parity: the three ways to score the same requests, and how far they are apart.

    training forward   the ranker on the encoded stream, in evaluation mode
    Scorer             raw rows of the histories
    HTTP               POST /rank to an exported bento, served on loopback; its rows come from the
    online feature store

BentoML runs in a process of its own (`bentoml serve`); this module does not import it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from longrec.data.histories import Histories
from longrec.errors import LongrecError

PARITY_REQUESTS = 24
MAX_CANDIDATES = 2_048
"""Most candidates that the service takes in one request."""
TOKEN_BUDGET, REQUESTS_PER_BATCH = 65_536, 64
READY_SECONDS, STOP_SECONDS, ANSWER_SECONDS = 300.0, 30.0, 90.0
_PATIENT = {
    "LONGREC_FOLLOW": "0",
    "LONGREC_TIMEOUT_MS": "60000",
    "LONGREC_STORE_TIMEOUT_MS": "20000",
    "LONGREC_DEVICE": "cpu",
}
"""Of the served bento: scores are compared, not times; a busy node shall not refuse a model, nor
products in bfloat16.
"""

Scores: TypeAlias = list[npt.NDArray[np.float32]]


class PackagingError(LongrecError):
    """A bento cannot be made or served."""


@dataclasses.dataclass(frozen=True, slots=True)
class ParityReport:
    """How far the three ways to score are apart, as largest absolute differences of a probability
    to the training forward.

    Args:
        num_requests, num_scores: compared.
        longest_history: events.
        scorer_error: of the Scorer on rows.
        http_error: of the served bento.
        bound: largest difference that passes.
        problems: what else is wrong: answers that say they are degraded or used another number of
            events.
        passed: both errors are within the bound and there is no problem.
        ready_seconds: start of the server until it was ready.
        answer_ms: median time of an answer.
    """

    num_requests: int
    num_scores: int
    longest_history: int
    scorer_error: float
    http_error: float
    bound: float
    problems: tuple[str, ...]
    passed: bool
    ready_seconds: float
    answer_ms: float


def check_parity(
    bundle_dir: str | Path,
    histories_dir: str | Path,
    bento_dir: str | Path,
    *,
    workdir: str | Path,
    bound: float,
    seed: int,
) -> ParityReport:
    """Returns how far training forward, Scorer and the served bento are apart on a sample of
    evaluation requests.

    Args:
        bundle_dir: the ranker.
        histories_dir: requests of its split `eval` are used, each at its own moment.
        bento_dir: an exported bento; it is served on loopback, without a BentoML store, while this
            runs.
        workdir: LONGREC_HOME.
        bound: largest difference of a probability.
        seed: of the sample.
    """
    from longrec.evaluation.evaluate import histories_rows
    from longrec.scoring.scorer import Scorer

    scorer, histories = Scorer.load(bundle_dir), Histories.open(histories_dir)
    requests = sample_requests(histories, seed)
    forward = training_forward(scorer, histories, requests)
    rows = [histories_rows(histories, request) for request in requests.tolist()]
    rows = [dataclasses.replace(row, candidates=row.candidates[:MAX_CANDIDATES]) for row in rows]
    started, length = time.perf_counter(), scorer.bundle.served_length
    with serving(Path(bento_dir).resolve(), workdir=workdir, variables=_PATIENT) as (host, port):
        ready = time.perf_counter() - started
        users = (
            histories.users.column("user_id")
            .take(histories.requests.column("user_row").take(requests))
            .to_pylist()
        )
        bodies = [
            {
                "user_id": user,
                "candidates": row.candidates.tolist(),
                "request_time": row.request_time_ms,
            }
            for user, row in zip(users, rows, strict=True)
        ]
        answers, seconds = zip(*(_timed_answer(host, port, body) for body in bodies), strict=True)
    expected = [min(row.history.num_rows, length) for row in rows]
    served = [
        np.array([answer["scores"][task] for task in scorer.task_names], np.float32).T
        for answer in answers
    ]
    errors = _largest_difference(forward, scorer.score(rows)), _largest_difference(forward, served)
    problems = tuple(_problems(users, expected, answers))
    return ParityReport(
        num_requests=len(rows),
        num_scores=sum(scores.size for scores in forward),
        longest_history=max(expected),
        scorer_error=errors[0],
        http_error=errors[1],
        bound=bound,
        problems=problems,
        passed=max(errors) <= bound and not problems,
        ready_seconds=round(ready, 2),
        answer_ms=round(float(np.median(seconds)) * 1e3, 2),
    )


def sample_requests(
    histories: Histories, seed: int, count: int = PARITY_REQUESTS
) -> npt.NDArray[np.int64]:
    """Returns rows of evaluation requests, int64, rising: a seeded sample, and always the longest
    and the shortest history.
    """
    requests = np.flatnonzero(np.asarray(histories.requests.column("split")) == "eval")
    if not len(requests):
        raise PackagingError(
            "the histories hold no evaluation request",
            fix="Raise data.eval_fraction or use more requests.",
        )
    start, end = (
        np.asarray(histories.requests.column(name))[requests]
        for name in ("event_start", "event_end")
    )
    extremes = requests[[np.argmax(end - start), np.argmin(end - start)]]
    drawn = np.random.default_rng(seed).permutation(requests)[:count]
    return np.unique(np.concatenate([extremes, drawn])).astype(np.int64)


def training_forward(scorer: Any, histories: Histories, requests: npt.NDArray[np.int64]) -> Scores:
    """Returns the probabilities of each request, float32 [m, K] with m at most MAX_CANDIDATES, by
    the ranker on the encoded stream.
    """
    import torch

    from longrec.data.loader import EncodedHistories, RequestStream

    ranker = scorer.bundle.ranker.eval()
    with tempfile.TemporaryDirectory(prefix="longrec-parity-") as cache, torch.no_grad():
        encoded = EncodedHistories.make(histories, scorer.bundle.encoder, Path(cache) / "encoded")
        stream = RequestStream.serving(
            encoded,
            requests,
            scorer.bundle.served_length,
            token_budget=TOKEN_BUDGET,
            max_requests=REQUESTS_PER_BATCH,
        )
        scores = np.concatenate([torch.sigmoid(ranker(batch).logits).numpy() for batch in stream])
        owners = np.array(stream.target_requests)
    return [scores[owners == request][:MAX_CANDIDATES] for request in requests]


@contextlib.contextmanager
def serving(
    target: str | Path,
    *,
    workdir: str | Path,
    store: str | Path | None = None,
    folder: str | Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, int]]:
    """Yields host and port of `bentoml serve`, ready to answer; it is gone afterwards, also after a
    kill of us.

    Args:
        target: an exported bento (an absolute path), a tag, or `module:Service`.
        workdir: LONGREC_HOME.
        store: BENTOML_HOME; None for an empty one, so that a folder can only use what is in it.
        folder: where the command starts; None for an empty one.
        variables: of its environment, beside those of this process.

    Raises:
        PackagingError: it does not become ready.
    """
    host, port = "127.0.0.1", _free_port()
    with tempfile.TemporaryDirectory(prefix="longrec-serve-") as scratch:
        environment = {
            **os.environ,
            "BENTOML_HOME": str(store or f"{scratch}/bentoml"),
            "LONGREC_HOME": str(Path(workdir).resolve()),
            "BENTOML_DO_NOT_TRACK": "True",
        }
        environment.pop("LONGREC_MODEL", None)
        environment |= variables or {}
        command = [
            sys.executable,
            "-c",
            _CHILD,
            "serve",
            str(target),
            "--host",
            host,
            "--port",
            str(port),
        ]
        with open(Path(scratch) / "log", "w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=folder or scratch,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                _wait_ready(process, host, port, Path(output.name))
                yield host, port
            finally:
                stop(process)


_CHILD = """
import contextlib, ctypes, os, signal, sys
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execv(sys.executable, [sys.executable, "-m", "bentoml", *sys.argv[1:]])
"""
"""Becomes the bentoml command, to be sent SIGTERM when the process that started it dies (Linux)."""


def stop(process: subprocess.Popen[Any]) -> None:
    """Ends a `bentoml serve` and its workers: asked first, killed after STOP_SECONDS."""
    import psutil  # type: ignore[import-untyped]

    try:
        family = psutil.Process(process.pid).children(
            recursive=True
        )  # workers have sessions of their own
    except psutil.NoSuchProcess:
        family = []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def ask(host: str, port: int, body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the answer of a service to POST /rank.

    Raises:
        PackagingError: the status is not 200.
    """
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", "/rank", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise PackagingError(
                "the service refused a request",
                found=f"{answer.status} {text.decode(errors='replace')}",
                expected="200",
            )
        found: dict[str, Any] = json.loads(text)
        return found
    finally:
        connection.close()


def _timed_answer(host: str, port: int, body: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    started = time.perf_counter()
    return ask(host, port, body), time.perf_counter() - started


def _wait_ready(
    process: subprocess.Popen[Any],
    host: str,
    port: int,
    output: Path,
) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PackagingError(
                "the service did not start",
                found=last_line(output.read_text(encoding="utf-8", errors="replace")),
            )
        connection = http.client.HTTPConnection(host, port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        connection.close()
        time.sleep(0.2)
    raise PackagingError(
        f"the service was not ready after {READY_SECONDS:.0f} s",
        found=last_line(output.read_text(encoding="utf-8", errors="replace")),
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _largest_difference(expected: Scores, found: Scores) -> float:
    """Returns the largest absolute difference; infinite where a value is missing or not finite."""
    if any(
        a.shape != b.shape or not np.isfinite(b).all() for a, b in zip(expected, found, strict=True)
    ):
        return float("inf")
    return max(
        float(np.abs(a.astype(np.float64) - b).max(initial=0.0))
        for a, b in zip(expected, found, strict=True)
    )


def _problems(
    users: Sequence[int], expected: Sequence[int], answers: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    for user, events, answer in zip(users, expected, answers, strict=True):
        if answer["degraded"]:
            yield f"user {user}: the service could not read the feature store"
        elif answer["history_length"] != events:
            yield f"user {user}: the service used {answer['history_length']} events, training {events}"


def last_line(text: str) -> str:
    lines = [
        line.strip()
        for line in text.splitlines()
        if line.strip() and not line.startswith(("nanobind:", " - "))
    ]
    return lines[-1] if lines else ""
