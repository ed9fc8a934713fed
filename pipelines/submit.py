"""Sends the compiled training pipeline to a Kubeflow Pipelines server."""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from longrec.errors import LongrecError

_REFUSED = "Check the experiment, the namespace and the server's version (longrec is made for Kubeflow Pipelines 2.x)."
_UNREACHABLE = ("Check the address; for a cluster try 'kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80' and --host "
                "http://localhost:8080.")


class ServerError(LongrecError):
    """The Kubeflow Pipelines server cannot be reached or refused the request."""


@dataclasses.dataclass(frozen=True, slots=True)
class Submitted:
    """A run that the server accepted; `url` is its page."""

    run_id: str
    experiment: str
    url: str


def submit(
    package: Path, arguments: Mapping[str, Any], host: str, *, experiment: str, name: str, namespace: Optional[str] = None
) -> Submitted:
    """Returns the accepted run after sending `package` (compiled YAML) with `arguments` to `host`.

    Raises:
        ServerError: nothing answers at `host`, or the server refuses the request.
    """
    import kfp
    import kfp_server_api
    import urllib3

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the client prints two links
        warnings.simplefilter("ignore")  # every kfp.Client warns about a release that never came
        try:
            client = kfp.Client(host=host, namespace=namespace or "kubeflow")
            run = client.create_run_from_pipeline_package(
                str(package), arguments=dict(arguments), run_name=name, experiment_name=experiment, namespace=namespace
            )
        except kfp_server_api.ApiException as error:
            raise ServerError(f"{host} refused the request", found=f"{error.status} {_reason(error)}", fix=_REFUSED) from error
        except (urllib3.exceptions.HTTPError, OSError, RuntimeError, ValueError) as error:
            raise ServerError(f"no Kubeflow Pipelines server answers at {host}", found=type(error).__name__, fix=_UNREACHABLE) from error
    return Submitted(run.run_id, experiment, f"{host.rstrip('/')}/#/runs/details/{run.run_id}")


def _reason(error: Any) -> str:
    return str(error.body or error.reason or "").strip()[:300]
