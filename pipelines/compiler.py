"""Compile the pipelines to pipelines/compiled/, and check that those files are up to date."""

import importlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from longrec.errors import LongrecError
from pipelines.platform_config import PlatformConfig

PIPELINES = ("training", "refresh", "drift", "study")
FOLDER = Path(__file__).resolve().parent / "compiled"


def pipeline(name: str, platform: Optional[PlatformConfig]) -> Any:
    """Return a pipeline with the platform's settings; None for one machine.

    Raises:
        LongrecError: there is no such pipeline.
    """
    if name not in PIPELINES:
        raise LongrecError(f"there is no pipeline '{name}'", expected=", ".join(PIPELINES))
    return importlib.import_module(f"pipelines.{name}").make(platform)


def specification(made: Any) -> dict[str, Any]:
    """Return a pipeline as a server takes it: the graph, and the platform's settings."""
    from google.protobuf import json_format

    return {
        "pipeline_spec": json_format.MessageToDict(made.pipeline_spec),
        "platform_spec": json_format.MessageToDict(made.platform_spec),
    }


def compile_to(name: str, path: Path, platform: PlatformConfig) -> Path:
    """Write a pipeline to a file: the graph, then the platform's settings of its steps."""
    from kfp import compiler

    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline(name, platform), str(path))
    return path


def compile_all(
    names: Iterable[str] = PIPELINES,
    folder: Path = FOLDER,
    platform: Optional[PlatformConfig] = None,
) -> list[Path]:
    """Write pipelines for a platform (None for the default one); return their paths."""
    settings = platform or PlatformConfig()
    return [compile_to(name, folder / f"{name}.yaml", settings) for name in names]


def check_compiled(
    names: Iterable[str] = PIPELINES,
    folder: Path = FOLDER,
    platform: Optional[PlatformConfig] = None,
) -> None:
    """Check that the compiled files equal what compiling would write.

    Raises:
        LongrecError: a file is missing or differs.
    """
    with tempfile.TemporaryDirectory() as temporary:
        for fresh in compile_all(names, Path(temporary), platform):
            committed = folder / fresh.name
            if not committed.is_file() or committed.read_bytes() != fresh.read_bytes():
                raise LongrecError(
                    f"{committed} is not up to date",
                    fix="Run 'make compile' and commit the result.",
                )
