"""Requests and results, from the border of a service to its engine.

HTTP body (JSON or Arrow) --decode--> CallerRequest --resolve--> RankRequest
RankRequest --read the user's rows--> EncodedRequest
EncodedRequest --engine--> RankResult, or Explanation
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from longrec.errors import DataError
from longrec.ids import to_id, to_ids
from longrec.tracing import Trace

if TYPE_CHECKING:
    from longrec.schema import Schema
    from longrec.scoring.request import RequestRows
    from longrec.scoring.scorer import Scores
    from longrec.serving.inline_history import InlineHistory


@dataclasses.dataclass(frozen=True, slots=True)
class BodyLimits:
    """Largest parts of a request.

    Args:
        max_candidates: candidates.
        max_events: events of a history that comes with the request.
        max_bytes: bytes of the body; also those that its Arrow streams decompress to.
    """

    max_candidates: int = 2_048
    max_events: int = 16_384
    max_bytes: int = 2_228_224

    def check_candidates(self, count: int) -> None:
        """Raise DataError if a request has no candidate or too many."""
        if 1 <= count <= self.max_candidates:
            return
        raise DataError(
            "candidates: out of bounds",
            found=count,
            expected=f"1 to {self.max_candidates}",
        )

    def check_events(self, count: int) -> None:
        """Raise DataError if a history that comes with a request has too many events."""
        if count <= self.max_events:
            return
        raise DataError(
            "history: too many events",
            found=count,
            expected=f"at most {self.max_events}",
            fix="Send the most recent ones.",
        )


DEFAULT_LIMITS = BodyLimits()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _RequestOptions:
    """What a request may hold beside user and candidates.

    Args:
        request_time_ms: ms, not checked yet (see `longrec.times`); None for now.
        length: most recent events to use; None for the served length.
        timeout_ms: time for the answer; None for the service's default.
        inline_history: events to use instead of the stored ones.
    """

    request_time_ms: int | None = None
    length: int | None = None
    timeout_ms: int | None = None
    inline_history: InlineHistory | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RankRequest(_RequestOptions):
    """A request with the ids of the log.

    Args:
        user_id: user to read the history of.
        candidates: int64 [m], item ids.
    """

    user_id: int
    candidates: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class CallerRequest(_RequestOptions):
    """A request as the caller sent it, decoded from JSON or Arrow; ids may be texts.

    Args:
        user_id: user to read the history of.
        candidates: item ids.
    """

    user_id: int | str
    candidates: npt.NDArray[np.int64] | Sequence[int | str]

    def resolve(self, schema: Schema) -> RankRequest:
        """Return the request with the ids that the log has: numbers, or hashes of texts.

        Raises:
            DataError: a text stands for a number and is none.
        """
        return RankRequest(
            user_id=to_id("user_id", self.user_id, is_text="user" in schema.text_ids),
            candidates=to_ids("candidates", self.candidates, is_text="item" in schema.text_ids),
            request_time_ms=self.request_time_ms,
            length=self.length,
            timeout_ms=self.timeout_ms,
            inline_history=self.inline_history,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedRequest:
    """A request inside an engine: its user's rows, ready to be encoded.

    RequestRows is the part that a Scorer needs; evaluation uses it alone.

    Args:
        rows: what the Scorer takes; the history may hold events after the request time.
        length: most recent events to use; None for the served length.
        key: user of the cache; None for a history that must not be cached.
        deadline: monotonic seconds; later answers are of no use.
        trace: of a sampled request.

    Raises:
        DataError: the length is negative.
    """

    rows: RequestRows
    length: int | None = None
    key: Hashable = None
    deadline: float = math.inf
    trace: Trace | None = None

    def __post_init__(self) -> None:
        # pyarrow slices to a negative number of rows without an error: the process would crash.
        if self.length is not None and self.length < 0:
            raise DataError("length should not be negative", found=self.length)


@dataclasses.dataclass(frozen=True, slots=True)
class RankResult:
    """Scores of one request.

    Args:
        scores: float32 [m, K], a probability for each candidate and task.
        num_events: events used.
        num_unknown: candidates unknown to the model.
        unknown_events: events used with an unknown value, by column
            (longrec.scoring.unknown).
        newest_ms: timestamp of the newest event used, None without events.
    """

    scores: Scores
    num_events: int
    num_unknown: int
    unknown_events: Mapping[str, int]
    newest_ms: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class TopEvents:
    """Events that one attention head weighs most for a candidate.

    Args:
        layer, head: counted from 0.
        rows: int64 [n], rows of the events used (0 is the oldest), largest weight first.
        weights: float32 [n]; the weights of all events used sum to 1.
    """

    layer: int
    head: int
    rows: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """Scores of one candidate, and the events behind them.

    Args:
        result: scores of the candidate.
        first_row: first row used of the timeline; `result.num_events` rows are used.
        heads: top events of each layer and head.
    """

    result: RankResult
    first_row: int
    heads: tuple[TopEvents, ...]
