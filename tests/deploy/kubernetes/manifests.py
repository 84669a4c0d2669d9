"""The overlays as kustomize renders them, and the few questions that the tests ask of them."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
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

    def settings(self) -> dict[str, str]:
        """What the gateway's container gets as LAID_* variables from its ConfigMap."""
        (reference,) = self.pod("gateway").container["envFrom"]
        return dict(self.of_kind("ConfigMap")[reference["configMapRef"]["name"]]["data"])

    def engine_options(self) -> dict[str, str]:
        """`laid-engine`'s options by name."""
        words = " ".join(self.pod("engine").container["args"]).replace("\\\n", " ").split()
        return dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)


def render(name: str) -> Overlay:
    """The overlay by this name, with `kubectl kustomize`."""
    kubectl = need_program("kubectl", package="kubectl, or kubernetes-client of Debian 13 or newer")
    output = subprocess.run(
        [kubectl, "kustomize", str(FOLDER / "overlays" / name)], capture_output=True, text=True, check=False
    )
    assert output.returncode == 0, output.stderr
    return Overlay(name, list(yaml.safe_load_all(output.stdout)))
