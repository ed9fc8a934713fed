"""Reads a Kubeflow Pipelines server: bounded, and patient with one that restarts."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any, Optional, TypeVar

import tenacity

from pipelines.server.errors import Unavailable, one_line_errors
from pipelines.server.pod_logs import PodLog

CONNECT_SECONDS = 10.0
QUIET_SECONDS = 60.0
"""A server that sends nothing new for this long is asked no more."""
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
CHUNK_BYTES = 1 << 16
MAX_PAGES = 1_000
PAGE_SIZE = 100
Answer = TypeVar("Answer")


def say_nothing(text: str) -> None:
    """Take a message for the user and drop it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Patience:
    """How long a server that does not answer is asked again.

    Args:
        seconds: longest time; 0 for one attempt.
        tell: receives a message before the first pause.
    """

    seconds: float = 0.0
    tell: Callable[[str], None] = say_nothing

    def repeat(self, call: Callable[[], Answer]) -> Answer:
        """Return the result of a call; repeat it with growing pauses while no server answers.

        Raises:
            Unavailable: no server answered in time.
        """
        pauses = tenacity.wait_exponential(FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            stop=tenacity.stop_after_delay(self.seconds) if self.seconds else _at_once,
            wait=pauses,
            before_sleep=self._before_pause,
            reraise=True,
        )
        return retrying(call)

    def _before_pause(self, state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            error = state.outcome.exception()
            self.tell(f"{error} Asking again for {self.seconds:.0f} s; Ctrl-C ends this.")


def _at_once(state: tenacity.RetryCallState) -> bool:
    return True


class Reader:
    """Reads a server through the client of its API.

    Args:
        client: a kfp_server_api.ApiClient, with the credentials.
        host: address of the server.
        patience: for a server that does not answer.
    """

    def __init__(self, client: Any, host: str, patience: Patience) -> None:
        self._client = client
        self.host = host
        self.patience = patience

    def json(self, path: str, *, subject: str = "", **query: Any) -> dict[str, Any]:
        """Return the JSON object at an address.

        Args:
            path: path of the address, from the root of the server.
            subject: what is asked for, for the error if it is not there.
            query: parameters of the address; empty ones are left out.

        Raises:
            ServerError: the server refused, or answered no JSON object.
        """
        given = [(name, value) for name, value in query.items() if value not in ("", None)]

        def ask() -> dict[str, Any]:
            with one_line_errors(self.host, subject):
                answer = self._get(path, given, "application/json")
                value = json.loads(answer.data)
                if not isinstance(value, dict):
                    raise ValueError(f"a {type(value).__name__} at {path}")
                return value

        return self.patience.repeat(ask)

    def pages(self, path: str, key: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Yield the entries of a list of the server, page after page.

        A server that repeats a page ends the list.
        """
        token = ""
        seen = set[str]()
        for _ in range(MAX_PAGES):
            page = self.json(
                path,
                page_size=PAGE_SIZE,
                page_token=token,
                **query,
            )
            entries = page.get(key) or []
            yield from entries
            token = str(page.get("next_page_token") or "")
            if not token or not entries or token in seen:
                return
            seen.add(token)

    def text(self, path: str) -> Optional[PodLog]:
        """Return the text at an address; None for no answer or for an HTML page."""
        return self.patience.repeat(lambda: self._text(path))

    def _text(self, path: str) -> Optional[PodLog]:
        import kfp_server_api

        with one_line_errors(self.host, path):
            try:
                answer = self._get(path, [], "text/plain")
            except kfp_server_api.ApiException as error:
                if error.status in (
                    401,
                    403,
                    502,
                    503,
                    504,
                ):
                    raise
                return None
            if "html" in (answer.headers.get("Content-Type") or ""):
                return None
            return _read(answer)

    def _get(self, path: str, query: list[tuple[str, Any]], accept: str) -> Any:
        return self._client.call_api(
            path,
            "GET",
            query_params=query,
            header_params={"Accept": accept},
            auth_settings=["Bearer"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=(CONNECT_SECONDS, QUIET_SECONDS),
        )


def _read(answer: Any) -> PodLog:
    """Return what a server sends, until it ends or sends nothing new for QUIET_SECONDS."""
    import urllib3

    chunks = []
    is_cut = False
    try:
        for chunk in answer.stream(CHUNK_BYTES):
            chunks.append(chunk)
    except (urllib3.exceptions.HTTPError, OSError):
        is_cut = True
    text = b"".join(chunks).decode("utf-8", "replace")
    return PodLog(text, is_cut=is_cut)
