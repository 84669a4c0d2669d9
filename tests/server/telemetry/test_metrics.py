"""What /metrics says: nothing a client sends becomes a series, and every phase and failure is found."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from server.errors import Reason
from server.telemetry.request_metrics import kind_of

Start = Callable[..., Awaitable[httpx.AsyncClient]]
Make = Callable[..., Any]
CHAT = "/v1/chat/completions"
# The HTTP parser refuses methods that it does not know.
METHODS = ("DELETE", "LOCK", "OPTIONS", "PATCH", "PROPFIND", "PUT", "SEARCH", "TRACE")


async def scrape(gateway: httpx.AsyncClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families((await gateway.get("/metrics")).text)
        for sample in family.samples
    }


async def send_oddly(gateway: httpx.AsyncClient, chat: Make, number: int) -> None:
    """Eight ways to name something that does not exist."""
    odd, method = f"odd{number}", METHODS[number % len(METHODS)]
    await gateway.get(f"/{odd}")
    await gateway.get(f"/v1/models/{odd}")
    await gateway.request(method, CHAT)
    await gateway.request(method, "/metrics")
    await gateway.post(CHAT, json=chat(model=odd), headers={"authorization": f"Bearer {odd}"})
    await gateway.post(CHAT, json=chat(user=odd), headers={"authorization": f"Bearer {odd}", odd: odd})
    await gateway.post(CHAT, json=chat(**{odd: 1}))
    await gateway.post(CHAT + "?" + odd, content=odd, headers={"content-type": f"text/{odd}"})


async def test_the_number_of_series_is_bounded_whatever_clients_send(start_gateway: Start, chat: Make) -> None:
    gateway = await start_gateway()
    await send_oddly(gateway, chat, 0)
    await scrape(gateway)
    before = await scrape(gateway)

    for number in range(1, 251):
        await send_oddly(gateway, chat, number)

    after = await scrape(gateway)
    assert after.keys() == before.keys()
    added = sum(after[key] - before[key] for key in after if key[0] == "laid_requests_total")
    # A scrape is counted only when it is over.
    assert added == 250 * 8 + 1


async def test_server_timing_names_the_phases_up_to_the_first_byte(start_gateway: Start, chat: Make) -> None:
    gateway = await start_gateway()

    whole = await gateway.post(CHAT, json=chat())
    wrong = await gateway.post(CHAT, content="{", headers={"content-type": "application/json"})
    health = await gateway.get("/health")

    def names(response: httpx.Response) -> list[str]:
        return [part.partition(";dur=")[0] for part in response.headers["server-timing"].split(", ")]

    assert names(whole) == ["read", "check", "queue", "answer"]
    assert names(wrong) == ["read", "check"]
    assert "server-timing" not in health.headers


def test_failures_are_told_apart_by_whose_doing_they_are() -> None:
    kinds = {reason: kind_of(reason) for reason in Reason}

    assert kinds[Reason.TOO_MANY_IMAGES] == "budget"
    assert kinds[Reason.CLIENT_LEFT] == "client"
    assert kinds[Reason.ENGINE_FAILED] == "server"
    assert kinds[Reason.INVALID_IMAGE] == "request"
