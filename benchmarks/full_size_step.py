"""A training step at full size: Qwen2.5-VL-7B from a recorded Qwen2.5-VL-32B, 8 samples of 20 images of 640x480.

    python benchmarks/full_size_step.py              on a GPU, with 1 GB of disk; elsewhere the small form
    python benchmarks/full_size_step.py --quick      the small form, on the CPU

It is the recipe distill/recipes/qwen2.5-vl-7b.yaml through what `distill train` runs, `assemble` and `Trainer`, in one
process for each way of training. What is random:

- the student's weights. Its folder has a file of weights with a header and a hole: it takes no disk, and reads as
  zeros. Once `assemble` has put the model on the device, the zeros are replaced there by random numbers;
- the recording: signals of the 32B's last layer, in its shape, written by what `distill record` writes with. The 32B's
  weights are nowhere;
- the images, all different; none of their features are cached, so that the vision tower runs on all of them.

No state is saved: it would be 30 to 90 GB, and a run saves one in 250 steps. Beside each figure is the estimate of
`distill plan`, which also decides which ways of training are tried on a GPU. A machine without a GPU, or --quick, takes
the small form: another student (2 layers) and teacher, small images, the same code. Its figures measure nothing.

The paper's 42.6 s an update are not the same thing: 74 hours on 4 A800 over 6,250 updates of 8 samples, so 2 samples a
GPU, of 2 to 20 images (11 on average), with the 32B teacher live beside the student. Here one GPU takes all 8 samples,
each of 20 images, and reads the teacher's signals.
"""

# ruff: noqa: E402 (the path comes before the project's own packages)
import sys
from pathlib import Path

# Beside this file is one with the name of a package of the project.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from rope_gain import wheel_guard

# Before anything imports transformers.
wheel_guard.install()

import dataclasses
import json
import os
import subprocess
import tempfile
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from benchmarks.common import Row, describe_machine, parse_arguments, report
from distill.config import load_config
from distill.interrupt import StopRequest
from distill.planning.make import make_plan
from distill.planning.measure import GIVE_BACK, status_bytes, warmed_up_bytes
from distill.planning.memory import Execution
from distill.planning.report import Plan
from distill.planning.shapes import SHAPES_FOLDER
from distill.planning.step import Assumption
from distill.recipe import Recipe

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "distill" / "recipes" / "qwen2.5-vl-7b.yaml"
PAPER_SECONDS = 42.6
PLAN_TARGET = 0.2
SAMPLES, IMAGES = 8, 20
WARM_STEPS = 2
QUESTION = "You are given a set of images. For the image with the dog, is there a cat?"
TEXT_TOKENS = 34
"""Of a sample, beside the images."""

WAYS = {
    "all weights, float32 with bf16 products": ("student.dtype=float32", "train.mixed_precision=bf16"),
    "all weights, bfloat16": ("student.dtype=bfloat16", "train.mixed_precision=no"),
    "LoRA of rank 16, bfloat16": ("student.dtype=bfloat16", "train.mixed_precision=no", "lora.rank=16"),
}
"""Ways of training, by the settings that differ from the recipe's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """What is measured."""

    prefix: str
    """Of the rows' names."""
    device: str
    image_size: tuple[int, int]
    tokens: int
    """Of the tokenizer; 0 leaves it as it is."""
    steps: int
    """Those measured among them come after the warm ones."""
    student: dict[str, Any]
    """Changes to the shape of the model."""
    teacher: dict[str, Any]


SMALL_VISION = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "fullatt_block_indexes": [1]}
SMALL_TEXT = {"vocab_size": 512, "num_hidden_layers": 2, "num_key_value_heads": 2}
SMALL_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}

# Qwen2.5-VL's tokenizer has 151,665 tokens.
FULL = Form(prefix="", device="cuda", image_size=(640, 480), tokens=151_665, steps=6, student={}, teacher={})
SMALL = Form(
    prefix="small form: ",
    device="cpu",
    image_size=(112, 84),
    tokens=0,
    steps=3,
    student={
        "text_config": SMALL_TEXT
        | {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "rope_parameters": SMALL_ROPE},
        "vision_config": SMALL_VISION | {"out_hidden_size": 256},
    },
    teacher={
        "text_config": SMALL_TEXT
        | {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "rope_parameters": SMALL_ROPE},
        "vision_config": SMALL_VISION | {"out_hidden_size": 512},
    },
)


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(Path(sys.argv[2]), sys.argv[3:])))
        return
    arguments = parse_arguments(__doc__)
    has_gpu = torch.cuda.is_available()
    if not (arguments.quick or has_gpu):
        print("the full form needs a GPU, and torch finds none: this is the small form, which measures nothing")
    form = SMALL if arguments.quick or not has_gpu else FULL
    rows = [
        Row(name="the paper, 4 A800, 32B live, 2 to 20 images", value=PAPER_SECONDS, unit="s an update of 8 samples")
    ]
    with tempfile.TemporaryDirectory() as folder:
        settings = prepare(Path(folder), form)
        for way, changes in WAYS.items():
            rows += rows_of(form, way, Path(folder), [*settings, *changes])
    machine = describe_machine(["torch", "transformers"])
    machine |= {"gpu": torch.cuda.get_device_name() if form is FULL else None, "quick": arguments.quick}
    report(machine, rows, arguments.json)


def rows_of(form: Form, way: str, folder: Path, settings: list[str]) -> list[Row]:
    recipe = load_config(Recipe, RECIPE, [*settings, f"output={folder}"])
    plan = planned(form, recipe)
    name = f"{form.prefix}{way}"
    gib = plan.memory.peak / 2**30
    rows = [Row(name=f"{name}: planned peak", value=gib, unit="GiB")]
    # Some is the driver's, and some lost between blocks.
    if form is FULL and plan.memory.peak > 0.95 * torch.cuda.get_device_properties(0).total_memory:
        print(f"{way}: planned to need {gib:.0f} GiB, too much for this GPU: not tried")
        return rows
    found = in_a_process(folder, settings)
    assert found["tokens"] == plan.step.num_tokens, "the plan is of another step"
    tokens = f"{SAMPLES} samples of {IMAGES} images and {plan.step.sample_tokens:,} tokens"
    rows = [
        Row(name=f"{name}: seconds a step", value=found["seconds"], unit=f"s, {tokens}"),
        Row(name=f"{name}: planned seconds", value=plan.step_seconds or 0, unit="s, products alone: a lower bound"),
        Row(name=f"{name}: peak memory", value=found["peak_bytes"] / 2**30, unit="GiB"),
        *rows,
    ]
    if form is FULL:
        ratio = plan.memory.peak / found["peak_bytes"]
        is_near = abs(ratio - 1) <= PLAN_TARGET
        rows.append(Row(name=f"{name}: plan", value=ratio, unit="of the peak, within 20 %", target=1, met=is_near))
    return rows


def planned(form: Form, recipe: Recipe) -> Plan:
    assumption = Assumption(images=IMAGES, image_size=form.image_size, text_tokens=TEXT_TOKENS)
    return make_plan(recipe, assumption=assumption, execution=Execution(device=form.device))


def in_a_process(folder: Path, settings: list[str]) -> dict[str, float]:
    command = [sys.executable, __file__, "measure", str(folder), *settings]
    result = subprocess.run(command, env=os.environ | GIVE_BACK, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


# What the run needs on disk


def prepare(folder: Path, form: Form) -> list[str]:
    """Writes student, teacher, data and recording; returns the settings that name them."""
    from transformers import AutoModelForImageTextToText

    write_processor(folder / "student", form)
    config = write_config(folder / "student", "Qwen/Qwen2.5-VL-7B-Instruct", form.student)
    write_config(folder / "teacher", "Qwen/Qwen2.5-VL-32B-Instruct", form.teacher)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    write_hollow_weights(folder / "student" / "model.safetensors", model.state_dict())
    write_data(folder, form.image_size)
    settings = [
        f"student.path={folder / 'student'}",
        f"teacher.path={folder / 'teacher'}",
        f"data.jsonl={{path: {folder / 'data.jsonl'}}}",
        f"train.steps={form.steps}",
        "train.feature_cache_mib=0",
        "train.trackers=[]",
        f"train.device={form.device}",
    ]
    write_recording(folder / "recording", model, load_config(Recipe, RECIPE, settings))
    return [*settings, f"teacher.recording={folder / 'recording'}"]


def write_processor(folder: Path, form: Form) -> None:
    """The miniature's tokens, and words that no text has up to the number that Qwen's tokenizer has."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    from distill.miniature.processor import CHAT_TEMPLATE, make_tokenizer

    sizes = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28}}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=make_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )
    processor.tokenizer.model_max_length = 32_768
    processor.save_pretrained(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    used = len(processor.tokenizer)
    content["model"]["vocab"] |= {f"<unused {index}>": index for index in range(used, form.tokens)}
    path.write_text(json.dumps(content))


def write_config(folder: Path, name: str, changes: dict[str, Any]) -> Any:
    """The shape of the model by that name, with the processor's special tokens."""
    from transformers import AutoConfig

    from distill.miniature.processor import (
        END_OF_TEXT,
        IM_END,
        IMAGE_PAD,
        VIDEO_PAD,
        VISION_END,
        VISION_START,
        make_tokenizer,
    )

    token_id = make_tokenizer().convert_tokens_to_ids
    shape = json.loads((SHAPES_FOLDER / f"{name.replace('/', '--')}.json").read_text())
    shape |= {key: shape[key] | values for key, values in changes.items()}
    shape["text_config"] |= {"bos_token_id": token_id(END_OF_TEXT), "eos_token_id": token_id(IM_END)}
    config = AutoConfig.for_model(
        **shape,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        image_token_id=token_id(IMAGE_PAD),
        video_token_id=token_id(VIDEO_PAD),
        vision_start_token_id=token_id(VISION_START),
        vision_end_token_id=token_id(VISION_END),
    )
    config.save_pretrained(folder)
    return config


def write_hollow_weights(path: Path, shapes: dict[str, torch.Tensor]) -> None:
    """A safetensors file of bfloat16 zeros that the file system keeps no block of."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in shapes.items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_data(folder: Path, image_size: tuple[int, int]) -> None:
    """Samples whose images are all different."""
    generator = np.random.default_rng(0)
    lines = []
    for sample in range(SAMPLES):
        parts: list[dict[str, Any]] = []
        for place in range(IMAGES):
            file = folder / f"{sample}-{place}.png"
            coarse = generator.integers(256, size=(12, 16, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(image_size).save(file)
            parts.append({"type": "image_url", "image_url": {"url": str(file)}})
        parts.append({"type": "text", "text": QUESTION})
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "yes"}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    (folder / "data.jsonl").write_text("".join(lines))


def write_recording(folder: Path, model: Any, recipe: Recipe) -> None:
    """Random signals of the teacher's shape, bound to the recipe as `distill record` binds them."""
    from transformers import AutoConfig

    from distill.data.batch import Batch
    from distill.data.collate import Collator
    from distill.families import find_family
    from distill.loading import load_processor, make_source
    from distill.model import attention_shape
    from distill.record import DEFAULT_DTYPE, DEFAULT_TOP_K
    from distill.recording.binding import bind_data, bind_processor, bind_teacher, bind_versions
    from distill.recording.content import sample_contents
    from distill.recording.manifest import LogitRecord, Manifest
    from distill.recording.needs import needed_layers
    from distill.recording.signals import cut
    from distill.recording.writer import RecordingWriter
    from distill.signals import QueryKey, Signals

    assert recipe.teacher is not None
    config = AutoConfig.from_pretrained(recipe.teacher.path)
    shape, num_logits = attention_shape(config), config.get_text_config().vocab_size
    processor = load_processor(recipe.student)
    logits = LogitRecord(
        top_k=DEFAULT_TOP_K, temperature=recipe.loss.temperature, vocabulary_size=len(processor.tokenizer)
    )
    manifest = Manifest(
        teacher=bind_teacher(recipe.teacher),
        processor=bind_processor(processor),
        data=bind_data(recipe.data, recipe.train.seed),
        layers=dict(needed_layers(recipe.loss, shape.num_layers)),
        logits=logits,
        dtype=DEFAULT_DTYPE,
        attention=shape,
        versions=bind_versions(),
        coverage=None,
    )
    collate = Collator(processor, find_family(model).rope_index(model))
    source = make_source(recipe.data, seed=recipe.train.seed, count_tokens=collate.count_tokens)
    generator = torch.Generator().manual_seed(0)

    def signals_of(batch: Batch) -> Signals:
        num_samples, num_tokens = batch.input_ids_BT.shape

        def normal(num_heads: int) -> torch.Tensor:
            return torch.randn(num_samples, num_heads, num_tokens, shape.head_size, generator=generator)

        layer = QueryKey(
            q_BHTD=normal(shape.num_heads), k_BKTD=normal(shape.num_key_value_heads), scale=shape.head_size**-0.5
        )
        return Signals(
            logits_NV=torch.randn(int(batch.answer_BT.sum()), num_logits, generator=generator),
            layers=dict.fromkeys(manifest.layers, layer),
        )

    with RecordingWriter(folder, manifest) as writer:
        step = 0
        while writer.num_samples < SAMPLES:
            batch = collate(source.samples(step))
            contents = sample_contents(batch)
            pieces = cut(signals_of(batch), batch, range(len(contents)), manifest)
            tensors = {f"{place}.{name}": value for place, each in enumerate(pieces) for name, value in each.items()}
            writer.add(step, num_samples=len(contents), names=batch.names, contents=contents, tensors=tensors)
            step += 1
        writer.finish(steps=step, is_every_sample=True)


# In a process of its own


def measure(folder: Path, settings: list[str]) -> dict[str, float]:
    """Trains; the median of the steps' seconds, and the peak of memory."""
    from distill.assembly import assemble
    from distill.trainer import Trainer

    with tempfile.TemporaryDirectory(dir=folder) as output, StopRequest() as stop:
        recipe = load_config(Recipe, RECIPE, [*settings, f"output={output}"])
        before = warmed_up_bytes(recipe)
        log = Path(output) / "log.jsonl"
        with mock.patch.object(Trainer, "_save"):
            run = assemble(recipe, state_path=Path(output) / "state.pt", log_path=log)
            randomise(run.model)
            run.trainer.run(stop)
        entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(entries) == recipe.train.steps
    assert all(entry["samples"] == SAMPLES and entry["images"] == SAMPLES * IMAGES for entry in entries)
    is_cuda = recipe.train.device == "cuda"
    return {
        "seconds": float(np.median([entry["seconds"] for entry in entries[WARM_STEPS:]])),
        "tokens": entries[0]["tokens"],
        "peak_bytes": torch.cuda.max_memory_allocated() if is_cuda else status_bytes("VmHWM") - before,
    }


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """As Qwen2.5-VL is initialised: matrices of deviation 0.02, norms of 1, biases and gains of 0."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "rope_gain" in name:
            continue
        if parameter.ndim > 1:
            parameter.normal_(std=0.02)
        elif name.endswith("weight"):
            parameter.fill_(1)


if __name__ == "__main__":
    main()
