"""The local runner: progress, error messages of steps, and no silently skipped branch."""

import builtins
import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Optional

import psutil
import pytest
from kfp import dsl

from components import IMAGE
from longrec.runs.local_run import FinishedStep, LocalRun
from pipelines.local_runner import StepFailed, run

ROOT = Path(__file__).parents[2]
component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
"""kfp's own components, whose source is part of the pipeline, run here too."""


class Recorder:
    def __init__(self) -> None:
        self.begun: list[str] = []
        self.details: list[str] = []
        self.ended: list[FinishedStep] = []

    def begin(self, name: str) -> None:
        self.begun.append(name)

    def detail(self, text: str) -> None:
        self.details.append(text)

    def end(self, step: FinishedStep) -> None:
        self.ended.append(step)


@component
def make(
    source: dsl.Input[dsl.Dataset],
    fault: str,
    settings: dict,
    made: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
) -> bool:
    import atexit
    import logging
    import os
    import sys

    from longrec.errors import CheckFailed

    with open(report.path, "w") as stream:
        stream.write("<p>report</p>")
    if fault == "check":
        atexit.register(print, "\nnanobind: leaked 46 types!\n - leaked type x", file=sys.stderr)
        raise CheckFailed(
            "3 events are in the future",
            found="2031\nsecond line",
            expected="now",
            fix="Look at it.",
        )
    if fault == "bug":
        raise ZeroDivisionError("division by zero")
    if fault == "kill":
        os.kill(os.getpid(), 9)
    if fault == "sleep":
        import time

        with open(source.path + ".pid", "w") as stream:
            stream.write(str(os.getpid()))
        time.sleep(900)
    if fault == "noise":
        print("nanobind: leaked 46 types!", file=sys.stderr)
    logging.getLogger("longrec.fake").info("step %d of %d", 1, 2)
    with open(source.path) as stream, open(made.path, "w") as out:
        out.write(stream.read() + str(settings["n"]))
    return fault != "refuse"


@component
def use(made: dsl.Input[dsl.Dataset], used: dsl.Output[dsl.Artifact]):
    with open(used.path, "w") as out, open(made.path) as stream:
        out.write(stream.read() + " used")


@component
def verdict() -> NamedTuple("Verdict", passed=bool):
    from collections import namedtuple

    return namedtuple("Verdict", "passed")(True)


@dsl.pipeline(name="fake")
def fake(uri: str, fault: str = "", settings: dict = {"n": 3}):
    dataset = dsl.importer(artifact_uri=uri, artifact_class=dsl.Dataset, reimport=False)
    first = make(source=dataset.output, fault=fault, settings=settings)
    with dsl.If(first.outputs["Output"] == True):  # noqa: E712
        use(made=first.outputs["made"])


@component
def echo(text: str, settings: dict, told: dsl.Output[dsl.Dataset]):
    with open(told.path, "w") as out:
        out.write(f"{text} {settings['n']}")


@dsl.pipeline(name="echoes")
def echoes(text: str, settings: dict):
    first = echo(text=f"{text}/checkpoints", settings=settings)
    use(made=first.outputs["told"])


@dsl.pipeline(name="trap")
def trap():
    with dsl.If(verdict().outputs["passed"] == True):  # noqa: E712
        verdict()


@component
def keys() -> NamedTuple("Keys", first=str, second=str):
    from collections import namedtuple

    return namedtuple("Keys", "first second")("one", "two")


@component
def spell(item: str, key: str, spelled: dsl.Output[dsl.Artifact]):
    with open(spelled.path, "w") as out:
        out.write(f"{item} {key}")


@dsl.pipeline(name="loop")
def loop(items: list = ["a", "b"]):
    found = keys()
    with dsl.ParallelFor(items) as item:
        spell(item=item, key=found.outputs["second"])


def test_a_step_in_a_loop_gets_the_outputs_of_earlier_steps(tmp_path: Path) -> None:
    """kfp 2.17 alone gives it the item of the loop instead."""
    run(loop, {}, tmp_path / "run", Recorder())
    assert sorted(path.read_text() for path in tmp_path.glob("run/artifacts/**/spelled")) == [
        "a two",
        "b two",
    ]


def test_a_loop_leaves_print_as_it_was_and_no_line_indented(tmp_path: Path) -> None:
    """kfp 2.17 alone leaves `print` replaced, so later lines are indented and not understood."""
    before = builtins.print
    run(loop, {"items": list("abcdef")}, tmp_path / "run", Recorder())
    assert builtins.print is before
    assert "\n[KFP Executor" in (log := (tmp_path / "run" / "pipeline.log").read_text())
    assert "    [KFP Executor" not in log


def _run(tmp_path: Path, fault: str, recorder: Optional[Recorder] = None) -> LocalRun:
    source = tmp_path / "source.txt"
    source.write_text("data ")
    return run(fake, {"uri": str(source), "fault": fault}, tmp_path / "run", recorder or Recorder())


def test_every_step_is_recorder_of_and_its_artifacts_are_found(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    result = _run(tmp_path, "", recorder)
    assert set(recorder.begun) == {"importer", "make", "use"}
    assert list(result.steps) == recorder.ended
    assert {step.status for step in result.steps} == {"done"}
    assert sum(step.seconds for step in result.steps) > 0
    assert recorder.details == ["step 1 of 2"]
    used = result.output("use", "used")
    assert used is not None
    assert used.read_text().startswith("data 3")
    assert used.read_text().endswith("used")
    assert result.output("use", "other") is None
    assert result.skipped == ()
    assert capfd.readouterr().out == "", "kfp's output belongs to the log"
    assert "Executing task" in result.log.read_text()


def test_a_false_condition_skips_its_branch_and_says_so(tmp_path: Path) -> None:
    result = _run(tmp_path, "refuse")
    assert [step.name for step in result.steps if step.name != "importer"] == ["make"]
    assert len(result.skipped) == 1
    assert result.output("use", "used") is None


def test_a_longrec_error_of_a_step_is_the_message_and_its_report_stays(tmp_path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(StepFailed) as caught:
        _run(tmp_path, "check", recorder)
    error = caught.value
    assert error.step == "make"
    assert "3 events are in the future; found 2031\nsecond line; expected now. Look at it" in str(
        error
    )
    assert "Traceback" not in str(error)
    assert "nanobind" not in str(error)
    assert "finished with status" not in str(error)
    assert str(error.log) in str(error)
    assert "CheckFailed" in error.log.read_text()
    assert recorder.ended[-1].status == "failed"
    assert "use" not in recorder.begun
    assert [path.read_text() for path in tmp_path.glob("run/artifacts/*/make/report")] == [
        "<p>report</p>"
    ]


def test_another_exception_of_a_step_is_named_by_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(
        StepFailed, match=r"step make failed: ZeroDivisionError: division by zero\. "
    ):
        _run(tmp_path, "bug")


def test_a_killed_step_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="step make failed: it was stopped"):
        _run(tmp_path, "kill")


def test_noise_on_stderr_is_not_an_error(tmp_path: Path) -> None:
    result = _run(tmp_path, "noise")
    assert result.output("use", "used") is not None
    assert "nanobind" in result.log.read_text()


def test_a_missing_input_is_an_error_of_the_step_that_reads_it(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="step make failed: FileNotFoundError"):
        run(fake, {"uri": str(tmp_path / "absent")}, tmp_path / "run", Recorder())


def test_a_branch_that_kfp_skips_because_it_cannot_read_the_condition_is_an_error(
    tmp_path: Path,
) -> None:
    """kfp.local reports success here; a run must not."""
    with pytest.raises(StepFailed, match="could not evaluate a condition"):
        run(trap, {}, tmp_path / "run", Recorder())


@pytest.mark.parametrize(
    "name",
    [
        "a #b: c",
        "quotes ' and \"",
        "$HOME {{$}} {{$.inputs.parameters['fault']}} {{$.pipeline_job_name}}",
        "naïve 数据",
        "python3",
    ],
)
def test_any_legal_path_and_any_text_reach_the_steps(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    arguments = {"text": name, "settings": {"n": name}}
    result = run(echoes, arguments, folder / "run", Recorder(), cache=folder / "cache")
    used = result.output("use", "used")
    assert used is not None
    assert used.read_text() == f"{name}/checkpoints {name} used"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_stops_its_step(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "source.txt").write_text("data")
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
import test_local_runner
from pathlib import Path
arguments = {{"uri": "{tmp_path}/source.txt", "fault": "sleep"}}
folder = Path("{tmp_path}/run")
test_local_runner.run(test_local_runner.fake, arguments, folder, test_local_runner.Recorder())
"""
    process, step = subprocess.Popen([sys.executable, "-c", code]), 0
    try:
        step = _wait_for(tmp_path / "source.txt.pid")
        process.send_signal(number)
        expected = {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGKILL: -signal.SIGKILL}
        assert process.wait(120) == expected[number]
        stopped_at = time.monotonic()
        _wait_until(
            lambda: (
                not psutil.pid_exists(step) or psutil.Process(step).status() == psutil.STATUS_ZOMBIE
            ),
            "the step ran on",
        )
        assert time.monotonic() - stopped_at < 5
    finally:
        for pid in (step, process.pid if process.poll() is None else 0):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL) if pid else None


def _wait_for(path: Path) -> int:
    _wait_until(lambda: path.exists() and path.read_text(), f"{path} was never written")
    return int(path.read_text())


def _wait_until(holds: Callable[[], object], otherwise: str) -> None:
    limit = time.monotonic() + 180
    while not holds():
        assert time.monotonic() < limit, otherwise
        time.sleep(0.1)


def test_logging_of_the_process_is_restored(tmp_path: Path) -> None:
    import logging
    import sys

    before = (logging.getLogger().handlers[:], logging.getLogger().level, sys.stdout)
    _run(tmp_path, "refuse")
    assert (logging.getLogger().handlers[:], logging.getLogger().level, sys.stdout) == before
