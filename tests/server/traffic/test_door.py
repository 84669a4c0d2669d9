"""Without keys only this machine is served, however the server was started."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from server.app import create_app


@pytest.mark.parametrize(
    ("address", "status"), [("127.0.0.1", 200), ("127.0.0.9", 200), ("10.0.0.7", 401), ("203.0.113.5", 401)]
)
async def test_the_address_that_was_called_decides(
    make_settings: Callable[..., Any], address: str, status: int
) -> None:
    # This transport hands the URL's host to the app as the address that the server was reached by.
    transport = httpx.ASGITransport(create_app(make_settings()))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{address}:8000") as client:
        response = await client.get("/v1/models")

    assert response.status_code == status
    if status == 401:
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert "LAID_KEYS_FILE" in response.json()["error"]["message"]
