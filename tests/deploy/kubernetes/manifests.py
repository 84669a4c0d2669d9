"""The overlays as kustomize renders them, and the few questions that the tests ask of them."""

import re
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.system import need_program

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu-trial", "one-gpu", "many-gpus", "ray")
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """One kind of pod, whoever makes it."""

    owner: str
    """`StatefulSet/engine`"""
    template: Manifest

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.template["metadata"]["labels"])

    @property
    def spec(self) -> Manifest:
        return dict(self.template["spec"])

    @property
    def container(self) -> Manifest:
        (container,) = self.spec["containers"]
        return dict(container)

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.container.get("ports", ())}

    @property
    def volumes(self) -> list[Manifest]:
        return list(self.spec.get("volumes", ()))


@dataclass(frozen=True)
class Overlay:
    """All manifests of one overlay."""

    name: str
    manifests: list[Manifest]

    def of_kind(self, kind: str) -> dict[str, Manifest]:
        """By name."""
        return {each["metadata"]["name"]: each for each in self.manifests if each["kind"] == kind}

    def pods(self) -> Iterator[Pod]:
        for each in self.manifests:
            owner = f"{each['kind']}/{each['metadata']['name']}"
            if each["kind"] in ("Deployment", "StatefulSet"):
                yield Pod(owner, each["spec"]["template"])
            elif each["kind"] == "RayCluster":
                yield Pod(f"{owner}/head", each["spec"]["headGroupSpec"]["template"])
                for group in each["spec"]["workerGroupSpecs"]:
                    yield Pod(f"{owner}/{group['groupName']}", group["template"])

    def pod(self, name: str) -> Pod:
        """The pod labelled so; of Ray's the head."""
        return next(pod for pod in self.pods() if pod.labels["app.kubernetes.io/name"] == name)

    def environment(self, name: str) -> dict[str, str]:
        """What the container of the pod labelled so gets from ConfigMaps and as plain values."""
        container, maps = self.pod(name).container, self.of_kind("ConfigMap")
        found: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            found |= maps[source["configMapRef"]["name"]]["data"]
        return found | {each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}

    def command(self, name: str) -> list[str]:
        """The program and its arguments, variables put in as Kubernetes does, or the shell in Ray's head."""
        container, variables = self.pod(name).container, self.environment(name)
        words = [*container.get("command", ()), *container.get("args", ())]
        if words[:2] == ["/bin/bash", "-c"]:
            words = shlex.split(words[2].replace("\\\n", " ").rpartition("exec ")[2])
        return [re.sub(r"\$\(?(\w+)\)?", lambda found: variables[found[1]], word) for word in words]

    def settings(self) -> dict[str, str]:
        """The gateway's LAID_* variables."""
        return {name: value for name, value in self.environment("gateway").items() if name.startswith("LAID_")}

    def engine_options(self) -> dict[str, str]:
        """`laid-engine`'s options by name."""
        return dict(word[2:].split("=", 1) for word in self.command("engine") if word.startswith("--"))


@cache
def render(name: str) -> Overlay:
    """The overlay by this name, with `kubectl kustomize`; nobody changes it."""
    # Installed with the tests on Linux; elsewhere the system's own.
    kubectl: str | Path = Path(sysconfig.get_path("scripts")) / "kubectl"
    if not Path(kubectl).exists():
        kubectl = need_program("kubectl", package="kubernetes-client, of Debian 13 or newer")
    output = subprocess.run(
        [kubectl, "kustomize", str(FOLDER / "overlays" / name)], capture_output=True, text=True, check=False
    )
    assert output.returncode == 0, output.stderr
    return Overlay(name, list(yaml.load_all(output.stdout, Loader=yaml.CSafeLoader)))
