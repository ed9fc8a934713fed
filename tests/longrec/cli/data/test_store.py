"""`longrec push` and `longrec inspect history` on a small published dataset."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.config import DataConfig
from longrec.data import features, history, history_plot
from longrec.data.store.online_store import OnlineStore
from longrec.data.store.publish import publish
from longrec.errors import DataError
from tests.longrec.data import random_log
from tests.longrec.data.random_log import SCHEMA, START_MS

REPO = Path(__file__).parents[4] / "feature_repo"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    features.build_features(random_log.write(root / "data").path, root / "features", DataConfig())
    publish(root / "features", root / "workdir", REPO)
    return root / "workdir"


def longrec(workdir: Path, *arguments: str) -> str:
    answer = CliRunner().invoke(app, [*arguments, "--workdir", str(workdir)])
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def test_a_pushed_event_is_shown_by_both_sides_and_not_before_its_time(
    workdir: Path, tmp_path: Path
) -> None:
    before = OnlineStore(workdir).fetch([3])[0].history.num_rows
    event = {
        "user_id": 3,
        "item_id": 7,
        "timestamp": START_MS + 10_000,
        "event_seq": 900,
        "basket_id": 1,
        "action": "<live> & kicking",
        "seconds": None,
        "source": None,
    }
    (tmp_path / "live.jsonl").write_text(json.dumps(event) + "\n")
    assert json.loads(longrec(workdir, "push", str(tmp_path / "live.jsonl"), "--json")) == {
        "num_events": 1,
        "num_new": 1,
        "num_users": 1,
        "num_compacted": 0,
    }
    assert (
        longrec(workdir, "push", str(tmp_path / "live.jsonl"))
        == "0 new of 1 events, 0 users, 0 histories compacted\n"
    )
    shown = {}
    for side in ("online", "offline"):
        shown[side] = json.loads(
            longrec(workdir, "inspect", "history", "--user", "3", "--side", side, "--json")
        )
        assert shown[side].pop("side") == side
        assert shown[side]["num_events"] == before + 1
        earlier = json.loads(
            longrec(
                workdir,
                "inspect",
                "history",
                "--user",
                "3",
                "--side",
                side,
                "--json",
                "--at",
                str(event["timestamp"]),
            )
        )
        assert earlier["num_events"] == before
        assert earlier["events"] == shown[side]["events"][:-1]
    assert shown["online"] == shown["offline"]
    assert shown["online"]["events"][-1] == {
        **{name: value for name, value in event.items() if name != "user_id"},
        "time": "2020-09-13T12:26:50.000Z",
    }
    printed = longrec(
        workdir,
        "inspect",
        "history",
        "--user",
        "3",
        "--last",
        "2",
        "--plot",
        str(tmp_path / "a.svg"),
    ).splitlines()
    assert printed[0] == f"user 3, online: {before + 1} events"
    assert printed[2] == f"... {before - 1} older events"
    assert printed[4].startswith("2020-09-13T12:26:50.000Z  7")
    assert "<live> & kicking" in printed[4]
    picture = xml.etree.ElementTree.parse(tmp_path / "a.svg").getroot()
    assert any(
        "<live> & kicking: 1 events" in (title.text or "") for title in picture.iter(f"{SVG}title")
    )


def test_an_offline_read_leaves_nothing_on_stderr(workdir: Path) -> None:
    """Without care, DuckDB's bindings list leaked objects when the interpreter ends."""
    command = [sys.executable, "-m", "longrec", "inspect", "history", "--user", "3"]
    done = subprocess.run(
        [*command, "--side", "offline", "--workdir", str(workdir)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("user 3, offline: ")


def test_mistakes_are_one_message(workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("user_id,item_id\n1,2\n")
    for arguments, message in (
        (["push", str(tmp_path / "bad.csv")], "events lack the column 'timestamp'"),
        (["inspect", "history", "--user", "3", "--at", "soon"], "the time cannot be read"),
        (["inspect", "history", "--user", "3", "--at", "1600000000"], "looks like seconds"),
        (["inspect", "history", "--user", "3", "--plot", "x.png"], "expected .svg, .html"),
    ):
        answer = CliRunner().invoke(app, [*arguments, "--workdir", str(workdir)])
        assert answer.exit_code == 1
        assert answer.stderr.startswith("longrec: ")
        assert message in answer.stderr
    assert "no events" in longrec(
        workdir, "inspect", "history", "--user", "424242", "--plot", str(tmp_path / "none.html")
    )
    assert "no events" in (tmp_path / "none.html").read_text()


@pytest.mark.parametrize("command", [["push"], ["inspect", "history"]], ids=" ".join)
def test_help_has_examples_and_json(command: list[str]) -> None:
    answer = CliRunner().invoke(app, [*command, "--help"])
    assert answer.exit_code == 0
    assert "Examples:" in answer.output
    assert "--json" in answer.output


def events(actions: list[str | None], times: list[int]) -> pa.RecordBatch:
    count = len(times)
    return history.conform(
        pa.table(
            {
                "item_id": np.arange(count),
                "timestamp": pa.array(times, pa.int64()),
                "event_seq": np.arange(count),
                "basket_id": np.arange(count),
                "action": pa.array(actions, pa.string()),
                "seconds": pa.nulls(count, pa.float64()),
                "source": pa.nulls(count, pa.int64()),
            }
        ),
        SCHEMA,
    )


def test_the_picture_counts_every_event_and_bounds_its_lanes() -> None:
    rng = np.random.default_rng(0)
    actions = [
        None if value == 30 else f"kind {value}" for value in rng.integers(0, 31, 2_000).tolist()
    ]
    picture = history_plot.render_svg(
        events(actions, np.sort(rng.integers(0, 10**12, 2_000)).tolist()), "all"
    )
    lanes = [
        group.find(f"{SVG}title")
        for group in xml.etree.ElementTree.fromstring(picture).iter(f"{SVG}g")
    ]
    texts = [lane.text or "" for lane in lanes if lane is not None]
    assert len(texts) == history_plot.MAX_LANES
    assert texts[-1].startswith(history_plot.OTHERS)
    assert sum(int(text.rsplit(": ", 1)[1].split()[0]) for text in texts) == 2_000
    assert "http://" not in picture.replace("http://www.w3.org/", "")
    assert "href" not in picture
    assert "<script" not in picture


def test_one_event_and_events_at_one_moment_are_drawn() -> None:
    for times in ([5], [5, 5, 5]):
        picture = xml.etree.ElementTree.fromstring(
            history_plot.render_svg(events(["a"] * len(times), times), "t")
        )
        [lane] = [
            group for group in picture.iter(f"{SVG}g") if group.find(f"{SVG}title") is not None
        ]
        assert len(list(lane)) == 2, "the lane's title and one bar"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1600000000000", START_MS),
        ("2020-09-13T12:26:40", START_MS),
        ("2020-09-13T14:26:40.001+02:00", START_MS + 1),
        ("1969-12-31T23:59:59Z", -1_000),
    ],
)
def test_moments(text: str, expected: int) -> None:
    assert history_plot.parse_time_ms(text) == expected
    with pytest.raises(DataError, match="the time cannot be read"):
        history_plot.parse_time_ms(text + "?")
