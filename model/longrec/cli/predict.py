"""The command that scores users offline: `longrec predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrec.cli.options import DEFAULT_WORKDIR, AsJson, Workdir, print_result
from longrec.errors import DataError

if TYPE_CHECKING:
    from longrec.runs.predict import Candidates
    from longrec.schema import Schema

DEFAULT_TOP_K = 100
"""Items of each user if no file names the candidates."""

RequestsFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="REQUESTS",
        help="Parquet with user_id, item_id and optionally timestamp (ms); default every user "
        "with every item.",
    ),
]
OutputFile = Annotated[
    Path, typer.Option("--out", metavar="FILE", help="The Parquet file to write.")
]
TopK = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=f"Best items of each user to write; default all of REQUESTS, {DEFAULT_TOP_K} of "
        "every item.",
    ),
]
BundleDir = Annotated[
    Path | None, typer.Option("--bundle", help="The ranker; default that of the latest run.")
]


def predict(
    out: OutputFile,
    requests: RequestsFile = None,
    top_k: TopK = None,
    bundle: BundleDir = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    as_json: AsJson = False,
) -> None:
    """Score users and items offline, with the model and histories that the service uses.

    \b
    Examples:
      longrec predict --top-k 20 --out top20.parquet
      longrec predict pairs.parquet --out scores.parquet
    """
    from longrec.cli.progress import count_progress
    from longrec.data.store.online_store import OnlineStore
    from longrec.runs import predict as offline
    from longrec.runs.finished_run import FinishedRun
    from longrec.scoring.scorer import Scorer

    scorer = Scorer.load(bundle or FinishedRun.open(workdir).output("bundle"))
    store = OnlineStore(workdir, schema=scorer.bundle.schema)
    candidates = _candidates(requests, workdir, scorer.bundle.schema)
    if top_k is None:
        top_k = DEFAULT_TOP_K if requests is None else 0
    with count_progress("scoring", len(candidates)) as on_progress:
        num_rows = offline.predict(
            scorer, store, candidates, out, top_k=top_k, on_progress=on_progress
        )
    value = {"path": str(out), "num_requests": len(candidates), "num_rows": num_rows}
    text = f"{out}: {num_rows:,} rows of {len(candidates):,} requests"
    print_result(value, text, as_json=as_json)


def _candidates(path: Path | None, workdir: Path, schema: Schema) -> list[Candidates]:
    """Return the requests of a file, or every user with every item of the latest run's dataset."""
    from longrec.data import location
    from longrec.data.columns import int64_column
    from longrec.data.dataset import Dataset
    from longrec.runs import predict as offline
    from longrec.runs.run import latest_dataset
    from longrec.schema import ITEM_ID, USER_ID

    if path is not None:
        found = offline.read_candidates(path, schema.time_origin_ms)
        if not found:
            raise DataError(f"{path} holds no rows", expected="one row per user and item")
        return found
    with location.local_directory(latest_dataset(workdir)) as directory:
        dataset = Dataset.open(directory)
        users = int64_column(dataset.users(), USER_ID)
        items = int64_column(dataset.items(), ITEM_ID)
    return list(offline.all_pairs(users, items))
