"""Write a small log to try the commands with: clicks.csv (48,000 rows) and items.csv (200 rows).

    python examples/make_clicks.py DIR

Every user likes two of ten genres and comes for 20 visits of 8 items each. A click is likely where
the genre of the item is liked, so earlier clicks tell which items to rank first.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

NUM_USERS = 300
NUM_ITEMS = 200
NUM_GENRES = 10
VISITS_PER_USER = 20
ITEMS_PER_VISIT = 8
FIRST_SECOND = 1_760_000_000
NUM_SECONDS = 60 * 86_400
SECONDS_BETWEEN_ITEMS = 10


def rows_of(user: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """Return (second, user id, item id, clicked) of every item that one user was shown."""
    liked_genres = rng.choice(NUM_GENRES, 2, replace=False)
    rows = []
    for start in rng.integers(0, NUM_SECONDS, VISITS_PER_USER):
        items = rng.choice(NUM_ITEMS, ITEMS_PER_VISIT, replace=False)
        is_liked = np.isin(items % NUM_GENRES, liked_genres)
        clicks = rng.random(ITEMS_PER_VISIT) < np.where(is_liked, 0.7, 0.1)
        for position, (item, click) in enumerate(zip(items, clicks, strict=True)):
            second = FIRST_SECOND + int(start) + position * SECONDS_BETWEEN_ITEMS
            rows.append((second, 1 + user, 1 + int(item), int(click)))
    return rows


def write(path: Path, header: list[str], rows: Iterable[tuple[int, ...]]) -> None:
    """Write a CSV file."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)


def main(folder: Path) -> None:
    """Write both files, the oldest click first."""
    rng = np.random.default_rng(0)
    clicks = [row for user in range(NUM_USERS) for row in rows_of(user, rng)]
    genres = [(1 + item, item % NUM_GENRES) for item in range(NUM_ITEMS)]
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "clicks.csv", ["ts", "uid", "iid", "clicked"], sorted(clicks))
    write(folder / "items.csv", ["iid", "genre"], genres)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
