"""What the files in deploy/ may name: settings of the gateway and targets of the Dockerfile."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dockerfile_parse import DockerfileParser

from server.settings import PREFIX, Settings, check_environment

ROOT = Path(__file__).parents[2]


def setting_names() -> set[str]:
    """The variables that the gateway knows."""
    return {PREFIX + name.upper() for name in Settings.model_fields}


def check_environment_names(names: Iterable[str]) -> None:
    """Raises ValueError, with the nearest setting, for a `LAID_*` name that is none."""
    check_environment(dict.fromkeys(names, ""))


def dockerfile_targets() -> dict[str, list[dict[str, Any]]]:
    """The Dockerfile's stages by name, each as its instructions (`instruction`, `value`) after `FROM`."""
    stages: dict[str, list[dict[str, Any]]] = {}
    steps: list[dict[str, Any]] = []
    for step in DockerfileParser(str(ROOT / "Dockerfile"), cache_content=True).structure:
        if step["instruction"] == "FROM":
            steps = stages.setdefault(step["value"].rsplit(" AS ", 1)[1], [])
        elif step["instruction"] != "COMMENT":
            steps.append(step)
    return stages
