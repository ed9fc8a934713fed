"""Shards: built, checked, retrieved and joined, they equal one process byte for byte."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.config import ChecksConfig, DataConfig
from longrec.data import features, files
from longrec.data.dataset import Dataset
from longrec.data.histories import Histories
from longrec.data.importers.synthetic import synthesize
from longrec.data.quality import checks
from longrec.data.shards import (
    Shard,
    parse_shards,
    part_of,
    shard_items,
    shard_names,
    shard_order,
)
from longrec.data.store import retrieve as retrieval
from longrec.data.store.publish import publish
from longrec.data.store.retrieve import join_shards, retrieve
from longrec.errors import CheckFailed, DataError
from tests.longrec.data import random_log, real_logs

REPO = Path(__file__).parents[3] / "feature_repo"
CHECKS = ChecksConfig(
    max_unknown_item_share=0.5,
    min_requests=1,
    check_label_rates=False,
)
DATA = DataConfig(shard_users=8, max_history=12, warmup_fraction=0.1)
"""Several chunks of users in each dataset; Feast takes a tenth of a second for each."""


def files_of(path: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(path)): each.read_bytes()
        for each in sorted(path.rglob("*"))
        if each.is_file()
    }


def build_shards(
    source: Path,
    root: Path,
    count: int,
    data: DataConfig = DATA,
) -> list[Path]:
    for number, name in enumerate(shard_names(count)):
        features.build_features(
            source,
            root / f"features-{number}",
            data,
            shard=Shard.parse(name),
        )
    return [root / f"features-{number}" for number in range(count)]


@pytest.fixture(
    params=["random", pytest.param("synthetic", marks=pytest.mark.slow)], scope="module"
)
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Yield a dataset of five parts."""
    path = tmp_path_factory.mktemp(request.param) / "data"
    if request.param == "random":
        random_log.write(path, num_parts=5, max_events=40)
    else:
        synthesize(
            path,
            num_users=40,
            events_per_user=64,
            num_items=50,
            num_topics=4,
            lengths=[8],
            rows_per_part=400,
        )
    assert Dataset.open(path).num_parts == 5
    yield path


@pytest.mark.parametrize("count", [1, 2, 5, 7, 300])
def test_shards_are_the_dataset_in_order(count: int) -> None:
    parsed = [Shard.parse(name) for name in shard_names(count)]
    assert [part for shard in parsed for part in shard.parts(5)] == list(range(5))
    assert shard_order(parsed[::-1]) == list(range(count))[::-1]
    assert sum(not shard.parts(5) for shard in parsed) == max(0, count - 5)


@pytest.mark.parametrize(
    ("count", "max_items", "items"),
    [
        (1, 8, ["1/1"]),
        (3, 8, ["1/3", "2/3", "3/3"]),
        (32, 2, ["1-16/32", "17-32/32"]),
        (5, 2, ["1-2/5", "3-5/5"]),
    ],
)
def test_items_of_a_loop_hold_several_shards(count: int, max_items: int, items: list[str]) -> None:
    assert shard_items(count, max_items) == items
    shards = [shard for item in items for shard in parse_shards(item)]
    assert [str(shard) for shard in shards] == shard_names(count)


@pytest.mark.parametrize("count", range(1, 40))
def test_items_are_all_shards_once_in_order(count: int) -> None:
    items = shard_items(count, 8)
    assert len(items) == min(count, 8)
    sizes = [len(parse_shards(item)) for item in items]
    assert max(sizes) - min(sizes) <= 1
    assert [str(shard) for item in items for shard in parse_shards(item)] == shard_names(count)


@pytest.mark.parametrize("text", ["", "1", "3-2/4", "1-5/4", "0-1/4", "a-b/4", "1-/4", "1/0"])
def test_invalid_items_are_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"no shards|no such shard"):
        parse_shards(text)


@pytest.mark.parametrize("items", [["1/1"], ["1/3", "2-3/3"]])
def test_a_retrieval_shard_by_shard_is_that_of_one_process(
    source: Path, workdir: Path, tmp_path: Path, items: list[str]
) -> None:
    expected = retrieve(source, workdir, REPO, tmp_path / "whole", DATA, 3)
    found = retrieval.retrieve_shards(
        str(source), items, workdir, tmp_path / "joined", DATA, seed=3
    )
    assert found == expected
    assert files_of(tmp_path / "joined") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("text", ["", "2", "0/3", "4/3", "1/0", "a/b", "-1/2"])
def test_an_invalid_shard_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"no shard|no such shard"):
        Shard.parse(text)


def test_a_shard_reads_its_own_parts_and_needs_no_other(source: Path, tmp_path: Path) -> None:
    shard = Dataset.open(source, Shard(1, 2))
    users = np.concatenate([part["user_id"].to_numpy() for part in shard.event_parts(["user_id"])])
    assert len(users)
    assert set(part_of(users, 5)) <= {2, 3, 4}
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name not in ("part-00000.parquet", "part-00001.parquet"):
            (tmp_path / path.relative_to(source)).parent.mkdir(exist_ok=True)
            (tmp_path / path.relative_to(source)).symlink_to(path)
    assert Dataset.open(tmp_path, Shard(1, 2)).facts == shard.facts
    with pytest.raises(DataError, match="does not hold the parts"):
        Dataset.open(tmp_path, Shard(0, 2))


@pytest.mark.parametrize("count", [1, 2, 5, 50])
def test_joined_feature_tables_are_those_of_one_build(
    source: Path, tmp_path: Path, count: int
) -> None:
    """Fifty shards are more than parts and users: most of them are empty."""
    expected = features.build_features(source, tmp_path / "whole", DATA)
    found = build_shards(source, tmp_path, count)
    assert features.join_shards(found[::-1], tmp_path / "joined") == expected
    assert files_of(tmp_path / "joined") == files_of(tmp_path / "whole")


def test_a_missing_a_repeated_a_foreign_or_a_changed_shard_is_refused(
    source: Path, tmp_path: Path
) -> None:
    found = build_shards(source, tmp_path, 2)
    random_log.write(tmp_path / "other", seed=9, num_parts=2)
    features.build_features(
        tmp_path / "other",
        tmp_path / "foreign",
        DATA,
        shard=Shard(1, 2),
    )
    for wrong, message in (
        (found[:1], "not all shards"),
        ([found[0], found[0]], "not all shards"),
        ([], "not all shards"),
        ([found[0], tmp_path / "foreign"], "not shards of one dataset"),
    ):
        with pytest.raises(DataError, match=message):
            features.join_shards(wrong, tmp_path / "joined")
    part = next((found[1] / "user_history").iterdir())
    part.write_bytes(part.read_bytes()[:-9] + b"123456789")
    with pytest.raises(DataError, match="was changed"):
        features.join_shards(found, tmp_path / "joined")
    assert not (tmp_path / "joined").exists(), "nothing half-joined is left"


@pytest.fixture(scope="module")
def workdir(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    features.build_features(source, root / "features", DATA)
    publish(root / "features", root / "workdir", REPO)
    return root / "workdir"


def retrieve_shards(
    source: Path, workdir: Path, root: Path, count: int, data: DataConfig
) -> list[Path]:
    for number, name in enumerate(shard_names(count)):
        retrieve(
            source,
            workdir,
            REPO,
            root / f"histories-{number}",
            data,
            3,
            Shard.parse(name),
        )
    return [root / f"histories-{number}" for number in range(count)]


@pytest.mark.parametrize(
    ("count", "max_requests"),
    [
        pytest.param(1, 0, marks=pytest.mark.slow),
        (2, 30),
        pytest.param(2, 0, marks=pytest.mark.slow),
        pytest.param(5, 0, marks=pytest.mark.slow),
        (7, 0),
    ],
)
def test_joined_histories_are_those_of_one_retrieval(
    source: Path, workdir: Path, tmp_path: Path, count: int, max_requests: int
) -> None:
    """Of seven shards two are empty, for there are five parts."""
    data = dataclasses.replace(DATA, max_requests=max_requests)
    expected = retrieve(source, workdir, REPO, tmp_path / "whole", data, 3)
    found = retrieve_shards(source, workdir, tmp_path, count, data)
    assert join_shards(found[::-1], tmp_path / "joined", data, 3) == expected
    assert files_of(tmp_path / "joined") == files_of(tmp_path / "whole")
    assert (
        sum(Histories.open(each).num_requests for each in found)
        == Dataset.open(source).facts["num_requests"]
    )


@pytest.mark.parametrize("key", ["store_version", "dataset_hash"])
def test_histories_of_other_features_or_of_another_dataset_are_not_joined(
    source: Path, workdir: Path, tmp_path: Path, key: str
) -> None:
    """Another publish, or another dataset, came between the retrievals of two shards."""
    found = retrieve_shards(source, workdir, tmp_path, 2, DATA)
    manifest = files.read_json(found[1] / "manifest.json")
    files.write_json(found[1] / "manifest.json", {**manifest, key: "another"})
    with pytest.raises(DataError, match="not shards of one dataset"):
        join_shards(found, tmp_path / "joined", DATA, 3)
    assert not (tmp_path / "joined").exists(), "nothing half-joined is left"


@pytest.mark.slow
def test_shards_of_a_real_log_join_to_the_bytes_of_one_process(tmp_path: Path) -> None:
    """Six parts in four shards: 2.8 million events, an item table larger than a page of Parquet."""
    source = tmp_path / "data"
    workdir = tmp_path / "workdir"
    data = DataConfig(max_history=10_000)
    real_logs.dev_events(source)
    features.build_features(source, tmp_path / "whole", data)
    features.join_shards(
        build_shards(source, tmp_path, 4, data),
        tmp_path / "joined",
    )
    assert files_of(tmp_path / "joined") == files_of(tmp_path / "whole")
    publish(tmp_path / "joined", workdir, REPO)
    retrieve(
        source,
        workdir,
        REPO,
        tmp_path / "histories",
        data,
        3,
    )
    join_shards(
        retrieve_shards(source, workdir, tmp_path, 4, data),
        tmp_path / "joined-histories",
        data,
        3,
    )
    assert files_of(tmp_path / "joined-histories") == files_of(tmp_path / "histories")


def comparable(check: Callable[[], checks.CheckReport]) -> object:
    """Return a report or a failed check without paths, durations and shard numbers."""
    try:
        report = check()
    except CheckFailed as error:
        return re.sub(r" \(shard \d+\)| The report is .*", "", str(error))
    return {
        **report.to_dict(),
        "seconds": 0,
        "path": "",
        "warnings": [re.sub(r" \(shard \d+\)", "", line) for line in report.warnings],
    }


@pytest.fixture(scope="module")
def whole_check(source: Path, workdir: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    """Return the check of the dataset by one process."""
    page = tmp_path_factory.mktemp("whole") / "page.html"
    return comparable(lambda: checks.check_events(source, page, CHECKS, workdir))


@pytest.mark.parametrize("count", [2, 7])
def test_a_dataset_is_checked_alike_in_shards(
    source: Path, workdir: Path, whole_check: object, tmp_path: Path, count: int
) -> None:
    for number, name in enumerate(shard_names(count)):
        checks.profile_events(
            source,
            tmp_path / f"profile-{number}",
            workdir,
            Shard.parse(name),
        )
    profiles = [tmp_path / f"profile-{number}" for number in range(count)]
    joined = comparable(
        lambda: checks.check_event_profiles(
            profiles[::-1], tmp_path / "joined.html", CHECKS, workdir
        )
    )
    assert joined == whole_check
    items = shard_items(count, 2)
    in_shards = comparable(
        lambda: checks.check_shards(str(source), items, tmp_path / "a.html", CHECKS, workdir)
    )
    assert in_shards == whole_check
    with pytest.raises(DataError, match="not all shards"):
        checks.check_event_profiles(
            profiles[1:],
            tmp_path / "joined.html",
            CHECKS,
            workdir,
        )


def test_a_poisoned_shard_is_named_with_its_users(tmp_path: Path) -> None:
    """The second of three shards repeats an event; the third holds an impossible time."""
    source = random_log.write(tmp_path / "data", num_parts=3)
    twice = source.event_path(1)
    late = source.event_path(2)
    events = pq.read_table(twice)
    pq.write_table(
        pa.concat_tables([events.slice(0, 1), events.slice(0, 1), events.slice(2)]), twice
    )
    events = pq.read_table(late)
    far = pa.array([2**43] * events.num_rows, pa.timestamp("ms", tz="UTC"))
    pq.write_table(
        events.set_column(events.column_names.index("timestamp"), "timestamp", far), late
    )
    for number, name in enumerate(shard_names(3)):
        checks.profile_events(
            source.path,
            tmp_path / f"profile-{number}",
            None,
            Shard.parse(name),
        )
    with pytest.raises(CheckFailed) as caught:
        checks.check_event_profiles(
            [tmp_path / f"profile-{number}" for number in range(3)],
            tmp_path / "report.html",
            CHECKS,
        )
    text = (tmp_path / "report.html").read_text()
    assert re.search(
        r"duplicates: share.*\(user \d+ \(shard 2\)\)", str(caught.value).replace("\n", " ")
    ), str(caught.value)
    assert re.search(r"timestamp: maximum.*user \d+ \(shard 3\)", str(caught.value))
    assert "(shard 2)" in text
    assert "(shard 3)" in text
