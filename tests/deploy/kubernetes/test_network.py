"""Who reaches whom, by the network policies as Kubernetes defines them."""

from typing import Any

import pytest

from tests.deploy.kubernetes.manifests import Overlay

Labels = dict[str, str]
NAME = "app.kubernetes.io/name"
OURS = "laid"


def may_enter(overlay: Overlay, *, to: Labels, port: int, source: Labels, namespace: str) -> bool:
    """Whether a pod with the labels `source`, in a namespace of this name, may open a connection.

    Of NetworkPolicy what the manifests use: a pod that an ingress policy selects takes what any such policy allows.
    """
    policies = [
        each["spec"]
        for each in overlay.of_kind("NetworkPolicy").values()
        if "Ingress" in each["spec"]["policyTypes"] and _matches(each["spec"]["podSelector"], to)
    ]
    return not policies or any(
        _allows(rule, port, source, namespace) for policy in policies for rule in policy.get("ingress", ())
    )


def _allows(rule: dict[str, Any], port: int, source: Labels, namespace: str) -> bool:
    if "ports" in rule and port not in [each["port"] for each in rule["ports"]]:
        return False
    return "from" not in rule or any(_is_peer(peer, source, namespace) for peer in rule["from"])


def _is_peer(peer: dict[str, Any], source: Labels, namespace: str) -> bool:
    assert not peer.keys() - {"podSelector", "namespaceSelector"}
    names = {"kubernetes.io/metadata.name": namespace}
    in_namespace = _matches(peer["namespaceSelector"], names) if "namespaceSelector" in peer else namespace == OURS
    return in_namespace and _matches(peer.get("podSelector", {}), source)


def _matches(selector: dict[str, Any], labels: Labels) -> bool:
    assert not selector.keys() - {"matchLabels"}
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


@pytest.mark.parametrize("source", ["redis", "anything"])
@pytest.mark.parametrize("namespace", [OURS, "default", "monitoring"])
def test_nothing_but_the_gateway_reaches_engine_and_redis(overlay: Overlay, source: str, namespace: str) -> None:
    for name in ("engine", "redis"):
        pod = overlay.pod(name)
        for port in pod.ports.values():
            assert not may_enter(overlay, to=pod.labels, port=port, source={NAME: source}, namespace=namespace)
            stranger = {NAME: "gateway"}
            if namespace != OURS:
                assert not may_enter(overlay, to=pod.labels, port=port, source=stranger, namespace=namespace)


def test_the_gateway_reaches_both(overlay: Overlay) -> None:
    for name in ("engine", "redis"):
        pod = overlay.pod(name)
        for port in pod.ports.values():
            assert may_enter(overlay, to=pod.labels, port=port, source={NAME: "gateway"}, namespace=OURS)


def test_anybody_reaches_the_gateway_at_its_port(overlay: Overlay) -> None:
    labels = overlay.pod("gateway").labels
    assert may_enter(overlay, to=labels, port=8000, source={NAME: "ingress"}, namespace="ingress-nginx")
    assert not may_enter(overlay, to=labels, port=22, source={NAME: "ingress"}, namespace="ingress-nginx")


def test_prometheus_reaches_the_engine_where_it_is_to_scrape_it(overlay: Overlay) -> None:
    pod, source = overlay.pod("engine"), {NAME: "prometheus"}
    is_monitored = bool(overlay.of_kind("ServiceMonitor"))
    for port in pod.ports.values():
        assert may_enter(overlay, to=pod.labels, port=port, source=source, namespace="monitoring") == is_monitored
