"""Pipelines that tests compile once: a compilation takes seconds."""

from __future__ import annotations

from typing import Any

from pipelines import compiler

_compile = compiler.pipeline
_pipelines: dict[str, Any] = {}


def compiled_once(name: str, platform: Any) -> Any:
    """Return `compiler.pipeline` of the same arguments; each one is compiled once in a process."""
    key = f"{name} {platform}"
    if key not in _pipelines:
        _pipelines[key] = _compile(name, platform)
    return _pipelines[key]
