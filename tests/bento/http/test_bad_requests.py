"""Bad requests: status 400, 413 or 415, and an error that names the field or what to send."""

from __future__ import annotations

import gzip
import json

import httpx
import numpy as np
import pyarrow as pa
import pytest

from bento.schemas import ARROW_MEDIA_TYPE
from longrec.serving.arrow_codec import write_request
from tests.bento.requests_and_scores import LATE_MS

GOOD = {"user_id": 1, "candidates": [1, 2]}
BAD_BODIES = {
    "no user": ({"candidates": [1]}, "user_id"),
    "user as text": ({**GOOD, "user_id": "one"}, "user_id"),
    "user as a fraction": ({**GOOD, "user_id": 1.5}, "user_id"),
    "user as a whole float": ({**GOOD, "user_id": 1.0}, "user_id"),
    "user as truth": ({**GOOD, "user_id": True}, "user_id"),
    "user is null": ({**GOOD, "user_id": None}, "user_id"),
    "user beyond int64": ({**GOOD, "user_id": 2**63}, "user_id"),
    "user far beyond int64": ({**GOOD, "user_id": -(10**40)}, "user_id"),
    "no candidates": ({"user_id": 1}, "candidates"),
    "empty candidates": ({**GOOD, "candidates": []}, "candidates"),
    "candidates null": ({**GOOD, "candidates": None}, "candidates"),
    "candidates as a number": ({**GOOD, "candidates": 3}, "candidates"),
    "candidate as text": ({**GOOD, "candidates": [1, "two"]}, "candidates[1]"),
    "candidate null": ({**GOOD, "candidates": [None]}, "candidates[0]"),
    "candidate beyond int64": ({**GOOD, "candidates": [1, -(2**63) - 1]}, "candidates[1]"),
    "nested candidates": ({**GOOD, "candidates": [[1]]}, "candidates[0]"),
    "one candidate too many": ({**GOOD, "candidates": [1] * 2049}, "candidates"),
    "negative length": ({**GOOD, "length": -1}, "length"),
    "length as text": ({**GOOD, "length": "10"}, "length"),
    "length beyond int64": ({**GOOD, "length": 2**63}, "length"),
    "time is NaN": ('{"user_id": 1, "candidates": [1], "request_time": NaN}', "request_time"),
    "time is infinite": (
        '{"user_id": 1, "candidates": [1], "request_time": Infinity}',
        "request_time",
    ),
    "time as a float": ({**GOOD, "request_time": 1.7e12}, "request_time"),
    "time without a zone": ({**GOOD, "request_time": "2024-05-01T12:00:00"}, "request_time"),
    "time is no time": ({**GOOD, "request_time": "yesterday"}, "request_time"),
    "time is an empty text": ({**GOOD, "request_time": ""}, "request_time"),
    "time of an impossible day": ({**GOOD, "request_time": "2024-02-30T00:00:00Z"}, "request_time"),
    "time before year 1": ({**GOOD, "request_time": "0001-01-01T00:00:00+12:00"}, "request_time"),
    "time beyond year 9999": ({**GOOD, "request_time": 253_402_300_800_000}, "request_time"),
    "time in seconds": ({**GOOD, "request_time": 1_700_009_000}, "request_time"),
    "time before 1980": ({**GOOD, "request_time": "1979-12-31T23:59:59Z"}, "request_time"),
    "smallest int64 as a time": ({**GOOD, "request_time": -(2**63)}, "request_time"),
    "no JSON": ("user 1", "body"),
    "half of JSON": ('{"user_id": 1, "candidates": [1', "body"),
    "nothing": ("", "body"),
    "a list": ("[1, 2]", "body"),
    "null": ("null", "body"),
    "no UTF-8": (b'{"user_id": 1, "candidates": [1], "\xff": 1}', "body"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_json_body_is_rejected_with_the_name_of_the_field(
    client: httpx.Client,
    name: str,
) -> None:
    body, field = BAD_BODIES[name]
    content = json.dumps(body) if isinstance(body, dict) else body
    response = client.post("/rank", content=content)
    assert response.status_code == 400, response.text
    assert list(response.json()) == ["error"]
    assert response.json()["error"].startswith(f"{field}: "), response.text
    assert "Traceback" not in response.text
    assert "pydantic" not in response.text
    assert "/" not in response.text.replace("since 1970", "")


def test_a_misspelled_field_is_rejected_with_its_right_name(client: httpx.Client) -> None:
    response = client.post("/rank", json={"userId": 1, "candidates": [1]})
    assert response.status_code == 400
    assert response.json() == {"error": "unknown field userId; did you mean user_id"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (write_request([1], {"userId": 1}), "unknown field userId; did you mean user_id"),
        (write_request([1], {"user_id": 1, "requestTime": 5}), "unknown field requestTime"),
        (write_request([1], {"user_id": 1, "length": "1_0"}), "length"),
        (b"\x00\xff" * 300, "body"),
        (write_request([1, 2], {}), "user_id"),
        (write_request([1], {"user_id": "x"}), "user_id"),
        (write_request([], {"user_id": 1}), "candidates"),
        (write_request([1] * 2049, {"user_id": 1}), "candidates"),
        (write_request([1], {"user_id": 2**63}), "user_id"),
        (write_request([1], {"user_id": 1, "length": -1}), "length"),
        (write_request([1], {"user_id": 1, "request_time": 1_700_009_000}), "request_time"),
        (write_request([1], {"user_id": 1, "request_time": 2**63}), "request_time"),
        (write_request([1], {"user_id": 1}, b"no history"), "history"),
        (write_request([1], {"user_id": 1})[:-30], "body"),
    ],
)
def test_a_bad_arrow_body_is_rejected_with_the_name_of_the_field(
    client: httpx.Client,
    body: bytes,
    field: str,
) -> None:
    response = client.post("/rank_arrow", content=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"].startswith(field), response.text


@pytest.mark.parametrize(
    ("history", "column"),
    [
        ({"item_id": [1]}, "timestamp"),
        ({"item_id": [1, 2], "timestamp": [1]}, "timestamp"),
        ({"item_id": [1], "timestamp": [1], "colour": [1]}, "colour"),
        ({"item_id": ["x"], "timestamp": [1]}, "item_id"),
        ({"item_id": [2**70], "timestamp": [1]}, "item_id"),
        ({"item_id": [None], "timestamp": [1]}, "item_id"),
        ({"item_id": [1.9], "timestamp": [1_700_000_000_000]}, "item_id"),
        ({"item_id": [1], "timestamp": [1_700_000_000]}, "timestamp"),
        ({"item_id": [1], "timestamp": [1], "action": [[1]]}, "action"),
    ],
)
def test_a_bad_inline_history_is_rejected_with_the_name_of_the_column(
    client: httpx.Client,
    history: dict,
    column: str,
) -> None:
    response = client.post("/rank", json={**GOOD, "history": history})
    assert response.status_code == 400, response.text
    assert column in response.json()["error"], response.text


@pytest.mark.parametrize(("path", "status"), [("/rank", 415), ("/page/whatif", 400)])
def test_a_content_type_of_other_bytes_than_utf_8_breaks_no_answer(
    client: httpx.Client,
    path: str,
    status: int,
) -> None:
    response = client.post(path, content=b"{}", headers={"content-type": b"\xff"})
    assert response.status_code == status, response.text


@pytest.mark.parametrize(
    ("path", "content_type", "expected"),
    [
        ("/rank", "application/x-www-form-urlencoded", "application/json"),
        ("/rank", "multipart/form-data", "application/json"),
        ("/rank", "text/plain", "application/json"),
        ("/rank", "", "application/json"),
        ("/explain", ARROW_MEDIA_TYPE, "application/json"),
        ("/rank_arrow", "application/json", ARROW_MEDIA_TYPE),
    ],
)
def test_another_content_type_is_rejected_with_the_one_to_send(
    client: httpx.Client,
    path: str,
    content_type: str,
    expected: str,
) -> None:
    headers = {"content-type": content_type}
    response = client.post(path, content=json.dumps(GOOD), headers=headers)
    assert response.status_code == 415, response.text
    assert f"send {expected}" in response.json()["error"]


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip"])
def test_an_encoded_body_is_rejected_with_the_name_of_the_encoding(
    client: httpx.Client,
    encoding: str,
) -> None:
    response = client.post("/rank", json=GOOD, headers={"content-encoding": encoding})
    assert response.status_code == 415, response.text
    assert encoding in response.json()["error"]


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP"])
def test_a_gzip_body_has_the_answer_of_a_plain_one(client: httpx.Client, encoding: str) -> None:
    body = json.dumps({**GOOD, "request_time": LATE_MS}).encode()
    plain = client.post("/rank", content=body)
    headers = {"content-encoding": encoding}
    packed = client.post("/rank", content=gzip.compress(body), headers=headers)
    assert packed.status_code == 200, packed.text
    assert packed.json() == plain.json()


WHOLE = gzip.compress(json.dumps(GOOD).encode())
GZIP_HEADERS = {"content-encoding": "gzip"}


@pytest.mark.parametrize("body", [b"", b"{}", WHOLE[:-9], WHOLE[:-1] + b"x", WHOLE + WHOLE])
def test_a_body_that_is_no_gzip_is_rejected(client: httpx.Client, body: bytes) -> None:
    response = client.post("/rank", content=body, headers=GZIP_HEADERS)
    assert response.status_code == 400, response.text
    assert "not gzip" in response.json()["error"]


def test_a_gzip_body_is_bounded_by_what_it_decompresses_to(client: httpx.Client) -> None:
    bomb = gzip.compress(b" " * 200_000_000)
    assert len(bomb) < 1_000_000
    response = client.post("/rank", content=bomb, headers=GZIP_HEADERS)
    assert response.status_code == 413, response.text


def test_zeros_of_a_compressed_body_are_rejected_in_time(client: httpx.Client) -> None:
    """The body states what it decompresses to: 16 million zeros of 8 bytes."""
    batch = pa.record_batch({"item_id": pa.array(np.zeros(16_000_000, np.int64))})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    response = client.post("/rank_arrow", content=sink.getvalue().to_pybytes())
    assert response.status_code == 400, response.text
    assert "128000000 decompressed bytes" in response.json()["error"]


def test_an_explanation_of_no_events_is_rejected(client: httpx.Client) -> None:
    response = client.post("/explain", json={"user_id": 1, "candidate": 1, "top": 0})
    assert response.json()["error"].startswith("top: ")
