"""A loaded model version and the requests that use it."""

from __future__ import annotations

import dataclasses
from typing import Generic, TypeVar

Engine = TypeVar("Engine")


@dataclasses.dataclass(slots=True)
class LoadedModel(Generic[Engine]):
    """The engine of one version, and the number of requests that use it.

    Args:
        version: version of the model.
        engine: warm engine.
        num_requests: requests that use it now.
        is_replaced: whether another version answers new requests.
    """

    version: str
    engine: Engine
    num_requests: int = 0
    is_replaced: bool = False
