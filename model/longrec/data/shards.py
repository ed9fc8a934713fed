"""Parts and shards of a dataset: bounded files of whole users, and ranges of them for one worker.

A part is one file of events and one of targets. Users go to parts by a hash of user_id, so a part
holds whole users. A shard is a range of parts that one process works on.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longrec.data.columns import Int64
from longrec.data.hashing import splitmix64
from longrec.errors import DataError

ROWS_PER_PART = 2_000_000
"""Target number of events in a part; sorting that many takes some hundreds of MB."""
MAX_PARTS = 1_024
MAX_ITEMS = 8
"""Default for the largest number of items in a pipeline's loop over shards."""
ITEM = re.compile(r"(?P<first>[0-9]+)(-(?P<last>[0-9]+))?/(?P<count>[0-9]+)")
"""Text of an item: `2/5` for one shard, `2-4/5` for three."""
FOLDER_PREFIX = "shard-"


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """A range of the parts of a dataset; the one with index 1 of 5 is written `2/5`.

    Shard `index` of `count` holds the parts from `index * P // count` up to the next shard's
    first, of P parts. All shards together hold all users, in order. Some shards are empty when
    there are fewer parts than shards.

    Args:
        index: number of the shard, from 0.
        count: number of shards.

    Raises:
        DataError: `index` is not in 0..count-1.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise DataError(
                "there is no such shard",
                found=str(self),
                expected=f"1/{self.count} to {self.count}/{self.count}",
            )

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that a text such as `2/5` names.

        Raises:
            DataError: the text names no shard.
        """
        index, _, count = text.partition("/")
        if not (index.isdigit() and count.isdigit()):
            raise DataError(
                "this names no shard",
                found=text,
                expected="for example 2/5",
            )
        return cls(int(index) - 1, int(count))

    def folder(self, parent: str | Path) -> Path:
        """Return the folder of this shard's files inside a folder of several shards."""
        return Path(parent) / f"{FOLDER_PREFIX}{self.index + 1}-of-{self.count}"

    def parts(self, num_parts: int) -> range:
        """Return the parts of this shard in a dataset of `num_parts` parts."""
        start = self.index * num_parts // self.count
        end = (self.index + 1) * num_parts // self.count
        return range(start, end)


WHOLE_DATASET = Shard()
"""The only shard of a dataset that is not split."""


def shard_names(count: int) -> list[str]:
    """Return the names of all shards, in order."""
    return [str(shard) for shard in _all_shards(count)]


def shard_items(count: int, max_items: int = MAX_ITEMS) -> list[str]:
    """Return all shards as the items of a loop, of as equal size as possible.

    An item is a text that `parse_shards` reads, for example `1-4/32`.

    Args:
        count: number of shards.
        max_items: largest number of items.
    """
    num_items = min(count, max_items)
    bounds = [number * count // num_items for number in range(num_items + 1)]
    items = []
    for start, end in itertools.pairwise(bounds):
        first = f"{start + 1}" if end == start + 1 else f"{start + 1}-{end}"
        items.append(f"{first}/{count}")
    return items


def parse_shards(item: str) -> list[Shard]:
    """Return the shards of an item of `shard_items`.

    Raises:
        DataError: the text names no shards.
    """
    match = ITEM.fullmatch(item)
    if match is None or int(match["first"]) > int(match["last"] or match["first"]):
        raise DataError("this names no shards", found=item, expected="for example 2/5 or 2-4/5")
    first = int(match["first"])
    last = int(match["last"] or first)
    count = int(match["count"])
    return [Shard(number - 1, count) for number in range(first, last + 1)]


def shard_folders(parent: str | Path) -> list[Path]:
    """Return the folders of all shards inside a folder (`Shard.folder`), in no order."""
    return list(Path(parent).glob(f"{FOLDER_PREFIX}*"))


def shard_order(shards: Sequence[Shard]) -> list[int]:
    """Return the positions of all shards of a dataset, first shard first.

    Raises:
        DataError: a shard is missing or occurs twice.
    """
    positions = range(len(shards))
    order = sorted(positions, key=lambda position: shards[position].index)
    in_order = [shards[position] for position in order]
    if not shards or in_order != _all_shards(len(shards)):
        count = shards[0].count if shards else 1
        raise DataError(
            "these are not all shards of a dataset, once each",
            found=", ".join(map(str, shards)) or "none",
            expected=", ".join(shard_names(count)),
        )
    return order


def num_parts_for(num_events: int, rows_per_part: int = ROWS_PER_PART) -> int:
    """Return the number of parts for a dataset of about `num_events` events, at least 1."""
    num_parts = -(-num_events // rows_per_part)  # rounded up
    return int(min(max(num_parts, 1), MAX_PARTS))


def part_of(user_ids: Int64, num_parts: int) -> Int64:
    """Return the part of each user, int64 in [0, num_parts); the same on every machine."""
    hashes = splitmix64(user_ids.astype(np.int64))
    return (hashes % np.uint64(num_parts)).astype(np.int64)


def part_name(part: int) -> str:
    """Return the file name of a part."""
    return f"part-{part:05d}.parquet"


def _all_shards(count: int) -> list[Shard]:
    return [Shard(index, count) for index in range(count)]
