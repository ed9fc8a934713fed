"""Bytes that are not in the encoding of a file: marked in the text, so that its row is rejected."""

from __future__ import annotations

import codecs

UNDECODABLE = "\ufdd0"
"""Replacement for a byte that is not in the encoding of the file.

Unicode reserves this code point: no text contains it.
"""
UNDECODABLE_ERRORS = "longrec.undecodable"
"""Name of the error handler that puts `UNDECODABLE` in place of bad bytes."""


def _replace_undecodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return UNDECODABLE, error.end


codecs.register_error(UNDECODABLE_ERRORS, _replace_undecodable)
