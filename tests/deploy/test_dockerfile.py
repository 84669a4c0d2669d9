"""The Dockerfile against the checkout; `deploy/try_images.py` builds it."""

import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.engines.engine import free_port
from tests.deploy.names import ROOT, check_environment_names, dockerfile_targets

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHECKPOINT = ROOT / "distill/miniature/checkpoints/base"
TARGETS = ("gateway", "engine", "train")


def values(target: str, instruction: str) -> list[str]:
    return [step["value"] for step in dockerfile_targets()[target] if step["instruction"] == instruction]


def variables(target: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for value in values(target, "ENV") for pair in value.split())


def health_check(target: str) -> list[str]:
    (value,) = values(target, "HEALTHCHECK")
    command: list[str] = json.loads(value.split("CMD ", 1)[1])
    return command


def test_the_three_images_have_targets() -> None:
    assert set(TARGETS) <= dockerfile_targets().keys()


@pytest.mark.parametrize("target", TARGETS)
def test_no_image_runs_as_root_and_each_user_is_a_number(target: str) -> None:
    # Kubernetes' runAsNonRoot cannot check a name.
    (user,) = values(target, "USER")

    assert all(int(part) > 0 for part in user.split(":"))


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_starts_a_command_of_the_project_without_a_shell(target: str) -> None:
    command = [word for name in ("ENTRYPOINT", "CMD") for value in values(target, name) for word in json.loads(value)]

    assert command[0] in PROJECT["scripts"]


@pytest.mark.parametrize("target", dockerfile_targets())
def test_what_is_copied_and_installed_exists_and_is_sent_to_the_builder(target: str) -> None:
    sent = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    for value in values(target, "COPY"):
        if not value.startswith("--from"):
            sources = value.split()[:-1]
            assert all((ROOT / source).exists() for source in sources)
            assert set(sources) <= sent
    extras = [
        value.split("[")[1].split("]")[0] for value in values(target, "RUN") if "pip install" in value and "[" in value
    ]
    assert set(extras) <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("target", TARGETS)
def test_variables_are_settings(target: str) -> None:
    check_environment_names(variables(target))


def test_the_gateway_gets_no_package_but_its_own() -> None:
    copied = " ".join(values("gateway-build", "COPY") + values("gateway", "COPY")).split()

    assert "server" in copied
    assert not {"rope_gain", "distill", "."} & set(copied)


def test_the_engine_has_a_vllm_that_the_gains_know() -> None:
    from packaging.requirements import Requirement

    (version,) = [line.split("=")[1] for line in (ROOT / "Dockerfile").read_text().splitlines() if "ARG VLLM=" in line]

    for extra in ("engine-cpu", "engine-cuda"):
        (requirement,) = PROJECT["optional-dependencies"][extra]
        assert version in Requirement(requirement).specifier


@pytest.fixture(scope="module")
def gateway_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A gateway, started as the image's and before an engine that does not exist."""
    port = free_port()
    environment = os.environ | {
        "LAID_PORT": str(port),
        "LAID_UPSTREAM": "http://127.0.0.1:1",
        "LAID_MODEL": "laid",
        "LAID_CONTEXT_LENGTH": "2048",
    }
    log = (tmp_path_factory.mktemp("gateway") / "log").open("w+")
    command = [sys.executable, "-m", "server.cli", str(CHECKPOINT)]
    with log, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + 120
            while "engine_down" not in Path(log.name).read_text():
                assert process.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()
    assert process.returncode == 0


def run_health_check(
    target: str, port: int, replace: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[Any]":
    program, *arguments = health_check(target)
    assert program in {"python", "python3"}
    for old, new in (replace or {}).items():
        assert any(old in argument for argument in arguments)
        arguments = [argument.replace(old, new) for argument in arguments]
    # A proxy that the environment names must not be asked.
    environment = os.environ | {"LAID_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)


@pytest.mark.parametrize(("target", "replace"), [("gateway", False), ("engine", True)])
def test_health_checks_tell_a_server_that_answers_from_none(gateway_port: int, target: str, replace: bool) -> None:
    # The engine's /health and the gateway's are the same to it: 200 on a port.
    def status(port: int) -> int:
        return run_health_check(target, port, {"8001": str(port)} if replace else None).returncode

    assert status(gateway_port) == 0
    assert status(free_port()) != 0
