"""Test `bentoml serve` in a process of its own: its errors and its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from longrec.release.bento_server import PackagingError, last_log_line, serve_bento
from tests.conftest import ROOT, Packaged, ServedWorld
from tests.longrec.test_child import LIMIT_SECONDS, seconds_until_ended

SERVE_SCRIPT = """\
import sys, time
from longrec.release.bento_server import serve_bento
with serve_bento(sys.argv[1], workdir=sys.argv[2]) as (host, port):
    print(port, flush=True)
    time.sleep(900)
"""


def test_a_server_that_does_not_start_says_why(served_world: ServedWorld, tmp_path: Path) -> None:
    server = serve_bento(
        "bento.service:Ranker",
        workdir=tmp_path / "nothing",
        store=served_world.store,
        folder=ROOT,
    )
    message = r"did not start; found .*no feature store at .*nothing"
    with pytest.raises(PackagingError, match=message), server:
        pytest.fail("it started")


def test_the_last_line_of_a_log_is_no_noise() -> None:
    assert last_log_line("first\nthe error\n\nnanobind: leaked\n - leaked type\n") == "the error"
    assert last_log_line("\n") == ""


@pytest.mark.slow
@pytest.mark.parametrize("kills_supervisor", [False, True])
def test_a_server_dies_with_the_process_that_started_it(
    packaged: Packaged, served_world: ServedWorld, kills_supervisor: bool
) -> None:
    """Workers end with their supervisor too, which `longrec serve` becomes."""
    import psutil

    arguments = [packaged.report.path, str(served_world.workdir)]
    starter = subprocess.Popen(
        [sys.executable, "-c", SERVE_SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    assert starter.stdout.readline().strip().isdigit()
    children = psutil.Process(starter.pid).children(recursive=True)
    assert len(children) >= 2, "the supervisor and its worker"
    if kills_supervisor:
        psutil.Process(starter.pid).children()[0].kill()
    else:
        starter.kill()
    try:
        assert seconds_until_ended(children) < LIMIT_SECONDS
    finally:
        starter.kill()
        starter.wait()
