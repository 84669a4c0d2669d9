"""Rules, scraping and the autoscaler's alert."""

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

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


def check_rules(folder: Path, rules: list[dict[str, Any]], series: dict[str, str], **expected: Any) -> None:
    """Lets promtool evaluate rules over series with a sample a minute."""
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "rules", "rules": rules}]}))
    given = [{"series": name, "values": values} for name, values in series.items()]
    test = {"rule_files": ["rules.yml"], "tests": [{"interval": "1m", "input_series": given, **expected}]}
    (folder / "test.yml").write_text(yaml.safe_dump(test))
    promtool = need_program("promtool", package="prometheus")
    output = subprocess.run(
        [promtool, "test", "rules", str(folder / "test.yml")], capture_output=True, text=True, check=False
    )
    assert output.returncode == 0, output.stdout + output.stderr


def test_an_engine_that_was_scaled_away_or_is_still_loading_is_no_outage(tmp_path: Path) -> None:
    rule = render("many-gpus").of_kind("PrometheusRule")["laid"]
    (alert,) = [
        each for group in rule["spec"]["groups"] for each in group["rules"] if each.get("alert") == "LaidEngineDown"
    ]
    up = 'laid_engine_up{instance="gateway", model="m", engine="%d"}'
    series = {
        up % 0: "1x60",
        up % 1: "1x30 0x29",
        up % 2: "0x15 1x44",
        up % 3: "0x60",
        'kube_statefulset_replicas{namespace="laid", statefulset="engine"}': "2x5 3x54",
    }
    firing = {
        "exp_labels": {"severity": "page", "instance": "gateway", "model": "m"},
        "exp_annotations": alert["annotations"]
        | {"summary": "Only 2 engines, fewer than wanted, pass the health check of gateway."},
    }

    check_rules(
        tmp_path,
        [alert],
        series,
        alert_rule_test=[
            {"eval_time": "4m", "alertname": "LaidEngineDown", "exp_alerts": []},  # two of two
            {"eval_time": "15m", "alertname": "LaidEngineDown", "exp_alerts": []},  # two of three, one is loading
            {"eval_time": "50m", "alertname": "LaidEngineDown", "exp_alerts": [firing]},  # two of three, one is dead
        ],
    )


def test_the_autoscaler_asks_for_the_tokens_of_all_gateways(tmp_path: Path) -> None:
    (rule,) = yaml.safe_load((FOLDER / "components" / "autoscaling" / "adapter-rules.yaml").read_text())["external"]
    (metric,) = render("many-gpus").of_kind("HorizontalPodAutoscaler")["engine"]["spec"]["metrics"]
    assert rule["name"]["as"] == metric["external"]["metric"]["name"]
    # What prometheus-adapter puts in, by its documentation.
    filled = {"Series": rule["seriesQuery"].partition("{")[0], "LabelMatchers": 'namespace="laid"', "GroupBy": ""}
    query = rule["metricsQuery"]
    for name, value in filled.items():
        query = query.replace(f"<<.{name}>>", value)
    series = {
        'laid_tokens_in_flight{namespace="laid", pod="gateway-a", model="m"}': "1000x10",
        'laid_tokens_in_flight{namespace="laid", pod="gateway-b", model="m"}': "200x10",
        'laid_tokens_in_flight{namespace="other", pod="gateway-c", model="m"}': "7x10",
    }

    sample = {"expr": "asked", "eval_time": "5m", "exp_samples": [{"labels": "asked", "value": 1200}]}
    check_rules(tmp_path, [{"record": "asked", "expr": query}], series, promql_expr_test=[sample])


def test_the_dashboards_are_those_of_grafana(overlay: Overlay) -> None:
    maps = overlay.of_kind("ConfigMap")
    if not overlay.of_kind("ServiceMonitor"):
        assert "laid-dashboards" not in maps
        return
    files = {path.name: path.read_text() for path in (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")}
    assert maps["laid-dashboards"]["data"] == files
    # `kubectl apply` keeps a copy in an annotation, which holds no more.
    assert len(json.dumps(maps["laid-dashboards"])) < 256 * 1024
