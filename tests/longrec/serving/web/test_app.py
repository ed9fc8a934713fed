"""The page's routes before the service is ready."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from longrec.schema import synthetic_schema
from longrec.serving.web.app import PageSource, WebApp


async def get(route: str, source: Any = None) -> httpx.Response:
    """Return the answer of an application; by default of one that has no source yet."""
    web = WebApp(dict)
    web.source = source
    transport = httpx.ASGITransport(web.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
        return await client.get(route)


@pytest.mark.parametrize("route", ["/page/examples", "/page/history?user_id=1&request_time=1"])
def test_before_the_service_is_ready_its_data_is_unavailable(route: str) -> None:
    response = asyncio.run(get(route))
    assert response.status_code == 503
    assert "not ready" in response.json()["error"]


@contextlib.contextmanager
def engine_of_three_items() -> Iterator[tuple[str, Any]]:
    encoder = SimpleNamespace(schema=synthetic_schema(), item_ids=np.array([7, 8, 9]))
    yield "v1", SimpleNamespace(scorer=SimpleNamespace(bundle=SimpleNamespace(encoder=encoder)))


def test_without_the_files_of_the_store_the_page_has_no_example_users(tmp_path: Path) -> None:
    source = PageSource(tmp_path, reader=None, acquire=engine_of_three_items)
    response = asyncio.run(get("/page/examples", source))
    assert response.status_code == 200
    assert response.json() == {
        "users": [],
        "moment": None,
        "candidates": ["7", "8", "9"],
        "text_ids": [],
    }
