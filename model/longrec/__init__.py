"""longrec: rank with long user histories.

The public names below are loaded on first use, so that `import longrec.schema` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longrec.config import RunConfig
    from longrec.data.batch import RequestBatch
    from longrec.data.dataset import Dataset
    from longrec.errors import LongrecError
    from longrec.nn.ranker import Ranker
    from longrec.schema import Feature, Schema, Task
    from longrec.scoring.request import RequestRows
    from longrec.scoring.scorer import Scorer

__all__ = [
    "Dataset",
    "Feature",
    "LongrecError",
    "Ranker",
    "RequestBatch",
    "RequestRows",
    "RunConfig",
    "Schema",
    "Scorer",
    "Task",
]

_HOMES = {
    "Dataset": "longrec.data.dataset",
    "Feature": "longrec.schema",
    "LongrecError": "longrec.errors",
    "Ranker": "longrec.nn.ranker",
    "RequestBatch": "longrec.data.batch",
    "RequestRows": "longrec.scoring.request",
    "RunConfig": "longrec.config",
    "Schema": "longrec.schema",
    "Scorer": "longrec.scoring.scorer",
    "Task": "longrec.schema",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'longrec' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
