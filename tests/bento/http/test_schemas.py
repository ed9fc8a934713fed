"""Bodies of requests: what they accept, and how they name what is wrong."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from bento.errors import first_problem
from bento.schemas import ExplainRequestBody, RankRequestBody

GOOD = {"user_id": 1, "candidates": [1, 2]}
MARK = b"\xef\xbb\xbf"
IMPLEMENTATION = ("Python", "pydantic", "C long", "Traceback", "Extra inputs", "validation")


def problem_of(body: object, kind: type = RankRequestBody) -> str:
    """Return the first problem of a body."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ValidationError) as raised:
        kind._parse(content)
    problem = first_problem(raised.value, kind.model_fields)
    assert not any(word in problem for word in IMPLEMENTATION), problem
    return problem


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({**GOOD, "userId": 1}, "unknown field userId; did you mean user_id"),
        ({"userId": 1, "candidates": [1]}, "unknown field userId; did you mean user_id"),
        (
            {"UserID": 1, "candidate_ids": [1]},
            "unknown field UserID; did you mean user_id (and 2 more)",
        ),
        ({**GOOD, "requestTime": 5}, "unknown field requestTime; did you mean request_time"),
        ({**GOOD, "lenght": 5}, "unknown field lenght; did you mean length"),
        ({"request": {"userId": 1}}, "unknown field userId; did you mean user_id (and 1 more)"),
    ],
)
def test_a_misspelled_field_is_named_before_the_missing_one(body: dict, problem: str) -> None:
    assert problem_of(body) == problem


def test_a_field_of_another_request_is_named_too() -> None:
    problem = problem_of(GOOD, ExplainRequestBody)
    assert problem == "unknown field candidates; did you mean candidate"


@pytest.mark.parametrize("name", ["colour", ""])
def test_an_unknown_field_gets_the_known_ones(name: str) -> None:
    problem = problem_of({**GOOD, name: 5})
    assert problem.startswith(f"unknown field {name or repr(name)}; expected user_id, ")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"user_id": "x" * 2000}, "user_id: String should have at most 1024 characters"),
        ({"candidates": [1] * 3000}, "candidates: should have at most 2048 items, not 3000"),
        ({"history": {"item_id": 1}}, "history.item_id: Input should be a valid array"),
        ({"x" * 5000: 1}, f"unknown field {'x' * 80}; expected "),
    ],
)
def test_a_problem_is_short_and_of_the_value_that_was_sent(fields: dict, problem: str) -> None:
    assert problem_of({**GOOD, **fields}).startswith(problem)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_byte_order_mark_is_skipped(wrapped: bool) -> None:
    body = {"request": GOOD} if wrapped else GOOD
    expected = RankRequestBody(**GOOD)
    assert RankRequestBody._parse(MARK + json.dumps(body).encode()) == expected


@pytest.mark.parametrize("content", [MARK, MARK + MARK + b"{}", b"{}" + MARK])
def test_a_mark_alone_or_elsewhere_is_no_body(content: bytes) -> None:
    assert problem_of(content).startswith("body: ")


@pytest.mark.parametrize("digits", ["9007199254740993", "-9223372036854775808"])
def test_ids_may_be_decimal_digits(digits: str) -> None:
    content = json.dumps({"user_id": digits, "candidates": [digits, 1]}).encode()
    body = RankRequestBody._parse(content)
    assert (body.user_id, body.candidates) == (digits, [digits, 1])
