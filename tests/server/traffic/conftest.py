"""A real Redis."""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.system import need_program


@dataclass
class RedisServer:
    """A server of this test's own, on a port of its own, that can end and come back."""

    program: str
    folder: Path
    port: int
    process: "subprocess.Popen[str] | None" = field(default=None)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        self.process = subprocess.Popen([*command, "--save", ""], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        for line in self.process.stdout:
            if "Ready to accept connections" in line:
                return
        pytest.fail(f"redis-server ended with {self.process.wait()}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            # What it says at its end has to go somewhere.
            self.process.communicate(timeout=60)
            self.process = None


@pytest.fixture
def redis(tmp_path: Path, free_port: int) -> Iterator[RedisServer]:
    server = RedisServer(need_program("redis-server", package="redis-server"), tmp_path, free_port)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def key_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file with one key, `laid-alice`."""
    from server.traffic.keys import hash_key

    def write(**limits: int) -> Path:
        path = tmp_path / "keys.toml"
        lines = ["[keys.alice]", f'sha256 = "{hash_key("laid-alice")}"', *(f"{k} = {v}" for k, v in limits.items())]
        path.write_text("\n".join(lines))
        return path

    return write
