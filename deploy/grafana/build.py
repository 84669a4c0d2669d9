"""Writes the dashboards that Grafana is provisioned with: python deploy/grafana/build.py

Each dashboard is a list of rows, each row a list of panels, each panel its expressions; all else is the same
everywhere. The JSON files beside this one are committed; a test sees that they are what this file writes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
COLUMNS = 24
MODEL = 'model=~"$model"'
RATE = "[$__rate_interval]"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel."""

    title: str
    about: str
    """What it shows and when to worry."""
    queries: dict[str, str]
    """Legend to expression."""
    unit: str = "short"
    kind: str = "timeseries"
    """timeseries, stat or heatmap."""
    stacked: bool = False


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    rows: dict[str, list[Panel]]


def rate(metric: str, by: str = "", where: str = MODEL) -> str:
    """What a counter grows by in a second over all gateways, for each value of labels."""
    group = f" by ({by})" if by else ""
    return f"sum{group} (rate({metric}{{{where}}}{RATE}))"


def quantile(q: float, metric: str, by: str = "") -> str:
    """A quantile of a histogram over all gateways, for each value of a label."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', labels)})"


def share(part: str, whole: str, where: str = MODEL) -> str:
    """One counter's growth over another's."""
    return f"{rate(part, where=where)} / {rate(whole, where=where)}"


FIRST_TOKEN = Panel(
    title="Time to first token, p95, by context length",
    about="From a request's last byte to its first token. Short prompts must not wait for long ones.",
    queries={"{{context_class}}": quantile(0.95, "laid_time_to_first_token_seconds", "context_class")},
    unit="s",
)
PHASES = Panel(
    title="Time by phase, p95",
    about="Where requests spend their time: reading, fetching images, checking, queueing, prefill, the stream.",
    queries={"{{phase}}": quantile(0.95, "laid_request_phase_seconds", "phase")},
    unit="s",
)
REFUSALS = Panel(
    title="Refusals by reason",
    about="Requests larger than allowed (budget), and those for which there was no room (overload).",
    queries={"{{kind}}: {{reason}}": rate("laid_errors_total", "kind, reason", 'kind=~"budget|overload"')},
    unit="reqps",
    stacked=True,
)
LANES = Panel(
    title="Requests waiting, by lane",
    about="Each lane holds prompts up to its number of tokens. A lane that never empties needs more engines.",
    queries={"up to {{lane}} tokens": f"sum by (lane) (laid_prefill_tokens_waiting_requests{{{MODEL}}})"},
)
LANE_WAIT = Panel(
    title="Wait for a turn, p95, by lane",
    about="How long requests waited for room among the tokens that the engines prefill.",
    queries={"up to {{lane}} tokens": quantile(0.95, "laid_prefill_tokens_wait_seconds", "lane")},
    unit="s",
)
CACHED = Panel(
    title="Prompt tokens from caches",
    about="Share of prompt tokens that the engine took from its prefix cache, and of images whose features it kept.",
    queries={
        "prompt tokens": share("laid_cached_tokens_sum", "laid_prompt_tokens_sum"),
        "images in the engine": share("vllm:mm_cache_hits_total", "vllm:mm_cache_queries_total", where=""),
    },
    unit="percentunit",
)
KV_USE = Panel(
    title="KV cache in use",
    about="Above 90 % the engine starts to put requests back.",
    queries={"{{instance}} engine {{engine}}": "vllm:kv_cache_usage_perc"},
    unit="percentunit",
)

OVERVIEW = Dashboard(
    uid="laid-overview",
    title="LAid: overview",
    rows={
        "Now": [
            Panel(
                title="Engines up",
                about="Engines that pass the gateway's health check.",
                queries={"": f"sum(min by (engine) (laid_engine_up{{{MODEL}}}))"},
                kind="stat",
            ),
            Panel(
                title="Requests",
                about="Answers of the routes that generate.",
                queries={"": "laid_requests:rate5m"},
                unit="reqps",
                kind="stat",
            ),
            Panel(
                title="Failed by the server",
                about="Share of the last hour's requests; 0.5 % is what the error budget allows.",
                # The sum drops the rule's name, so that both sides are one series and the panel shows one number.
                queries={"": "sum(laid_failures:ratio_rate1h) or vector(0)"},
                unit="percentunit",
                kind="stat",
            ),
            Panel(
                title="Prompt tokens in flight",
                about="What the engines work on now; what to scale by.",
                queries={"": f"sum(laid_tokens_in_flight{{{MODEL}}})"},
                kind="stat",
            ),
        ],
        "Requests": [
            Panel(
                title="Responses by status",
                about="Of every route.",
                queries={"{{status}}": rate("laid_requests_total", "status", "")},
                unit="reqps",
                stacked=True,
            ),
            Panel(
                title="Failures by reason",
                about="server: ours to mend. request: wrong in itself. client: left, or too slow.",
                queries={"{{kind}}: {{reason}}": rate("laid_errors_total", "kind, reason", 'kind!~"budget|overload"')},
                unit="reqps",
                stacked=True,
            ),
            REFUSALS,
        ],
        "Latency": [
            FIRST_TOKEN,
            Panel(
                title="Whole requests, p95, by context length",
                about="Those that succeeded, from their last byte to the answer's.",
                queries={"{{context_class}}": quantile(0.95, "laid_request_duration_seconds", "context_class")},
                unit="s",
            ),
            PHASES,
        ],
        "Load": [
            LANES,
            LANE_WAIT,
            Panel(
                title="In flight",
                about="Requests being served, and the prompt tokens that are being prefilled in each lane.",
                queries={
                    "requests": f"sum(laid_requests_in_flight{{{MODEL}}})",
                    "prefill tokens, lane {{lane}}": f"sum by (lane) (laid_prefill_tokens_in_flight{{{MODEL}}})",
                },
            ),
        ],
        "Engines": [
            Panel(
                title="Health",
                about="1 if the gateway's last health check passed.",
                queries={"{{engine}}": f"min by (engine) (laid_engine_up{{{MODEL}}})"},
            ),
            Panel(
                title="Requests in the engines",
                about="Running and waiting, by the engines' own count.",
                queries={
                    "running {{instance}}": "sum by (instance) (vllm:num_requests_running)",
                    "waiting {{instance}}": "sum by (instance) (vllm:num_requests_waiting)",
                },
            ),
            KV_USE,
        ],
        "Counts": [
            CACHED,
            Panel(
                title="Tokens",
                about="Prompt tokens admitted and tokens generated.",
                queries={
                    "prompt": rate("laid_prompt_tokens_sum"),
                    "generated": rate("laid_completion_tokens_sum"),
                },
            ),
            Panel(
                title="Answers counted otherwise by the engine",
                about="Must be 0: the gateway counts with another checkpoint, processor or engine than is served.",
                queries={"{{model}}": "model:laid_count_difference:ratio_rate1h"},
                unit="percentunit",
            ),
        ],
    },
)

CONTEXT = Dashboard(
    uid="laid-context",
    title="LAid: context length",
    rows={
        "Prompts": [
            Panel(
                title="Prompt tokens",
                about="How many requests had how many tokens.",
                queries={"{{le}}": f"sum by (le) (increase(laid_prompt_tokens_bucket{{{MODEL}}}{RATE}))"},
                kind="heatmap",
            ),
            Panel(
                title="Images of a request",
                about="How many requests had how many images.",
                queries={"{{le}}": f"sum by (le) (increase(laid_request_images_bucket{{{MODEL}}}{RATE}))"},
                kind="heatmap",
            ),
        ],
        "What they are made of": [
            Panel(
                title="Tokens of a request: text, images, cached",
                about="Means. Cached tokens are part of both.",
                queries={
                    "text": share("laid_text_tokens_sum", "laid_prompt_tokens_count"),
                    "images": share("laid_image_tokens_sum", "laid_prompt_tokens_count"),
                    "cached": share("laid_cached_tokens_sum", "laid_cached_tokens_count"),
                },
            ),
            Panel(
                title="Images of a request",
                about="Median, p95 and the largest bucket in use.",
                queries={
                    "median": quantile(0.5, "laid_request_images"),
                    "p95": quantile(0.95, "laid_request_images"),
                    "max": quantile(1, "laid_request_images"),
                },
            ),
            Panel(
                title="Bytes of a request, p95",
                about="The body as it came, and its images as files.",
                queries={
                    "body": quantile(0.95, "laid_request_body_bytes"),
                    "images": quantile(0.95, "laid_request_image_bytes"),
                },
                unit="bytes",
            ),
        ],
        "Windows": [
            Panel(
                title="Use of the context length, p95",
                about="At 1 a prompt is refused.",
                queries={"{{model}}": quantile(0.95, "laid_window_use_ratio", "model")},
                unit="percentunit",
            ),
            Panel(
                title="Use of the effective window, p95",
                about="Beyond 1 answers are likely to be poor: the model was measured to use no more of its context.",
                queries={"{{model}}": quantile(0.95, "laid_effective_window_use_ratio", "model")},
                unit="percentunit",
            ),
            Panel(
                title="Requests beyond the effective window",
                about="Share of the last hour's requests.",
                queries={"{{model}}": "model:laid_beyond_effective_window:ratio_rate1h"},
                unit="percentunit",
            ),
            Panel(
                title="Prompts against both windows, tokens",
                about="The longest prompts beside what the model accepts and what it really uses.",
                queries={
                    "p95 of prompts, {{model}}": quantile(0.95, "laid_prompt_tokens", "model"),
                    "context length, {{model}}": f"max by (model) (laid_context_length_tokens{{{MODEL}}})",
                    "effective window, {{model}}": f"max by (model) (laid_effective_window_tokens{{{MODEL}}} > 0)",
                },
            ),
        ],
        "What length costs": [FIRST_TOKEN, PHASES, CACHED],
        "Room": [LANES, LANE_WAIT, REFUSALS, KV_USE],
    },
)


def build(dashboard: Dashboard) -> str:
    """A dashboard in Grafana's own form."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in dashboard.rows.items():
        panels.append(_header(len(panels) + 1, title, top))
        height = 4 if all(panel.kind == "stat" for panel in row) else 8
        width = COLUMNS // len(row)
        for column, panel in enumerate(row):
            place = {"h": height, "w": width, "x": column * width, "y": top + 1}
            panels.append(_panel(len(panels) + 1, panel, place))
        top += height + 1
    page = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["laid"],
        "editable": False,
        "refresh": "30s",
        "schemaVersion": 39,
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": panels,
    }
    return json.dumps(page, indent=2) + "\n"


def _header(number: int, title: str, top: int) -> dict[str, Any]:
    place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    is_heatmap = panel.kind == "heatmap"
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": SOURCE,
            "expr": expression,
            "legendFormat": legend,
            "format": "heatmap" if is_heatmap else "time_series",
        }
        for index, (legend, expression) in enumerate(panel.queries.items())
    ]
    custom = {"fillOpacity": 30, "stacking": {"mode": "normal"}} if panel.stacked else {}
    options = {"calculate": False, "yAxis": {"unit": "short"}} if is_heatmap else {}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": options,
    }


def _variables() -> list[dict[str, Any]]:
    query = "label_values(laid_context_length_tokens, model)"
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "model",
            "label": "Model",
            "type": "query",
            "datasource": SOURCE,
            "definition": query,
            "query": {"query": query, "refId": "model"},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".+",
            "current": {"text": "All", "value": "$__all"},
        },
    ]


def main() -> None:
    """Writes both files."""
    for dashboard in (OVERVIEW, CONTEXT):
        (FOLDER / f"{dashboard.uid}.json").write_text(build(dashboard))


if __name__ == "__main__":
    main()
