"""A checkpoint folder without weights, which the gateway does not read."""

from pathlib import Path
from typing import Any


def write_folder(processor: Any, config: Any, folder: Path) -> None:
    """Writes the processor's own files and config.json."""
    processor.save_pretrained(folder)
    config.save_pretrained(folder)
