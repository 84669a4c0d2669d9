"""deploy/compose.yaml against the Dockerfile, the settings, Prometheus, Grafana, and the flags of the programs."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.engines.cli import parse
from server.settings import Settings
from tests.deploy.names import ROOT, check_environment_names, dockerfile_targets, setting_names
from tests.system import need_program

DEPLOY = ROOT / "deploy"
FILES = ("compose.yaml", "compose.gpu.yaml")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
DURATION = {"s": 1, "m": 60}
OURS = ("gateway", "engine")


def with_defaults(text: str) -> str:
    """Each `${NAME:-default}` as it is where deploy/.env says nothing."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    assert "$" not in text, text
    return text


def read(name: str) -> Any:
    return yaml.safe_load(with_defaults((DEPLOY / name).read_text()))


COMPOSE = read("compose.yaml")
SERVICES: dict[str, Any] = COMPOSE["services"]
GATEWAY, ENGINE = SERVICES["gateway"], SERVICES["engine"]


def image_values(target: str, instruction: str) -> list[str]:
    return [step["value"] for step in dockerfile_targets()[target] if step["instruction"] == instruction]


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_a_compose_file(name: str) -> None:
    # The specification's own schema, which this package carries.
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(DEPLOY / name)]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(
    shutil.which("docker") is None
    or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0,
    reason="docker has no compose plug-in here; the test of the schema stands for it",
)
def test_docker_compose_reads_both_files_together() -> None:
    files = [word for name in FILES for word in ("-f", str(DEPLOY / name))]

    subprocess.run(["docker", "compose", *files, "config", "--quiet"], check=True)


def test_the_override_changes_services_that_exist() -> None:
    override = read("compose.gpu.yaml")

    assert override.keys() == {"services"}
    assert override["services"].keys() <= SERVICES.keys()


def test_targets_and_build_arguments_exist() -> None:
    for name, service in [*SERVICES.items(), ("engine", read("compose.gpu.yaml")["services"]["engine"])]:
        if "build" in service:
            build = SERVICES[name]["build"] | service["build"]
            assert build["target"] in dockerfile_targets()
            assert (DEPLOY / build["context"] / "Dockerfile").exists()
            if "args" in build:
                assert f"engine-on-{build['args']['ENGINE']}" in dockerfile_targets()


def test_images_are_pinned() -> None:
    for service in [*SERVICES.values(), *read("compose.gpu.yaml")["services"].values()]:
        name, tag = service["image"].rsplit(":", 1)
        if name.startswith("laid-"):
            assert tag == VERSION
        else:
            assert re.fullmatch(r"v?\d+\.\d+\.\d+(-alpine)?", tag), service["image"]
            assert name.count("/") == 2, f"{name}: the registry is missing"


def test_every_service_has_a_health_check_and_starts_again() -> None:
    for name, service in SERVICES.items():
        checks = [service.get("healthcheck")] if name not in OURS else image_values(name, "HEALTHCHECK")
        assert all(checks), name
        assert service["restart"] == "unless-stopped"


def test_no_service_may_more_than_it_needs() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "privileged" not in service
        assert "cap_add" not in service


def test_engine_and_redis_are_reached_from_inside_alone() -> None:
    inside = {name for name, network in COMPOSE["networks"].items() if network and network.get("internal")}

    for name in ("engine", "redis", "prometheus"):
        assert set(SERVICES[name]["networks"]) <= inside, name
        assert "ports" not in SERVICES[name]
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert set(service["networks"]) <= COMPOSE["networks"].keys()


def test_the_gateway_understands_its_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = GATEWAY["environment"]
    check_environment_names(environment)
    for name in GATEWAY["secrets"]:
        (tmp_path / name).write_text("0123456789abcdef")
    for name, value in environment.items():
        assert isinstance(value, str | int)
        monkeypatch.setenv(name, str(value).replace("/run/secrets", str(tmp_path)))

    settings = Settings(checkpoint=DEPLOY / GATEWAY["volumes"][0]["source"], host="0.0.0.0")

    # Both are needed to start before the engine.
    assert {"model", "context_length", "image_secret"} <= settings.model_fields_set
    grace = int(GATEWAY["stop_grace_period"][:-1]) * DURATION[GATEWAY["stop_grace_period"][-1]]
    assert grace >= settings.drain_notice_seconds + settings.drain_seconds + 10


def test_gateway_and_engine_are_told_the_same() -> None:
    options, for_vllm = parse(engine_arguments())
    environment = GATEWAY["environment"]

    assert options.model == environment["LAID_MODEL"]
    assert options.max_images == int(environment["LAID_MAX_IMAGES"])
    assert for_vllm[for_vllm.index("--max-model-len") + 1] == str(environment["LAID_CONTEXT_LENGTH"])
    assert GATEWAY["volumes"][0] == ENGINE["volumes"][0]
    assert options.checkpoint == Path(ENGINE["volumes"][0]["target"])
    config = json.loads((DEPLOY / ENGINE["volumes"][0]["source"] / "config.json").read_text())
    assert int(environment["LAID_CONTEXT_LENGTH"]) <= config["text_config"]["max_position_embeddings"]


def engine_arguments() -> list[str]:
    (entry_point,) = image_values("engine", "ENTRYPOINT")
    return [*json.loads(entry_point)[1:], *shlex.split(ENGINE["command"])]


def test_ports_match() -> None:
    options, _ = parse(engine_arguments())
    scraped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    targets = {target for job in scraped for group in job["static_configs"] for target in group["targets"]}
    environment = GATEWAY["environment"]
    (exposed,) = image_values("gateway", "EXPOSE")

    assert targets == {f"gateway:{exposed}", f"engine:{options.port}"}
    assert environment["LAID_UPSTREAM"] == f"http://engine:{options.port}"
    assert image_values("engine", "EXPOSE") == [str(options.port)]
    assert GATEWAY["ports"] == [f"127.0.0.1:{exposed}:{exposed}"]
    assert f"LAID_PORT={exposed} " in image_values("gateway", "ENV")[0]
    assert f"LAID_UPSTREAM={environment['LAID_UPSTREAM']}" in image_values("gateway", "ENV")[0]
    assert environment["LAID_LIMITS_STORAGE"] == "redis://redis:6379"
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["url"].removeprefix("http://prometheus:") in SERVICES["prometheus"]["healthcheck"]["test"][-1]


def test_what_is_mounted_exists() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
                assert (isinstance(volume, dict) and volume["read_only"]) or volume.endswith(":ro")
            else:
                assert source in COMPOSE["volumes"], source


def test_dashboards_lie_where_grafana_looks_for_them() -> None:
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/laid.yml").read_text())["providers"]

    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]


def test_secrets_are_declared_used_and_never_committed() -> None:
    used = {name for service in SERVICES.values() for name in service.get("secrets", ())}
    ignored = (ROOT / ".gitignore").read_text().splitlines()

    assert used == COMPOSE["secrets"].keys()
    assert {name for name in used if name.startswith("LAID_")} <= setting_names()
    for name, secret in COMPOSE["secrets"].items():
        assert secret["file"] == f"secrets/{name}"
    assert {"deploy/secrets/", "deploy/.env", "deploy/gateway.env"} <= set(ignored)
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD|SECRET|KEY", name) or str(value).startswith("/run/secrets"), name


def test_what_a_service_waits_for_exists() -> None:
    for service in SERVICES.values():
        for name, wait in service.get("depends_on", {}).items():
            assert name in SERVICES
            assert wait["condition"] in {"service_started", "service_healthy"}


PARSE = """
import sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
print(make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:]).served_model_name)
"""


def test_vllm_knows_every_flag() -> None:
    from server.checkpoint import read_checkpoint
    from server.engines.command import engine_command

    options, for_vllm = parse(engine_arguments())
    checkpoint = read_checkpoint(DEPLOY / ENGINE["volumes"][0]["source"])
    names = ("model", "max_images", "host", "port")
    command = engine_command(checkpoint, extra_arguments=for_vllm, **{name: getattr(options, name) for name in names})
    assert command[1:3] == ["-m", "vllm.entrypoints.launchers.api_server.entry"]

    done = subprocess.run([sys.executable, "-c", PARSE, *command[3:]], capture_output=True, text=True, check=False)

    assert done.stdout.splitlines()[-1:] == ["['laid']"], done.stderr


def test_prometheus_knows_every_flag() -> None:
    known = subprocess.run([need_program("prometheus", package="prometheus"), "--help"], capture_output=True, text=True)

    for flag in SERVICES["prometheus"]["command"]:
        assert re.search(rf"{flag.split('=')[0]}\b", known.stdout + known.stderr), flag


def test_redis_knows_every_option(tmp_path: Path) -> None:
    _, *options = SERVICES["redis"]["command"]
    socket = tmp_path / "redis.sock"
    quiet = ("--port", "0", "--unixsocket", str(socket), "--logfile", str(tmp_path / "log"))
    with subprocess.Popen([need_program("redis-server", package="redis-server"), *options, *quiet]) as server:
        try:
            ask = [need_program("redis-cli", package="redis-server"), "-s", str(socket)]
            while subprocess.run([*ask, "ping"], capture_output=True, check=False).returncode != 0:
                assert server.poll() is None, (tmp_path / "log").read_text()
            policy = subprocess.check_output([*ask, "config", "get", "maxmemory-policy"], text=True)
        finally:
            server.terminate()
    assert "volatile-ttl" in policy
