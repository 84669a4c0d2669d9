"""A checkpoint folder's JSON files, with errors that say which file and which key."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROCESSOR, PREPROCESSOR, TOKENIZER = "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"


class CheckpointError(ValueError):
    """A folder that cannot be served; the message says which file and which key."""


@dataclass(frozen=True, kw_only=True)
class ProcessorFiles:
    """What says how a checkpoint's text and images become tokens."""

    path: Path
    config: Mapping[str, Any]
    """config.json."""
    processor: Mapping[str, Any]
    """processor_config.json, empty where there is none."""
    image_processor: Mapping[str, Any]
    """The image processor's settings; empty for a text model."""
    image_source: str
    """The file that they are from."""
    tokenizer: Mapping[str, Any]
    """tokenizer_config.json."""

    def error(self, file: str, message: str) -> CheckpointError:
        """To be raised."""
        return CheckpointError(f"{self.path / file}: {message}")

    def vision(self, key: str) -> Any:
        """A value of config.json's vision_config.

        Raises:
            CheckpointError: it is missing.
        """
        source = self.path / "config.json"
        return require(require(self.config, "vision_config", source), key, source)

    def token(self, name: str) -> str | None:
        """A token that the tokenizer knows by name, such as `image_token`."""
        named = self.tokenizer.get("extra_special_tokens")
        value = self.tokenizer.get(name, named.get(name) if isinstance(named, dict) else None)
        content = value.get("content") if isinstance(value, dict) else value
        return content if isinstance(content, str) else None

    def image(self, key: str) -> Any:
        """A value of the image processor.

        Raises:
            CheckpointError: it is missing.
        """
        return require(self.image_processor, key, self.path / self.image_source)


def read_processor_files(path: Path) -> ProcessorFiles:
    """Reads them as transformers does: the image processor's settings within the processor's before its own file.

    Raises:
        CheckpointError: a file is missing or not a JSON object.
    """
    processor = read_json(path / PROCESSOR) if (path / PROCESSOR).exists() else {}
    image_processor, source = processor.get("image_processor"), PROCESSOR
    if image_processor is None:
        source = PREPROCESSOR
        image_processor = read_json(path / PREPROCESSOR) if (path / PREPROCESSOR).exists() else {}
    return ProcessorFiles(
        path=path,
        config=read_json(path / "config.json"),
        processor=processor,
        image_processor=image_processor,
        image_source=source,
        tokenizer=read_json(path / TOKENIZER),
    )


def require(mapping: Mapping[str, Any], key: str, source: Path) -> Any:
    """The value of `key`.

    Raises:
        CheckpointError: it is missing.
    """
    if key not in mapping:
        raise CheckpointError(f"{source}: key {key!r} is missing")
    return mapping[key]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: no such file, or not a JSON object.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; is {path.parent} a checkpoint folder?")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content
