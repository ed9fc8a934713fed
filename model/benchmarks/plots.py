"""The pictures of docs/engine.md from results.csv: time against history length, gain against
targets, what a step is spent on, and what
the loader gives against what a GPU takes.

    python model/benchmarks/plots.py                 into docs/images/
    python model/benchmarks/plots.py --to FOLDER
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
from pathlib import Path
from typing import Any

import _rows

FOLDER = Path(__file__).parents[2] / "docs" / "images"
Row = dict[str, str]


def latest(path: Path) -> dict[tuple[str, str], Row]:
    """Returns the last row of each (claim, shape)."""
    with open(path, newline="", encoding="utf-8") as stream:
        return {(row["claim"], row["shape"]): row for row in csv.DictReader(stream)}


def sizes(shape: str) -> dict[str, int]:
    """Returns the numbers of a shape such as `R64 L10240 m32 d256`."""
    return {name: int(value) for name, value in re.findall(r"\b([A-Za-z])(\d+)\b", shape)}


def lengths(rows: dict[tuple[str, str], Row], axes: Any) -> str:
    """Draws step time against history length; returns the device."""
    found = sorted(
        (sizes(shape)["L"], float(row["p50_ms"]), row["device"])
        for (claim, shape), row in rows.items()
        if claim == "step against length"
    )
    events, times, devices = zip(*found, strict=True)
    slope, constant = statistics.linear_regression(events, times)
    axes.plot(events, times, "o", label="measured")
    axes.plot(
        events, [slope * length + constant for length in events], color="grey", label="fitted line"
    )
    axes.set(
        xlabel="events of a history, L",
        ylabel="training step, ms",
        ylim=(0, None),
    )
    axes.set_title("8 requests x 32 targets, d=256, M=4")
    axes.legend(frameon=False)
    return str(devices[0])


def gains(rows: dict[tuple[str, str], Row], axes: Any) -> str:
    """Draws the gain of request level batching against the targets of a request; returns the
    device.
    """
    device = ""
    for order in ("auto", "plain"):
        found = {}
        for (claim, shape), row in rows.items():
            if claim.startswith("rlb m=") and claim.endswith(order):
                found[sizes(shape)["m"]] = float(row["p50_ms"]) / (
                    sizes(shape)["R"] * sizes(shape)["m"]
                )
                device = row["device"]
        targets = sorted(found)
        axes.plot(
            targets, [found[1] / found[m] for m in targets], "o-", label=f"attention: {order}"
        )
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


def breakdown(rows: dict[tuple[str, str], Row], axes: Any, width: int) -> str:
    """Draws the kernels of a step beside their floors; returns the device."""
    found = [
        (claim.removeprefix("breakdown "), row)
        for (claim, shape), row in rows.items()
        if claim.startswith("breakdown ") and sizes(shape)["d"] == width
    ]
    found = [(name, row) for name, row in found if row["commit"] == found[-1][1]["commit"]]
    found = sorted(found, key=lambda pair: float(pair[1]["p50_ms"]))[-14:]
    names, times = [name for name, _ in found], [float(row["p50_ms"]) for _, row in found]
    floors = [
        float(row["share_of_floor"] or 0) * time
        for (_, row), time in zip(found, times, strict=True)
    ]
    axes.barh(names, times, color="#9db7d5", label="measured")
    axes.barh(
        names,
        floors,
        height=0.35,
        color="#1f4e8c",
        label="floor: FLOPs or bytes",
    )
    axes.set(xlabel="ms a step")
    axes.set_title(f"64 requests of 10,240 events, 32 targets, d={width}")
    axes.legend(frameon=False, loc="lower right")
    return found[0][1]["device"]


def loader(rows: dict[tuple[str, str], Row], axes: Any) -> str:
    """Draws what the loader gives, from the page cache and from the disk, against what training
    steps take; returns the device.
    """
    named = [
        (re.fullmatch(r"Loader, (\d+) workers, to the GPU", claim), row)
        for (claim, _), row in rows.items()
    ]
    found = sorted((int(match[1]), row) for match, row in named if match)
    workers, taken = (
        [number for number, _ in found],
        max(_number(row, r"the step's ([\d.]+) M") for _, row in found),
    )
    for offset, name, before in (
        (-0.2, "from the page cache", " M events/s"),
        (0.2, "from the disk", " from the disk"),
    ):
        given = [_number(row, r"([\d.]+)" + before) for _, row in found]
        axes.bar([place + offset for place in range(len(found))], given, 0.38, label=name)
    axes.axhline(
        1.2 * taken,
        color="black",
        linestyle="--",
        label=f"1.2 times what a step takes ({taken:.1f} M events/s)",
    )
    axes.set(
        xticks=range(len(found)),
        xticklabels=workers,
        xlabel="threads that pack",
        ylabel="M events/s to the GPU",
        ylim=(0, 1.4 * axes.get_ylim()[1]),
    )
    axes.set_title("batches of 163,840 events")
    axes.legend(frameon=False, fontsize=8)
    return found[0][1]["device"]


def _number(row: Row, pattern: str) -> float:
    match = re.search(pattern, row["notes"])
    if match is None:
        raise SystemExit(f"a row of '{row['claim']}' does not say {pattern}: {row['notes']}")
    return float(match[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, default=FOLDER)
    parser.add_argument("--format", choices=["svg", "png"], default="svg")
    parser.add_argument("--results", type=Path, default=_rows.RESULTS)
    chosen = parser.parse_args()
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "longrec",
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    from matplotlib import pyplot

    rows = latest(chosen.results)
    chosen.to.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Any] = {
        "step_against_length": lengths,
        "rlb_gain": gains,
        "loader": loader,
        "breakdown_256": lambda rows, axes: breakdown(rows, axes, 256),
        "breakdown_512": lambda rows, axes: breakdown(rows, axes, 512),
    }
    for name, draw in pictures.items():
        figure, axes = pyplot.subplots(
            figsize=(7.5, 4) if name.startswith("breakdown") else (5, 3.6), layout="constrained"
        )
        device = draw(rows, axes)
        axes.set_title(f"{axes.get_title()}; {device}")
        figure.savefig(
            chosen.to / f"{name}.{chosen.format}",
            dpi=110,
            metadata={"Date": None} if chosen.format == "svg" else None,
        )
        pyplot.close(figure)


if __name__ == "__main__":
    main()
