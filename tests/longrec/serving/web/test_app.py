"""The page's routes before the service is ready."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from longrec.serving.web.app import WebApp


async def get(route: str) -> httpx.Response:
    """Return the answer of an application that has no source yet."""
    transport = httpx.ASGITransport(WebApp().app)
    async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
        return await client.get(route)


@pytest.mark.parametrize("route", ["/page/examples", "/page/history?user_id=1&request_time=1"])
def test_before_the_service_is_ready_its_data_is_unavailable(route: str) -> None:
    response = asyncio.run(get(route))
    assert response.status_code == 503
    assert "not ready" in response.json()["error"]
