"""Makes the pictures of README.md: python deploy/grafana/sample.py [--minutes 8]

Starts `laid-serve` with the real engine on the miniature teacher, and Debian's Prometheus with the deployed
configuration and rules. A mixed load, that of benchmarks/soak.py with smaller images and a few more prompts, asks for
some minutes; halfway the engine is killed. Then `picture.py` draws what Prometheus has.
"""

import argparse
import asyncio
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import yaml

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
sys.path[:0] = [str(FOLDER), str(ROOT), str(ROOT / "benchmarks")]

from picture import draw_all  # noqa: E402
from soak_bench.client import Client  # noqa: E402
from soak_bench.load import SIDE, Caller, make_callers, make_pool, many_images, run  # noqa: E402
from soak_bench.stack import Stack, running_stack  # noqa: E402

from server.engines.engine import free_port  # noqa: E402

SCRAPE_SECONDS = 5
RATE_INTERVAL = "1m"
CHECKPOINT = ROOT / "distill" / "miniature" / "checkpoints" / "teacher"
SMALL = 64
"""Sides of most images, which are 16 tokens then; others are 64 tokens."""
LONGEST = 200
"""Images of the longest prompts, of the class of 8k to 32k tokens."""


@contextlib.contextmanager
def running_prometheus(stack: Stack, folder: Path) -> Iterator[str]:
    """Its URL; it looks at the gateway and at the engine every few seconds."""
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
    config["rule_files"] = [str(ROOT / "deploy" / "prometheus" / "rules" / "*.yml")]
    targets = {"laid-gateway": stack.url, "laid-engine": stack.engine_url}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]].removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address={address}", "--log.level=warn"]
    with subprocess.Popen(command) as process:
        try:
            _wait_until_ready(f"http://{address}")
            yield f"http://{address}"
        finally:
            process.terminate()


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/-/ready", trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{url}: Prometheus did not get ready")


def longer(key: str) -> list[Caller]:
    """Prompts of medium length, two that come again and again, and now and then one of the longest."""
    small, large, chance = make_pool(LONGEST, SMALL), make_pool(LONGEST, SIDE), random.Random(1)
    medium = iter(lambda: many_images(chance, key, small, count=chance.choice((10, 20, 50))), None)
    # Of these the engine finds all but the end in its prefix cache.
    repeated = iter(lambda: many_images(random.Random(chance.randrange(2)), key, small[:50], count=50), None)
    longest = iter(lambda: many_images(chance, key, large, count=LONGEST), None)
    return [
        Caller(asks=medium, pause_seconds=0.5),
        Caller(asks=repeated, pause_seconds=1.0),
        Caller(asks=longest, pause_seconds=10.0),
    ]


async def load(stack: Stack, minutes: float) -> None:
    """Asks for so long; the engine ends halfway."""
    callers = [*make_callers(stack.keys, side=SMALL), *longer(stack.keys.usual)]
    stop, calm = asyncio.Event(), asyncio.Lock()
    async with httpx.AsyncClient(base_url=stack.url, timeout=None, trust_env=False) as http:  # noqa: S113 - has its own
        client = Client(http, deadline_seconds=120)
        async with asyncio.TaskGroup() as tasks:
            for seed, caller in enumerate(callers):
                tasks.create_task(run(caller, client, until=stop, calm=calm, seed=seed))
            await asyncio.sleep(30 * minutes)
            stack.kill_engine()
            await asyncio.sleep(30 * minutes)
            stop.set()


def main() -> None:
    """Runs it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="of load (default 8)")
    parser.add_argument("--folder", type=Path, default=FOLDER / "pictures", help="for the pictures")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        running_stack(Path(name), CHECKPOINT, LAID_ENGINE_STEADY_SECONDS="60") as stack,
        running_prometheus(stack, Path(name)) as url,
    ):
        asyncio.run(load(stack, options.minutes))
        draw_all(url, minutes=options.minutes, rate_interval=RATE_INTERVAL, folder=options.folder)


if __name__ == "__main__":
    main()
