"""Rules, scraping and the autoscaler's alert."""

import importlib.util
import subprocess
from pathlib import Path

import yaml

from tests.deploy.kubernetes.manifests import FOLDER, ROOT, Overlay, render
from tests.system import need_program


def test_the_rules_are_those_of_prometheus() -> None:
    spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)

    assert build.TARGET.read_text() == build.prometheus_rule(), "run: python deploy/kubernetes/build.py"


def test_jobs_have_the_names_that_the_rules_select(overlay: Overlay) -> None:
    """The label of the Service that `jobLabel` names is what `job` becomes."""
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    monitors = overlay.of_kind("ServiceMonitor")
    found = set()
    for monitor in monitors.values():
        selector = monitor["spec"]["selector"]["matchLabels"]
        (service,) = [
            each
            for each in overlay.of_kind("Service").values()
            if selector.items() <= each["metadata"]["labels"].items()
        ]
        found.add(service["metadata"]["labels"][monitor["spec"]["jobLabel"]])
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
    assert found == (jobs if monitors else set())


def test_an_engine_that_was_scaled_away_is_no_outage(tmp_path: Path) -> None:
    rule = render("many-gpus").of_kind("PrometheusRule")["laid"]
    (alert,) = [
        each for group in rule["spec"]["groups"] for each in group["rules"] if each.get("alert") == "LaidEngineDown"
    ]
    group = {
        "name": "engines",
        "rules": [{"alert": "LaidEngineDown", "expr": alert["expr"], "labels": alert["labels"]}],
    }
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [group]}))
    up = 'laid_engine_up{instance="gateway", model="m", engine="%d"}'
    replicas = 'kube_statefulset_replicas{namespace="laid", statefulset="engine"}'
    series = [(up % 0, "1x10"), (up % 1, "1x3 0x6"), (up % 2, "0x10"), (replicas, "2x10")]
    firing = {"exp_labels": {"severity": "page", "instance": "gateway", "model": "m"}}
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series],
                # Two are up of the two that there should be; later one of them fails.
                "alert_rule_test": [
                    {"eval_time": "2m", "alertname": "LaidEngineDown", "exp_alerts": []},
                    {"eval_time": "8m", "alertname": "LaidEngineDown", "exp_alerts": [firing]},
                ],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    promtool = need_program("promtool", package="prometheus")
    output = subprocess.run(
        [promtool, "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True, check=False
    )
    assert output.returncode == 0, output.stdout + output.stderr
