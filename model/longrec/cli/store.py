"""The verbs of the feature store: `longrec push` and `longrec inspect history`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import typer

inspect = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at what is stored.",
)

Workdir = Annotated[Path, typer.Option(help="The feature store lives here.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout instead of a table.")
]
DEFAULT_WORKDIR = Path(".longrec")


def push(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Events as .parquet, .csv or .jsonl: user_id and the event columns.",
        ),
    ],
    workdir: Workdir = DEFAULT_WORKDIR,
    as_json: Json = False,
) -> None:
    """Add live events to the histories that are served; repeating a push, or pushing late events,
    is harmless.

    \b
    Examples:
      longrec push events.jsonl
      longrec push today.parquet --workdir /tmp/longrec --json
    """
    from longrec.data.store import live_events
    from longrec.data.store.push import Pusher

    pusher = Pusher(workdir)
    report = pusher.push(live_events.read(file, pusher.schema, pusher.late_events))
    text = f"{report.num_new} new of {report.num_events} events, {report.num_users} users, {report.num_folds} folded"
    typer.echo(json.dumps(dataclasses.asdict(report), indent=2) if as_json else text)


@inspect.command("history")
def inspect_history(
    user: Annotated[
        int,
        typer.Option(
            min=-(2**63),
            max=2**63 - 1,
            help="Whose history.",
        ),
    ],
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="TIME", help="Only events strictly before: ISO 8601 (UTC) or ms."
        ),
    ] = None,
    door: Annotated[
        Literal["online", "offline"], typer.Option(help="The side of the feature store to read.")
    ] = "online",
    last: Annotated[int, typer.Option(min=1, help="Rows of the table, the most recent ones.")] = 20,
    max_history: Annotated[
        int | None, typer.Option(min=1, help="At most so many events, the most recent ones.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the timeline to an .svg or .html file."),
    ] = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    as_json: Json = False,
) -> None:
    """Show the history of a user at a moment, as a table and as a plot of its timeline.

    \b
    Examples:
      longrec inspect history --user 1
      longrec inspect history --user 1 --at 2022-05-01T12:00:00 --door offline --plot history.svg
    """
    from longrec.data import history_plot
    from longrec.data.store.reader import OfflineStore, OnlineStore

    request_time = None if at is None else history_plot.request_time_ms(at)
    opened = OnlineStore(workdir) if door == "online" else OfflineStore(workdir)
    events = opened.fetch([user], before_ms=request_time, max_history=max_history)[0].history
    title = f"user {user}, {door}" + (
        "" if request_time is None else f", before {timeline.words(request_time)}"
    )
    if plot is not None:
        history_plot.draw(events, plot, title)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "user_id": user,
                    "door": door,
                    "before_ms": request_time,
                    "num_events": events.num_rows,
                    "events": history_plot.rows(events),
                },
                indent=2,
            )
        )
    else:
        typer.echo(
            "\n".join([f"{title}: {events.num_rows} events", *history_plot.table(events, last)])
        )
        if plot is not None:
            typer.echo(f"wrote {plot}")
