"""What ties a recording to its teacher, processor, data and versions."""

import dataclasses
import glob
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distill.checkpoint import weights_sha256
from distill.loading import resolve_path
from distill.recipe import DataConfig, TeacherConfig
from distill.recording.files import file_sha256
from distill.recording.manifest import Manifest, differences

# They decide which samples are usable, not what is in one: each sample's own content is compared as well.
_UNBOUND_DATA = ("images", "on_bad_sample")
_PATHS = ("path", "image_folder", "coco_folder")
_MAX_HASHED_BYTES = 2**30
_GLIMPSE_BYTES = 2**20

_ORDER = ("data.seed", "data.tokens_per_step", "data.max_samples_per_step")
"""Settings that only decide which samples meet in which step."""


def bind_teacher(config: TeacherConfig) -> dict[str, Any]:
    """`glimpse_teacher`, and the digest of all its weights: for recording, which reads them anyway."""
    return {**glimpse_teacher(config), "weights_sha256": weights_sha256(Path(resolve_path(config.path)))}


def glimpse_teacher(config: TeacherConfig) -> dict[str, Any]:
    """What tells one teacher from another without reading its weights.

    `config_sha256` and `weights`, a digest for each file of weights, are None where there are no such files: the
    folder is not here any more, or the path is a Hub name.
    """
    folder = Path(resolve_path(config.path))
    configuration = folder / "config.json"
    return {
        "path": config.path,
        "dtype": config.dtype,
        "quantization": config.quantization,
        "config_sha256": file_sha256(configuration) if configuration.exists() else None,
        "weights": {path.name: _glimpse(path) for path in sorted(folder.glob("*.safetensors"))} or None,
    }


def bind_processor(processor: Any) -> dict[str, Any]:
    """Digests of the vocabulary and the chat template, and the image processor's settings."""
    vocabulary = json.dumps(sorted(processor.tokenizer.get_vocab().items()))
    settings = json.loads(json.dumps(processor.image_processor.to_dict(), default=str))
    return {
        "tokens": len(processor.tokenizer),
        "vocabulary_sha256": _sha256(vocabulary),
        "chat_template_sha256": _sha256(json.dumps(processor.chat_template)),
        "image_processor": settings,
    }


def bind_data(config: DataConfig, seed: int) -> dict[str, Any]:
    """The data block; files are stood for by their digests, so that they may be moved but not changed."""
    # As JSON gives it back: tuples are lists.
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    kept = {
        name: _bound(name, value) for name, value in values.items() if value is not None and name not in _UNBOUND_DATA
    }
    return {"seed": seed, **kept}


def bind_versions() -> dict[str, str]:
    """Versions of the code that computes the signals."""
    return {name: version(name) for name in ("laid", "torch", "transformers")}


def training_differences(
    found: Manifest, *, teacher: dict[str, Any], processor: dict[str, Any], data: dict[str, Any]
) -> list[str]:
    """What of teacher, processor and data is not as it was when the recording was made, in phrases."""
    is_every_sample = found.coverage is not None and found.coverage.is_every_sample
    return [
        *_teacher_differences(found.teacher, teacher),
        *_processor_differences(found.processor, processor),
        *differences(found.data, data, "data", _ORDER if is_every_sample else ()),
    ]


def _teacher_differences(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Files are compared where they are; elsewhere their path has to do."""
    names = [name for name in ("config_sha256", "weights") if recorded[name] and now[name]] or ["path"]
    compared = ["dtype", "quantization", *names]
    return differences({name: recorded[name] for name in compared}, {name: now[name] for name in compared}, "teacher")


def _processor_differences(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Another version of transformers may have settings that this one lacks: those are left out."""
    shared = recorded["image_processor"].keys() & now["image_processor"].keys()
    parts = [
        {**each, "image_processor": {name: each["image_processor"][name] for name in shared}}
        for each in (recorded, now)
    ]
    return differences(parts[0], parts[1], "processor")


def _bound(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _bound(key, each) for key, each in value.items()}
    if name == "shards":
        return [_bound_pattern(pattern) for pattern in value]
    return _bound_path(Path(value)) if name in _PATHS and value is not None else value


def _bound_path(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    if not path.is_file():
        return str(path)
    size = path.stat().st_size
    return f"sha256:{file_sha256(path)}" if size <= _MAX_HASHED_BYTES else f"{size} bytes"


def _bound_pattern(pattern: str) -> str:
    """Names and sizes of the files: too large to hash before each training."""
    files = [f"{Path(path).name} {Path(path).stat().st_size}" for path in sorted(glob.glob(pattern))]  # noqa: PTH207
    return f"{len(files)} files, sha256 of names and sizes:{_sha256(json.dumps(files))}"


def _glimpse(path: Path) -> str:
    """Size of a safetensors file, and a digest of its header and of the first and last MiB of its tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        digest = hashlib.sha256(file.read(header_bytes + _GLIMPSE_BYTES))
        file.seek(max(0, size - _GLIMPSE_BYTES))
        digest.update(file.read())
    return f"{size} bytes, sha256 of header and ends:{digest.hexdigest()}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
