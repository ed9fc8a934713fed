"""The OpenAPI document: valid, and what generators of clients need to read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV30SpecValidator

from bento.openapi import build_document

RANKING_PATHS = ["/rank", "/explain", "/rank_arrow"]
OPEN_PATHS = ["/livez", "/healthz", "/readyz", "/metrics"]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return build_document(is_token_required=False)


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a document."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from walk(item)


@pytest.mark.parametrize("is_token_required", [False, True])
def test_the_document_is_valid(is_token_required: bool) -> None:
    document = build_document(is_token_required=is_token_required)
    assert document["openapi"].startswith("3.0.")
    assert list(OpenAPIV30SpecValidator(document).iter_errors()) == []


def test_numbers_tell_their_width(document: dict[str, Any]) -> None:
    schemas = [part for part in walk(document) if part.get("type") in ("integer", "number")]
    assert len(schemas) > 10
    formats = {"integer": ("int32", "int64"), "number": ("double",)}
    assert all(schema["format"] in formats[schema["type"]] for schema in schemas)


def test_ids_and_times_are_int64(document: dict[str, Any]) -> None:
    event = document["components"]["schemas"]["AttendedEvent"]["properties"]
    assert event["item_id"]["format"] == event["timestamp"]["format"] == "int64"


@pytest.mark.parametrize("name", ["UserId", "ItemId"])
def test_an_id_is_a_number_or_a_text(document: dict[str, Any], name: str) -> None:
    number, text = document["components"]["schemas"][name]["oneOf"]
    assert number == {"type": "integer", "format": "int64"}
    assert text["type"] == "string"


def test_the_request_time_has_both_forms(document: dict[str, Any]) -> None:
    number, text = document["components"]["schemas"]["RequestTime"]["oneOf"]
    assert number == {"type": "integer", "format": "int64"}
    assert text == {"type": "string"}


def test_nothing_of_json_schema_or_bentoml_is_left(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    for word in ('"null"', "root_input", "anyOf", "$defs", "bentoml", '"default":'):
        assert word.lower() not in text.lower(), word


def test_a_request_may_hold_null_where_a_field_is_optional(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    body = schemas["RankRequestBody"]
    for name in set(body["properties"]) - set(body["required"]):
        schema = body["properties"][name]
        schema = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        assert schema["nullable"], name


def test_bodies_are_required_and_have_their_own_content_types(document: dict[str, Any]) -> None:
    for path in RANKING_PATHS:
        body = document["paths"][path]["post"]["requestBody"]
        assert body["required"]
        expected = "application/json"
        if path == "/rank_arrow":
            expected = "application/vnd.apache.arrow.stream"
        assert list(body["content"]) == [expected]
        answer = document["paths"][path]["post"]["responses"]["200"]
        assert list(answer["content"]) == [expected]


def test_ranking_has_every_error_and_operation_has_none(document: dict[str, Any]) -> None:
    errors = {"400", "401", "408", "413", "415", "429", "500", "503", "504"}
    for path in RANKING_PATHS:
        assert set(document["paths"][path]["post"]["responses"]) == {"200", *errors}
    for path in OPEN_PATHS:
        operation = document["paths"][path]["get"]
        media_types = ["text/plain"]
        if path == "/metrics":
            media_types.append("application/openmetrics-text")
        assert list(operation["responses"]["200"]["content"]) == media_types
        assert operation["security"] == []


def test_a_rejection_tells_when_to_retry(document: dict[str, Any]) -> None:
    responses = document["components"]["responses"]
    for name in ("TooManyRequests", "ServiceUnavailable"):
        assert "Retry-After" in responses[name]["headers"]


def test_the_token_is_required_where_one_is_set() -> None:
    bearer = {"bearer": []}
    assert build_document(is_token_required=True)["security"] == [bearer]
    assert build_document(is_token_required=False)["security"] == [{}, bearer]


def test_the_title_and_version_are_ours(document: dict[str, Any]) -> None:
    assert document["info"]["title"] == "longrec"
    assert document["info"]["version"][0].isdigit()
    assert "contact" not in document["info"]
    assert document["servers"][0]["url"] == "/"
