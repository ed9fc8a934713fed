"""Offline scores: equal to the scorer's on the store's histories, best first, written at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from longrec.cli.main import app
from longrec.data.columns import int64_column
from longrec.data.dataset import Dataset
from longrec.data.store.online_store import OnlineStore
from longrec.errors import DataError
from longrec.runs import predict
from longrec.scoring.request import RequestRows
from longrec.scoring.scorer import Scorer
from tests.conftest import ServedWorld

NOW_MS = 1_900_000_000_000
UNKNOWN_USER = 10**15


@pytest.fixture(scope="module")
def scorer(served_world: ServedWorld) -> Scorer:
    return Scorer.load(served_world.path / "bundle")


def _pairs(path: Path, columns: dict[str, list[int | None]]) -> Path:
    table = {name: pa.array(values, pa.int64()) for name, values in columns.items()}
    pq.write_table(pa.table(table), path)
    return path


def test_scores_equal_those_of_the_scorer_whatever_the_order_of_the_rows(
    served_world: ServedWorld, scorer: Scorer, tmp_path: Path
) -> None:
    path = _pairs(
        tmp_path / "pairs.parquet",
        {
            "user_id": [2, 1, 2, UNKNOWN_USER, 1],
            "item_id": [5, 6, 7, 8, 9],
            "timestamp": [NOW_MS] * 5,
        },
    )
    store = OnlineStore(served_world.workdir)
    requests = predict.read_candidates(path)
    assert [request.user_id for request in requests] == [2, 1, UNKNOWN_USER]
    num_rows = predict.predict(scorer, store, requests, tmp_path / "out.parquet")
    written = pq.read_table(tmp_path / "out.parquet")
    assert num_rows == written.num_rows == 5
    assert written.column("item_id").to_pylist() == [5, 7, 6, 9, 8]
    [record] = store.fetch([2])
    rows = RequestRows(record.history, record.features, NOW_MS, np.array([5, 7]))
    expected = scorer.score([rows])[0][:, 0]
    np.testing.assert_allclose(written.column("label").to_numpy()[:2], expected, rtol=1e-6)


def test_the_best_items_of_every_user_come_first(served_world: ServedWorld, tmp_path: Path) -> None:
    out = tmp_path / "top.parquet"
    dataset = Dataset.open(served_world.path / "dataset")
    item_ids = int64_column(dataset.items(), "item_id")
    scorer = Scorer.load(served_world.path / "bundle")
    requests = list(predict.all_pairs(np.array([1, 2]), item_ids))
    predict.predict(scorer, OnlineStore(served_world.workdir), requests, out, top_k=3)
    written = pq.read_table(out)
    assert written.column("user_id").to_pylist() == [1, 1, 1, 2, 2, 2]
    assert written.column("rank").to_pylist() == [1, 2, 3] * 2
    scores = written.column("label").to_numpy().reshape(2, 3)
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": [1], "item_id": [None]}, "'item_id' must not hold nulls"),
        ({"user_id": [1]}, "'item_id' is missing"),
        ({"user_id": [1], "item_id": [1], "timestamp": [1_700_000_000]}, "seconds"),
    ],
    ids=["null", "no item", "seconds"],
)
def test_a_bad_file_is_refused(
    tmp_path: Path, columns: dict[str, list[int | None]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        predict.read_candidates(_pairs(tmp_path / "pairs.parquet", columns))


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("user_id,item_id\n1,2\n")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        predict.read_candidates(tmp_path / "pairs.csv")


def test_a_work_directory_without_a_run_says_what_to_do(tmp_path: Path) -> None:
    answer = CliRunner().invoke(
        app, ["predict", "--out", str(tmp_path / "out.parquet"), "--workdir", str(tmp_path)]
    )
    assert answer.exit_code == 1
    assert "holds no finished run" in answer.output
    assert not (tmp_path / "out.parquet").exists()
