"""Errors that tell a person what was found, what was expected and how to mend it."""

from __future__ import annotations

from typing import ClassVar


class LongrecError(ValueError):
    """A mistake in the input, the configuration or the environment that the user can mend.

    Args:
        what: the thing that is wrong, one short clause.
        found: what was there.
        expected: what should have been there.
        fix: what the user can do next.
    """

    exit_code: ClassVar[int] = 1
    """Of the command that it ends."""

    def __init__(
        self, what: str, *, found: object = None, expected: object = None, fix: str = ""
    ) -> None:
        self.what, self.found, self.expected, self.fix = what, found, expected, fix
        parts = [what]
        if found is not None:
            parts.append(f"found {found}")
        if expected is not None:
            parts.append(f"expected {expected}")
        text = "; ".join(parts)
        super().__init__(f"{text}. {fix}".rstrip() if fix else text)


class ConfigError(LongrecError):
    """A configuration key or value that cannot be used."""


class DataError(LongrecError):
    """An input file or table that cannot be used as it is."""


class SchemaMismatch(LongrecError):
    """Two parts of the system were made for different schemas."""


class CheckFailed(LongrecError):
    """A data check of failing severity did not hold; the report has been written."""


class GateRefused(LongrecError):
    """A trained model did not pass the promotion gate."""


class StoreError(LongrecError):
    """The feature store is missing, unreachable or answered something unusable."""


class Stopped(LongrecError):
    """A training was told to stop (SIGTERM); it ended between two steps."""

    exit_code = 128 + 15
