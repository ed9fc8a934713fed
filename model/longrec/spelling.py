"""The nearest of the known names, for messages about a misspelled one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

MAX_CHARACTERS = 64
"""A longer name is compared with none: comparing takes the square of its length."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most like a name, empty if none is like it.

    Case, hyphens and underscores do not count: `userId` is `user_id`.
    """
    if len(name) > MAX_CHARACTERS:
        return ""
    names = {_folded(known_name): known_name for known_name in known}
    nearest = difflib.get_close_matches(_folded(name), names, 1)
    return names[nearest[0]] if nearest else ""


def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
