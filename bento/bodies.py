"""Body of a request as bytes: its content type, its encoding and its size are checked first."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from bento.errors import HttpError
from bento.settings import BODY_LIMITS

JSON_MEDIA_TYPE = "application/json"
GZIP_NAMES = ("gzip", "x-gzip")
GZIP_WINDOW_BITS = 31
"""Tells zlib to expect the header and the checksum of gzip."""


async def read_body(
    request: Request,
    media_type: str,
    *others: str,
) -> bytes | HttpError:
    """Return the body of a request, or an HttpError as soon as it is not acceptable.

    Args:
        request: not read yet.
        media_type: content type that the body should have; a request without one has it.
        others: content types that are accepted too.
    """
    sent_type = request.headers.get("content-type", media_type)
    if _without_parameters(sent_type) not in (media_type, *others):
        return HttpError(415, f"a body of content-type {sent_type!r}; send {media_type}")
    encoding = request.headers.get("content-encoding", "identity").lower()
    stream: AsyncIterator[bytes] = request.stream()
    if encoding in GZIP_NAMES:
        stream = _decompress(stream)
    elif encoding != "identity":
        return HttpError(415, f"a body of content-encoding {encoding!r}; send it as it is, or gzip")
    try:
        return await _read(stream)
    except ClientDisconnect:
        return HttpError(400, "the connection closed before the end of the body")
    except zlib.error:
        return HttpError(400, "the body is not gzip, which its content-encoding says")


async def _read(stream: AsyncIterator[bytes]) -> bytes | HttpError:
    """Return all chunks together, or an HttpError as soon as they are too large."""
    chunks = []
    num_bytes = 0
    async for chunk in stream:
        chunks.append(chunk)
        num_bytes += len(chunk)
        if num_bytes > BODY_LIMITS.max_bytes:
            reason = f"the body is larger than {BODY_LIMITS.max_bytes} bytes"
            return HttpError(413, reason)
    return b"".join(chunks)


async def _decompress(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the content of a gzip stream; no chunk is much larger than the largest body.

    Raises:
        zlib.error: it is not one gzip stream, whole and alone.
    """
    decompressor = zlib.decompressobj(GZIP_WINDOW_BITS)
    async for chunk in stream:
        yield decompressor.decompress(chunk, BODY_LIMITS.max_bytes + 1)
        if decompressor.unused_data:
            raise zlib.error("data after the end")
    if not decompressor.eof:
        raise zlib.error("no end")


def _without_parameters(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()
