"""What every order of target-to-history attention reads."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Queries, history tokens and projections of one layer, packed by request (see longrec.data.batch).

    Args:
        queries: [N, D], one row a target.
        tokens: [T, D], X_i, encoded events.
        w_q, w_k, w_v: [D, D], applied as x @ w; head j owns columns j*d_h:(j+1)*d_h.
        num_heads: H; divides D.
        event_offsets, target_offsets: int64 [R+1].
        bias: [T, H], added to the logits of each head, or None.
    """

    queries: Float[Tensor, "N D"]
    tokens: Float[Tensor, "T D"]
    w_q: Float[Tensor, "D D"]
    w_k: Float[Tensor, "D D"]
    w_v: Float[Tensor, "D D"]
    num_heads: int
    event_offsets: Int[Tensor, " R1"]
    target_offsets: Int[Tensor, " R1"]
    bias: Float[Tensor, "T H"] | None = None

    @property
    def scale(self) -> float:
        """1 / sqrt(d_h)."""
        return float((self.queries.shape[1] // self.num_heads) ** -0.5)

    def spans(self) -> list[tuple[int, int, int, int]]:
        """Returns (first event, end of events, first target, end of targets) of each request."""
        events, targets = self.event_offsets.tolist(), self.target_offsets.tolist()
        return list(zip(events[:-1], events[1:], targets[:-1], targets[1:], strict=True))

    def bias_of(self, start: int, end: int) -> Tensor:
        """Returns the bias of events start:end as [H, 1, L]; zeros when there is none."""
        if self.bias is None:
            return self.tokens.new_zeros((1, 1, 1))
        bias_H1L: Tensor = self.bias[start:end].t().unsqueeze(1)
        return bias_H1L


def weights(logits: Float[Tensor, "H M L"]) -> Float[Tensor, "H M L"]:
    """Returns the softmax over events, computed in at least float32."""
    kind = torch.float32 if logits.dtype in (torch.bfloat16, torch.float16) else logits.dtype
    return torch.softmax(logits, dim=-1, dtype=kind).to(logits.dtype)
