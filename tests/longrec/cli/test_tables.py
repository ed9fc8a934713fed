"""Tables round their numbers, and progress on a pipe is one line per step."""

from __future__ import annotations

import math

import pytest

from longrec.cli import progress as progress_module
from longrec.cli import tables
from longrec.cli.progress import StepProgress, waiting
from longrec.runs.local_run import FinishedStep

MODEL = {
    "version": "7ba15e10bc2d-04f875",
    "role": "champion",
    "created": "2026-01-01T12:34:56",
    "labels": {"click.auc": "0.89134567", "schema": "small"},
    "problem": "",
}


@pytest.mark.parametrize(
    ("value", "text"), [(0.123456, "0.1235"), (None, "-"), (math.nan, "-"), (2, "2.0000")]
)
def test_a_number_has_four_digits_or_is_a_dash(value: object, text: str) -> None:
    assert tables.number(value) == text


def test_metrics_of_models_are_rounded(capsys: pytest.CaptureFixture[str]) -> None:
    unmeasured = {**MODEL, "version": "other", "role": "", "labels": {}}
    tables.show_models({"models": [MODEL, unmeasured], "workers": [], "log": []})
    printed = capsys.readouterr().out
    assert "0.8913" in printed
    assert "0.89134" not in printed
    assert "2026-01-01T12:34 " in printed


def test_brackets_in_texts_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    model = {**MODEL, "version": "v[b]"}
    worker = {"host": "h[b]", "pid": 1, "serving": "v[b]", "pinned": False, "refused": {}}
    tables.show_models({"models": [model], "workers": [worker], "log": []})
    printed = capsys.readouterr().out
    assert "h[b] 1 serves v[b]" in printed
    assert printed.count("v[b]") == 2


def test_progress_on_a_pipe_is_one_line_per_step(capsys: pytest.CaptureFixture[str]) -> None:
    with StepProgress() as progress:
        progress.begin("train")
        progress.detail("step 1 of 2")
        progress.end(FinishedStep("train", "done", 1.25))
        progress.begin("fingerprint")
        progress.end(FinishedStep("fingerprint", "done", 0.1))
        progress.end(FinishedStep("finish", "failed", 0.1))
        with progress.step("synth") as statuses:
            statuses.append("cached")
    captured = capsys.readouterr()
    assert captured.out == ""
    words = [line.split()[:2] for line in captured.err.splitlines()]
    assert words == [["ok", "train"], ["FAILED", "finish"], ["cached", "synth"]]


def test_a_long_step_tells_its_newest_message_on_a_pipe(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: clock[0])
    with StepProgress() as progress:
        progress.begin("train")
        for second in range(25):
            clock[0] += 1.0
            progress.detail(f"step {second + 1}/25 [loss 0.5]")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split() for line in lines] == [
        ["train", "step", "10/25", "[loss", "0.5]"],
        ["train", "step", "20/25", "[loss", "0.5]"],
    ]


def test_waiting_prints_nothing_on_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("importing a log"):
        pass
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_an_evaluation_says_where_the_model_stands_and_what_it_missed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = {"auc": 0.7, "gauc": 0.6, "logloss": 0.5, "ne": 0.9, "calibration": 1.0}
    baseline = {
        "name": "recency of [tag]",
        "auc": 0.75,
        "difference": -0.05,
        "difference_low": -0.0612,
        "difference_high": -0.04,
        "standing": "below",
    }
    reason = "The AUC, 0.7, is not at least 0.8: it misses gate.min_auc by 0.1."
    results = {
        "served_length": 64,
        "metrics": {"click": {**metrics, "auc_interval": [0.69, 0.71]}},
        "baselines": {"click": [baseline]},
        "lengths": [],
        "report": "runs/r1/report.html",
        "gate": {"passed": False, "reasons": [reason]},
    }
    tables.show_evaluation(results)
    printed = capsys.readouterr().out
    assert "-0.0612 to -0.0400" in printed
    assert "click: The model is below recency of [tag]." in printed
    assert "report   runs/r1/report.html" in printed
    assert "REFUSED" in printed
    assert reason in printed
