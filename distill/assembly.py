"""Builds a run from its recipe: models, data, loss and trainer."""

import importlib.util
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

import rope_gain
from distill.adapters import add_adapters
from distill.data.bad_samples import Tally
from distill.data.collate import Collator
from distill.data.sample import Sample
from distill.distiller import Distiller
from distill.families import find_family
from distill.inputs import check_teacher
from distill.loading import choose_teacher_device, load_model, load_processor, load_window, make_source
from distill.model import SignalModel, Teacher
from distill.objective import Objective
from distill.recipe import Recipe
from distill.recording.teacher import RecordedTeacher, open_recorded_teacher
from distill.sharding import fsdp2, zero3
from distill.sharding.asked import Sharding, asked_sharding
from distill.state import load_trained
from distill.trainer import Part, Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What `distill train` drives and exports."""

    trainer: Trainer
    accelerator: Accelerator
    model: "PreTrainedModel"
    processor: Any
    adapted: Any
    """The `peft.PeftModel` around the model, None without adapters."""


def assemble(recipe: Recipe, *, state_path: Path, log_path: Path) -> Run:
    """Loads everything that the recipe names and compares both models' inputs on the first step.

    Raises:
        ValueError: the models do not fit each other, the loss or the data.
    """
    torch.manual_seed(recipe.train.seed)
    sharding = asked_sharding()
    accelerator = _make_accelerator(recipe, sharding, folder=log_path.parent)
    device = accelerator.device
    cache_bytes = recipe.train.feature_cache_mib * 2**20
    # What is sharded moves to its device share by share.
    model, adapted = _student_model(recipe, device if sharding is None else torch.device("cpu"))
    processor = load_processor(recipe.student)
    rope_index = find_family(model).rope_index(model)
    collate = Collator(processor, rope_index, is_packed=recipe.train.packing, stretch=recipe.data.stretch)
    source = make_source(
        recipe.data,
        seed=recipe.train.seed,
        count_tokens=collate.count_tokens,
        window_tokens=load_window(recipe.student),
        tally=_make_tally(accelerator, log_path),
    )
    student = SignalModel(
        model,
        freeze_vision=recipe.train.freeze_vision,
        feature_cache_bytes=cache_bytes,
        attention=recipe.train.attention,
    )
    teacher: Teacher | RecordedTeacher | None = None
    if recipe.teacher is not None and recipe.teacher.recording is not None:
        teacher = open_recorded_teacher(recipe, processor)
        # Compares the first step's inputs with what the recorded teacher was given, as every later step will.
        teacher.signals(collate(source.samples(0)), layers=())
    elif recipe.teacher is not None:
        place = choose_teacher_device(recipe.teacher, device, num_processes=accelerator.num_processes)
        teacher_model = load_model(recipe.teacher, place)
        teacher = Teacher(teacher_model, feature_cache_bytes=cache_bytes, attention=recipe.train.attention)
        check_teacher(
            recipe.teacher,
            teacher_model,
            source.samples(0),
            collate=collate,
            student_tokenizer=processor.tokenizer,
            stretch=recipe.data.stretch,
        )
    objective = Objective(
        recipe.loss,
        student=student.shape,
        teacher=None if teacher is None else teacher.shape,
        vocabulary_size=len(processor.tokenizer),
    ).to(device)
    distiller = Distiller(student, objective)
    if sharding == "fsdp2":
        fsdp2.shard(distiller, accelerator)

    def make_parts(step: int) -> list[Part]:
        samples = source.samples(step)
        pieces = split(samples, recipe.train.micro_batches * accelerator.num_processes)
        mine = pieces[accelerator.process_index :: accelerator.num_processes]
        return [Part(batch=collate(piece or samples[:1]).to(device), is_real=bool(piece)) for piece in mine]

    trainer = Trainer(
        recipe,
        accelerator=accelerator,
        distiller=distiller,
        sharding=sharding,
        teacher=teacher,
        make_parts=make_parts,
        state_path=state_path,
        log_path=log_path,
    )
    return Run(trainer=trainer, accelerator=accelerator, model=model, processor=processor, adapted=adapted)


def whole_student(recipe: Recipe, state_path: Path) -> tuple["PreTrainedModel", Any]:
    """The student of a sharded run, from its saved state, and the `peft.PeftModel` around it: as in `Run`."""
    model, adapted = _student_model(recipe, torch.device("cpu"))
    load_trained(state_path, name="student", module=model)
    return model, adapted


def split(samples: list[Sample], num_parts: int) -> list[list[Sample]]:
    """Neighbours together, in parts whose sizes differ by one at most; some are empty if there are too many."""
    ends = [len(samples) * part // num_parts for part in range(num_parts + 1)]
    return [samples[start:end] for start, end in itertools.pairwise(ends)]


def _make_accelerator(recipe: Recipe, sharding: Sharding | None, *, folder: Path) -> Accelerator:
    """One process, or one of those that `accelerate launch` started.

    Args:
        folder: of the run, where trackers write.

    Raises:
        ValueError: a GPU is asked for where there is none, a tracker is not installed, or DeepSpeed is configured for
            what is not supported.
    """
    config = recipe.train
    for tracker in config.trackers:
        package = importlib.util.find_spec(tracker)
        # A folder of that name, such as W&B's own beside an earlier run, is found too, but has no file.
        if package is None or package.origin is None:
            raise ValueError(
                f"train.trackers: {tracker!r} is not installed; install it with: pip install {tracker}, or leave it out"
            )
    # A tower in training sees no image in a step of text alone, and its weights then have no gradient to exchange.
    unused = DistributedDataParallelKwargs(find_unused_parameters=not config.freeze_vision)
    handlers: list[Any] = [unused]
    if sharding == "zero3" and not torch.cuda.is_available():
        # Of itself Accelerate takes DeepSpeed's processes without GPUs for one process each.
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    # Gradients are exchanged once a step, unless that would keep whole ones where there are shares.
    accumulation = GradientAccumulationPlugin(
        num_steps=config.micro_batches, sync_with_dataloader=False, sync_each_batch=sharding is not None
    )
    accelerator = Accelerator(
        # DeepSpeed is left out where a CPU is asked for, and has its own way to bfloat16.
        cpu=config.device == "cpu" and sharding != "zero3",
        mixed_precision="no" if sharding == "zero3" else config.mixed_precision,
        gradient_accumulation_plugin=accumulation,
        kwargs_handlers=handlers,
        log_with=list(config.trackers) or None,
        project_dir=folder,
    )
    if sharding == "zero3":
        zero3.check(recipe, accelerator.deepspeed_plugin.deepspeed_config, accelerator.device)
        zero3.load_models_whole()
    # Of itself W&B would write into the working directory.
    accelerator.init_trackers("laid", init_kwargs={"wandb": {"dir": str(folder)}})
    if config.device == "cuda" and accelerator.device.type != "cuda":
        raise ValueError("train.device: 'cuda', expected 'auto' or 'cpu': torch finds no GPU")
    return accelerator


def _make_tally(accelerator: Accelerator, log_path: Path) -> Tally:
    """Every process reads all samples, one reports them."""
    if accelerator.is_main_process:
        return Tally(log_path.with_name(SAMPLES_FILE))
    return Tally(is_quiet=True)


def _student_model(recipe: Recipe, device: torch.device) -> tuple["PreTrainedModel", Any]:
    """The model, ready to be trained, and the `peft.PeftModel` around it, None without adapters."""
    model = load_model(recipe.student, device).train()
    if recipe.gain is not None:
        rope_gain.attach(model, recipe.gain)
    if recipe.train.freeze_vision:
        find_family(model).freeze_vision(model)
    if recipe.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model, None if recipe.lora is None else add_adapters(model, recipe.lora)
