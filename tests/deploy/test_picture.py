"""The pictures of the dashboards: drawn from a real Prometheus, small, and shown in the documentation."""

import importlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.system import need_program

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARDS = sorted(path.stem for path in (FOLDER / "dashboards").glob("*.json"))
MAX_BYTES = 150_000
MINUTES = 10


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("picture")


@pytest.fixture
def history() -> str:
    """Ten minutes of some metrics, up to now, in OpenMetrics' form."""
    lines = ["# TYPE laid_engine_up gauge", "# TYPE laid_prompt_tokens histogram", "# TYPE laid_requests counter"]
    lines.append("# TYPE laid_failures:ratio_rate1h gauge")
    for step in range(4 * MINUTES + 1):
        moment = time.time() - 60 * MINUTES + 15 * step
        lines += [
            f'laid_engine_up{{model="m",engine="0"}} {int(step > 9)} {moment:.3f}',
            f'laid_prompt_tokens_bucket{{model="m",le="512.0"}} {step} {moment:.3f}',
            f'laid_prompt_tokens_bucket{{model="m",le="1024.0"}} {3 * step} {moment:.3f}',
            f'laid_prompt_tokens_bucket{{model="m",le="+Inf"}} {3 * step} {moment:.3f}',
            f'laid_requests_total{{route="/v1/responses",status="200"}} {3 * step} {moment:.3f}',
        ]
        # Recorded from the first request on.
        lines += [f"laid_failures:ratio_rate1h 0.25 {moment:.3f}"] if step > 2 * MINUTES else []
    return "\n".join([*sorted(lines, key=lambda line: (line[0] != "#", line.partition(" ")[0])), "# EOF", ""])


@pytest.fixture
def prometheus(tmp_path: Path, unused_tcp_port: int, history: str) -> Iterator[str]:
    """The URL of a Prometheus that has the history."""
    (tmp_path / "history.txt").write_text(history)
    (tmp_path / "prometheus.yml").write_text("scrape_configs: []\n")
    data = tmp_path / "data"
    promtool = need_program("promtool", package="prometheus")
    backfill = [promtool, "tsdb", "create-blocks-from", "openmetrics", tmp_path / "history.txt", data]
    subprocess.run(backfill, check=True, capture_output=True)
    command = [need_program("prometheus", package="prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={data}", f"--web.listen-address=127.0.0.1:{unused_tcp_port}", "--log.level=error"]
    with subprocess.Popen(command) as process:
        url = f"http://127.0.0.1:{unused_tcp_port}"
        wait_until_ready(url)
        yield url
        process.terminate()


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    pytest.fail("Prometheus did not get ready")


def test_every_panel_is_asked_of_prometheus_and_drawn(picture: ModuleType, prometheus: str, tmp_path: Path) -> None:
    picture.draw_all(prometheus, minutes=MINUTES, rate_interval="1m", folder=tmp_path / "pictures")

    for name in DASHBOARDS:
        with Image.open(tmp_path / "pictures" / f"{name}.png") as image:
            assert image.width == picture.DPI * picture.WIDTH_INCHES


def test_a_curve_has_its_legend_its_times_and_its_values(picture: ModuleType, prometheus: str) -> None:
    with httpx.Client(base_url=prometheus) as client:
        source = picture.Prometheus(client, minutes=MINUTES, rate_interval="1m")
        (up,) = source.ask('min by (engine) (laid_engine_up{model=~"$model"})', "engine {{engine}}")
        (rate,) = source.ask("sum(rate(laid_requests_total[$__rate_interval]))", "")

    assert up.label == "engine 0"
    assert -MINUTES <= up.times[0] < up.times[-1] <= 1e-4
    assert set(up.values) == {0, 1}
    assert rate.values[-1] == pytest.approx(3 / 15, rel=0.05)


def test_a_panel_of_one_number_has_one_at_any_time(picture: ModuleType, prometheus: str) -> None:
    panels = json.loads((FOLDER / "dashboards" / "laid-overview.json").read_text())["panels"]
    stats = [target["expr"] for panel in panels if panel["type"] == "stat" for target in panel["targets"]]
    with httpx.Client(base_url=prometheus) as client:
        source = picture.Prometheus(client, minutes=MINUTES, rate_interval="1m")
        found = {expression: source.ask(expression, "") for expression in stats}

    assert all(len(series) <= 1 for series in found.values())
    (failed,) = next(series for expression, series in found.items() if "laid_failures" in expression)
    assert (failed.values[0], failed.values[-1]) == (0, 0.25)


def test_no_line_leads_over_a_gap(picture: ModuleType) -> None:
    series = picture.Series(label="", labels={}, times=np.array([-9.0, -8, -7, -3, -2]), values=np.arange(5.0))

    assert np.isnan(picture._with_gaps(series)).tolist() == [False, False, True, False, False]


def test_every_dashboard_has_its_picture_in_the_documentation_and_it_is_small() -> None:
    text = (FOLDER / "README.md").read_text()

    pictures = sorted((FOLDER / "pictures").glob("*.png"))
    assert [path.stem for path in pictures] == DASHBOARDS
    for path in pictures:
        assert f"](pictures/{path.name})" in text
        assert path.stat().st_size < MAX_BYTES
        with Image.open(path) as image:
            image.verify()


def test_the_buckets_of_a_heatmap_are_taken_apart(picture: ModuleType, prometheus: str) -> None:
    """Prometheus' are cumulative; most prompts of the history have 513 to 1,024 tokens."""
    with httpx.Client(base_url=prometheus) as client:
        source = picture.Prometheus(client, minutes=MINUTES, rate_interval="1m")
        series = source.ask("sum by (le) (increase(laid_prompt_tokens_bucket[$__rate_interval]))", "{{le}}")
    axes = Figure().subplots()
    panel: dict[str, Any] = {"fieldConfig": {"defaults": {"unit": "short"}}}

    picture._draw_heatmap(axes, panel, series)

    rows = axes.collections[0].get_array().sum(axis=1)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[:2] == ["≤ 512", "≤ 1.02 k"]
    assert rows[1] == pytest.approx(2 * rows[0], rel=0.05)
