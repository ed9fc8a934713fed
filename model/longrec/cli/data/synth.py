"""The command that generates a synthetic dataset: `longrec synth`."""

from __future__ import annotations

from typing import Annotated

import typer

from longrec.cli.options import AsJson, Out, Seed, print_dataset

NumUsers = Annotated[int, typer.Option(min=1, help="Number of users.")]
MaxEvents = Annotated[
    int, typer.Option(min=1, help="Maximum number of events per user; each has at least half.")
]
NumItems = Annotated[int, typer.Option(min=1, help="Number of items.")]
NumTopics = Annotated[int, typer.Option(min=1, help="Number of topics.")]
NumRequests = Annotated[int, typer.Option(min=1, help="Number of requests per user.")]
NumTargets = Annotated[int, typer.Option(min=1, help="Number of candidates per request.")]
LikeRate = Annotated[
    float | None, typer.Option(help="Share of events that matter; by default rare.")
]


def synth(
    out: Out,
    users: NumUsers = 400,
    events: MaxEvents = 1_024,
    items: NumItems = 2_000,
    topics: NumTopics = 8,
    requests: NumRequests = 8,
    targets: NumTargets = 16,
    like_rate: LikeRate = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write a synthetic dataset with a known ground truth.

    Labels depend on rare, old events, so longer histories provably help. The command prints the
    best possible AUC of any model at each history length.

    \b
    Examples:
      longrec synth --out data/synthetic
      longrec synth --out data/large --users 2000 --events 10000 --requests 20
    """
    from longrec.cli.progress import waiting
    from longrec.data.importers.synthetic import synthesize

    with waiting(f"writing {out}"):
        report = synthesize(
            out,
            num_users=users,
            events_per_user=events,
            num_items=items,
            num_topics=topics,
            requests_per_user=requests,
            targets_per_request=targets,
            like_rate=like_rate,
            seed=seed,
        ).to_dict()
    facts = report.pop("facts")
    print_dataset({**facts, **report}, as_json=as_json)
