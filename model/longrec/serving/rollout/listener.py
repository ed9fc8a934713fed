"""Observers of a rollout."""

from __future__ import annotations

from typing import Protocol


class RolloutListener(Protocol):
    """Observer of a rollout, for metrics; its methods must not wait."""

    def model_activated(self, version: str, replaced: str | None) -> None:
        """Observe that a version answers from now on.

        Args:
            version: the version.
            replaced: version that answered before; None at the start.
        """

    def load_failed(self) -> None:
        """Observe a version that could not be loaded."""

    def request_mirrored(self, outcome: str, difference: float = 0.0) -> None:
        """Observe a mirrored request.

        Args:
            outcome: compared, dropped or failed.
            difference: mean absolute difference of its scores.
        """


class NullListener:
    """A listener that ignores everything."""

    def model_activated(self, version: str, replaced: str | None) -> None:
        """Ignore a version."""

    def load_failed(self) -> None:
        """Ignore a version that could not be loaded."""

    def request_mirrored(self, outcome: str, difference: float = 0.0) -> None:
        """Ignore a mirrored request."""
