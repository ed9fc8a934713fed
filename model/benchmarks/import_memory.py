"""Peak memory of an import against the rows of the log: KuaiRand-27K-like files are generated, each
import is a process of its own.

The files have the official header, columns and names (27,285 users with log-normal activity, a file
per part of at most 10 M rows), and
as many videos as a tenth of the rows, the share of KuaiRand-27K. Two imports are measured, of half
of the rows and of all of them: the
slope between the two says what a log of any size needs. Two slopes are told apart: log rows at a
fixed number of videos, which
should cost nothing beyond a part, and videos, since the catalogue is held whole. Prints one JSON
object per import and a summary, and adds
a row to results.csv.

    longrec bench import_memory --rows 5000000
    longrec bench import_memory --rows 50000000 --videos 1000000 --limit-mib 2048
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

sys.path.insert(0, str(Path(__file__).parent))

USERS = 27_285
ROWS_PER_FILE = 10_000_000
BATCH = 500_000
T0_MS = 1_649_347_200_000
"""2022-04-08 UTC."""
SPAN_MS = 31 * 86_400_000
RATES = {
    "is_click": 0.44,
    "is_like": 0.017,
    "is_follow": 0.001,
    "is_comment": 0.003,
    "is_forward": 0.001,
    "is_hate": 0.0008,
    "long_view": 0.31,
}
VIDEO_COLUMNS = (
    "video_id",
    "author_id",
    "video_type",
    "upload_dt",
    "upload_type",
    "visible_status",
    "video_duration",
    "server_width",
    "server_height",
    "music_id",
    "music_type",
    "tag",
)


def generate(
    directory: Path,
    rows: int,
    videos: int,
    seed: int = 0,
) -> int:
    """Writes the log, user and video files into a new directory and returns the bytes of the
    log.
    """
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    _users(directory / "user_features_27k.csv")
    _videos(directory / "video_features_basic_27k.csv", videos, rng)
    activity = rng.lognormal(0, 1.2, USERS)
    activity /= activity.sum()
    size = 0
    for part, first in enumerate(range(0, rows, ROWS_PER_FILE), 1):
        path = directory / f"log_standard_4_08_to_4_21_27k_part{part}.csv"
        tables = (
            _exposures(min(BATCH, min(first + ROWS_PER_FILE, rows) - start), videos, activity, rng)
            for start in range(first, min(first + ROWS_PER_FILE, rows), BATCH)
        )
        _write(path, tables)
        size += path.stat().st_size
    return size


def _exposures(
    count: int,
    videos: int,
    activity: np.ndarray[tuple[int], np.dtype[np.float64]],
    rng: np.random.Generator,
) -> pa.Table:
    def signal(name: str) -> pa.Array:
        return pa.array((rng.random(count) < RATES[name]).astype(np.int8))

    constant = {
        "date": 20220408,
        "hourmin": 1200,
        "duration_ms": 9000,
        "profile_stay_time": 0,
        "comment_stay_time": 0,
        "is_profile_enter": 0,
        "is_rand": 0,
    }
    columns = {
        "user_id": rng.choice(USERS, count, p=activity),
        "video_id": (videos * rng.random(count) ** 3).astype(np.int64),
        "date": None,
        "hourmin": None,
        "time_ms": T0_MS + rng.integers(0, SPAN_MS, count),
        **dict.fromkeys(RATES),
        "play_time_ms": rng.integers(0, 60_000, count),
        "duration_ms": None,
        "profile_stay_time": None,
        "comment_stay_time": None,
        "is_profile_enter": None,
        "is_rand": None,
        "tab": rng.integers(0, 15, count),
    }
    return pa.table(
        {
            name: signal(name)
            if name in RATES
            else pa.array(np.full(count, constant[name]) if values is None else values)
            for name, values in columns.items()
        }
    )


def _users(path: Path) -> None:
    place = np.arange(USERS)
    text = {
        "user_active_degree": "full_active",
        "follow_user_num_range": "500+",
        "fans_user_num_range": "[100,1k)",
        "friend_user_num_range": "[30,60)",
        "register_days_range": "730+",
    }
    names = (
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
    _write(
        path,
        [
            pa.table(
                {
                    "user_id": place,
                    **{
                        name: pa.array([text[name]] * USERS)
                        if name in text
                        else pa.array(place % 7)
                        for name in names
                    },
                }
            )
        ],
    )


def _videos(path: Path, videos: int, rng: np.random.Generator) -> None:
    def rows(start: int) -> pa.Table:
        count = min(BATCH, videos - start)
        ids = np.arange(start, start + count)
        values = {
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
        return pa.table({name: pa.array(values[name]) for name in VIDEO_COLUMNS})

    _write(path, (rows(start) for start in range(0, videos, BATCH)))


def _write(path: Path, tables: object) -> None:
    writer: pacsv.CSVWriter | None = None
    for table in tables:  # type: ignore[attr-defined]
        writer = writer or pacsv.CSVWriter(
            path, table.schema, write_options=pacsv.WriteOptions(quoting_style="needed")
        )
        writer.write_table(table)
    assert writer is not None
    writer.close()


def child(source: Path, out: Path, rows_per_part: int) -> None:
    """Imports, and prints what it cost as one JSON object."""
    from longrec.data.importers import ImportOptions, import_kuairand

    options = ImportOptions(rows_per_part=rows_per_part) if rows_per_part else ImportOptions()
    before, started = _peak_mib(), time.monotonic()
    report = import_kuairand(source, out, options=options)
    print(
        json.dumps(
            {
                "rows": report.num_events,
                "videos": report.num_items,
                "requests": report.num_requests,
                "seconds": round(time.monotonic() - started, 1),
                "start_mib": round(before),
                "peak_mib": round(_peak_mib()),
            }
        )
    )


def measure(
    rows: int,
    videos: int,
    rows_per_part: int,
    folder: Path,
) -> dict[str, float]:
    """Returns the costs of one import of generated files, which are removed afterwards."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="longrec-import-") as name:
        log_bytes = generate(Path(name) / "source", rows, videos)
        command = [
            sys.executable,
            __file__,
            "--child",
            str(Path(name) / "source"),
            str(Path(name) / "out"),
            str(rows_per_part),
        ]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        result = {"log_mib": round(log_bytes / 2**20), **json.loads(done.stdout)}
    print(json.dumps(result), flush=True)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 when a peak is above the limit."""
    raw = list(sys.argv[1:] if arguments is None else arguments)
    if raw[:1] == ["--child"]:
        child(Path(raw[1]), Path(raw[2]), int(raw[3]))
        return 0
    parser = argparse.ArgumentParser(
        prog="longrec bench import_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rows", type=int, default=5_000_000, help="rows of the larger log (default 5,000,000)"
    )
    parser.add_argument(
        "--videos",
        type=int,
        default=0,
        help="videos; 0 for a tenth of the rows",
    )
    parser.add_argument(
        "--rows-per-part",
        type=int,
        default=0,
        help="0 for the importer's own",
    )
    parser.add_argument(
        "--limit-mib", type=int, default=2_048, help="peak that fails the run (default 2048)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what was found, do not append it to results.csv",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="for the generated files"
    )
    options = parser.parse_args(raw)
    videos = options.videos or max(options.rows // 10, 1)
    pairs = (
        (options.rows // 2, videos),
        (options.rows, videos),
        (options.rows // 2, max(videos // 2, 1)),
    )
    half, full, fewer = (
        measure(rows, count, options.rows_per_part, options.folder) for rows, count in pairs
    )
    peak = max(result["peak_mib"] for result in (half, full, fewer))
    found = {
        "mib_per_million_rows": round(
            (full["peak_mib"] - half["peak_mib"]) / ((full["rows"] - half["rows"]) / 1e6), 1
        ),
        "mib_per_million_videos": round(
            (half["peak_mib"] - fewer["peak_mib"]) / ((videos - videos // 2) / 1e6), 1
        ),
        "peak_mib": peak,
        "limit_mib": options.limit_mib,
        "within": peak <= options.limit_mib,
    }
    print(json.dumps(found))
    if not options.dry_run:
        _record(options.rows, videos, full, found)
    return int(peak > options.limit_mib)


def _record(
    rows: int,
    videos: int,
    full: dict[str, float],
    found: dict[str, float],
) -> None:
    import _rows

    notes = (
        f"peak {found['peak_mib']} MiB of a limit of {found['limit_mib']}; {found['mib_per_million_rows']} MiB per million rows, "
        f"{found['mib_per_million_videos']} per million videos; {full['log_mib']} MiB of log in {full['seconds']} s"
    )
    seconds = full["seconds"] * 1e3
    _rows.append(
        [
            _rows.row(
                "memory of an import",
                f"{rows} rows, {videos} videos",
                "",
                (seconds, seconds, seconds),
                num_bytes=found["peak_mib"] * 2**20,
                notes=notes,
            )
        ]
    )


def _peak_mib() -> float:
    """Returns the peak of this program: VmHWM, since ru_maxrss keeps the peak of the process that
    started it.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    sys.exit(main())
