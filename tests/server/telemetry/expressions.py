"""The metric names in PromQL expressions and in a scrape."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

KEYWORDS = {
    "and", "bool", "by", "group_left", "group_right", "ignoring", "offset", "on", "or", "unless", "without", "inf",
}  # fmt: skip
# Strings, label matchers, ranges, and the label lists of aggregations and joins name no metric.
NOT_METRICS = (
    r"'[^']*'|\"[^\"]*\"",
    r"\{[^}]*\}",
    r"\[[^\]]*\]",
    r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)",
)
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
VLLM_METRICS = Path(__file__).parents[3] / "deploy" / "prometheus" / "vllm_metrics.txt"


def metric_names(expression: str) -> set[str]:
    """Every metric that an expression reads."""
    for pattern in NOT_METRICS:
        expression = re.sub(pattern, " ", expression)
    words = re.finditer(r"(?<![\w:.])[a-zA-Z_:][\w:]*", expression)
    return {word[0] for word in words if not expression[word.end() :].lstrip().startswith("(")} - KEYWORDS


def gateway_names(exposition: str) -> set[str]:
    """Every sample name that a scrape has, or will have once its labels have values."""
    return {
        family.name + suffix
        for family in text_string_to_metric_families(exposition)
        for suffix in SUFFIXES[family.type]
    }


def vllm_names() -> set[str]:
    """Every sample name of vLLM, by the committed list; a counter's name there has its suffix."""
    lines = [line.split() for line in VLLM_METRICS.read_text().splitlines() if not line.startswith("#")]
    return {name + suffix for name, kind in lines for suffix in (SUFFIXES[kind] if kind == "histogram" else ("",))}
