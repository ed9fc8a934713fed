"""Groups of requests with similar lengths, padded: several requests share one product.

Lengths of one group differ by less than a factor of two, so padding at most doubles the rows. There
are as many groups as powers of two between the shortest and the longest history, where a loop over
requests would launch each product once per request.

Shape letters: R requests, G requests of one group, L rows of the longest request of a group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MAX_GROUP_CELLS = 1 << 26
"""Largest G times cells of a request in one group; a single request may have more."""


@dataclasses.dataclass(frozen=True, slots=True)
class PaddedRows:
    """Packed rows (events or targets) of the requests of one group.

    Args:
        index: int64 [G, L], packed row; padding repeats the last row of its request.
        is_real: bool [G, L], whether a row is no padding.
        real: int64 [S], position of each row that is no padding among the G L padded ones. A mask
            would let the host wait for the device.
        packed: int64 [S], packed row of each of them.
    """

    index: Int[Tensor, "G L"]
    is_real: Bool[Tensor, "G L"]
    real: Int[Tensor, " S"]
    packed: Int[Tensor, " S"]

    @classmethod
    def of(
        cls,
        counts: npt.NDArray[np.int64],
        requests: npt.NDArray[np.int64],
        device: torch.device,
    ) -> PaddedRows:
        """Return the rows of some requests.

        Args:
            counts: rows of each request, int64 [R].
            requests: requests of the group, int64 [G].
            device: of the result.
        """
        ends = np.cumsum(counts)[requests, None]
        own_counts = counts[requests, None]
        position = np.arange(own_counts.max())
        # A request without rows repeats row 0: nothing reads it.
        last = np.maximum(own_counts - 1, 0)
        index = np.maximum(ends - own_counts, 0) + np.minimum(position, last)
        is_real = position < own_counts
        arrays = (index, is_real, np.flatnonzero(is_real), index[is_real])
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))

    def gather(self, rows: Float[Tensor, "T ..."]) -> Float[Tensor, "G L ..."]:
        """Return the padded rows of a packed tensor."""
        return rows[self.index]

    def unpad(self, padded: Float[Tensor, "G L ..."]) -> Float[Tensor, "S ..."]:
        """Return the rows of a padded tensor that are no padding, in the order of `packed`."""
        return padded.flatten(0, 1).index_select(0, self.real)


def similar_requests(
    num_events: Sequence[int] | npt.NDArray[np.int64],
    is_included: npt.NDArray[np.bool_],
    cells: npt.NDArray[np.int64] | None = None,
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield groups of requests with similar numbers of events.

    Args:
        num_events: of each request.
        is_included: whether a request enters a group, bool [R].
        cells: numbers that a request needs in a product, int64 [R]; groups are split so that they
            stay below MAX_GROUP_CELLS. None does not split.
    """
    # Lengths from 2^(k-1) to 2^k - 1 have k digits.
    _, num_digits = np.frexp(np.asarray(num_events))
    for digits in np.unique(num_digits[is_included]):
        group = np.flatnonzero(is_included & (num_digits == digits))
        if cells is None:
            yield group
            continue
        size = max(1, MAX_GROUP_CELLS // max(1, int(cells[group].max())))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def scatter_groups(
    parts: Sequence[Float[Tensor, "S ..."]],
    groups: Sequence[PaddedRows],
    like: Float[Tensor, "T ..."],
) -> Float[Tensor, "T ..."]:
    """Return a packed tensor of the results of all groups; zeros for rows of no group.

    Args:
        parts: real rows of the result of each group.
        groups: their rows.
        like: packed tensor of the shape of the result; its values are not read.
    """
    if not parts:
        return torch.zeros_like(like)
    rows = torch.cat([group.packed for group in groups])
    results = torch.cat(list(parts))
    return results.new_zeros(like.shape).index_copy(0, rows, results)
