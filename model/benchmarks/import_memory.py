"""Measure the peak memory of an import against the rows of the log.

KuaiRand-27K-like files are generated, with the official header, columns and names: 27,285 users
with log-normal activity, at most 10 M rows a file, and a tenth as many videos as rows. Each import
is a process of its own.

Three imports are measured. Half and all of the rows give the memory per row; it should be next to
nothing beyond a part. Half of the videos give the memory per video, since the catalogue is held
whole. The script prints one JSON object per import and a summary, and appends a row to results.csv.

    longrec bench import_memory --rows 5000000
    longrec bench import_memory --rows 50000000 --videos 1000000 --limit-mib 2048
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from harness import memory, results

NUM_USERS = 27_285
ROWS_PER_FILE = 10_000_000
ROWS_PER_BATCH = 500_000
ROWS_PER_VIDEO = 10
FIRST_MS = 1_649_347_200_000
"""2022-04-08 UTC."""
SPAN_MS = 31 * 86_400_000
BYTES_PER_MIB = 2**20
SIGNAL_RATES = {
    "is_click": 0.44,
    "is_like": 0.017,
    "is_follow": 0.001,
    "is_comment": 0.003,
    "is_forward": 0.001,
    "is_hate": 0.0008,
    "long_view": 0.31,
}
LOG_COLUMNS = (
    "user_id",
    "video_id",
    "date",
    "hourmin",
    "time_ms",
    *SIGNAL_RATES,
    "play_time_ms",
    "duration_ms",
    "profile_stay_time",
    "comment_stay_time",
    "is_profile_enter",
    "is_rand",
    "tab",
)
LOG_CONSTANTS = {
    "date": 20220408,
    "hourmin": 1200,
    "duration_ms": 9000,
    "profile_stay_time": 0,
    "comment_stay_time": 0,
    "is_profile_enter": 0,
    "is_rand": 0,
}
USER_COLUMNS = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num",
    "follow_user_num_range",
    "fans_user_num",
    "fans_user_num_range",
    "friend_user_num",
    "friend_user_num_range",
    "register_days",
    "register_days_range",
    *(f"onehot_feat{number}" for number in range(18)),
)
USER_TEXTS = {
    "user_active_degree": "full_active",
    "follow_user_num_range": "500+",
    "fans_user_num_range": "[100,1k)",
    "friend_user_num_range": "[30,60)",
    "register_days_range": "730+",
}
Costs = dict[str, float]


def generate(directory: Path, num_rows: int, num_videos: int, seed: int = 0) -> int:
    """Write the log, user and video files into a new directory; return the bytes of the log."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    _write(directory / "user_features_27k.csv", [_user_table()])
    _write(directory / "video_features_basic_27k.csv", _video_tables(num_videos, rng))
    activity = rng.lognormal(0, 1.2, NUM_USERS)
    activity /= activity.sum()
    size = 0
    for part, first in enumerate(range(0, num_rows, ROWS_PER_FILE), 1):
        path = directory / f"log_standard_4_08_to_4_21_27k_part{part}.csv"
        rows = min(ROWS_PER_FILE, num_rows - first)
        counts = [min(ROWS_PER_BATCH, rows - start) for start in range(0, rows, ROWS_PER_BATCH)]
        _write(path, (_exposures(count, num_videos, activity, rng) for count in counts))
        size += path.stat().st_size
    return size


def _exposures(
    count: int, num_videos: int, activity: np.ndarray, rng: np.random.Generator
) -> pa.Table:
    drawn = {
        "user_id": rng.choice(NUM_USERS, count, p=activity),
        "video_id": (num_videos * rng.random(count) ** 3).astype(np.int64),
        "time_ms": FIRST_MS + rng.integers(0, SPAN_MS, count),
        "play_time_ms": rng.integers(0, 60_000, count),
        "tab": rng.integers(0, 15, count),
    }
    for name, rate in SIGNAL_RATES.items():
        drawn[name] = (rng.random(count) < rate).astype(np.int8)
    for name, value in LOG_CONSTANTS.items():
        drawn[name] = np.full(count, value)
    return pa.table({name: drawn[name] for name in LOG_COLUMNS})


def _user_table() -> pa.Table:
    numbers = np.arange(NUM_USERS)
    columns: dict[str, pa.Array] = {"user_id": pa.array(numbers)}
    for name in USER_COLUMNS:
        if name in USER_TEXTS:
            columns[name] = pa.array([USER_TEXTS[name]] * NUM_USERS)
        else:
            columns[name] = pa.array(numbers % 7)
    return pa.table(columns)


def _video_tables(num_videos: int, rng: np.random.Generator) -> Iterable[pa.Table]:
    for start in range(0, num_videos, ROWS_PER_BATCH):
        count = min(ROWS_PER_BATCH, num_videos - start)
        ids = np.arange(start, start + count)
        yield pa.table(
            {
                "video_id": ids,
                "author_id": ids // 3,
                "video_type": ["NORMAL"] * count,
                "upload_dt": ["2022-04-10"] * count,
                "upload_type": ["LongImport"] * count,
                "visible_status": [0.0] * count,
                "video_duration": rng.random(count) * 60_000,
                "server_width": [720.0] * count,
                "server_height": [1280.0] * count,
                "music_id": ids * 31,
                "music_type": [9.0] * count,
                "tag": np.char.add("t", (ids % 60).astype(str)),
            }
        )


def _write(path: Path, tables: Iterable[pa.Table]) -> None:
    writer: pacsv.CSVWriter | None = None
    for table in tables:
        if writer is None:
            options = pacsv.WriteOptions(quoting_style="needed")
            writer = pacsv.CSVWriter(path, table.schema, write_options=options)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def import_once(source: Path, out: Path, rows_per_part: int) -> None:
    """Import the files and print the costs as one JSON object; runs in a process of its own."""
    from longrec.data.importers import ImportOptions, import_kuairand

    options = ImportOptions(rows_per_part=rows_per_part) if rows_per_part else ImportOptions()
    before = memory.peak_mib()
    started = time.monotonic()
    report = import_kuairand(source, out, options=options)
    costs = {
        "rows": report.num_events,
        "videos": report.num_items,
        "requests": report.num_requests,
        "seconds": round(time.monotonic() - started, 1),
        "start_mib": round(before),
        "peak_mib": round(memory.peak_mib()),
    }
    print(json.dumps(costs))


def measure(num_rows: int, num_videos: int, options: argparse.Namespace) -> Costs:
    """Return the costs of one import of generated files, which are removed afterwards."""
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="longrec-import-") as name:
        source = Path(name) / "source"
        out = Path(name) / "out"
        log_bytes = generate(source, num_rows, num_videos)
        arguments = ["--child", str(source), str(out), str(options.rows_per_part)]
        command = [sys.executable, __file__, *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        costs = {"log_mib": round(log_bytes / BYTES_PER_MIB), **json.loads(done.stdout)}
    print(json.dumps(costs), flush=True)
    return costs


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure three imports; return 1 when a peak is above the limit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--child"]:
        import_once(Path(words[1]), Path(words[2]), int(words[3]))
        return 0
    options = _parser().parse_args(words)
    num_videos = options.videos or max(options.rows // ROWS_PER_VIDEO, 1)
    fewer_videos = max(num_videos // 2, 1)
    half = measure(options.rows // 2, num_videos, options)
    full = measure(options.rows, num_videos, options)
    fewer = measure(options.rows // 2, fewer_videos, options)
    peak = max(costs["peak_mib"] for costs in (half, full, fewer))
    million_rows = (full["rows"] - half["rows"]) / 1e6
    million_videos = (num_videos - num_videos // 2) / 1e6
    summary = {
        "mib_per_million_rows": round((full["peak_mib"] - half["peak_mib"]) / million_rows, 1),
        "mib_per_million_videos": round((half["peak_mib"] - fewer["peak_mib"]) / million_videos, 1),
        "peak_mib": peak,
        "limit_mib": options.limit_mib,
        "within": peak <= options.limit_mib,
    }
    print(json.dumps(summary))
    if not options.dry_run:
        results.append([_row(options.rows, num_videos, full, summary)])
    return int(peak > options.limit_mib)


def _row(num_rows: int, num_videos: int, full: Costs, summary: Costs) -> results.Row:
    notes = (
        f"peak {summary['peak_mib']} MiB of a limit of {summary['limit_mib']}; "
        f"{summary['mib_per_million_rows']} MiB per million rows, "
        f"{summary['mib_per_million_videos']} per million videos; "
        f"{full['log_mib']} MiB of log in {full['seconds']} s"
    )
    milliseconds = full["seconds"] * 1e3
    return results.row(
        "memory of an import",
        f"{num_rows} rows, {num_videos} videos",
        "",
        (milliseconds, milliseconds, milliseconds),
        num_bytes=summary["peak_mib"] * BYTES_PER_MIB,
        notes=notes,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="longrec bench import_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, default, text in (
        ("rows", 5_000_000, "rows of the larger log (default 5,000,000)"),
        ("videos", 0, "videos; 0 for a tenth of the rows"),
        ("rows-per-part", 0, "0 for the importer's own"),
        ("limit-mib", 2_048, "peak that fails the run (default 2048)"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--dry-run", action="store_true", help="print the row only")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="for the generated files"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
