"""Loads the models, processors and data that a recipe names."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

import rope_gain
from distill.data.bad_samples import Tally
from distill.data.epochs import EpochSource
from distill.data.hugging_face import HuggingFaceRecords
from distill.data.llava import LlavaRecords
from distill.data.miniature import MiniatureSource
from distill.data.openai import OpenAiRecords
from distill.data.records import Records
from distill.data.sample import CountTokens, Source
from distill.data.visual_haystacks import VisualHaystacksRecords
from distill.data.webdataset import WebDatasetRecords
from distill.families import find_family, processor_family
from distill.miniature import checkpoint_path
from distill.quantization import quantization_config
from distill.recipe import DataConfig, ModelConfig, TeacherConfig, TrainConfig
from distill.reproducible import prepare_sines

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def resolve_path(path: str) -> str:
    """The folder of `miniature:teacher` and `miniature:base`; any other path as it is."""
    prefix, separator, name = path.partition(":")
    if prefix == "miniature" and separator:
        if name not in ("teacher", "base"):
            raise ValueError(f"path: {path!r}, expected miniature:teacher or miniature:base")
        return str(checkpoint_path("teacher" if name == "teacher" else "base"))
    return path


def load_model(config: ModelConfig, device: torch.device) -> "PreTrainedModel":
    """Loads a checkpoint folder, stock or with gains, or a stock model by its Hub name; in evaluation mode.

    Raises:
        ValueError: the model is of a family that cannot be distilled, or a teacher's quantization is not installed.
    """
    prepare_sines()
    path = resolve_path(config.path)
    load = rope_gain.load_pretrained if Path(path).is_dir() else AutoModelForImageTextToText.from_pretrained
    options: dict[str, Any] = {"dtype": getattr(torch, config.dtype)}
    if isinstance(config, TeacherConfig) and config.quantization is not None:
        options["quantization_config"] = quantization_config(config.quantization, options["dtype"])
        # Quantised as they are read: bitsandbytes' weights cannot be moved afterwards, and never is all of it there.
        options["device_map"] = {"": device}
    model: PreTrainedModel = load(path, **options)
    try:
        find_family(model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return model if "device_map" in options else model.to(device)


def load_processor(config: ModelConfig) -> Any:
    """The processor of the checkpoint, with the recipe's number of tiles.

    Raises:
        ValueError: `max_tiles` for a family that does not cut images.
    """
    processor = AutoProcessor.from_pretrained(resolve_path(config.path))
    if config.max_tiles is not None:
        processor_family(processor).limit_tiles(processor, config.max_tiles)
    return processor


def load_window(config: ModelConfig) -> int:
    """Positions that the checkpoint's configuration allows, in tokens."""
    model_config = AutoConfig.from_pretrained(resolve_path(config.path))
    return int(model_config.get_text_config().max_position_embeddings)


def make_source(
    config: DataConfig,
    *,
    seed: int,
    count_tokens: CountTokens,
    window_tokens: int | None = None,
    tally: Tally | None = None,
) -> Source:
    """The one source that the recipe gives; samples on disk are all read once, and checked.

    Args:
        window_tokens: the longest sequence that the student takes.
        tally: told of every sample on disk; by default, one that prints.

    Raises:
        ValueError: a bad sample, unless the recipe skips them; files that cannot be read; positions stretched beyond
            the student's.
    """
    if config.stretch is not None and window_tokens is not None and config.stretch.to_position >= window_tokens:
        raise ValueError(
            f"data.stretch.to_position: {config.stretch.to_position}, expected one of the student's positions, "
            f"0 to {window_tokens - 1}"
        )
    if config.miniature is not None:
        return MiniatureSource(config, config.miniature, seed=seed, count_tokens=count_tokens)
    return EpochSource(
        config,
        make_records(config),
        seed=seed,
        count_tokens=count_tokens,
        window_tokens=window_tokens,
        tally=tally or Tally(),
    )


def make_records(config: DataConfig) -> Records:
    """The samples on disk that the recipe names."""
    if config.jsonl is not None:
        return OpenAiRecords(config.jsonl)
    if config.llava is not None:
        return LlavaRecords(config.llava)
    if config.visual_haystacks is not None:
        return VisualHaystacksRecords(config.visual_haystacks)
    if config.hugging_face is not None:
        return HuggingFaceRecords(config.hugging_face)
    if config.webdataset is not None:
        return WebDatasetRecords(config.webdataset)
    raise ValueError("data: expected a block that names samples on disk")


def choose_device(config: TrainConfig) -> torch.device:
    """The device of the recipe; `auto` takes a GPU where there is one."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def choose_teacher_device(config: TeacherConfig, student: torch.device, *, num_processes: int = 1) -> torch.device:
    """The device of a live teacher; by default the student's.

    Raises:
        ValueError: there is no such device here, or it is one GPU for the teachers of several processes.
    """
    if config.device is None:
        return student
    known = ["cpu", "cuda"][: 1 + torch.cuda.is_available()]
    known += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if config.device not in known:
        raise ValueError(f"teacher.device: {config.device!r}, expected one that is here: {', '.join(known)}")
    device = torch.device(config.device)
    if device.index is not None and num_processes > 1:
        raise ValueError(
            f"teacher.device: {config.device!r} with {num_processes} processes, each of which has a teacher of its "
            "own; expected 'cuda' (each process's own GPU), 'cpu' or null"
        )
    return device
