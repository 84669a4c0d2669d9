"""Every manifest against Kubernetes' own schemas; of custom resources what they hold of Kubernetes'."""

import warnings

import pytest
import yaml

from tests.deploy.kubernetes.manifests import FOLDER, Overlay, render

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kubernetes_validate

CUSTOM = {
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "RayCluster": "ray.io/v1",
}


def test_kubernetes_own_kinds(overlay: Overlay) -> None:
    version = kubernetes_validate.latest_version()
    for manifest in overlay.manifests:
        if manifest["kind"] in CUSTOM:
            assert manifest["apiVersion"] == CUSTOM[manifest["kind"]]
        else:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_every_pod(overlay: Overlay) -> None:
    """Those of Ray's cluster too, which no other schema reaches."""
    version = kubernetes_validate.latest_version()
    for pod in overlay.pods():
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", **pod.template["metadata"]}}
        kubernetes_validate.validate(manifest | {"spec": pod.spec}, version, strict=True)


def test_the_pod_that_loads_a_checkpoint() -> None:
    """It writes where the others read."""
    manifest = yaml.safe_load((FOLDER / "load-checkpoint.yaml").read_text())
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)

    gateway = render("one-gpu").pod("gateway")
    assert manifest["spec"]["containers"][0]["image"] == gateway.container["image"]
    assert manifest["spec"]["securityContext"] == gateway.spec["securityContext"]
    (volume,) = manifest["spec"]["volumes"]
    assert volume in gateway.volumes
    (mount,) = manifest["spec"]["containers"][0]["volumeMounts"]
    assert mount | {"readOnly": True} in gateway.container["volumeMounts"]


def test_a_wrong_word_is_found(overlay: Overlay) -> None:
    pod = overlay.pod("gateway")
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod.spec | {"volums": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
