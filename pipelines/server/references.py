"""What a run or a schedule refers to: a pipeline of the server and one of its versions."""

from collections.abc import Mapping
from typing import Any, Optional

from pipelines.server.errors import ServerError, Unavailable
from pipelines.server.reading import Reader

BASE = "/apis/v2beta1/pipelines"


class References:
    """Pipelines and versions of a server, each read once.

    Args:
        reader: reads the server.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._known: dict[str, dict[str, Any]] = {}

    def spec_of(self, entry: Mapping[str, Any]) -> Optional[dict[str, Any]]:
        """Return the specification that a run or a schedule refers to; None for none."""
        reference = entry.get("pipeline_version_reference") or {}
        pipeline = reference.get("pipeline_id")
        version = reference.get("pipeline_version_id")
        if not pipeline or not version:
            return None
        return self._read(f"{BASE}/{pipeline}/versions/{version}").get("pipeline_spec")

    def pipeline_of(self, entry: Mapping[str, Any]) -> str:
        """Return the name of the pipeline that a run or a schedule refers to; empty for none."""
        pipeline = (entry.get("pipeline_version_reference") or {}).get("pipeline_id")
        if not pipeline:
            return ""
        found = self._read(f"{BASE}/{pipeline}")
        return str(found.get("name") or found.get("display_name") or "")

    def _read(self, path: str) -> dict[str, Any]:
        """Return what is at an address; nothing if it is gone, such as a deleted pipeline."""
        if path not in self._known:
            try:
                self._known[path] = self._reader.json(path)
            except Unavailable:
                raise
            except ServerError:
                self._known[path] = {}
        return self._known[path]
