"""longrec: rank with long user histories.

From a log to scores, on one machine:

    import_events -> build_features -> publish -> retrieve -> train -> evaluate -> Scorer

`longrec run` does the same with checks, a gate and packaging. Names are loaded on first use, so
`import longrec` and `import longrec.schema` load no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longrec.config import (
        ChecksConfig,
        DataConfig,
        DriftConfig,
        EvaluateConfig,
        GateConfig,
        LengthConfig,
        ModelConfig,
        RunConfig,
        TrainConfig,
    )
    from longrec.config_file import load_config
    from longrec.data.batch import RequestBatch
    from longrec.data.dataset import Dataset
    from longrec.data.features import build_features
    from longrec.data.importers.event_mapping import EventMapping
    from longrec.data.importers.events import import_events
    from longrec.data.importers.synthetic import synthesize
    from longrec.data.store.offline_store import OfflineStore
    from longrec.data.store.online_store import OnlineStore
    from longrec.data.store.publish import publish
    from longrec.data.store.retrieve import retrieve
    from longrec.errors import LongrecError
    from longrec.evaluation.evaluate import evaluate
    from longrec.nn.ranker import Ranker
    from longrec.schema import Feature, Schema, Task
    from longrec.scoring.bundle import Bundle
    from longrec.scoring.request import RequestRows
    from longrec.scoring.scorer import Scorer
    from longrec.training.train import train

__all__ = [
    "Bundle",
    "ChecksConfig",
    "DataConfig",
    "Dataset",
    "DriftConfig",
    "EvaluateConfig",
    "EventMapping",
    "Feature",
    "GateConfig",
    "LengthConfig",
    "LongrecError",
    "ModelConfig",
    "OfflineStore",
    "OnlineStore",
    "Ranker",
    "RequestBatch",
    "RequestRows",
    "RunConfig",
    "Schema",
    "Scorer",
    "Task",
    "TrainConfig",
    "build_features",
    "evaluate",
    "import_events",
    "load_config",
    "publish",
    "retrieve",
    "synthesize",
    "train",
]

_MODULES = {
    "Bundle": "longrec.scoring.bundle",
    "ChecksConfig": "longrec.config",
    "DataConfig": "longrec.config",
    "Dataset": "longrec.data.dataset",
    "DriftConfig": "longrec.config",
    "EvaluateConfig": "longrec.config",
    "EventMapping": "longrec.data.importers.event_mapping",
    "Feature": "longrec.schema",
    "GateConfig": "longrec.config",
    "LengthConfig": "longrec.config",
    "LongrecError": "longrec.errors",
    "ModelConfig": "longrec.config",
    "OfflineStore": "longrec.data.store.offline_store",
    "OnlineStore": "longrec.data.store.online_store",
    "Ranker": "longrec.nn.ranker",
    "RequestBatch": "longrec.data.batch",
    "RequestRows": "longrec.scoring.request",
    "RunConfig": "longrec.config",
    "Schema": "longrec.schema",
    "Scorer": "longrec.scoring.scorer",
    "Task": "longrec.schema",
    "TrainConfig": "longrec.config",
    "build_features": "longrec.data.features",
    "evaluate": "longrec.evaluation.evaluate",
    "import_events": "longrec.data.importers.events",
    "load_config": "longrec.config_file",
    "publish": "longrec.data.store.publish",
    "retrieve": "longrec.data.store.retrieve",
    "synthesize": "longrec.data.importers.synthetic",
    "train": "longrec.training.train",
}
"""Public name -> module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'longrec' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
