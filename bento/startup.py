"""Start of the service: checks in the supervisor, and errors of workers.

BentoML's supervisor restarts a failed worker for ever. A worker that cannot start therefore leaves
its reason in a file and stops the supervisor, which prints the reason and exits with code 1.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from bento.settings import store_digest, workdir
from longrec import child
from longrec.errors import SchemaMismatch
from longrec.serving.auth import Tokens

ERROR_FILE_VARIABLE = "LONGREC_STARTUP_ERROR_FILE"
"""Environment variable that names the file for the reason of a worker that cannot start."""
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
    descriptor, path = tempfile.mkstemp(prefix="longrec-startup-error-")
    os.close(descriptor)
    os.environ[ERROR_FILE_VARIABLE] = path
    os.environ[SUPERVISOR_VARIABLE] = str(os.getpid())
    atexit.register(_exit_with_error_of_worker, Path(path))


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
    return ERROR_FILE_VARIABLE in os.environ


def end_with_supervisor() -> None:
    """End this worker soon after its supervisor ended, in whatever way."""
    child.end_with(int(os.environ[SUPERVISOR_VARIABLE]))


def stop_server(reason: object) -> NoReturn:
    """Stop this worker and its supervisor; the supervisor prints the reason."""
    path = Path(os.environ[ERROR_FILE_VARIABLE])
    path.write_text(f"Error: longrec cannot serve: {reason}\n", encoding="utf-8")
    os.kill(os.getppid(), signal.SIGTERM)
    os._exit(1)


def _exit_with_error_of_worker(path: Path) -> None:
    """Print the error of a worker and exit with code 1, if there is one."""
    reason = path.read_text(encoding="utf-8")
    path.unlink()
    if reason:
        sys.stderr.write(reason)
        sys.stderr.flush()
        os._exit(1)
