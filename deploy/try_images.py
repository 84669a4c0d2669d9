"""Builds the images and brings deploy/compose.yaml up on a machine without Docker, a registry or a GPU.

What cannot be had there has a stand-in: for the base image a Debian bookworm of debootstrap with its Python 3.11, for
Redis' and Prometheus' images Debian's packages; Grafana is left out, and the engine is built for CPU. Everything else
is as an operator has it: the Dockerfile's steps, run by buildah, and the services as compose.yaml says, run by
podman-compose and runc. Nothing is left behind.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml

DEPLOY = Path(__file__).parent
ROOT = DEPLOY.parent
CHECKPOINT = ROOT / "distill/miniature/checkpoints/base"
EPILOG = """\
needs, as root: apt-get install --no-install-recommends \\
    debootstrap buildah podman runc catatonit netavark aardvark-dns iptables
the whole takes a quarter of an hour and more, by the package index and the cores, and with --engine 15 GB of disk."""
FILES = "nofile=8192"
STAND_INS = {
    "redis": "RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server >/dev/null\n",
    "prometheus": (
        "RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus wget >/dev/null\n"
        "RUN install --directory --owner 65534 --group 65534 /prometheus\n"
        'USER 65534:65534\nENTRYPOINT ["prometheus"]\n'
    ),
}
WITHOUT = ("torch", "transformers", "vllm", "distill", "rope_gain")


class Images:
    """A store of images and containers in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._storage = f"--root={folder / 'storage'}"
        configuration = folder / "containers.conf"
        # Podman's defaults are more than a root without CAP_SYS_RESOURCE may give.
        configuration.write_text(
            f'[containers]\ndefault_ulimits = ["{FILES}", "nproc=8192"]\n[engine]\nruntime = "runc"\n'
        )
        self._environment = os.environ | {"CONTAINERS_CONF": str(configuration)}

    def podman(self, *arguments: str, check: bool = True, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Runs podman and captures what it prints on standard output."""
        command = ["podman", self._storage, *arguments]
        return subprocess.run(command, env=self._environment, check=check, text=True, stdout=subprocess.PIPE, **options)

    def compose(self, folder: Path, *arguments: str, **variables: str) -> None:
        """Runs podman-compose on the compose file of a folder."""
        command = [sys.executable, "-m", "podman_compose", "--in-pod=0", f"--podman-args={self._storage}"]
        subprocess.run([*command, *arguments], cwd=folder, env=self._environment | variables, check=True)

    def make_base(self, name: str) -> None:
        """A minimal Debian with Python in /usr/local/bin, as the official image of Python has it."""
        root = self._folder / "root"
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(["debootstrap", "--variant=minbase", packages, "bookworm", str(root)], check=True)
        subprocess.run(["chroot", str(root), "python3", "-m", "venv", "/usr/local"], check=True)
        path = "ENV=PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as archive:
            self.podman("import", "--change", path, "-", name, stdin=archive.stdout)
        shutil.rmtree(root)

    def build(self, context: Path, *arguments: str) -> None:
        """Runs a Dockerfile's steps, with pip as it is configured on this machine."""
        command = ["buildah", self._storage, "build", "--layers", "--pull-never", "--format", "docker"]
        command += ["--isolation", "chroot", "--network", "host", "--ulimit", FILES]
        command += [word for path in pip_paths() for word in ("--volume", f"{path}:{path}:ro")]
        subprocess.run([*command, *arguments, str(context)], check=True)

    def remove(self) -> None:
        """Ends and removes whatever is in the store."""
        self.podman("rm", "--all", "--force", check=False)
        self.podman("volume", "prune", "--force", check=False)
        self.podman("rmi", "--all", "--force", check=False)


def pip_paths() -> list[Path]:
    """Files and folders of this machine that pip's configuration consists of or names."""
    lines = subprocess.check_output([sys.executable, "-m", "pip", "config", "debug"], text=True).splitlines()
    files = [Path(line.strip().split(",")[0]) for line in lines if line.endswith("exists: True")]
    values = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
    words = [word.strip("'\"").removeprefix("file://") for word in values.replace("=", " ").split()]
    named = [Path(word) for word in words if word.startswith("/")]
    # An index in a folder may link to files beside it.
    named = [path.parent if path.name == "simple" else path for path in named]
    return sorted({path for path in (*files, *named, Path("/etc/ssl/certs")) if path.exists()})


def base_image() -> str:
    """The name that the Dockerfile gives the base image."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    version = next(line.removeprefix("ARG PYTHON=") for line in lines if line.startswith("ARG PYTHON="))
    name = next(line.split()[1] for line in lines if line.startswith("FROM docker.io/library/python:"))
    return name.replace("${PYTHON}", version)


def build_images(images: Images, services: dict[str, Any], *, with_engine: bool) -> None:
    """Builds what compose.yaml names, from the Dockerfile or as a stand-in."""
    images.make_base(base_image())
    for name, steps in STAND_INS.items():
        with tempfile.TemporaryDirectory() as context:
            (Path(context) / "Dockerfile").write_text(f"FROM {base_image()}\n{steps}")
            images.build(Path(context), "--tag", services[name]["image"])
    images.build(ROOT, "--target", "gateway", "--tag", services["gateway"]["image"])
    if with_engine:
        images.build(ROOT, "--target", "engine", "--build-arg", "ENGINE=cpu", "--tag", services["engine"]["image"])


def make_secrets(images: Images, folder: Path, gateway: str) -> str:
    """Fills deploy/secrets as deploy/README.md says; returns a client's key."""
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700)
    for name in ("LAID_IMAGE_SECRET", "grafana_password"):
        (secrets / name).write_text(os.urandom(32).hex())
    command = ["run", "--rm", "--user", str(os.getuid()), "--network", "none", "--volume", f"{secrets}:/secrets"]
    key = images.podman(*command, gateway, "laid-keys", "new", "alice", "--file", "/secrets/keys.toml").stdout.strip()
    for file in secrets.iterdir():
        file.chmod(0o644)
    return key


def wait_until(what: str, condition: Callable[[], bool], *, seconds: float = 900) -> None:
    """Prints `what` when the condition holds.

    Raises:
        TimeoutError: it does not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {seconds:g} s: {what}")
        time.sleep(0.5)
    print(f"ok: {what}", flush=True)


def check(what: str, is_so: bool) -> None:
    """Prints what was found to be so, or raises AssertionError."""
    if not is_so:
        raise AssertionError(what)
    print(f"ok: {what}", flush=True)


def answers(client: httpx.Client, path: str, status: int) -> bool:
    """Whether a GET is answered with this status."""
    try:
        return client.get(path).status_code == status
    except httpx.TransportError:
        return False


def is_healthy(images: Images, container: str) -> bool:
    """Whether the container's own health check says so."""
    return images.podman("healthcheck", "run", container, check=False, stderr=subprocess.DEVNULL).returncode == 0


def try_gateway(images: Images, client: httpx.Client, body: dict[str, Any]) -> None:
    """The gateway's image before an engine that does not exist."""
    python = ("exec", "laid_gateway_1", "python", "-c")
    wait_until("/health answers 200", partial(answers, client, "/health", 200))
    for name in ("gateway", "redis", "prometheus"):
        wait_until(f"{name}'s health check passes", partial(is_healthy, images, f"laid_{name}_1"))
    check("/ready answers 503", answers(client, "/ready", 503))
    fits = client.post("/v1/chat/completions/input_tokens", json=body)
    check(f"a dry run counts {fits.json()['input_tokens']} tokens, without an engine", fits.json()["fits"] is True)
    check("without a key 401", httpx.get(client.base_url.join("/v1/models")).status_code == 401)
    user = images.podman(*python, "import os; print(os.getuid())").stdout.strip()
    check(f"it runs as user {user}", user == "10001")
    written = images.podman(*python, "open('/laid', 'w')", check=False, stderr=subprocess.DEVNULL)
    check("it cannot write to its file system", written.returncode != 0)
    program = f"import importlib.util as u; print([name for name in {WITHOUT} if u.find_spec(name)])"
    found = images.podman(*python, program).stdout.strip()
    check(f"of {', '.join(WITHOUT)} it has {found}", found == "[]")


def try_engine(images: Images, client: httpx.Client, body: dict[str, Any]) -> None:
    """An answer of the engine's image through the gateway's."""
    wait_until("the engine's health check passes", partial(is_healthy, images, "laid_engine_1"))
    wait_until("/ready answers 200", partial(answers, client, "/ready", 200))
    answer = client.post("/v1/chat/completions", json=body)
    check(f"an answer, {answer.status_code}: {answer.text[:200]}", answer.status_code == 200)
    used = answer.json()["usage"]["prompt_tokens"]
    check(f"the gateway's count is the engine's, {used}", answer.headers["x-laid-prompt-tokens"] == str(used))
    routes = images.podman("exec", "laid_engine_1", "cat", "/proc/net/route").stdout.splitlines()[1:]
    check("the engine has no way out of its network", all(line.split()[1] != "00000000" for line in routes))
    query = "http://127.0.0.1:9090/api/v1/query?query=count(up==1)"
    ask = ("exec", "laid_prometheus_1", "wget", "-q", "-O", "-", query)
    wait_until("Prometheus scrapes gateway and engine", lambda: '"2"' in images.podman(*ask).stdout, seconds=120)


def try_stop(images: Images, container: str, *, grace_seconds: int) -> None:
    """SIGTERM ends it with status 0, before it would be killed."""
    started = time.monotonic()
    images.podman("stop", "--time", str(grace_seconds), container)
    status = images.podman("inspect", "--format", "{{.State.ExitCode}}", container).stdout.strip()
    seconds = time.monotonic() - started
    check(f"{container} ended with status {status} after {seconds:.0f} s", status == "0" and seconds < grace_seconds)


@contextlib.contextmanager
def running(images: Images, folder: Path, **variables: str) -> Iterator[Callable[[str], None]]:
    """Gives what starts a service as compose.yaml says; takes all of them down at the end, with their volumes."""
    started = []

    def start(service: str) -> None:
        started.append(service)
        images.compose(folder, "up", "--detach", "--no-build", "--no-deps", service, **variables)

    try:
        yield start
    except BaseException:
        for service in started:
            print(images.podman("logs", "--tail", "40", f"laid_{service}_1", check=False).stdout, flush=True)
        raise
    finally:
        images.compose(folder, "down", "--volumes", **variables)


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", action="store_true", help="build and run the engine too")
    options = parser.parse_args()
    services: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    with tempfile.TemporaryDirectory(prefix="laid-images-", dir="/var/tmp") as name:
        folder = Path(name) / "deploy"
        shutil.copytree(DEPLOY, folder, ignore=shutil.ignore_patterns("secrets", ".env", "gateway.env"))
        images = Images(Path(name))
        try:
            build_images(images, services, with_engine=options.engine)
            try_services(images, folder, services, with_engine=options.engine)
        finally:
            images.remove()
    print("All of it worked.")
    return 0


def try_services(images: Images, folder: Path, services: dict[str, Any], *, with_engine: bool) -> None:
    """Brings the services up and asks them."""
    key = make_secrets(images, folder, services["gateway"]["image"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    # podman-compose makes an empty argument of an empty variable.
    variables = {"GATEWAY_ADDRESS": address, "CHECKPOINT": str(CHECKPOINT), "ENGINE_ARGS": "--enable-log-requests"}
    body = {"model": "laid", "max_tokens": 4, "messages": [{"role": "user", "content": "Which shape is red?"}]}
    headers = {"Authorization": f"Bearer {key}"}
    with (
        running(images, folder, **variables) as start,
        httpx.Client(base_url=f"http://{address}", headers=headers, timeout=120) as client,
    ):
        for service in ("redis", "prometheus", "gateway"):
            start(service)
        try_gateway(images, client, body)
        if with_engine:
            start("engine")
            try_engine(images, client, body)
            try_stop(images, "laid_engine_1", grace_seconds=30)
        try_stop(images, "laid_gateway_1", grace_seconds=45)


if __name__ == "__main__":
    sys.exit(main())
