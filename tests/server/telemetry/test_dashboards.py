"""The dashboards that are deployed: what their source writes, and every expression valid and of metrics that exist."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from server.gateway import make_gateway
from server.settings import Settings
from tests.server.telemetry.expressions import gateway_names, metric_names, vllm_names

DEPLOY = Path(__file__).parents[3] / "deploy"
VARIABLES = {"$__rate_interval": "5m", "$model": ".+"}
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_dashboards", DEPLOY / "grafana" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def panels() -> Iterator[dict[str, Any]]:
    for path in DASHBOARDS:
        yield from (panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row")


def expressions() -> list[str]:
    """Of every panel and every variable, with values in place of Grafana's variables."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    for name, value in VARIABLES.items():
        found = [expression.replace(name, value) for expression in found]
    return found


def test_the_committed_dashboards_are_what_their_source_writes(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "FOLDER", tmp_path)

    build.main()

    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_text() for path in DASHBOARDS}


def test_every_panels_expression_is_valid(promtool: Callable[..., str], tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(expressions())]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))

    assert f"{len(rules)} rules found" in promtool("check", "rules", path)


async def test_every_metric_in_a_panel_exists(make_settings: Callable[..., Settings]) -> None:
    gateway = make_gateway(make_settings())
    known = gateway_names(gateway.metrics.exposition().decode()) | vllm_names()
    await gateway.aclose()
    for path in (DEPLOY / "prometheus" / "rules").glob("*.yml"):
        known |= {rule.get("record") for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]}
    named = {name for expression in expressions() for name in metric_names(expression)}

    assert len(named) > 20
    assert not named - known


def test_every_panel_says_what_it_shows_and_none_overlap() -> None:
    assert all(panel["description"] and panel["targets"] for panel in panels())
    for path in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(path.read_text())["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert max(x for x, _ in cells) < 24
            assert not cells & taken
            taken |= cells


def test_a_name_that_does_not_exist_would_be_found() -> None:
    expression = 'sum by (le) (rate(laid_prompt_token_bucket{model=~".+", le="1.0"}[5m])) / on (le) group_left () up'

    assert metric_names(expression) == {"laid_prompt_token_bucket", "up"}


def test_the_provisioned_files_agree_with_each_other() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "laid.yml").read_text())["providers"]

    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    assert len({json.loads(path.read_text())["uid"] for path in DASHBOARDS}) == 2
