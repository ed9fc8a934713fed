"""JSON bodies for a fuzzer: valid ones with some values, keys or characters changed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

TIME_MS = 1_705_000_000_000
FIELDS = ("length", "top", "history", "kind", "timeout_ms", "request_time", "unknown")
SPECIAL_CHARACTERS = '[]{},:"0-.eE\\u\0é'
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2_049,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63),
    -(2**63) - 1,
    10**400,
    1_700_000_000,
    4_102_444_800_000,
    1.5,
    -0.0,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "7",
    "\u0661",
    "\ud800",
    "x" * 5_000,
    "2024-05-01T12:00:00Z",
    "0001-01-01T00:00:00+12:00",
    "9999-12-31T23:59:59-12:00",
    [],
    [1],
    [[[]]],
    {},
    {"item_id": 1},
    {"\ud800": [1]},
)


def random_body(path: str, rng: np.random.Generator) -> bytes:
    """Return a body for an endpoint."""
    body = _valid_body(path, rng)
    for _ in range(rng.integers(3)):
        names = [*body, *FIELDS]
        body[names[rng.integers(len(names))]] = odd_value(rng)
    text = json.dumps(body)
    if rng.random() < 0.1:
        text = _with_other_characters(text, rng)
    return text.encode("utf-8", "surrogatepass")


def history_parameters(rng: np.random.Generator) -> dict[str, str]:
    """Return parameters for GET /page/history."""
    parameters: dict[str, Any] = {"user_id": 1, "request_time": TIME_MS, "length": 5}
    name = str(rng.choice([*parameters]))
    parameters[name] = odd_value(rng)
    return {name: _url_text(value) for name, value in parameters.items()}


def odd_value(rng: np.random.Generator) -> Any:
    """Return a value of any type, or a list of such."""
    value = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    if rng.random() < 0.1:
        return [value, odd_value(rng)]
    return value


def _valid_body(path: str, rng: np.random.Generator) -> dict[str, Any]:
    body: dict[str, Any] = {"user_id": 1, "request_time": TIME_MS}
    if path == "/page/whatif":
        return {**body, "item_id": 3, "candidates": [1, "2"], "kind": "view"}
    if path == "/explain":
        body |= {"candidate": 5, "top": 3}
    else:
        body |= {"candidates": [1, 2, 3]}
    if rng.random() < 0.5:
        body["history"] = _history(rng)
    return body


def _history(rng: np.random.Generator) -> dict[str, Any]:
    """Return columns of a history, one of them odd now and then."""
    count = int(rng.integers(5))
    columns: dict[str, Any] = {
        "item_id": list(range(count)),
        "timestamp": [TIME_MS - 1_000 + row for row in range(count)],
        "action": ["view"] * count,
    }
    name = str(rng.choice([*columns, "event_seq", "basket_id"]))
    chance = rng.random()
    if chance < 0.2:
        columns[name] = odd_value(rng)
    elif chance < 0.5 and count:
        columns[name] = [*range(count - 1), odd_value(rng)]
    return columns


def _with_other_characters(text: str, rng: np.random.Generator) -> str:
    characters = list(text)
    for _ in range(rng.integers(1, 4)):
        position = rng.integers(len(characters))
        characters[position] = SPECIAL_CHARACTERS[rng.integers(len(SPECIAL_CHARACTERS))]
    return "".join(characters)


def _url_text(value: Any) -> str:
    return str(value).encode("utf-8", "replace").decode()
