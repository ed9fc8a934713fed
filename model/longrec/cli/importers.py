"""The commands that import a raw log: `longrec import ...`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from longrec.cli.options import AsJson, Out, Seed, command_group, print_dataset

if TYPE_CHECKING:
    from longrec.data.importers import NegativeSampling, RequestGrouping
    from longrec.data.importers.reading.times import Unit

app = command_group("Turn a raw log into a dataset directory.")

Source = Annotated[Path, typer.Argument(metavar="SRC", help="File or directory of the raw log.")]
WindowMs = Annotated[
    int, typer.Option(min=0, help="Time window of one request, in ms from its first exposure.")
]
MaxTargets = Annotated[int, typer.Option(min=1, help="Maximum number of targets per request.")]
MaxRequests = Annotated[
    int,
    typer.Option(min=0, help="Maximum number of requests per user, a seeded sample; 0 for all."),
]
MaxRejectShare = Annotated[
    float, typer.Option(min=0, max=1, help="Largest share of invalid rows; above it, fail.")
]
Negatives = Annotated[int, typer.Option(min=1, help="Negatives drawn per positive.")]
OptionalNegatives = Annotated[
    int | None, typer.Option(min=1, help="Draw this many negatives per positive; default none.")
]
NegativesWithin = Annotated[
    str | None, typer.Option(help="Item column that a negative shares with its positive.")
]
KeepNew = Annotated[
    bool, typer.Option("--keep-new", help="Keep positives whose item had no earlier event.")
]
MinRating = Annotated[float, typer.Option("--threshold", help="Smallest rating of a like.")]
Tasks = Annotated[
    list[str] | None, typer.Option(help="Signal to predict, the main one first; default three.")
]
Variant = Annotated[
    str | None, typer.Option(help="pure, 1k or 27k; required if SRC holds several.")
]
Positives = Annotated[
    list[str] | None,
    typer.Option("--positive", help="Action of a target: pv, buy, cart or fav; default pv."),
]
MinPercentage = Annotated[
    int, typer.Option("--threshold", min=0, help="Smallest played percentage of a listen.")
]
RecommendedOnly = Annotated[
    bool, typer.Option("--recommended-only", help="Targets are recommended listens only.")
]
MetaFile = Annotated[Path | None, typer.Option(help="meta_CATEGORY.jsonl, for item features.")]

UserColumn = Annotated[str, typer.Option(help="Column of user ids (integers, or see --text-id).")]
ItemColumn = Annotated[str, typer.Option(help="Column of item ids (integers, or see --text-id).")]
TimeColumn = Annotated[str, typer.Option(help="Column of times.")]
TimeUnit = Annotated[
    str, typer.Option(help="s, ms, us, ns or iso; Parquet timestamps have their own unit.")
]
TimeOrigin = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Time from which a log that starts at 0 counts: ISO 8601 (UTC), such as 2000-01-01.",
    ),
]
BasketColumn = Annotated[
    str | None,
    typer.Option(help="Column of simultaneous events; no history splits them."),
]
SequenceColumn = Annotated[
    str | None, typer.Option(help="Column that orders and tells apart events of one time.")
]
CreatedColumn = Annotated[
    str | None,
    typer.Option(help="Column of the time at which a row became known, in the same unit."),
]
TextIds = Annotated[
    list[str] | None, typer.Option(help="user, item or basket: this id is text, not an integer.")
]
EventFeatures = Annotated[
    list[str] | None,
    typer.Option(help="Event feature NAME:KIND[:DTYPE]; id, category or number."),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(help="0/1 column to predict; with labels every row is an exposure."),
]
ItemFile = Annotated[Path | None, typer.Option(help="File with one row per item.")]
ItemFeatures = Annotated[
    list[str] | None, typer.Option(help="Item feature NAME:KIND[:DTYPE] of --items.")
]
UserFile = Annotated[Path | None, typer.Option(help="File with one row per user.")]
UserFeatures = Annotated[
    list[str] | None, typer.Option(help="User feature NAME:KIND[:DTYPE] of --users.")
]
Delimiter = Annotated[
    str | None, typer.Option(help="Delimiter of text files; default a comma, or a tab in .tsv.")
]
Quotes = Annotated[
    bool, typer.Option("--quotes/--no-quotes", help='Text files may quote fields with ".')
]
DatasetName = Annotated[str, typer.Option(help="Name of the dataset; default the name of SRC.")]


@app.command()
def kuairand(
    src: Source,
    out: Out,
    task: Tasks = None,
    variant: Variant = None,
    window_ms: WindowMs = 300_000,
    max_targets: MaxTargets = 64,
    max_requests_per_user: MaxRequests = 0,
    seed: Seed = 0,
    max_reject_share: MaxRejectShare = 0.01,
    as_json: AsJson = False,
) -> None:
    """Import KuaiRand (Pure, 1K, 27K) from its official files.

    \b
    Examples:
      longrec import kuairand KuaiRand-1K/data --out data/kuairand-1k
      longrec import kuairand KuaiRand-Pure --out data/pure --task long_view --task is_click
    """
    from longrec.cli.progress import waiting
    from longrec.data.importers import ImportOptions, import_kuairand
    from longrec.data.importers.kuairand import TASKS

    grouping = _grouping(window_ms, max_targets, max_requests_per_user, seed)
    with waiting(f"importing {src}"):
        report = import_kuairand(
            src,
            out,
            tasks=task or TASKS,
            variant=variant,
            grouping=grouping,
            options=ImportOptions(max_reject_share),
        )
    print_dataset(report.to_dict(), as_json=as_json)


@app.command()
def movielens(
    src: Source,
    out: Out,
    threshold: MinRating = 4.0,
    window_ms: WindowMs = 300_000,
    max_targets: MaxTargets = 64,
    max_requests_per_user: MaxRequests = 0,
    seed: Seed = 0,
    max_reject_share: MaxRejectShare = 0.01,
    as_json: AsJson = False,
) -> None:
    """Import MovieLens: 1M (.dat) or 20M, 25M, 32M, latest (.csv).

    \b
    Examples:
      longrec import movielens ml-1m --out data/ml-1m
      longrec import movielens ml-32m --out data/ml-32m --threshold 4.5
    """
    from longrec.cli.progress import waiting
    from longrec.data.importers import ImportOptions, import_movielens

    grouping = _grouping(window_ms, max_targets, max_requests_per_user, seed)
    with waiting(f"importing {src}"):
        report = import_movielens(
            src,
            out,
            threshold=threshold,
            grouping=grouping,
            options=ImportOptions(max_reject_share),
        )
    print_dataset(report.to_dict(), as_json=as_json)


@app.command()
def taobao(
    src: Source,
    out: Out,
    positive: Positives = None,
    negatives: Negatives = 4,
    negatives_within: NegativesWithin = None,
    keep_new: KeepNew = False,
    window_ms: WindowMs = 300_000,
    max_targets: MaxTargets = 64,
    max_requests_per_user: MaxRequests = 0,
    seed: Seed = 0,
    max_reject_share: MaxRejectShare = 0.01,
    as_json: AsJson = False,
) -> None:
    """Import Taobao UserBehavior from UserBehavior.csv.

    The log has no exposures: negatives are sampled.

    \b
    Examples:
      longrec import taobao UserBehavior.csv --out data/taobao --max-requests-per-user 20
      longrec import taobao UserBehavior.csv --out data/taobao-buy --positive buy --negatives 9
    """
    from longrec.cli.progress import waiting
    from longrec.data.importers import ImportOptions, NegativeSampling, import_taobao

    grouping = _grouping(window_ms, max_targets, max_requests_per_user, seed)
    with waiting(f"importing {src}"):
        report = import_taobao(
            src,
            out,
            positives=positive or ("pv",),
            negatives=NegativeSampling(negatives, negatives_within, keep_new),
            grouping=grouping,
            options=ImportOptions(max_reject_share),
        )
    print_dataset(report.to_dict(), as_json=as_json)


@app.command()
def lastfm(
    src: Source,
    out: Out,
    negatives: Negatives = 4,
    negatives_within: NegativesWithin = None,
    keep_new: KeepNew = False,
    window_ms: WindowMs = 300_000,
    max_targets: MaxTargets = 64,
    max_requests_per_user: MaxRequests = 0,
    seed: Seed = 0,
    max_reject_share: MaxRejectShare = 0.01,
    as_json: AsJson = False,
) -> None:
    """Import Last.fm 1K users from its two .tsv files.

    The log has no exposures: negatives are sampled.

    \b
    Examples:
      longrec import lastfm lastfm-dataset-1K --out data/lastfm --max-requests-per-user 1000
      longrec import lastfm lastfm-dataset-1K --out data/lastfm-sessions --window-ms 1800000
    """
    from longrec.cli.progress import waiting
    from longrec.data.importers import ImportOptions, NegativeSampling, import_lastfm

    grouping = _grouping(window_ms, max_targets, max_requests_per_user, seed)
    with waiting(f"importing {src}"):
        report = import_lastfm(
            src,
            out,
            negatives=NegativeSampling(negatives, negatives_within, keep_new),
            grouping=grouping,
            options=ImportOptions(max_reject_share),
        )
    print_dataset(report.to_dict(), as_json=as_json)


@app.command()
def yambda(
    src: Source,
    out: Out,
    threshold: MinPercentage = 50,
    recommended_only: RecommendedOnly = False,
    window_ms: WindowMs = 300_000,
    max_targets: MaxTargets = 64,
    max_requests_per_user: MaxRequests = 0,
    seed: Seed = 0,
    max_reject_share: MaxRejectShare = 0.01,
    as_json: AsJson = False,
) -> None:
    """Import Yambda (50m, 500m, 5b) from its flat or sequential Parquet files.

    \b
    Examples:
      longrec import yambda yambda/flat/50m --out data/yambda-50m --max-requests-per-user 200
      longrec import yambda yambda/sequential/500m --out data/yambda-500m --recommended-only
    """
    from longrec.cli.progress import waiting
    from longrec.data.importers import ImportOptions, import_yambda

    grouping = _grouping(window_ms, max_targets, max_requests_per_user, seed)
    with waiting(f"importing {src}"):
        report = import_yambda(
            src,
            out,
            threshold=threshold,
            recommended_only=recommended_only,
            grouping=grouping,
            options=ImportOptions(max_reject_share),
        )
    print_dataset(report.to_dict(), as_json=as_json)


@app.command()
def amazon(
    src: Source,
    out: Out,
    meta: MetaFile = None,
    threshold: MinRating = 4.0,
    negatives: OptionalNegatives = None,
    negatives_within: NegativesWithin = None,
    keep_new: KeepNew = False,
    window_ms: WindowMs = 300_000,
    max_targets: MaxTargets = 64,
    max_requests_per_user: MaxRequests = 0,
    seed: Seed = 0,
    max_reject_share: MaxRejectShare = 0.01,
    as_json: AsJson = False,
) -> None:
    """Import a category of Amazon Reviews 2023 from its pure-id .csv (0core or 5core).

    The label is a rating of at least the threshold. With --negatives, every rated item is a
    positive and negatives are sampled.

    \b
    Examples:
      longrec import amazon Toys_and_Games.csv --out data/toys --meta meta_Toys_and_Games.jsonl
      longrec import amazon Toys_and_Games.csv --out data/toys-next --negatives 4
    """
    from longrec.cli.progress import waiting
    from longrec.data.importers import ImportOptions, import_amazon

    grouping = _grouping(window_ms, max_targets, max_requests_per_user, seed)
    with waiting(f"importing {src}"):
        report = import_amazon(
            src,
            out,
            meta=meta,
            threshold=threshold,
            negatives=_negatives(negatives, negatives_within, keep_new),
            grouping=grouping,
            options=ImportOptions(max_reject_share),
        )
    print_dataset(report.to_dict(), as_json=as_json)


@app.command()
def events(
    src: Source,
    out: Out,
    user: UserColumn = "user_id",
    item: ItemColumn = "item_id",
    timestamp: TimeColumn = "timestamp",
    timestamp_unit: TimeUnit = "ms",
    time_origin: TimeOrigin = None,
    basket: BasketColumn = None,
    seq: SequenceColumn = None,
    created: CreatedColumn = None,
    text_id: TextIds = None,
    feature: EventFeatures = None,
    label: Labels = None,
    items: ItemFile = None,
    item_feature: ItemFeatures = None,
    users: UserFile = None,
    user_feature: UserFeatures = None,
    delimiter: Delimiter = None,
    quotes: Quotes = True,
    negatives: OptionalNegatives = None,
    negatives_within: NegativesWithin = None,
    keep_new: KeepNew = False,
    name: DatasetName = "",
    window_ms: WindowMs = 300_000,
    max_targets: MaxTargets = 64,
    max_requests_per_user: MaxRequests = 0,
    seed: Seed = 0,
    max_reject_share: MaxRejectShare = 0.01,
    as_json: AsJson = False,
) -> None:
    """Import any table of events (Parquet, CSV, TSV) by a mapping of its columns.

    A log with 0/1 label columns holds exposures. A log without labels holds actions. On request,
    negatives are sampled for the actions, uniformly from the items with earlier events.

    \b
    Examples:
      longrec import events clicks.csv --out data/clicks --user uid --item iid --label clicked
      longrec import events events.parquet --out data/dev --timestamp ts --timestamp-unit s \\
          --basket commit_id --feature action:category --items items.parquet \\
          --item-feature repo_id:category --negatives 4 --negatives-within repo_id
    """
    from longrec.cli.progress import waiting
    from longrec.data.history_plot import parse_time_ms
    from longrec.data.importers import EventMapping, ImportOptions, import_events

    mapping = EventMapping(
        user=user,
        item=item,
        timestamp=timestamp,
        timestamp_unit=cast("Unit", timestamp_unit),  # The mapping checks it.
        time_origin_ms=0 if time_origin is None else parse_time_ms(time_origin),
        basket=basket,
        seq=seq,
        created=created,
        text_ids=tuple(text_id or ()),
        features=tuple(feature or ()),
        labels=tuple(label or ()),
        items=items,
        item_features=tuple(item_feature or ()),
        users=users,
        user_features=tuple(user_feature or ()),
        delimiter=delimiter,
        quotes=quotes,
    )
    grouping = _grouping(window_ms, max_targets, max_requests_per_user, seed)
    with waiting(f"importing {src}"):
        report = import_events(
            src,
            out,
            mapping,
            negatives=_negatives(negatives, negatives_within, keep_new),
            grouping=grouping,
            options=ImportOptions(max_reject_share),
            name=name,
        )
    print_dataset(report.to_dict(), as_json=as_json)


def _grouping(window_ms: int, max_targets: int, max_requests: int, seed: int) -> RequestGrouping:
    from longrec.data.importers import RequestGrouping

    return RequestGrouping(window_ms, max_targets, max_requests, seed)


def _negatives(
    per_positive: int | None, within: str | None, keep_new: bool
) -> NegativeSampling | None:
    from longrec.data.importers import NegativeSampling

    if per_positive is None:
        return None
    return NegativeSampling(per_positive, within, keep_new)
