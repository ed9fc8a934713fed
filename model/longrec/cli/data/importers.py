"""The commands that import a raw log: `longrec import ...`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrec.cli.options import AsJson, Out, Seed, command_group, print_dataset
from longrec.errors import DataError

if TYPE_CHECKING:
    from longrec.data.importers import EventMapping, NegativeSampling, RequestGrouping

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
DropRepeats = Annotated[
    bool,
    typer.Option("--drop-repeats", help="Leave out exact repeats of earlier rows."),
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

UserColumn = Annotated[
    str | None, typer.Option(help="Column of user ids; by default one with a usual name.")
]
ItemColumn = Annotated[
    str | None, typer.Option(help="Column of item ids; by default one with a usual name.")
]
TimeColumn = Annotated[
    str | None, typer.Option(help="Column of times; by default one with a usual name.")
]
TimeUnit = Annotated[
    str | None,
    typer.Option(help="s, ms, us, ns or iso; by default by the size of the first times."),
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
    list[str] | None,
    typer.Option(help="user, item or basket: only these ids are text; default by their look."),
]
EventFeatures = Annotated[
    list[str] | None,
    typer.Option(help="Event feature NAME:KIND[:DTYPE]; id, category or number."),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        help="0/1 column to predict, or a condition: 'rating>=4', 'liked=rating>=4'. With labels "
        "every row is an exposure."
    ),
]
PositiveRows = Annotated[
    list[str] | None,
    typer.Option("--positive", help="COLUMN=VALUE of a positive; other rows are history only."),
]
Where = Annotated[
    list[str] | None,
    typer.Option(help="Condition that a row must meet, such as 'quantity>0'; others are counted."),
]
Guests = Annotated[
    list[str] | None,
    typer.Option("--guest", help="User id that stands for nobody; an empty one always does."),
]
KCore = Annotated[
    int,
    typer.Option(min=0, help="Leave out users and items with fewer events; 0 for none."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show the first rows as they are understood; write nothing."),
]
OptionalOut = Annotated[
    Path | None, typer.Option("--out", help="The dataset directory; replaced if it exists.")
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
    drop_repeats: DropRepeats = False,
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
            options=ImportOptions(max_reject_share, drop_repeats=drop_repeats),
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
    drop_repeats: DropRepeats = False,
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
            options=ImportOptions(max_reject_share, drop_repeats=drop_repeats),
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
    drop_repeats: DropRepeats = False,
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
            options=ImportOptions(max_reject_share, drop_repeats=drop_repeats),
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
    drop_repeats: DropRepeats = False,
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
            options=ImportOptions(max_reject_share, drop_repeats=drop_repeats),
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
    drop_repeats: DropRepeats = False,
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
            options=ImportOptions(max_reject_share, drop_repeats=drop_repeats),
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
    drop_repeats: DropRepeats = False,
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
            options=ImportOptions(max_reject_share, drop_repeats=drop_repeats),
        )
    print_dataset(report.to_dict(), as_json=as_json)


@app.command()
def events(
    src: Source,
    out: OptionalOut = None,
    user: UserColumn = None,
    item: ItemColumn = None,
    timestamp: TimeColumn = None,
    timestamp_unit: TimeUnit = None,
    time_origin: TimeOrigin = None,
    basket: BasketColumn = None,
    seq: SequenceColumn = None,
    created: CreatedColumn = None,
    text_id: TextIds = None,
    feature: EventFeatures = None,
    label: Labels = None,
    positive: PositiveRows = None,
    where: Where = None,
    guest: Guests = None,
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
    drop_repeats: DropRepeats = False,
    k_core: KCore = 0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Import any table of events (Parquet, CSV, TSV) by a mapping of its columns.

    Columns with usual names, the unit of the times and text ids are recognised: see --dry-run.
    A log with 0/1 label columns holds exposures. A log without labels holds actions. On request,
    negatives are sampled for the actions, uniformly from the items with earlier events.

    \b
    Examples:
      longrec import events clicks.csv --dry-run
      longrec import events ratings.csv --out data/ratings --label 'rating>=4'
      longrec import events shop.csv --out data/shop --where 'quantity>0' --negatives 4
      longrec import events clicks.csv --out data/clicks --user uid --item iid --label clicked
      longrec import events events.parquet --out data/dev --timestamp ts --timestamp-unit s \\
          --basket commit_id --feature action:category --items items.parquet \\
          --item-feature repo_id:category --negatives 4 --negatives-within repo_id
    """
    from longrec.cli.progress import waiting
    from longrec.data.history_plot import parse_time_ms
    from longrec.data.importers import EventMapping, ImportOptions, import_events
    from longrec.data.importers.guesses import GivenColumns, guess_columns

    given = GivenColumns(
        user=user,
        item=item,
        timestamp=timestamp,
        basket=basket,
        timestamp_unit=timestamp_unit,
        has_time_origin=time_origin is not None,
        text_ids=None if text_id is None else tuple(text_id),
        delimiter=delimiter,
        quotes=quotes,
    )
    guessed = guess_columns(src, given)
    mapping = EventMapping(
        user=guessed.user,
        item=guessed.item,
        timestamp=guessed.timestamp,
        timestamp_unit=guessed.timestamp_unit,
        time_origin_ms=0 if time_origin is None else parse_time_ms(time_origin),
        basket=basket,
        seq=seq,
        created=created,
        text_ids=guessed.text_ids,
        features=tuple(feature or ()),
        labels=tuple(label or ()),
        positives=tuple(positive or ()),
        where=tuple(where or ()),
        guests=tuple(guest or ()),
        items=items,
        item_features=tuple(item_feature or ()),
        users=users,
        user_features=tuple(user_feature or ()),
        delimiter=delimiter,
        quotes=quotes,
    )
    if dry_run:
        _print_preview(src, mapping, guessed.notes, as_json=as_json)
        return
    if out is None:
        raise DataError("no place for the dataset", fix="Name it: --out DIR, or try --dry-run.")
    grouping = _grouping(window_ms, max_targets, max_requests_per_user, seed)
    with waiting(f"importing {src}"):
        report = import_events(
            src,
            out,
            mapping,
            negatives=_negatives(negatives, negatives_within, keep_new),
            grouping=grouping,
            options=ImportOptions(
                max_reject_share,
                drop_repeats=drop_repeats,
                k_core=k_core,
            ),
            name=name,
            notes=[f"guessed {note}" for note in guessed.notes],
        )
    print_dataset(report.to_dict(), as_json=as_json)


def _print_preview(
    src: Path,
    mapping: EventMapping,
    guesses: Sequence[str],
    *,
    as_json: bool,
) -> None:
    from longrec.cli.tables import show_preview
    from longrec.data.importers.preview import preview_events

    preview = {**preview_events(src, mapping).to_dict(), "guesses": list(guesses)}
    if as_json:
        typer.echo(json.dumps(preview, indent=2))
    else:
        show_preview(preview)


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
