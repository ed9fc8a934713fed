"""Two services on one machine, with one work directory and one BentoML store, keep apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bento.service_folder import PREFIX
from longrec.release.bento_server import serve_bento
from tests.bento.requests_and_scores import LATE_MS, rank
from tests.conftest import PATIENT, ROOT, VERSION, ServedWorld

pytestmark = pytest.mark.slow
ANSWERS = 'bentoml_service_request_total{endpoint="/rank",http_response_code="200"}'
FIRST_SERIES = {
    ANSWERS,
    'longrec_stage_seconds_count{stage="fetch"}',
    'longrec_degraded_total{history="empty"}',
    'longrec_candidates_total{known="no"}',
    'longrec_score_count{task="label"}',
    f'longrec_model_workers{{version="{VERSION}"}}',
}
"""Series that a service has before its first request."""


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """The folder of temporary files of both services."""
    path = tmp_path / "tmp"
    path.mkdir()
    return path


@contextlib.contextmanager
def serve(world: ServedWorld, temporary: Path) -> Iterator[httpx.Client]:
    """Yield a client of a service."""
    variables = {**PATIENT, "TMPDIR": str(temporary)}
    with (
        serve_bento(
            "bento.service:Ranker",
            workdir=world.workdir,
            store=world.store,
            folder=ROOT,
            variables=variables,
        ) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=60) as client,
    ):
        yield client


def read_series(client: httpx.Client) -> dict[str, float]:
    """Return the value of each series."""
    lines = client.get("/metrics").text.splitlines()
    samples = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {series: float(value) for series, value in samples}


def num_answers(client: httpx.Client) -> float:
    """Return the number of answers of /rank that a service counted."""
    return read_series(client)[ANSWERS]


def rank_times(client: httpx.Client, times: int) -> None:
    for _ in range(times):
        rank(client, user_id=1, candidates=[1, 2], request_time=LATE_MS)


def test_each_service_counts_its_own_requests_from_the_first_scrape_on(
    served_world: ServedWorld,
    temporary: Path,
) -> None:
    with serve(served_world, temporary) as first:
        assert set(read_series(first)) >= FIRST_SERIES
        rank_times(first, 7)
        with serve(served_world, temporary) as second:
            assert num_answers(second) == 0
            rank_times(second, 3)
            rank_times(first, 2)
            assert (num_answers(first), num_answers(second)) == (9, 3)
            assert len(list(temporary.glob(f"{PREFIX}*"))) == 2
        rank_times(first, 1)
        assert num_answers(first) == 10
        assert len(list(temporary.glob(f"{PREFIX}*"))) == 1
    assert not list(temporary.glob(f"{PREFIX}*"))
