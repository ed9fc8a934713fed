"""Errors that state what was found, what was expected and how to fix it."""

from __future__ import annotations

from typing import ClassVar


class LongrecError(ValueError):
    """A mistake in the input, the configuration or the environment that the user can fix.

    Args:
        what: one short clause that names the problem.
        found: the value that was there.
        expected: the value that should have been there.
        fix: the next step for the user.
    """

    exit_code: ClassVar[int] = 1
    """Exit status of a command that ends with this error."""

    def __init__(
        self,
        what: str,
        *,
        found: object = None,
        expected: object = None,
        fix: str = "",
    ) -> None:
        self.what = what
        self.found = found
        self.expected = expected
        self.fix = fix
        super().__init__(self._message())

    def _message(self) -> str:
        parts = [self.what]
        if self.found is not None:
            parts.append(f"found {self.found}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        text = "; ".join(parts)
        if not self.fix:
            return text
        return f"{text}. {self.fix}".rstrip()


class ConfigError(LongrecError):
    """A configuration key or value that cannot be used."""


class DataError(LongrecError):
    """An input file or table that cannot be used as it is."""


class SchemaMismatch(LongrecError):
    """Two parts of the system were made for different schemas."""


class CheckFailed(LongrecError):
    """A data check failed at error severity; its report has been written."""


class GateRefused(LongrecError):
    """A trained model did not pass the promotion gate."""

    exit_code = 3


class StoreError(LongrecError):
    """The feature store is missing, unreachable or returned an unusable answer."""


class Stopped(LongrecError):
    """A training received SIGTERM and ended between two steps."""

    exit_code = 128 + 15
