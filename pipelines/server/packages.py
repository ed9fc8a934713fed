"""Compiled pipelines and cron schedules in the form that a server accepts."""

from pathlib import Path
from typing import Any

import yaml

from longrec.errors import LongrecError


def read_package(path: Path) -> dict[str, Any]:
    """Return a compiled pipeline for the server: the graph alone, or graph and platform.

    Raises:
        LongrecError: the file is missing.
    """
    if not path.is_file():
        raise LongrecError(f"no compiled pipeline at {path}", fix="Write it with longrec compile.")
    spec, *platforms = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    if platforms:
        return {"pipeline_spec": spec, "platform_spec": platforms[0]}
    return dict(spec)


def cron_fields(cron: str) -> str:
    """Return a schedule in the six fields of Kubeflow, seconds first.

    Raises:
        LongrecError: it has neither five fields nor six.
    """
    fields = cron.split()
    if len(fields) not in (5, 6):
        raise LongrecError(
            "a schedule has five fields, or six with the seconds first",
            found=repr(cron),
            fix="For example '0 3 * * *'.",
        )
    if len(fields) == 5:
        fields = ["0", *fields]
    return " ".join(fields)
