"""Compiles the pipelines to pipelines/compiled/, and checks that what lies there is up to date."""

import importlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from longrec.config import PlatformConfig
from longrec.errors import LongrecError

PIPELINES = ("training", "refresh", "drift", "study")
FOLDER = Path(__file__).resolve().parent / "compiled"


def pipeline(name: str, platform: Optional[PlatformConfig]) -> Any:
    """Returns a pipeline as a platform runs it; None for one machine.

    Raises:
        LongrecError: there is no such pipeline.
    """
    if name not in PIPELINES:
        raise LongrecError(f"there is no pipeline '{name}'", expected=", ".join(PIPELINES))
    return importlib.import_module(f"pipelines.{name}").make(platform)


def compile_to(name: str, path: Path, platform: PlatformConfig) -> Path:
    """Returns `path` after writing a pipeline to it: the graph, and behind `---` what the platform
    gives its steps.
    """
    from kfp import compiler

    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline(name, platform), str(path))
    return path


def compile_all(
    names: Iterable[str] = PIPELINES,
    folder: Path = FOLDER,
    platform: Optional[PlatformConfig] = None,
) -> list[Path]:
    """Returns the paths written: each pipeline as it is on a platform, the default one for None."""
    return [
        compile_to(name, folder / f"{name}.yaml", platform or PlatformConfig()) for name in names
    ]


def check_compiled(
    names: Iterable[str] = PIPELINES,
    folder: Path = FOLDER,
    platform: Optional[PlatformConfig] = None,
) -> None:
    """Returns nothing when the compiled files are what compiling would write.

    Raises:
        LongrecError: one is missing or differs.
    """
    with tempfile.TemporaryDirectory() as fresh:
        for path in compile_all(names, Path(fresh), platform):
            known = folder / path.name
            if not known.is_file() or known.read_bytes() != path.read_bytes():
                raise LongrecError(
                    f"{known} is not up to date", fix="Run 'make compile' and commit the result."
                )
