"""Six logs in the shapes of public ones, for the path of a newcomer: file, import, run, answer.

Every user likes two of a few topics at a time, and a like changes now and then: the events of a
user tell which items come next. No default of longrec was chosen on these logs.

| function | shape |
| --- | --- |
| `ratings` | stars from 0.5 to 5, seconds, no item twice |
| `shop` | text ids of users and items, exposures with clicks and orders |
| `invoices` | quantities, cancelled lines, guests without an id, dates as text |
| `television` | seconds from 0, genres and channels, programmes seen again and again |
| `funnel` | views, carts and purchases of sessions, many guests |
| `library` | one action without labels, ISO times, no item twice |
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

START = datetime.datetime(2024, 3, 1, tzinfo=datetime.UTC)
DAYS = 90
NUM_TOPICS = 8
LIKED_TOPICS = 2
CHANGE_RATE = 0.02
"""Share of the events after which a user likes another topic."""
LIKED_SHARE = 0.6
"""Share of the events on items of a liked topic."""


@dataclasses.dataclass(frozen=True)
class Events:
    """Events of all users, sorted by time; the rows of all arrays belong together.

    Args:
        user, item: numbers from 0, int64 [T].
        second: seconds after `START`, int64 [T].
        liked: whether the user likes the item's topic at that time, bool [T].
        quality: appeal of the item to everybody, standard normal, float64 [T].
    """

    user: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    liked: npt.NDArray[np.bool_]
    quality: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.user)

    def draw(self, rng: np.random.Generator, base: float, like: float) -> npt.NDArray[np.bool_]:
        """Return one answer per event; its logit is base + quality / 2, and + like where liked."""
        logits = base + 0.5 * self.quality + like * self.liked
        return np.asarray(rng.random(len(self)) < 1 / (1 + np.exp(-logits)))


def draw_events(
    rng: np.random.Generator,
    *,
    num_users: int = 500,
    num_items: int = 400,
    per_user: int = 50,
    repeat_share: float = 0.0,
    is_unique: bool = False,
) -> Events:
    """Return random events.

    Args:
        rng: source of all random choices.
        num_users, num_items: numbers of users and items.
        per_user: mean events of a user.
        repeat_share: share of the events on one of the user's last items.
        is_unique: whether a user meets no item twice.
    """
    topics = rng.integers(0, NUM_TOPICS, num_items)
    quality = rng.normal(size=num_items)
    rows: list[tuple[int, int, int, bool]] = []
    for user in range(num_users):
        liked = set(rng.choice(NUM_TOPICS, LIKED_TOPICS, replace=False).tolist())
        seen: list[int] = []
        count = 5 + rng.poisson(per_user - 5)
        for second in np.sort(rng.integers(0, DAYS * 86_400, count)).tolist():
            if rng.random() < CHANGE_RATE:
                liked = {*list(liked)[1:], int(rng.integers(NUM_TOPICS))}
            item = _next_item(rng, topics, liked, seen, repeat_share, is_unique)
            seen.append(item)
            rows.append((second, user, item, int(topics[item]) in liked))
    rows.sort()
    second, user, item, is_liked = (np.array(column) for column in zip(*rows, strict=True))
    return Events(user, item, second, is_liked.astype(bool), quality[item])


def _next_item(
    rng: np.random.Generator,
    topics: npt.NDArray[np.int64],
    liked: set[int],
    seen: Sequence[int],
    repeat_share: float,
    is_unique: bool,
) -> int:
    if seen and rng.random() < repeat_share:
        return int(rng.choice(seen[-10:]))
    is_wanted = np.isin(topics, list(liked)) if rng.random() < LIKED_SHARE else topics >= 0
    if is_unique:
        is_new = ~np.isin(np.arange(len(topics)), seen)
        is_wanted = is_wanted & is_new if (is_wanted & is_new).any() else is_new
    return int(rng.choice(np.flatnonzero(is_wanted if is_wanted.any() else topics >= 0)))


def ratings(path: Path, seed: int = 1) -> None:
    """Write ratings: userId, movieId, rating, timestamp in seconds."""
    rng = np.random.default_rng(seed)
    events = draw_events(rng, is_unique=True)
    noise = rng.normal(size=len(events))
    stars = 3.0 + 1.3 * events.liked - 0.4 + 0.5 * events.quality + 0.7 * noise
    halves = np.clip(np.round(2 * stars) / 2, 0.5, 5)
    start = int(START.timestamp())
    rows = zip(
        (events.user + 1).tolist(),
        (events.item + 1).tolist(),
        halves.tolist(),
        (start + events.second).tolist(),
        strict=True,
    )
    _write(path, ["userId", "movieId", "rating", "timestamp"], rows)


def shop(path: Path, seed: int = 2) -> None:
    """Write exposures: visitor, sku (both text), shown_at in milliseconds, clicked, ordered."""
    rng = np.random.default_rng(seed)
    events = draw_events(rng)
    clicked = events.draw(rng, base=-1.5, like=2.0)
    ordered = clicked & events.draw(rng, base=-1.5, like=1.0)
    start = int(START.timestamp() * 1_000)
    rows = zip(
        [f"visitor-{user:04d}" for user in events.user.tolist()],
        [f"SKU_{item:05d}x" for item in events.item.tolist()],
        (start + 1_000 * events.second).tolist(),
        clicked.astype(int).tolist(),
        ordered.astype(int).tolist(),
        strict=True,
    )
    _write(path, ["visitor", "sku", "shown_at", "clicked", "ordered"], rows)


def invoices(path: Path, seed: int = 3) -> None:
    """Write invoice lines: InvoiceNo, StockCode, Quantity, InvoiceDate, CustomerID.

    A tenth of the customers have no id, and 3 % of the lines cancel an order (quantity below 0).
    """
    rng = np.random.default_rng(seed)
    events = draw_events(rng, repeat_share=0.5)
    quantities = rng.integers(1, 24, len(events))
    quantities[rng.random(len(events)) < 0.03] *= -1
    is_guest = rng.random(len(events)) < 0.1
    rows = []
    for number, (user, item, second) in enumerate(
        zip(events.user.tolist(), events.item.tolist(), events.second.tolist(), strict=True)
    ):
        moment = START + datetime.timedelta(seconds=second)
        prefix = "C" if quantities[number] < 0 else ""
        rows.append(
            (
                f"{prefix}{536_365 + number}",
                f"{20_000 + item}{'ABC'[item % 3]}",
                int(quantities[number]),
                moment.strftime("%Y-%m-%d %H:%M:%S"),
                "" if is_guest[number] else 12_346 + user,
            )
        )
    _write(path, ["InvoiceNo", "StockCode", "Quantity", "InvoiceDate", "CustomerID"], rows)


def television(path: Path, seed: int = 4) -> None:
    """Write what was watched: household, programme, second (from 0), genre, channel."""
    rng = np.random.default_rng(seed)
    events = draw_events(rng, num_items=300, repeat_share=0.6)
    genres = rng.integers(0, 12, 300)
    rows = zip(
        events.user.tolist(),
        events.item.tolist(),
        events.second.tolist(),
        [f"genre {genre}" for genre in genres[events.item].tolist()],
        (events.item % 20).tolist(),
        strict=True,
    )
    _write(path, ["household", "programme", "second", "genre", "channel"], rows)


def funnel(path: Path, seed: int = 5) -> None:
    """Write shop events: event_time, event_type (view, cart, purchase), product_id, user_id."""
    rng = np.random.default_rng(seed)
    events = draw_events(rng, repeat_share=0.2)
    in_cart = events.draw(rng, base=-1.8, like=1.8)
    bought = in_cart & (rng.random(len(events)) < 0.7)
    kinds = np.where(bought, "purchase", np.where(in_cart, "cart", "view"))
    is_guest = events.user % 10 == 0
    rows = []
    for number, second in enumerate(events.second.tolist()):
        moment = START + datetime.timedelta(seconds=second)
        user = "" if is_guest[number] else int(events.user[number]) + 500_000_000
        rows.append(
            (
                moment.strftime("%Y-%m-%d %H:%M:%S UTC"),
                str(kinds[number]),
                int(events.item[number]) + 1_000_000,
                user,
            )
        )
    _write(path, ["event_time", "event_type", "product_id", "user_id"], rows)


def library(path: Path, seed: int = 6) -> None:
    """Write loans: reader, book, borrowed_at (ISO 8601)."""
    rng = np.random.default_rng(seed)
    events = draw_events(rng, num_items=600, is_unique=True)
    rows = []
    for user, item, second in zip(
        events.user.tolist(), events.item.tolist(), events.second.tolist(), strict=True
    ):
        moment = START + datetime.timedelta(seconds=second)
        rows.append((user + 1, item + 1, moment.isoformat()))
    _write(path, ["reader", "book", "borrowed_at"], rows)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)
