"""The door: who is let in, what is open, what becomes of an error behind it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from longrec.errors import ConfigError
from longrec.serving.auth import Door, Tokens

GOOD, OTHER = "a-token-of-some-length", "another-token-of-length"


async def behind(scope, receive, send) -> None:
    if scope["path"] == "/breaks":
        raise RuntimeError("secret detail")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": b"inside"})


def ask(
    door: Door, path: str = "/rank", *authorization: str
) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[dict] = []

    async def send(message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "path": path,
        "headers": [(b"authorization", each.encode("latin-1")) for each in authorization],
    }
    asyncio.run(door(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize(
    ("shown", "status"),
    [
        ((f"Bearer {GOOD}",), 200),
        ((f"bearer  {GOOD} ",), 200),
        ((), 401),
        ((GOOD,), 401),
        (("Bearer",), 401),
        (("Bearer ",), 401),
        ((f"Bearer {GOOD}x",), 401),
        ((f"Bearer {GOOD[:-1]}",), 401),
        ((f"Basic {GOOD}",), 401),
        ((f"Bearer {GOOD}", f"Bearer {GOOD}"), 401),
        (("Bearer \xff\xfe",), 401),
    ],
)
def test_only_the_token_opens(shown: tuple[str, ...], status: int) -> None:
    found, headers, body = ask(Door(behind, Tokens({"LONGREC_TOKEN": GOOD})), "/rank", *shown)
    assert found == status
    assert (body == b"inside") == (status == 200)
    if status == 401:
        assert headers[b"www-authenticate"] == b"Bearer" and GOOD.encode() not in body


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/livez",
        "/readyz",
        "/healthz",
        "/metrics",
        "/docs",
        "/docs.json",
        "/static_content/swagger-ui.css",
    ],
)
def test_health_metrics_page_and_description_are_open(path: str) -> None:
    assert ask(Door(behind, Tokens({"LONGREC_TOKEN": GOOD})), path)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/rank",
        "/explain",
        "/page/history",
        "/page/examples",
        "/metrics/",
        "/livez/../rank",
        "//",
        "/static_content",
        "/RANK",
        "/unknown",
    ],
)
def test_everything_else_is_closed(path: str) -> None:
    assert ask(Door(behind, Tokens({"LONGREC_TOKEN": GOOD})), path)[0] == 401


def test_without_a_token_everything_is_open_and_no_stack_trace_gets_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    door = Door(behind, Tokens({}))
    status, headers, _ = ask(door)
    assert (
        status == 200
        and headers[b"x-own"] == b"1"
        and headers[b"x-content-type-options"] == b"nosniff"
    )
    status, _, body = ask(door, "/breaks")
    assert status == 500 and list(json.loads(body)) == ["error"] and b"secret" not in body
    assert "secret detail" in caplog.text  # it is in the log


def test_tokens_of_a_file_are_read_again_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{GOOD}\n\n")
    tokens = Tokens({"LONGREC_TOKEN_FILE": str(path)})
    assert tokens.allows(f"Bearer {GOOD}".encode()) and not tokens.allows(
        f"Bearer {OTHER}".encode()
    )
    path.write_text(f"{GOOD}\n{OTHER}\n")  # both during a rotation
    assert tokens.allows(f"Bearer {GOOD}".encode()) and tokens.allows(f"Bearer {OTHER}".encode())
    replacement = tmp_path / "new"
    replacement.write_text(OTHER)
    os.replace(replacement, path)
    assert not tokens.allows(f"Bearer {GOOD}".encode()) and tokens.allows(
        f"Bearer {OTHER}".encode()
    )
    path.unlink()
    assert tokens.allows(
        f"Bearer {OTHER}".encode()
    )  # a file that is gone for a moment opens nothing and closes nothing
    path.write_text("short")
    assert tokens.allows(f"Bearer {OTHER}".encode()) and not tokens.allows(b"Bearer short")


@pytest.mark.parametrize(
    "environment",
    [
        {"LONGREC_TOKEN": ""},
        {"LONGREC_TOKEN": "short"},
        {"LONGREC_TOKEN_FILE": "/nowhere"},
        {"LONGREC_TOKEN": GOOD, "LONGREC_TOKEN_FILE": "/nowhere"},
        {"LONGREC_TOKEN": f"{GOOD}\nshort"},
    ],
)
def test_a_token_that_is_none_is_refused_at_the_start(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        Tokens(environment)
