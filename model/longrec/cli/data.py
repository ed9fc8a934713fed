"""The verbs that make datasets: `longrec import ...` and `longrec synth`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from longrec.data.importers.reading.times import Unit
    from longrec.data.importers.requests.grouping import RequestGrouping

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Turn a raw log into a dataset directory."
)

Source = Annotated[Path, typer.Argument(metavar="SRC", help="Where the raw log is.")]
Out = Annotated[
    Path,
    typer.Option("--out", help="The dataset directory to write; one that is there is replaced."),
]
Window = Annotated[
    int,
    typer.Option(
        min=0, help="Exposures of one user within this many ms of the first belong to one request."
    ),
]
MaxTargets = Annotated[int, typer.Option(min=1, help="Most targets of one request.")]
MaxRequests = Annotated[
    int, typer.Option(min=0, help="Most requests of one user, a seeded choice; 0 for all.")
]
Rejects = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Largest share of bad rows; above it the import fails.",
    ),
]
Negatives = Annotated[int, typer.Option(min=1, help="Items drawn for each positive.")]
KeepNew = Annotated[
    bool, typer.Option("--keep-new", help="Keep positives that nobody touched before.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout instead of a table.")
]


@app.command()
def kuairand(
    src: Source,
    out: Out,
    task: Annotated[
        list[str] | None, typer.Option(help="Signal to predict, main one first; default three.")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="pure, 1k or 27k; needed where SRC holds several.")
    ] = None,
    window_ms: Window = 300_000,
    max_targets: MaxTargets = 64,
    max_requests_per_user: MaxRequests = 0,
    seed: Seed = 0,
    max_reject_share: Rejects = 0.01,
    as_json: Json = False,
) -> None:
    """Import KuaiRand (Pure, 1K, 27K) from its official files.

    \b
    Examples:
      longrec import kuairand KuaiRand-1K/data --out data/kuairand-1k
      longrec import kuairand KuaiRand-Pure --out data/pure --task long_view --task is_click
    """
    from longrec.data.importers import ImportOptions, import_kuairand
    from longrec.data.importers.kuairand import TASKS

    rule = _rule(window_ms, max_targets, max_requests_per_user, seed)
    tasks, options = tuple(task) if task else TASKS, ImportOptions(max_reject_share)
    _show(
        import_kuairand(
            src, out, tasks=tasks, variant=variant, grouping=rule, options=options
        ).to_dict(),
        as_json,
    )


@app.command()
def movielens(
    src: Source,
    out: Out,
    threshold: Annotated[float, typer.Option(help="Least rating that counts as liked.")] = 4.0,
    window_ms: Window = 300_000,
    max_targets: MaxTargets = 64,
    max_requests_per_user: MaxRequests = 0,
    seed: Seed = 0,
    max_reject_share: Rejects = 0.01,
    as_json: Json = False,
) -> None:
    """Import MovieLens: 1M (.dat) or 20M, 25M, 32M, latest (.csv).

    \b
    Examples:
      longrec import movielens ml-1m --out data/ml-1m
      longrec import movielens ml-32m --out data/ml-32m --threshold 4.5
    """
    from longrec.data.importers import ImportOptions, import_movielens

    rule = _rule(window_ms, max_targets, max_requests_per_user, seed)
    _show(
        import_movielens(
            src, out, threshold=threshold, grouping=rule, options=ImportOptions(max_reject_share)
        ).to_dict(),
        as_json,
    )


@app.command()
def taobao(
    src: Source,
    out: Out,
    positive: Annotated[
        list[str] | None,
        typer.Option(help="Action that makes a target: pv, buy, cart or fav; default pv."),
    ] = None,
    negatives: Negatives = 4,
    negatives_within: Annotated[
        str | None, typer.Option(help="category: a negative shares it with its positive.")
    ] = None,
    keep_new: KeepNew = False,
    window_ms: Window = 300_000,
    max_targets: MaxTargets = 64,
    max_requests_per_user: MaxRequests = 0,
    seed: Seed = 0,
    max_reject_share: Rejects = 0.01,
    as_json: Json = False,
) -> None:
    """Import Taobao UserBehavior from UserBehavior.csv. The log has no exposures: negatives are
    drawn.

    \b
    Examples:
      longrec import taobao UserBehavior.csv --out data/taobao
      longrec import taobao UserBehavior.csv --out data/taobao-buy --positive buy --negatives 9
      --negatives-within category
    """
    from longrec.data.importers import ImportOptions, NegativeSampling, import_taobao

    rule, drawn = (
        _rule(window_ms, max_targets, max_requests_per_user, seed),
        NegativeSampling(negatives, negatives_within, keep_new),
    )
    _show(
        import_taobao(
            src,
            out,
            positives=tuple(positive or ("pv",)),
            negatives=drawn,
            grouping=rule,
            options=ImportOptions(max_reject_share),
        ).to_dict(),
        as_json,
    )


@app.command()
def lastfm(
    src: Source,
    out: Out,
    negatives: Negatives = 4,
    negatives_within: Annotated[
        str | None, typer.Option(help="artist_id: a negative shares it with its positive.")
    ] = None,
    keep_new: KeepNew = False,
    window_ms: Window = 300_000,
    max_targets: MaxTargets = 64,
    max_requests_per_user: MaxRequests = 0,
    seed: Seed = 0,
    max_reject_share: Rejects = 0.01,
    as_json: Json = False,
) -> None:
    """Import Last.fm 1K users from its two .tsv files. The log has no exposures: negatives are
    drawn.

    \b
    Examples:
      longrec import lastfm lastfm-dataset-1K --out data/lastfm --max-requests-per-user 1000
      longrec import lastfm lastfm-dataset-1K --out data/lastfm-sessions --window-ms 1800000
      --negatives 9
    """
    from longrec.data.importers import ImportOptions, NegativeSampling, import_lastfm

    rule, drawn = (
        _rule(window_ms, max_targets, max_requests_per_user, seed),
        NegativeSampling(negatives, negatives_within, keep_new),
    )
    _show(
        import_lastfm(
            src, out, negatives=drawn, grouping=rule, options=ImportOptions(max_reject_share)
        ).to_dict(),
        as_json,
    )


@app.command()
def yambda(
    src: Source,
    out: Out,
    threshold: Annotated[
        int, typer.Option(min=0, help="Least percentage of a track that counts as listened.")
    ] = 50,
    recommended_only: Annotated[
        bool, typer.Option("--recommended-only", help="Targets: recommended listens only.")
    ] = False,
    window_ms: Window = 300_000,
    max_targets: MaxTargets = 64,
    max_requests_per_user: MaxRequests = 0,
    seed: Seed = 0,
    max_reject_share: Rejects = 0.01,
    as_json: Json = False,
) -> None:
    """Import Yambda (50m, 500m, 5b) from its flat or sequential Parquet files.

    \b
    Examples:
      longrec import yambda yambda/flat/50m --out data/yambda-50m --max-requests-per-user 200
      longrec import yambda yambda/sequential/500m --out data/yambda-500m --recommended-only
    """
    from longrec.data.importers import ImportOptions, import_yambda

    rule = _rule(window_ms, max_targets, max_requests_per_user, seed)
    _show(
        import_yambda(
            src,
            out,
            threshold=threshold,
            recommended_only=recommended_only,
            grouping=rule,
            options=ImportOptions(max_reject_share),
        ).to_dict(),
        as_json,
    )


@app.command()
def amazon(
    src: Source,
    out: Out,
    meta: Annotated[
        Path | None, typer.Option(help="meta_CATEGORY.jsonl, for features of items.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Least rating that counts as liked.")] = 4.0,
    negatives: Annotated[
        int | None,
        typer.Option(min=1, help="Items drawn for each rated one, instead of the threshold."),
    ] = None,
    negatives_within: Annotated[
        str | None, typer.Option(help="Item column that a negative shares with its positive.")
    ] = None,
    keep_new: KeepNew = False,
    window_ms: Window = 300_000,
    max_targets: MaxTargets = 64,
    max_requests_per_user: MaxRequests = 0,
    seed: Seed = 0,
    max_reject_share: Rejects = 0.01,
    as_json: Json = False,
) -> None:
    """Import a category of Amazon Reviews 2023 from its pure-id .csv (0core or 5core).

    \b
    Examples:
      longrec import amazon Toys_and_Games.csv --out data/toys --meta meta_Toys_and_Games.jsonl
      longrec import amazon Toys_and_Games.csv --out data/toys-next --negatives 4
    """
    from longrec.data.importers import ImportOptions, NegativeSampling, import_amazon

    drawn = NegativeSampling(negatives, negatives_within, keep_new) if negatives else None
    rule = _rule(window_ms, max_targets, max_requests_per_user, seed)
    _show(
        import_amazon(
            src,
            out,
            meta=meta,
            threshold=threshold,
            negatives=drawn,
            grouping=rule,
            options=ImportOptions(max_reject_share),
        ).to_dict(),
        as_json,
    )


@app.command()
def events(
    src: Source,
    out: Out,
    user: Annotated[
        str, typer.Option(help="Column of user ids (integers, or see --text-id).")
    ] = "user_id",
    item: Annotated[
        str, typer.Option(help="Column of item ids (integers, or see --text-id).")
    ] = "item_id",
    timestamp: Annotated[str, typer.Option(help="Column of times.")] = "timestamp",
    timestamp_unit: Annotated[
        str, typer.Option(help="s, ms, us, ns or iso; Parquet timestamps bring their own.")
    ] = "ms",
    basket: Annotated[
        str | None,
        typer.Option(help="Column of events that happened at once; no history splits them."),
    ] = None,
    seq: Annotated[
        str | None,
        typer.Option(help="Column that orders events of equal time; default file order."),
    ] = None,
    created: Annotated[
        str | None,
        typer.Option(help="Column of the time at which a row became known, in the same unit."),
    ] = None,
    text_id: Annotated[
        list[str] | None,
        typer.Option(help="user, item or basket: this id is text, not a whole number."),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(help="Event feature NAME:KIND[:DTYPE]; id, category or number."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="0/1 column to predict; with labels every row is an exposure."),
    ] = None,
    items: Annotated[Path | None, typer.Option(help="File with one row per item.")] = None,
    item_feature: Annotated[
        list[str] | None, typer.Option(help="Item feature NAME:KIND[:DTYPE] of --items.")
    ] = None,
    users: Annotated[Path | None, typer.Option(help="File with one row per user.")] = None,
    user_feature: Annotated[
        list[str] | None, typer.Option(help="User feature NAME:KIND[:DTYPE] of --users.")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Of text files; default a comma, or a tab in .tsv.")
    ] = None,
    quotes: Annotated[
        bool,
        typer.Option("--quotes/--no-quotes", help="Fields of text files may be in double quotes."),
    ] = True,
    negatives: Annotated[
        int | None,
        typer.Option(min=1, help="For logs without labels: items drawn for each positive."),
    ] = None,
    negatives_within: Annotated[
        str | None, typer.Option(help="Item column that a negative shares with its positive.")
    ] = None,
    keep_new: KeepNew = False,
    name: Annotated[str, typer.Option(help="Of the data; default the name of SRC.")] = "",
    window_ms: Window = 300_000,
    max_targets: MaxTargets = 64,
    max_requests_per_user: MaxRequests = 0,
    seed: Seed = 0,
    max_reject_share: Rejects = 0.01,
    as_json: Json = False,
) -> None:
    """Import any table of events (Parquet, CSV, TSV) with a mapping of its columns.

    Logs with 0/1 label columns are exposures. Logs without are actions that were taken; negatives
    are drawn for them, on request
    only, uniformly from the items known before, with a fixed seed.

    \b
    Examples:
      longrec import events clicks.csv --out data/clicks --user uid --item iid --timestamp ts
      --timestamp-unit s --label clicked
      longrec import events events.parquet --out data/dev --timestamp ts --timestamp-unit s --basket
      commit_id \\
          --feature action:category --items items.parquet --item-feature repo_id:category
          --negatives 4 --negatives-within repo_id
    """
    from longrec.data.importers import EventMapping, ImportOptions, NegativeSampling, import_events

    unit = cast("Unit", timestamp_unit)  # checked by the mapping
    mapping = EventMapping(
        user,
        item,
        timestamp,
        unit,
        basket,
        seq,
        created,
        tuple(text_id or ()),
        tuple(feature or ()),
        tuple(label or ()),
        items,
        tuple(item_feature or ()),
        users,
        tuple(user_feature or ()),
        delimiter,
        quotes,
    )
    drawn = NegativeSampling(negatives, negatives_within, keep_new) if negatives else None
    rule, options = (
        _rule(window_ms, max_targets, max_requests_per_user, seed),
        ImportOptions(max_reject_share),
    )
    _show(
        import_events(
            src, out, mapping, negatives=drawn, grouping=rule, options=options, name=name
        ).to_dict(),
        as_json,
    )


def synth(
    out: Out,
    users: Annotated[int, typer.Option(min=1, help="Users.")] = 400,
    events: Annotated[
        int, typer.Option(min=1, help="Most events of one user; each has half of it to all of it.")
    ] = 1_024,
    items: Annotated[int, typer.Option(min=1, help="Items.")] = 2_000,
    topics: Annotated[int, typer.Option(min=1, help="Topics.")] = 8,
    requests: Annotated[int, typer.Option(min=1, help="Requests of one user.")] = 8,
    targets: Annotated[int, typer.Option(min=1, help="Candidates of one request.")] = 16,
    like_rate: Annotated[
        float | None, typer.Option(help="Share of events that matter; by default rare.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make a synthetic dataset: labels depend on rare, old events, so a longer history provably helps.

    Prints the best AUC that any model can reach at each history length.

    \b
    Examples:
      longrec synth --out data/synthetic
      longrec synth --out data/large --users 2000 --events 10000 --requests 20
    """
    from longrec.data.importers.synthetic import synthesize

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
    _show({**facts, **report}, as_json)


def _rule(
    window_ms: int,
    max_targets: int,
    max_requests_per_user: int,
    seed: int,
) -> RequestGrouping:
    from longrec.data.importers import RequestGrouping

    return RequestGrouping(window_ms, max_targets, max_requests_per_user, seed)


def _show(report: dict[str, Any], as_json: bool) -> None:
    from longrec.cli.console import show_dataset

    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        show_dataset(report)
