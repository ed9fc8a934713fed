"""Bounds of an Arrow IPC stream, checked by what it states before pyarrow decodes it.

A compressed buffer begins with the number of bytes that it decompresses to. A few kilobytes may
become gigabytes, so these numbers are checked first.

    stream   schema message, dictionary batches, record batch, end
    message  flatbuffer, which pyarrow verifies when it reads the message
             body: the buffers that the flatbuffer lists

Source: Message.fbs and Columnar.rst of the Arrow format.
"""

from __future__ import annotations

import dataclasses
import struct

import pyarrow as pa

from longrec.errors import DataError

METADATA_V5 = 4
"""Older messages may be compressed without a word of it in the record batch."""
UNCOMPRESSED = -1
"""Stated by a buffer that its writer left as it is, in a compressed batch."""

# Places of fields in the tables of Message.fbs.
_MESSAGE_HEADER = 2
_DICTIONARY_ID = 0
_DICTIONARY_DATA = 1
_BATCH_BUFFERS = 2
_BATCH_COMPRESSION = 3
_FIRST_FIELD_BYTES = 4

_UINT16 = struct.Struct("<H")
_INT32 = struct.Struct("<i")
_UINT32 = struct.Struct("<I")
_INT64 = struct.Struct("<q")
_BUFFER = struct.Struct("<qq")


def check_stream(stream: bytes | memoryview, max_bytes: int) -> None:
    """Check the sizes that the batches of a stream state.

    Args:
        stream: begins with an Arrow IPC stream; what follows the stream is not read.
        max_bytes: decompressed bytes of all batches, dictionaries included.

    Raises:
        DataError: a size is out of bounds, or the stream is damaged.
    """
    try:
        _check_messages(stream, max_bytes)
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        if isinstance(error, DataError):
            raise
        reason = str(error).splitlines() or [""]
        raise DataError("not an Arrow IPC stream", found=reason[0]) from error


def _check_messages(stream: bytes | memoryview, max_bytes: int) -> None:
    num_bytes = 0
    dictionary_ids = set[int]()
    source = pa.BufferReader(pa.py_buffer(stream))
    for message in pa.ipc.MessageReader.open_stream(source):
        if message.type == "schema":
            continue
        batch = _header_of(message)
        if message.type == "dictionary":
            # Repeated ones would be concatenated again and again.
            dictionary_ids = _with_new(dictionary_ids, batch.int64(_DICTIONARY_ID))
            batch = batch.table(_DICTIONARY_DATA)
        num_bytes += _decompressed_bytes(batch, message.body)
        _check_size("decompressed bytes", num_bytes, max_bytes)


def _header_of(message: pa.ipc.Message) -> _Table:
    """Return the header of a record batch or of a dictionary batch."""
    is_batch = message.type in ("record batch", "dictionary")
    version = message.metadata_version
    if not is_batch or version != METADATA_V5:
        raise DataError(
            "not an Arrow IPC stream of record batches",
            found=f"{message.type}, metadata version {version}",
            expected=f"metadata version {METADATA_V5}",
        )
    flatbuffer = message.metadata.to_pybytes()
    (root,) = _UINT32.unpack_from(flatbuffer)
    return _Table(flatbuffer, root).table(_MESSAGE_HEADER)


def _with_new(dictionary_ids: set[int], new: int) -> set[int]:
    if new in dictionary_ids:
        raise DataError("a dictionary comes twice", found=f"dictionary {new}")
    return {*dictionary_ids, new}


def _decompressed_bytes(batch: _Table, body: pa.Buffer) -> int:
    """Return the stated size of all buffers of a batch."""
    content = memoryview(body)
    is_compressed = batch.position_of(_BATCH_COMPRESSION) is not None
    num_bytes = 0
    for offset, length in batch.buffers(_BATCH_BUFFERS):
        _check_size("bytes of a buffer", length, len(content))
        _check_size("bytes before a buffer", offset, len(content) - length)
        buffer = content[offset : offset + length]
        num_bytes += _stated_bytes(buffer) if is_compressed else length
    return num_bytes


def _stated_bytes(compressed: memoryview) -> int:
    """Return what a buffer of a compressed batch decompresses to."""
    if not len(compressed):
        return 0
    (stated,) = _INT64.unpack_from(compressed)
    if stated == UNCOMPRESSED:
        return len(compressed)
    if stated < 0:
        raise DataError("a size is out of bounds", found=f"{stated} decompressed bytes")
    return int(stated)


def _check_size(unit: str, found: int, largest: int) -> None:
    if not 0 <= found <= largest:
        raise DataError(
            "a size is out of bounds",
            found=f"{found} {unit}",
            expected=f"0 to {largest}",
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Table:
    """A table of a verified flatbuffer.

    Args:
        flatbuffer: all bytes.
        start: position of the table.
    """

    flatbuffer: bytes
    start: int

    def position_of(self, field: int) -> int | None:
        """Return the position of a field's value, None for a missing field."""
        (to_vtable,) = _INT32.unpack_from(self.flatbuffer, self.start)
        vtable = self.start - to_vtable
        (vtable_bytes,) = _UINT16.unpack_from(self.flatbuffer, vtable)
        entry = _FIRST_FIELD_BYTES + _UINT16.size * field
        if entry >= vtable_bytes:
            return None
        (offset,) = _UINT16.unpack_from(self.flatbuffer, vtable + entry)
        return self.start + offset if offset else None

    def int64(self, field: int) -> int:
        """Return an int64, 0 for a missing one."""
        position = self.position_of(field)
        if position is None:
            return 0
        (value,) = _INT64.unpack_from(self.flatbuffer, position)
        return int(value)

    def table(self, field: int) -> _Table:
        """Return a table in this one."""
        return _Table(self.flatbuffer, self._target(field))

    def buffers(self, field: int) -> list[tuple[int, int]]:
        """Return (offset in the body, length) of each buffer of a vector."""
        if self.position_of(field) is None:
            return []
        start = self._target(field)
        (count,) = _UINT32.unpack_from(self.flatbuffer, start)
        first = start + _UINT32.size
        content = self.flatbuffer[first : first + count * _BUFFER.size]
        return list(_BUFFER.iter_unpack(content))

    def _target(self, field: int) -> int:
        position = self.position_of(field)
        if position is None:
            raise DataError("a message of an Arrow IPC stream lacks a part")
        (offset,) = _UINT32.unpack_from(self.flatbuffer, position)
        return position + int(offset)
