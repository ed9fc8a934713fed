"""AttentionSource: any representation of a layer's events that its queries attend to."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

from longrec.nn.target_attention import fused
from longrec.nn.target_attention.cached import CachedKeysValues

AttentionSource: TypeAlias = Tensor | fused.KeysValues | fused.EventTokens | CachedKeysValues
"""X_i of the events [T, D], or an object with `attend`: from the fused path or from a cache.

It is a union and no protocol, since a tensor has no `attend`: STCALayer.attend tells them apart.
"""
