"""A real Prometheus scrapes the running gateway and the real engine, and its alert for a killed engine fires."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.server.telemetry.expressions import VLLM_METRICS
from tests.system import need_program

FOLDER = Path(__file__).parents[3] / "deploy" / "prometheus"
PATIENCE_SECONDS = 180

Make = Callable[..., Any]
Start = Callable[..., Awaitable[httpx.AsyncClient]]

# Healthy, and then killed: nothing more is asked of it.
ENGINE = """
import http.server, sys
class Engine(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"data": [{"id": "tiny", "max_model_len": 2048}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Engine).serve_forever()
"""


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


class Prometheus:
    """The server of Debian's package with the deployed rules, looking every second."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def value(self, query: str) -> float | None:
        """The first sample of an expression; None if there is none, or Prometheus is not ready yet."""
        try:
            response = await self._client.get("/api/v1/query", params={"query": query})
        except httpx.TransportError:
            return None
        if response.status_code == 503:
            return None
        result = response.json()["data"]["result"]
        return float(result[0]["value"][1]) if result else None

    async def firing(self) -> set[tuple[str, str]]:
        """The names and instances of all alerts that fire."""
        alerts = (await self._client.get("/api/v1/alerts")).json()["data"]["alerts"]
        return {
            (alert["labels"]["alertname"], alert["labels"]["instance"])
            for alert in alerts
            if alert["state"] == "firing" and "instance" in alert["labels"]
        }


def write_configuration(folder: Path, targets: dict[str, list[str]]) -> Path:
    """The deployed files with other targets and without their patience."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": targets[job["job_name"]]}]
    (folder / "rules").mkdir()
    for path in FOLDER.glob("rules/*.yml"):
        rules = yaml.safe_load(path.read_text())
        for rule in (rule for group in rules["groups"] for rule in group["rules"]):
            rule.update({"for": "1s"} if "for" in rule else {})
        (folder / "rules" / path.name).write_text(yaml.safe_dump(rules))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    return folder / "prometheus.yml"


@pytest.fixture
def doomed_engine() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of an engine and its process, to be killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", ENGINE, str(port)], stderr=subprocess.DEVNULL) as process:
        yield f"http://127.0.0.1:{port}", process
        process.kill()


@pytest.fixture
async def start_prometheus(free_port: int, tmp_path: Path) -> AsyncIterator[Callable[..., Prometheus]]:
    program = need_program("prometheus", package="prometheus")
    processes = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{free_port}", timeout=PATIENCE_SECONDS) as client:

        def start(targets: dict[str, list[str]]) -> Prometheus:
            command = [
                program,
                f"--config.file={write_configuration(tmp_path, targets)}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{free_port}",
                "--log.level=warn",
            ]
            processes.append(subprocess.Popen(command))
            return Prometheus(client)

        yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.engine
async def test_prometheus_sees_gateway_and_engine_and_an_engine_that_is_killed(
    served: Any,
    start_gateway: Start,
    chat: Make,
    start_prometheus: Callable[..., Prometheus],
    doomed_engine: tuple[str, "subprocess.Popen[bytes]"],
) -> None:
    engine_url, engine = doomed_engine
    gateway = await start_gateway(upstream=engine_url)
    doomed = f"127.0.0.1:{gateway.base_url.port}"
    healthy, vllm = (url.removeprefix("http://") for url in (served.url, served.engine_url))

    async def is_ready() -> bool:
        return (await gateway.get("/ready")).status_code == 200

    await eventually(is_ready)
    async with httpx.AsyncClient(base_url=served.url, timeout=PATIENCE_SECONDS) as client:
        assert (await client.get("/ready")).status_code == 200
        assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
    prometheus = start_prometheus({"laid-gateway": [healthy, doomed], "laid-engine": [vllm]})

    async def all_are_seen() -> bool:
        values = [
            await prometheus.value("sum(up) == 3"),
            await prometheus.value(f'laid_prompt_tokens_count{{instance="{healthy}"}} > 0'),
            await prometheus.value(f'vllm:generation_tokens_total{{instance="{vllm}"}} > 0'),
            await prometheus.value(f'laid_engine_up{{instance="{doomed}"}} == 1'),
        ]
        return None not in values

    await eventually(all_are_seen)
    assert await prometheus.firing() == set()

    engine.kill()

    async def alert_fires() -> bool:
        await gateway.get("/ready")
        return ("LaidEngineDown", doomed) in await prometheus.firing()

    await eventually(alert_fires)
    assert await prometheus.firing() == {("LaidEngineDown", doomed)}


@pytest.mark.engine
def test_promtool_has_nothing_against_a_live_scrape(
    served: Any, chat: Make, image_part: Make, promtool: Callable[..., str]
) -> None:
    with httpx.Client(base_url=served.url, timeout=PATIENCE_SECONDS) as client:
        for stream in (False, True):
            body = chat([image_part(32, 32)], stream=stream)
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert client.post("/v1/chat/completions", json=chat(model="other")).status_code == 404

        assert promtool("check", "metrics", stdin=client.get("/metrics").text) == ""


@pytest.mark.engine
def test_the_list_of_the_engines_metrics_is_the_engines_own(served: Any) -> None:
    text = httpx.get(f"{served.engine_url}/metrics", timeout=PATIENCE_SECONDS).text
    scraped = {tuple(line.split()[2:]) for line in text.splitlines() if line.startswith("# TYPE vllm:")}
    listed = {tuple(line.split()) for line in VLLM_METRICS.read_text().splitlines() if not line.startswith("#")}

    # A metric may come or go with the engine's options, but none that a dashboard reads.
    assert len(listed & scraped) > 30
    read = {"vllm:kv_cache_usage_perc", "vllm:mm_cache_hits_total", "vllm:num_requests_running"}
    assert read <= {name for name, _ in listed & scraped}
