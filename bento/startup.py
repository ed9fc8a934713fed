"""Start of the service: checks in the supervisor, and errors of workers.

BentoML's supervisor restarts a failed worker for ever. A worker that cannot start therefore leaves
its reason in the folder of the service and stops the supervisor, which prints the reason and exits
with code 1.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from bento.service_folder import ServiceFolder, create_service_folder
from bento.settings import store_digest, workdir
from longrec import child
from longrec.errors import SchemaMismatch
from longrec.serving.auth import Tokens
from longrec.serving.prometheus import exemplars

FOLDER_VARIABLE = "LONGREC_SERVICE_FOLDER"
"""Environment variable that names the folder of the service for its workers."""
SUPERVISOR_VARIABLE = "LONGREC_SUPERVISOR"
"""Environment variable with the process id of the supervisor, which a worker ends with."""


def prepare_workers() -> None:
    """Set the environment variables that workers inherit, and the exit of the supervisor."""
    # Workers start in another folder.
    os.environ["LONGREC_HOME"] = str(workdir())
    # Waiting threads of torch sleep; torch reads this when a worker loads it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Let torch use huge pages: each request reads cached histories from end to end.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    folder = create_service_folder()
    os.environ[FOLDER_VARIABLE] = str(folder.path)
    os.environ[SUPERVISOR_VARIABLE] = str(os.getpid())
    atexit.register(_end, folder)


def check_environment(bundle: Path) -> None:
    """Check tokens and feature store, before any worker starts.

    Args:
        bundle: folder of the model's bundle.

    Raises:
        ConfigError: the tokens are not valid.
        StoreError: nothing is published in the work directory.
        SchemaMismatch: it was published for another schema than the model's.
    """
    from longrec.data.store.versions import PublishedVersion
    from longrec.schema import Schema

    Tokens(os.environ)
    published = PublishedVersion.open(workdir(), store_digest())
    differences = Schema.load(bundle / "bundle.json").differences(published.schema)
    if differences:
        raise SchemaMismatch(
            f"the feature store at {workdir()} was published for another schema than the model's",
            found="; ".join(differences),
            fix="Set LONGREC_HOME to the feature store of the model, or publish its features.",
        )


def is_worker() -> bool:
    """Return whether this process is a worker of `bentoml serve`."""
    return FOLDER_VARIABLE in os.environ


def supervisor() -> int | None:
    """Return the process id of the supervisor; None outside of a worker."""
    text = os.environ.get(SUPERVISOR_VARIABLE)
    return int(text) if text else None


def prepare_worker() -> None:
    """Let this worker end soon after its supervisor, and count into the folder of its service.

    BentoML's own folder for metrics lies in BENTOML_HOME: services that share it delete each
    other's counts.
    """
    child.end_with(int(os.environ[SUPERVISOR_VARIABLE]))
    os.environ[exemplars.FOLDER_VARIABLE] = str(_service_folder().metrics)


def stop_server(reason: object) -> NoReturn:
    """Stop this worker and its supervisor; the supervisor prints the reason."""
    text = f"Error: longrec cannot serve: {reason}\n"
    _service_folder().startup_error.write_text(text, encoding="utf-8")
    os.kill(os.getppid(), signal.SIGTERM)
    os._exit(1)


def _service_folder() -> ServiceFolder:
    return ServiceFolder(Path(os.environ[FOLDER_VARIABLE]))


def _end(folder: ServiceFolder) -> None:
    """Remove the folder; print the error of a worker and exit with code 1, if there is one."""
    reason = folder.read_startup_error()
    folder.remove()
    if reason:
        sys.stderr.write(reason)
        sys.stderr.flush()
        os._exit(1)
