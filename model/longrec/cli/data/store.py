"""The commands of the feature store: `longrec push` and `longrec inspect history`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

from longrec.cli.options import (
    DEFAULT_WORKDIR,
    AsJson,
    ExistingWorkdir,
    command_group,
    print_result,
)

app = command_group("Look into the feature store.")

MIN_INT64 = -(2**63)
MAX_INT64 = 2**63 - 1

EventsFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="Events as .parquet, .csv or .jsonl: user_id and the event columns."
    ),
]
UserId = Annotated[int, typer.Option(min=MIN_INT64, max=MAX_INT64, help="Id of the user.")]
AsOf = Annotated[
    str | None,
    typer.Option("--at", metavar="TIME", help="Only events strictly before: ISO 8601 (UTC) or ms."),
]
Side = Annotated[
    Literal["online", "offline"], typer.Option(help="Side of the feature store to read.")
]
NumRows = Annotated[int, typer.Option(min=1, help="Rows of the table: the most recent events.")]
MaxHistory = Annotated[
    int | None, typer.Option(min=1, help="Maximum number of events, the most recent ones.")
]
PlotFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Draw the timeline to an .svg or .html file; its folder must exist."
    ),
]


def push(
    file: EventsFile,
    workdir: ExistingWorkdir = DEFAULT_WORKDIR,
    as_json: AsJson = False,
) -> None:
    """Add live events to the served histories.

    Repeated and late events are accepted: a repetition changes nothing.

    \b
    Examples:
      longrec push events.jsonl
      longrec push today.parquet --workdir /tmp/longrec --json
    """
    from longrec.cli.progress import waiting
    from longrec.data.store import live_events
    from longrec.data.store.publish import give_own_keys
    from longrec.data.store.push import Pusher

    with waiting(f"pushing {file}"):
        give_own_keys(workdir)
        pusher = Pusher(workdir)
        report = pusher.push(live_events.read_file(file, pusher.schema, pusher.late_events))
    text = (
        f"{report.num_new} new of {report.num_events} events, "
        f"{report.num_users} users, {report.num_compacted} histories compacted"
    )
    print_result(dataclasses.asdict(report), text, as_json=as_json)


@app.command("history")
def inspect_history(
    user: UserId,
    at: AsOf = None,
    side: Side = "online",
    last: NumRows = 20,
    max_history: MaxHistory = None,
    plot: PlotFile = None,
    workdir: ExistingWorkdir = DEFAULT_WORKDIR,
    as_json: AsJson = False,
) -> None:
    """Show the history of a user as of a time, as a table and as a plot.

    \b
    Examples:
      longrec inspect history --user 1
      longrec inspect history --user 1 --at 2022-05-01T12:00:00 --side offline --plot history.svg
    """
    from longrec.data import history_plot
    from longrec.data.store.offline_store import OfflineStore
    from longrec.data.store.online_store import OnlineStore
    from longrec.times import require_time

    if plot is not None:
        history_plot.check_plot_path(plot)
    request_time = None if at is None else history_plot.parse_time_ms(at)
    store = OnlineStore(workdir) if side == "online" else OfflineStore(workdir)
    if request_time is not None:
        request_time = require_time("--at", request_time, store.schema.time_origin_ms)
    [record] = store.fetch([user], before_ms=request_time, max_history=max_history)
    events = record.history
    title = f"user {user}, {side}"
    if request_time is not None:
        title += f", before {history_plot.format_time(request_time)}"
    lines = [f"{title}: {events.num_rows} events", *history_plot.text_table(events, last)]
    if plot is not None:
        history_plot.write_plot(events, plot, title)
        lines.append(f"wrote {plot}")
    value = {
        "user_id": user,
        "side": side,
        "before_ms": request_time,
        "num_events": events.num_rows,
        "events": history_plot.json_rows(events),
    }
    print_result(value, "\n".join(lines), as_json=as_json)
