"""Search for log files: order, format, hidden folders, patterns and partitions."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.data.importers.reading.file_search import (
    list_log_files,
    name_of_log,
    partition_columns,
    with_subdirectories,
)
from longrec.errors import DataError


def test_files_come_in_natural_order_and_in_one_format(tmp_path: Path) -> None:
    for name in ("log_part10.csv", "log_part2.csv", "log_part1.csv", "_SUCCESS", ".hidden.csv"):
        (tmp_path / name).write_text("a\n1\n")
    assert [path.name for path in list_log_files(tmp_path)] == [
        "log_part1.csv",
        "log_part2.csv",
        "log_part10.csv",
    ]
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="format"):
        list_log_files(tmp_path)
    with pytest.raises(DataError, match="no log at"):
        list_log_files(tmp_path / "nowhere")


HIDDEN = [
    ".ipynb_checkpoints/log-checkpoint.csv",
    "day/.ipynb_checkpoints/log.csv",
    "_temporary/0/log.csv",
    "__MACOSX/log.csv",
    "day/._log.csv",
    "export.tmp/log.csv",
    "old.rejects.csv",
]


def write_files(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a\n1\n")


def names_of(tmp_path: Path, pattern: str = "") -> list[str]:
    return [str(path.relative_to(tmp_path)) for path in list_log_files(tmp_path / pattern)]


@pytest.mark.parametrize("pattern", ["", "**/*.csv", "*"])
def test_hidden_and_temporary_files_and_folders_are_no_data(tmp_path: Path, pattern: str) -> None:
    write_files(tmp_path, [*HIDDEN, "log1.csv", "day/log2.csv", "_date=3/log3.csv"])
    assert names_of(tmp_path, pattern) == ["log1.csv", "day/log2.csv", "_date=3/log3.csv"]


def test_the_folder_of_the_data_itself_may_be_hidden(tmp_path: Path) -> None:
    write_files(tmp_path / ".cache" / "_x.tmp", ["log.csv"])
    assert names_of(tmp_path / ".cache" / "_x.tmp") == ["log.csv"]
    assert names_of(tmp_path, ".cache/_x*/*.csv") == [".cache/_x.tmp/log.csv"]


def test_a_pattern_matches_across_folders_and_takes_whole_folders(tmp_path: Path) -> None:
    names = ["2023/a.csv", "2024/a.csv", "2024/deep/b.csv", "2025/c.csv"]
    write_files(tmp_path, names)
    assert names_of(tmp_path, "202[34]/a.csv") == ["2023/a.csv", "2024/a.csv"]
    assert names_of(tmp_path, "*4") == ["2024/a.csv", "2024/deep/b.csv"]
    assert names_of(tmp_path, "**/b.csv") == ["2024/deep/b.csv"]


@pytest.mark.parametrize(
    ("src", "name"),
    [("logs/clicks.csv", "clicks"), ("logs/2024-*/*.csv", "logs"), ("logs/day*.csv", "logs")],
)
def test_a_log_is_named_after_its_file_or_folder(src: str, name: str) -> None:
    assert name_of_log(src) == name


def test_the_working_directory_has_a_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert name_of_log(".") == tmp_path.name


def test_partitions_are_columns(tmp_path: Path) -> None:
    path = tmp_path / "date=2024-05-01" / "kind=a%3Ab" / "by=__HIVE_DEFAULT_PARTITION__" / "x.csv"
    assert partition_columns(path) == {"date": "2024-05-01", "kind": "a:b", "by": None}


def test_a_dataset_among_the_logs_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, ["log.csv", "out/dataset.json", "out/events/part-00000.csv"])
    with pytest.raises(DataError, match="is a dataset that longrec wrote"):
        list_log_files(tmp_path)


def test_official_archives_are_not_looked_for_in_hidden_folders(tmp_path: Path) -> None:
    for name in (".ipynb_checkpoints", "__MACOSX", "ml-1m"):
        (tmp_path / name).mkdir()
    assert with_subdirectories(tmp_path) == [tmp_path, tmp_path / "ml-1m"]
