"""What the manifests say of each other, of the gateway and of the engine is true."""

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from server.engines.cli import main as laid_engine
from server.routes import status
from server.settings import Settings, check_environment
from server.telemetry.metrics import Metrics
from tests.deploy.kubernetes.manifests import FOLDER, OVERLAYS, ROOT, Overlay, render

CHECKPOINT = ROOT / "distill" / "miniature" / "checkpoints" / "base"
MADE_BY_HAND = {"gateway": {"keys.toml", "image-secret"}}
"""Secrets, as the README says to make them."""
RAY_AGENT_HEALTH = "/api/local_raylet_healthz"


def settings_of(overlay: Overlay, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As the gateway reads them in its container, but for the places of its files."""
    for name, value in overlay.settings().items():
        monkeypatch.setenv(name, value)
    (secrets,) = [each["secret"] for each in overlay.pod("gateway").volumes if "secret" in each]
    for item in secrets["items"]:
        (folder / item["path"]).write_text("0" * 64)
    monkeypatch.setenv("LAID_SECRETS_FOLDER", str(folder))
    monkeypatch.setenv("LAID_CHECKPOINT", str(CHECKPOINT))
    monkeypatch.setenv("LAID_KEYS_FILE", str(folder / "keys.toml"))
    check_environment(overlay.settings())
    return Settings()


def is_selected(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def test_the_settings_are_settings(overlay: Overlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(overlay, tmp_path, monkeypatch)

    grace = overlay.pod("gateway").spec["terminationGracePeriodSeconds"]
    assert grace > settings.drain_notice_seconds + settings.drain_seconds
    assert overlay.pod("gateway").ports["http"] == settings.port
    mounts = {mount["mountPath"] for mount in overlay.pod("gateway").container["volumeMounts"]}
    assert {overlay.settings()["LAID_FILES_FOLDER"], str(Path(overlay.settings()["LAID_KEYS_FILE"]).parent)} <= mounts
    assert overlay.settings()["LAID_SECRETS_FOLDER"] in mounts
    assert settings.image_secret is not None
    assert settings.image_secret.get_secret_value() == "0" * 64


def test_gateway_and_engine_agree(overlay: Overlay) -> None:
    settings, options = overlay.settings(), overlay.engine_options()

    assert overlay.command("gateway") == ["laid-serve", settings["LAID_CHECKPOINT"]]
    assert overlay.command("engine")[:2] == ["laid-engine", settings["LAID_CHECKPOINT"]]
    for name in ("gateway", "engine"):
        mounts = {each["mountPath"] for each in overlay.pod(name).container["volumeMounts"] if each.get("readOnly")}
        assert str(Path(settings["LAID_CHECKPOINT"]).parent) in mounts
    assert options["model"] == settings["LAID_MODEL"]
    assert options["max-model-len"] == settings["LAID_CONTEXT_LENGTH"]
    assert options["max-images"] == settings["LAID_MAX_IMAGES"]
    assert overlay.pod("engine").ports["http"] == int(options["port"])


def test_a_change_of_the_gateways_settings_starts_no_engine(overlay: Overlay) -> None:
    shared = {name for name in overlay.environment("engine") if name.startswith("LAID_")}
    assert shared == {"LAID_CHECKPOINT", "LAID_MODEL", "LAID_CONTEXT_LENGTH", "LAID_MAX_IMAGES"}


def test_no_engine_refuses_for_minutes_what_it_calls_healthy(overlay: Overlay) -> None:
    """With it vLLM 0.32 passes its health check while it drains, and answers new requests with 500."""
    assert "shutdown-timeout" not in overlay.engine_options()


def test_the_trial_has_the_miniature_students_context_length() -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text())

    length = render("cpu-trial").settings()["LAID_CONTEXT_LENGTH"]
    assert int(length) == config["text_config"]["max_position_embeddings"]


def test_volumes_that_one_node_has_are_needed_on_one_node_only(overlay: Overlay) -> None:
    """Either on the engine's node, of which there is one, or by a class for many nodes."""
    affinity = overlay.pod("gateway").spec.get("affinity", {}).get("podAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", ())
    beside = [term["labelSelector"]["matchLabels"] for term in terms if term["topologyKey"] == "kubernetes.io/hostname"]
    modes = {tuple(each["spec"]["accessModes"]) for each in overlay.of_kind("PersistentVolumeClaim").values()}

    if modes == {("ReadWriteOnce",)}:
        assert beside
        assert is_selected(beside[0], overlay.pod("engine").labels)
        assert overlay.of_kind("StatefulSet")["engine"]["spec"]["replicas"] == 1
    else:
        assert modes == {("ReadWriteMany",)}


def test_gpus_are_as_many_as_the_engine_divides_itself_over() -> None:
    ray = render("ray")
    options = ray.engine_options()
    (workers,) = ray.of_kind("RayCluster")["engine"]["spec"]["workerGroupSpecs"]
    gpus = {
        int(pod.container["resources"]["limits"]["nvidia.com/gpu"]) for pod in ray.pods() if "RayCluster" in pod.owner
    }

    assert gpus == {int(options["tensor-parallel-size"])}
    assert int(options["pipeline-parallel-size"]) == 1 + workers["replicas"]


def test_ray_is_of_one_version() -> None:
    cluster = render("ray").of_kind("RayCluster")["engine"]
    dockerfile = (FOLDER / "overlays" / "ray" / "Dockerfile").read_text()

    assert f"ray[default]=={cluster['spec']['rayVersion']}" in dockerfile
    assert all(pod.container["image"] in dockerfile for pod in render("ray").pods() if "RayCluster" in pod.owner)


def test_the_engines_options_are_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    """By vLLM's own parser, which takes seconds to import: once for all overlays."""
    options = [render(name).engine_options() for name in OVERLAYS]
    commands: list[list[str]] = []
    monkeypatch.setattr("os.execve", lambda _, command, __: commands.append(command))
    for each in options:
        laid_engine([str(CHECKPOINT), *(f"--{name}={value}" for name, value in each.items())])
    program = (
        "import json, sys; from vllm.entrypoints.launchers.cli_args import make_arg_parser; "
        "from vllm.utils.argparse_utils import FlexibleArgumentParser; "
        "parser = make_arg_parser(FlexibleArgumentParser()); "
        "found = [parser.parse_args(words) for words in json.loads(sys.argv[1])]; "
        "print(json.dumps([[each.max_model_len, each.served_model_name] for each in found]))"
    )
    words = json.dumps([command[command.index("--model") :] for command in commands])
    output = subprocess.run([sys.executable, "-c", program, words], capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr
    parsed = json.loads(output.stdout.splitlines()[-1])
    assert parsed == [[int(each["max-model-len"]), ["student"]] for each in options]


def test_every_engine_has_a_name_that_the_gateway_knows(overlay: Overlay) -> None:
    urls = [urlsplit(url) for url in overlay.settings()["LAID_UPSTREAM"].split(",")]
    service = overlay.of_kind("Service")["engine"]
    assert {url.port for url in urls} == {service["spec"]["ports"][0]["port"]} == {overlay.pod("engine").ports["http"]}
    hosts = [url.hostname for url in urls]
    if overlay.name == "ray":
        assert hosts == ["engine"]
        assert service["spec"]["selector"]["ray.io/node-type"] == "head"
        return
    engines = overlay.of_kind("StatefulSet")["engine"]["spec"]
    scalers = overlay.of_kind("HorizontalPodAutoscaler")
    count = scalers["engine"]["spec"]["maxReplicas"] if scalers else engines["replicas"]
    assert hosts == [f"engine-{number}.{engines['serviceName']}" for number in range(count)]
    assert engines["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"


def test_redis_is_the_one_of_compose() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]

    assert render("many-gpus").pod("redis").container["image"] == services["redis"]["image"]


def test_redis_is_where_the_gateway_asks(overlay: Overlay) -> None:
    url = urlsplit(overlay.settings()["LAID_LIMITS_STORAGE"])
    assert url.hostname is not None
    assert overlay.of_kind("Service")[url.hostname]["spec"]["ports"][0]["port"] == url.port


def test_probes_ask_what_is_answered(overlay: Overlay) -> None:
    paths = {"http": {"/health"}, "agent": {RAY_AGENT_HEALTH}}
    for pod in overlay.pods():
        is_gateway = pod.labels["app.kubernetes.io/name"] == "gateway"
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            if (get := pod.container.get(name, {}).get("httpGet")) is not None:
                assert get["port"] in pod.ports
                assert get["path"] in ({status.HEALTH, status.READY} if is_gateway else paths[get["port"]])
        # KubeRay would add its own.
        assert {"livenessProbe", "readinessProbe"} <= pod.container.keys()
    gateway = overlay.pod("gateway").container
    assert gateway["readinessProbe"]["httpGet"]["path"] == status.READY
    assert gateway["livenessProbe"]["httpGet"]["path"] == status.HEALTH


def test_selectors_select(overlay: Overlay) -> None:
    labels = [pod.labels | {"ray.io/node-type": "head"} for pod in overlay.pods()]
    selectors = [service["spec"]["selector"] for service in overlay.of_kind("Service").values()]
    for kind, field in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        selectors += [each["spec"][field].get("matchLabels", {}) for each in overlay.of_kind(kind).values()]
    for kind in ("Deployment", "StatefulSet"):
        for each in overlay.of_kind(kind).values():
            chosen = each["spec"]["selector"]["matchLabels"]
            assert is_selected(chosen, each["spec"]["template"]["metadata"]["labels"])
    for selector in selectors:
        assert any(is_selected(selector, each) for each in labels), selector


def test_services_lead_to_ports_that_are_open(overlay: Overlay) -> None:
    for service in overlay.of_kind("Service").values():
        pod = overlay.pod(service["metadata"]["name"])
        for port in service["spec"]["ports"]:
            assert pod.ports[port["targetPort"]] == port["port"]


def test_what_is_referred_to_is_there(overlay: Overlay) -> None:
    claims, maps = overlay.of_kind("PersistentVolumeClaim"), overlay.of_kind("ConfigMap")
    for pod in overlay.pods():
        names = {volume["name"] for volume in pod.volumes}
        assert {mount["name"] for mount in pod.container.get("volumeMounts", ())} == names
        for volume in pod.volumes:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            elif "secret" in volume:
                assert {item["key"] for item in volume["secret"]["items"]} <= MADE_BY_HAND[
                    volume["secret"]["secretName"]
                ]
            else:
                assert "emptyDir" in volume
        # Secrets come as files.
        assert all("value" in variable for variable in pod.container.get("env", ()))
        for source in pod.container.get("envFrom", ()):
            assert source["configMapRef"]["name"] in maps
    readme = (ROOT / "deploy" / "kubernetes" / "README.md").read_text()
    assert all(name in readme for name in ("secret generic gateway", "keys.toml", "image-secret"))


def test_pods_have_no_rights_that_they_do_not_need(overlay: Overlay) -> None:
    for pod in overlay.pods():
        assert pod.spec["securityContext"]["runAsNonRoot"], pod.owner
        assert pod.spec["securityContext"]["runAsUser"] > 0
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.spec["automountServiceAccountToken"] is False
        # A Service's variables could be refused as unknown settings.
        assert pod.spec["enableServiceLinks"] is False
        context = pod.container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert ":" in pod.container["image"], "a tag"
        assert not pod.container["image"].endswith(":latest")


def test_what_is_scaled_by_is_measured() -> None:
    (metric,) = render("many-gpus").of_kind("HorizontalPodAutoscaler")["engine"]["spec"]["metrics"]
    assert f"\n{metric['external']['metric']['name']}{{" in Metrics("model", engines=["0"]).exposition().decode()
