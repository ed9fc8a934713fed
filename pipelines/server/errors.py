"""Errors of a Kubeflow Pipelines server as messages of one line."""

import contextlib
import importlib.metadata
import json
from collections.abc import Iterator
from typing import Any

from longrec.errors import LongrecError

PORT_FORWARD_FIX = (
    "For a cluster try 'kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80' "
    "and --host http://localhost:8080."
)
CREDENTIALS_FIX = (
    "Give a token in LONGREC_KFP_TOKEN (for example of 'kubectl create token default-editor "
    "-n NAMESPACE --audience pipelines.kubeflow.org') or the cookie of the browser's session in "
    "LONGREC_KFP_COOKIE, and your --namespace."
)
UNSUPPORTED_TEXTS = (
    "unknown field",
    "invalid v2 pipeline spec",
    "not supported yet",
    "not implemented yet",
)
"""Texts in the errors of a server that is too old."""
UNAVAILABLE_STATUSES = (500, 502, 503, 504)
"""Answers of a server, or of the proxy before it, that restarts."""
MAX_REASON_LENGTH = 300


class ServerError(LongrecError):
    """A Kubeflow Pipelines server cannot be reached or refused the request."""


class Unavailable(ServerError):
    """No server answers now; another attempt may find one."""


@contextlib.contextmanager
def one_line_errors(host: str, subject: str = "") -> Iterator[None]:
    """Turn any error of a request into a ServerError with a fix.

    Args:
        host: address of the server.
        subject: what the request asks for, for example `run 7`.
    """
    import kfp_server_api
    import urllib3

    try:
        yield
    except kfp_server_api.ApiException as error:
        raise _refusal(error, host, subject) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        kind = ServerError if _is_no_address(error) else Unavailable
        raise kind(
            f"no Kubeflow Pipelines server answers at {host}",
            found=type(error).__name__,
            fix=f"Check the address. {PORT_FORWARD_FIX}",
        ) from error
    except LongrecError:
        raise
    except ValueError as error:
        raise ServerError(
            f"the service at {host} is no Kubeflow Pipelines server of version 2",
            found=str(error)[:MAX_REASON_LENGTH],
            fix=f"{CREDENTIALS_FIX} {_upgrade_fix()}",
        ) from error


def _is_no_address(error: Exception) -> bool:
    """Return whether no such host exists, which waiting does not change."""
    import urllib3

    reason = getattr(error, "reason", error)
    return isinstance(reason, urllib3.exceptions.NameResolutionError)


def _refusal(error: Any, host: str, subject: str) -> ServerError:
    reason = _reason(error)
    found = f"{error.status} {reason}"
    if error.status in (401, 403):
        return ServerError(f"{host} refused the credentials", found=found, fix=CREDENTIALS_FIX)
    if error.status == 404 and subject:
        return ServerError(
            f"{host} has no {subject}", found=found, fix="See longrec status for its runs."
        )
    is_unsupported = any(text in reason for text in UNSUPPORTED_TEXTS)
    if error.status in (404, 405, 501) or is_unsupported:
        return ServerError(
            f"{host} does not support this version of the API", found=found, fix=_upgrade_fix()
        )
    kind = Unavailable if error.status in UNAVAILABLE_STATUSES else ServerError
    return kind(
        f"{host} refused the request",
        found=found,
        fix="Check the parameters, the experiment and the namespace.",
    )


def _upgrade_fix() -> str:
    version = importlib.metadata.version("kfp")
    return (
        f"longrec needs Kubeflow Pipelines 2.14 or newer (kfp {version}): upgrade the server, "
        "or install its kfp and submit again."
    )


def _reason(error: Any) -> str:
    text = str(error.body or error.reason or "").strip()
    with contextlib.suppress(ValueError, AttributeError):
        text = str(json.loads(text).get("message") or text)
    first_line = text.partition("\n")[0]
    return first_line[:MAX_REASON_LENGTH]
