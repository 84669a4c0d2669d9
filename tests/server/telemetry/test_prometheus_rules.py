"""The rules that are deployed: valid, each with a unit test, each alert explained, and only of metrics that exist."""

import re
from collections.abc import Callable
from pathlib import Path

import yaml

from server.gateway import make_gateway
from server.settings import Settings
from tests.server.telemetry.expressions import gateway_names, metric_names

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = [rule for path in FOLDER.glob("rules/*.yml") for group in yaml.safe_load(path.read_text())["groups"]
         for rule in group["rules"]]  # fmt: skip
RUNBOOK = ROOT / "deploy" / "README.md"
TESTS = (FOLDER / "tests" / "rules.test.yml").read_text()


def test_the_configuration_and_its_rules_are_valid(promtool: Callable[..., str]) -> None:
    promtool("check", "config", "--lint=all", "--lint-fatal", FOLDER / "prometheus.yml")


def test_every_rule_does_what_its_unit_test_says(promtool: Callable[..., str]) -> None:
    assert "SUCCESS" in promtool("test", "rules", FOLDER / "tests" / "rules.test.yml")


def test_every_rule_has_a_unit_test_and_every_alert_fires_in_one() -> None:
    tests = yaml.safe_load(TESTS)["tests"]
    fired = {case["alertname"] for test in tests for case in test.get("alert_rule_test", ()) if case["exp_alerts"]}
    shown = {
        name
        for test in tests
        for case in test.get("promql_expr_test", ())
        if case["exp_samples"]
        for name in metric_names(case["expr"])
    }

    assert fired == {rule["alert"] for rule in RULES if "alert" in rule}
    assert shown >= {rule["record"] for rule in RULES if "record" in rule}


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def test_every_alert_names_its_section_and_has_a_severity() -> None:
    chapter = re.split(r"^## ", RUNBOOK.read_text().partition("\n## Alerts\n")[2], maxsplit=1, flags=re.M)[0]
    sections = {anchor(heading) for heading in re.findall(r"^### (.*)$", chapter, re.M)}

    alerts = [rule for rule in RULES if "alert" in rule]
    place = RUNBOOK.relative_to(ROOT)
    for alert in alerts:
        assert alert["annotations"]["runbook"] == f"{place}#{alert['alert'].lower()}"
    assert sections == {alert["alert"].lower() for alert in alerts}
    assert {alert["labels"]["severity"] for alert in alerts} == {"page", "ticket"}


def test_every_section_begins_with_the_alerts_severity() -> None:
    for alert in (rule for rule in RULES if "alert" in rule):
        section = RUNBOOK.read_text().partition(f"### {alert['alert']}\n\n")[2]
        assert section.startswith(f"*{alert['labels']['severity'].capitalize()}.*"), alert["alert"]


async def test_every_metric_in_a_rule_exists(make_settings: Callable[..., Settings]) -> None:
    gateway = make_gateway(make_settings())
    known = gateway_names(gateway.metrics.exposition().decode()) | {rule.get("record") for rule in RULES} | {"up"}
    await gateway.aclose()

    unknown = {name for rule in RULES for name in metric_names(rule["expr"])} - known

    assert not unknown
