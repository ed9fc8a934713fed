"""The OpenAPI document of the service, built from the schemas of requests and answers.

It is OpenAPI 3.0.3, which generators of Java, Go, TypeScript and Python clients read alike.
pydantic writes JSON Schema of 2020: `_to_openapi` translates it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic.json_schema import models_json_schema

from bento.errors import ErrorAnswer
from bento.schemas import (
    ARROW_MEDIA_TYPE,
    MAX_INT64,
    MIN_INT64,
    ArrowAnswer,
    ArrowRequestBody,
    ExplainAnswer,
    ExplainRequestBody,
    RankAnswer,
    RankRequestBody,
)
from longrec.serving.prometheus.exposition import OPENMETRICS

Json = dict[str, Any]
JSON_MEDIA_TYPE = "application/json"
MODELS = (RankRequestBody, RankAnswer, ExplainRequestBody, ExplainAnswer, ErrorAnswer)
REF_TEMPLATE = "#/components/schemas/{model}"
MAX_INT32 = 2**31 - 1
DESCRIPTION = """\
Scores candidates for a user by the user's history of events.

Ids are 64-bit integers. A caller whose numbers are not exact beyond 2^53 sends them as decimal
digits in a string. The header `x-caller` names the caller, whose requests in flight are limited
together; without it, the address stands for the caller. Every error is a JSON object with the key
`error`."""
RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds to wait before the next try.",
        "schema": {"type": "integer", "format": "int32", "minimum": 0},
    }
}
CHALLENGE = {
    "WWW-Authenticate": {
        "description": "The scheme of the token.",
        "schema": {"type": "string"},
    }
}
ERRORS: dict[int, tuple[str, Json]] = {
    400: ("The request is not valid; the error names the field.", {}),
    401: ("The token is missing or wrong.", CHALLENGE),
    408: ("The time `timeout_ms` of the request passed.", {}),
    413: ("The body is too large.", {}),
    415: ("The content type or the content encoding is none that the service reads.", {}),
    429: ("The caller has too many requests in flight.", RETRY_AFTER),
    500: ("An error of the service; its log has more.", {}),
    503: ("The service has too much work, or stops. No work was done.", RETRY_AFTER),
    504: ("The service's own timeout passed.", {}),
}
"""Description and headers of each error of a ranking request."""
RANK_EXAMPLE = {"user_id": 1, "candidates": [11, 12, 13]}
EXPLAIN_EXAMPLE = {"user_id": 1, "candidate": 11, "top": 3}
FACTS_EXAMPLE = {
    "model_version": "7ba15e10bc2d-04f875",
    "store_version": "86afdda687744bdf",
    "user_known": True,
    "history_length": 9965,
    "unknown_candidates": 0,
    "unknown_events": {"item_id": 0, "clicked": 0},
    "degraded": False,
}
RANK_ANSWER_EXAMPLE = {"scores": {"label": [0.43, 0.41, 0.44]}, **FACTS_EXAMPLE}
ATTENTION_EXAMPLE = {
    "layer": 0,
    "head": 0,
    "events": [{"row": 9964, "item_id": 11, "timestamp": 1765190000000, "weight": 0.2}],
}
EXPLAIN_ANSWER_EXAMPLE = {
    "scores": {"label": [0.43]},
    **FACTS_EXAMPLE,
    "attention": [ATTENTION_EXAMPLE],
}


@functools.cache
def openapi_document() -> Json:
    """Return the document of this service; with a token set, its requests need one."""
    is_token_set = bool(os.environ.get("LONGREC_TOKEN") or os.environ.get("LONGREC_TOKEN_FILE"))
    return build_document(is_token_required=is_token_set)


def build_document(*, is_token_required: bool) -> Json:
    """Return the document of a service.

    Args:
        is_token_required: whether every ranking request needs a token; else it may have one.
    """
    bearer: Json = {"bearer": []}
    return {
        "openapi": "3.0.3",
        "info": {"title": "longrec", "version": _version(), "description": DESCRIPTION},
        "servers": [{"url": "/", "description": "The service that sent this document."}],
        "tags": [
            {"name": "ranking", "description": "Scores and their reasons."},
            {"name": "operation", "description": "For probes and Prometheus; open to all."},
        ],
        "security": [bearer] if is_token_required else [{}, bearer],
        "paths": {**_ranking_paths(), **_operation_paths()},
        "components": {
            "schemas": _schemas(),
            "responses": {_error_name(status): _error(status) for status in ERRORS},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _ranking_paths() -> Json:
    return {
        "/rank": _ranking_path(
            "rank",
            "Score candidates for a user",
            request=_json_content("RankRequestBody", RANK_EXAMPLE),
            answer=_json_content("RankAnswer", RANK_ANSWER_EXAMPLE),
            answer_description=_docstring(RankAnswer),
        ),
        "/explain": _ranking_path(
            "explain",
            "Name the events that each layer and head weighs most for a candidate",
            request=_json_content("ExplainRequestBody", EXPLAIN_EXAMPLE),
            answer=_json_content("ExplainAnswer", EXPLAIN_ANSWER_EXAMPLE),
            answer_description=_docstring(ExplainAnswer),
        ),
        "/rank_arrow": _ranking_path(
            "rank_arrow",
            "Score candidates like /rank, Arrow in and out",
            request=_arrow_content(ArrowRequestBody),
            answer=_arrow_content(ArrowAnswer),
            answer_description=_docstring(ArrowAnswer),
        ),
    }


def _ranking_path(
    operation: str,
    summary: str,
    *,
    request: Json,
    answer: Json,
    answer_description: str,
) -> Json:
    errors = {
        str(status): {"$ref": f"#/components/responses/{_error_name(status)}"} for status in ERRORS
    }
    return {
        "post": {
            "operationId": operation,
            "tags": ["ranking"],
            "summary": summary,
            "requestBody": {"required": True, "content": request},
            "responses": {
                "200": {"description": answer_description, "content": answer},
                **errors,
            },
        }
    }


def _operation_paths() -> Json:
    return {
        "/livez": _operation_path("livez", "Answer while the service runs"),
        "/healthz": _operation_path("healthz", "Answer while the service runs"),
        "/readyz": _operation_path("readyz", "Answer when the service is ready for requests"),
        "/metrics": _operation_path(
            "metrics",
            "Return the metrics in the format of Prometheus, or of OpenMetrics if asked for",
            OPENMETRICS,
        ),
    }


def _operation_path(operation: str, summary: str, *other_media_types: str) -> Json:
    media_types = ("text/plain", *other_media_types)
    content = {media_type: {"schema": {"type": "string"}} for media_type in media_types}
    return {
        "get": {
            "operationId": operation,
            "tags": ["operation"],
            "summary": summary,
            "security": [],
            "responses": {"200": {"description": "The service answers.", "content": content}},
        }
    }


def _json_content(schema: str, example: Json) -> Json:
    reference = {"$ref": REF_TEMPLATE.format(model=schema)}
    return {JSON_MEDIA_TYPE: {"schema": reference, "example": example}}


def _arrow_content(body: type) -> Json:
    schema = {"type": "string", "format": "binary", "description": _docstring(body)}
    return {ARROW_MEDIA_TYPE: {"schema": schema}}


def _error(status: int) -> Json:
    """Return the response with an error."""
    description, headers = ERRORS[status]
    reference = {"$ref": REF_TEMPLATE.format(model=ErrorAnswer.__name__)}
    response: Json = {
        "description": description,
        "content": {JSON_MEDIA_TYPE: {"schema": reference}},
    }
    if headers:
        response["headers"] = headers
    return response


def _error_name(status: int) -> str:
    return HTTPStatus(status).phrase.replace(" ", "")


def _docstring(described: type) -> str:
    """Return the docstring of a body or answer, a paragraph a line."""
    paragraphs = (described.__doc__ or "").split("\n\n")
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _version() -> str:
    try:
        return importlib.metadata.version("longrec")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def _schemas() -> Json:
    """Return the schemas of all bodies and answers by name."""
    inputs = [(model, "validation") for model in MODELS]
    _, generated = models_json_schema(inputs, ref_template=REF_TEMPLATE)  # type: ignore[arg-type]
    definitions = generated["$defs"]
    schemas = {name: _to_openapi(definitions[name]) for name in sorted(definitions)}
    schemas["History"].update(_history_columns())
    return schemas


def _history_columns() -> Json:
    """Return what a history must and may hold, beside the event features of a log."""
    integers = {"type": "array", "items": {"type": "integer", "format": "int64"}}
    items = {"type": "array", "items": {"$ref": REF_TEMPLATE.format(model="ItemId")}}
    return {
        "properties": {"item_id": items, "timestamp": integers, "event_seq": integers},
        "required": ["item_id", "timestamp"],
        "nullable": True,
    }


def _to_openapi(schema: Mapping[str, Any]) -> Json:
    """Return a JSON Schema of pydantic as a schema of OpenAPI 3.0.

    Integers and numbers get the format that tells their width. A null in a union becomes `nullable`
    beside a type; a referenced schema says itself that it may be null. Defaults are left out:
    generators for TypeScript take a field with a default as always there.
    """
    kept = {key: value for key, value in schema.items() if key not in ("title", "default")}
    translated = {key: _translate(key, value) for key, value in kept.items()}
    branches = translated.pop("anyOf", None)
    if branches is not None:
        translated = {**_union(branches), **translated}
    if "$ref" in translated:
        return {"$ref": translated["$ref"]}
    return _with_number_format(translated)


def _translate(key: str, value: Any) -> Any:
    """Return the value of a key of a schema, with the schemas in it translated."""
    if key == "properties":
        return {name: _to_openapi(schema) for name, schema in value.items()}
    if isinstance(value, list) and key in ("anyOf", "oneOf", "allOf"):
        return [_to_openapi(schema) for schema in value]
    if isinstance(value, dict) and key in ("items", "additionalProperties"):
        return _to_openapi(value)
    return value


def _union(branches: list[Json]) -> Json:
    """Return a union of translated schemas."""
    kinds = [branch for branch in branches if branch.get("type") != "null"]
    if len(kinds) > 1:
        return {"oneOf": kinds}
    (kind,) = kinds
    is_reference = "$ref" in kind
    return kind if is_reference else {**kind, "nullable": True}


def _with_number_format(schema: Json) -> Json:
    """Return a schema with the format of a number; int64 stands for its own bounds."""
    if schema.get("type") == "number":
        return {**schema, "format": "double"}
    if schema.get("type") != "integer":
        return schema
    bounds = (schema.get("minimum", MIN_INT64), schema.get("maximum", MAX_INT64))
    if max(map(abs, bounds)) <= MAX_INT32:
        return {**schema, "format": "int32"}
    kept = {key: value for key, value in schema.items() if value not in (MIN_INT64, MAX_INT64)}
    return {**kept, "format": "int64"}
