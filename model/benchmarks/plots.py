"""Draw the pictures of docs/benchmarks/ from results.csv.

They show time against history length, gain against targets, the kernels of a step, and the loader
against a training step.

    python model/benchmarks/plots.py                 into docs/images/
    python model/benchmarks/plots.py --to FOLDER
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import results

FOLDER = Path(__file__).parents[2] / "docs" / "images"
NUM_BARS = 14
"""Kernels in a picture of a step."""
WANTED_RATIO = 1.2
"""Goal of the loader: events per second over those of a training step."""
STYLE = {
    "svg.hashsalt": "longrec",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
Rows = dict[tuple[str, str], results.Row]


def latest_rows(path: Path) -> Rows:
    """Return the last row of each (claim, shape)."""
    with open(path, newline="", encoding="utf-8") as stream:
        return {(row["claim"], row["shape"]): row for row in csv.DictReader(stream)}


def sizes_of(shape: str) -> dict[str, int]:
    """Return the numbers of a shape such as `R64 L10240 m32 d256`."""
    return {name: int(value) for name, value in re.findall(r"\b([A-Za-z])(\d+)\b", shape)}


def draw_lengths(rows: Rows, axes: Any) -> str:
    """Draw step time against history length; return the device."""
    points = []
    for (claim, shape), row in rows.items():
        if claim == "step against length":
            points.append((sizes_of(shape)["L"], float(row["p50_ms"]), row["device"]))
    lengths, times, devices = zip(*sorted(points), strict=True)
    slope, constant = statistics.linear_regression(lengths, times)
    fitted = [slope * length + constant for length in lengths]
    axes.plot(lengths, times, "o", label="measured")
    axes.plot(lengths, fitted, color="grey", label="fitted line")
    axes.set(xlabel="events of a history, L", ylabel="training step, ms", ylim=(0, None))
    axes.set_title("8 requests x 32 targets, d=256, M=4")
    axes.legend(frameon=False)
    return str(devices[0])


def draw_gains(rows: Rows, axes: Any) -> str:
    """Draw the gain of request level batching against targets; return the device."""
    device = ""
    targets: list[int] = []
    for order in ("auto", "plain"):
        ms_per_target = {}
        for (claim, shape), row in rows.items():
            if claim.startswith("rlb m=") and claim.endswith(order):
                sizes = sizes_of(shape)
                ms_per_target[sizes["m"]] = float(row["p50_ms"]) / (sizes["R"] * sizes["m"])
                device = row["device"]
        targets = sorted(ms_per_target)
        gains = [ms_per_target[1] / ms_per_target[count] for count in targets]
        axes.plot(targets, gains, "o-", label=f"attention: {order}")
    axes.plot(targets, targets, "--", color="grey", label="m times")
    axes.set(
        xticks=targets,
        yticks=targets,
        xlabel="targets of a request, m",
        ylabel="targets per second, against m = 1",
    )
    axes.set_title("48 requests of 10,240 events, d=256, M=4")
    axes.legend(frameon=False)
    return device


def draw_breakdown(rows: Rows, axes: Any, width: int) -> str:
    """Draw the kernels of a step with their floors; return the device."""
    kernels = [
        (claim.removeprefix("breakdown "), row)
        for (claim, shape), row in rows.items()
        if claim.startswith("breakdown ") and sizes_of(shape)["d"] == width
    ]
    last_commit = kernels[-1][1]["commit"]
    kernels = [(name, row) for name, row in kernels if row["commit"] == last_commit]
    kernels.sort(key=lambda kernel: float(kernel[1]["p50_ms"]))
    kernels = kernels[-NUM_BARS:]
    names = [name for name, _ in kernels]
    times = [float(row["p50_ms"]) for _, row in kernels]
    shares = [float(row["share_of_floor"] or 0) for _, row in kernels]
    floors = [share * time for share, time in zip(shares, times, strict=True)]
    axes.barh(names, times, color="#9db7d5", label="measured")
    axes.barh(names, floors, height=0.35, color="#1f4e8c", label="floor: FLOPs or bytes")
    axes.set(xlabel="ms a step")
    axes.set_title(f"64 requests of 10,240 events, 32 targets, d={width}")
    axes.legend(frameon=False, loc="lower right")
    return kernels[0][1]["device"]


def draw_loader(rows: Rows, axes: Any) -> str:
    """Draw the events/s of the loader against those of training steps; return the device."""
    measured = []
    for (claim, _), row in rows.items():
        match = re.fullmatch(r"Loader, (\d+) workers, to the GPU", claim)
        if match:
            measured.append((int(match[1]), row))
    measured.sort(key=lambda pair: pair[0])
    places = range(len(measured))
    step_rate = max(_number(row, r"the step's ([\d.]+) M") for _, row in measured)
    for offset, name, suffix in (
        (-0.2, "from the page cache", " M events/s"),
        (0.2, "from the disk", " from the disk"),
    ):
        rates = [_number(row, r"([\d.]+)" + suffix) for _, row in measured]
        axes.bar([place + offset for place in places], rates, 0.38, label=name)
    axes.axhline(
        WANTED_RATIO * step_rate,
        color="black",
        linestyle="--",
        label=f"{WANTED_RATIO} times what a step takes ({step_rate:.1f} M events/s)",
    )
    axes.set(
        xticks=places,
        xticklabels=[num_workers for num_workers, _ in measured],
        xlabel="threads that pack",
        ylabel="M events/s to the GPU",
        ylim=(0, 1.4 * axes.get_ylim()[1]),
    )
    axes.set_title("batches of 163,840 events")
    axes.legend(frameon=False, fontsize=8)
    return measured[0][1]["device"]


def _number(row: results.Row, pattern: str) -> float:
    match = re.search(pattern, row["notes"])
    if match is None:
        raise SystemExit(f"a row of '{row['claim']}' does not match {pattern}: {row['notes']}")
    return float(match[1])


PICTURES: dict[str, Callable[[Rows, Any], str]] = {
    "step_against_length": draw_lengths,
    "rlb_gain": draw_gains,
    "loader": draw_loader,
    "breakdown_256": lambda rows, axes: draw_breakdown(rows, axes, 256),
    "breakdown_512": lambda rows, axes: draw_breakdown(rows, axes, 512),
}


def main() -> None:
    """Draw every picture."""
    options = _arguments()
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update(STYLE)
    rows = latest_rows(options.results)
    options.to.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        _save_picture(name, draw, rows, options)


def _save_picture(
    name: str, draw: Callable[[Rows, Any], str], rows: Rows, options: argparse.Namespace
) -> None:
    from matplotlib import pyplot

    size = (7.5, 4) if name.startswith("breakdown") else (5, 3.6)
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    device = draw(rows, axes)
    axes.set_title(f"{axes.get_title()}; {device}")
    # Without a date the same rows give the same file.
    metadata = {"Date": None} if options.format == "svg" else None
    figure.savefig(options.to / f"{name}.{options.format}", dpi=110, metadata=metadata)
    pyplot.close(figure)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, default=FOLDER)
    parser.add_argument("--format", choices=["svg", "png"], default="svg")
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
