"""Parameters and responses of the page's routes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from longrec.errors import ConfigError, DataError, LongrecError
from longrec.ids import text_id
from longrec.serving.web.page import Page

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

MAX_BODY_BYTES = 65_536
INT64 = 2**63
"""Integers are in -INT64 to INT64 - 1."""
MAX_SHOWN_CHARACTERS = 80


def html_response(page: Page) -> Response:
    """Return a page with its Content-Security-Policy."""
    from starlette.responses import HTMLResponse

    headers = {"Content-Security-Policy": page.policy, "Cache-Control": "no-cache"}
    return HTMLResponse(page.html, headers=headers)


def json_endpoint(answer: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return an endpoint that sends the JSON of `answer`, or its error as 400 or 503.

    The page only shows the text of an error: it needs no other status (`bento.errors` has more).
    """
    from starlette.responses import JSONResponse

    async def endpoint(request: Request) -> JSONResponse:
        try:
            content = await answer(request)
        except (ConfigError, DataError) as error:
            return JSONResponse({"error": str(error)}, 400)
        except LongrecError as error:
            return JSONResponse({"error": str(error)}, 503)
        return JSONResponse(content, headers={"Cache-Control": "no-store"})

    return endpoint


async def read_json_object(request: Request) -> Mapping[str, Any]:
    """Return the JSON object in a body.

    Raises:
        DataError: the body is too large, not complete or not a JSON object.
    """
    from starlette.requests import ClientDisconnect

    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise DataError(f"the body is larger than {MAX_BODY_BYTES} bytes")
    except ClientDisconnect as error:
        raise DataError("the connection closed before the end of the body") from error
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError("the body is not JSON") from error
    if not isinstance(content, dict):
        raise DataError("the body should be a JSON object")
    return content


def int64_parameter(parameters: Mapping[str, Any], name: str) -> int:
    """Return an int64 parameter, given as a number or as digits.

    Raises:
        DataError: it is missing, not a whole number, or too large.
    """
    return to_int64(parameters.get(name), name)


def id_parameter(parameters: Mapping[str, Any], name: str, *, is_text: bool) -> int:
    """Return the id of a user or item; `#` and digits is the number of a text id.

    Args:
        parameters: of the request.
        name: name of the parameter.
        is_text: whether the log names such things by text.

    Raises:
        DataError: it is missing, or not a whole number in a log with numbers.
    """
    return page_id(parameters.get(name), name, is_text=is_text)


def page_id(value: Any, name: str, *, is_text: bool) -> int:
    """Return an id from the page; see `id_parameter`."""
    if not is_text or not isinstance(value, str):
        return to_int64(value, name)
    if re.fullmatch(r"#-?[0-9]{1,19}", value):
        return to_int64(value[1:], name)
    return text_id(value)


def optional_int64_parameter(parameters: Mapping[str, Any], name: str) -> int | None:
    """Return an int64 parameter, None for a missing one.

    Raises:
        DataError: it is not a whole number, or too large.
    """
    if name not in parameters:
        return None
    return int64_parameter(parameters, name)


def optional_length(parameters: Mapping[str, Any]) -> int | None:
    """Return the parameter `length`, None for a missing one.

    Raises:
        DataError: it is negative, not a whole number, or too large.
    """
    length = optional_int64_parameter(parameters, "length")
    if length is not None and length < 0:
        raise DataError("length should not be negative", found=length)
    return length


def to_int64(value: Any, name: str) -> int:
    """Return a value as int64.

    Args:
        value: an int, or a text of ASCII digits: JSON numbers of a browser lose digits.
        name: name of the parameter, for the error.

    Raises:
        DataError: it is not a whole number, or too large.
    """
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value):
        value = int(value)
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not -INT64 <= value < INT64:
        shown = repr(value)[:MAX_SHOWN_CHARACTERS]
        raise DataError(f"{name} should be a whole number", found=shown)
    return int(value)
