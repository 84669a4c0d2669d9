"""Writes the PrometheusRule of the monitoring component: the rules of ../prometheus/rules as the operator takes them.

    python deploy/kubernetes/build.py

Kustomize reads no file outside of its own folder, so this one is a copy; a test holds it to the originals.
"""

from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
RULES = FOLDER.parent / "prometheus" / "rules"
TARGET = FOLDER / "components" / "monitoring" / "rules.yaml"


def prometheus_rule() -> str:
    """The manifest, its groups in the order of the files' names."""
    files = sorted(RULES.glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "laid"},
        "spec": {"groups": groups},
    }
    text = yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=120)
    return f"# Made by build.py from deploy/prometheus/rules; change those.\n{text}"


if __name__ == "__main__":
    TARGET.write_text(prometheus_rule())
