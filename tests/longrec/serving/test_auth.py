"""Authentication: which tokens are accepted, which paths are open, how errors are answered."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from longrec.errors import ConfigError
from longrec.serving.auth import AuthMiddleware, Tokens

GOOD = "a-token-of-some-length"
OTHER = "another-token-of-length"


async def app(scope, receive, send) -> None:
    if scope["path"] == "/breaks":
        raise RuntimeError("secret detail")
    start = {"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]}
    await send(start)
    await send({"type": "http.response.body", "body": b"inside"})


def get(
    middleware: AuthMiddleware,
    path: str = "/rank",
    *authorization: str,
    method: str = "GET",
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Return status, headers and body."""
    sent: list[dict] = []

    async def send(message) -> None:
        sent.append(message)

    headers = [(b"authorization", value.encode("latin-1")) for value in authorization]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(middleware(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.fixture
def protected() -> AuthMiddleware:
    return AuthMiddleware(app, Tokens({"LONGREC_TOKEN": GOOD}))


@pytest.mark.parametrize(
    ("authorization", "expected"),
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
def test_only_the_token_is_accepted(
    protected: AuthMiddleware,
    authorization: tuple[str, ...],
    expected: int,
) -> None:
    status, headers, body = get(protected, "/rank", *authorization)
    assert status == expected
    assert (body == b"inside") == (expected == 200)
    if expected == 401:
        assert headers[b"www-authenticate"] == b"Bearer"
        assert GOOD.encode() not in body


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/livez",
        "/readyz",
        "/healthz",
        "/metrics",
        "/v2/health/live",
        "/v2/health/ready",
        "/docs",
        "/docs.json",
        "/static_content/swagger-ui.css",
    ],
)
def test_health_metrics_page_and_description_are_open(protected: AuthMiddleware, path: str) -> None:
    assert get(protected, path)[0] == 200


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
        "/v2",
        "/v2/models/longrec-ranker/infer",
        "/unknown",
    ],
)
def test_everything_else_needs_a_token(protected: AuthMiddleware, path: str) -> None:
    assert get(protected, path)[0] == 401


def test_a_browser_asks_for_permission_without_the_token(protected: AuthMiddleware) -> None:
    """Its OPTIONS request comes before the one with the token, which the CORS headers allow."""
    assert get(protected, "/rank", method="OPTIONS")[0] == 200
    assert get(protected, "/rank", method="POST")[0] == 401


def test_without_a_token_everything_is_open() -> None:
    status, headers, _ = get(AuthMiddleware(app, Tokens({})))
    assert status == 200
    assert headers[b"x-own"] == b"1"
    assert headers[b"x-content-type-options"] == b"nosniff"


def test_a_stack_trace_is_logged_but_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    status, _, body = get(AuthMiddleware(app, Tokens({})), "/breaks")
    assert status == 500
    assert list(json.loads(body)) == ["error"]
    assert b"secret" not in body
    assert "secret detail" in caplog.text


def accepts(tokens: Tokens, token: str) -> bool:
    return tokens.allows(f"Bearer {token}".encode())


def test_a_token_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{GOOD}\n\n")
    tokens = Tokens({"LONGREC_TOKEN_FILE": str(path)})
    assert accepts(tokens, GOOD)
    assert not accepts(tokens, OTHER)
    path.write_text(f"{GOOD}\n{OTHER}\n")  # both during a rotation
    assert accepts(tokens, GOOD)
    assert accepts(tokens, OTHER)
    replacement = tmp_path / "new"
    replacement.write_text(OTHER)
    os.replace(replacement, path)
    assert not accepts(tokens, GOOD)
    assert accepts(tokens, OTHER)
    path.unlink()
    assert accepts(tokens, OTHER)  # a missing file changes nothing
    path.write_text("short")
    assert accepts(tokens, OTHER)
    assert not accepts(tokens, "short")


def test_a_token_file_that_cannot_be_read_is_logged_once(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "token"
    path.write_text(GOOD)
    tokens = Tokens({"LONGREC_TOKEN_FILE": str(path)})
    path.unlink()
    for _ in range(3):
        assert accepts(tokens, GOOD)
    assert len(caplog.records) == 1


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
def test_a_bad_token_is_an_error_at_the_start(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        Tokens(environment)
