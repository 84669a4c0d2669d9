"""`distill train`: a recipe in, a checkpoint out."""

import argparse
import shlex
import sys
from pathlib import Path

from distill.checkpoint import serve_command
from distill.config import load_config
from distill.interrupt import StopRequest
from distill.recipe import Recipe
from rope_gain import wheel_guard

STUDENT_FOLDER = "student"
STATE_FILE = "state.pt"
LOG_FILE = "log.jsonl"

_EXAMPLES = """examples:
  distill train distill/recipes/miniature.yaml
  distill train recipe.yaml train.steps=300 loss.lambda_kl=0.5 output=runs/short
  distill train recipe.yaml --resume        go on after Ctrl-C or a crash, with the same settings
  accelerate launch --num_processes 4 -m distill train recipe.yaml      on several GPUs
  accelerate launch --config_file distill/recipes/accelerate/fsdp2.yaml -m distill train recipe.yaml     sharded, FSDP2
  accelerate launch --config_file distill/recipes/accelerate/zero3.yaml -m distill train recipe.yaml     by DeepSpeed
  ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m distill train recipe.yaml      in several processes on a CPU

The output folder gets log.jsonl (every loss term of every step), TensorBoard's files in laid/, state.pt while the run
is unfinished, and the checkpoint in student/.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb to the command line."""
    parser = subparsers.add_parser(
        "train",
        help="distil a student from a teacher",
        description="Distil a student from a teacher, as a recipe says.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, help="YAML file; see distill/recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument("--resume", action="store_true", help="go on from the saved state, if there is one")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Trains and exports; returns 0, or 130 after Ctrl-C.

    Raises:
        ValueError: a wrong setting, models that do not fit each other or the data, a run in the way.
    """
    recipe = load_config(Recipe, arguments.recipe, arguments.overrides)
    folder = Path(recipe.output)
    checkpoint = folder / STUDENT_FOLDER
    if checkpoint.exists():
        if not arguments.resume:
            raise ValueError(f"output: {checkpoint} exists, expected another folder, or --resume to keep it")
        _print_checkpoint(checkpoint)
        return 0
    if (folder / STATE_FILE).exists() and not arguments.resume:
        raise ValueError(f"output: {folder} holds an unfinished run, expected --resume or another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return _train(recipe, folder, checkpoint, shlex.join([str(arguments.recipe), *arguments.overrides]))


def _train(recipe: Recipe, folder: Path, checkpoint: Path, command: str) -> int:
    wheel_guard.install()
    # Slow to import, and `distill --help` needs none of it.
    from distill.adapters import merge_adapters
    from distill.assembly import assemble, whole_student
    from distill.export import export_student

    with StopRequest() as stop:
        run = assemble(recipe, state_path=folder / STATE_FILE, log_path=folder / LOG_FILE)
        trainer = run.trainer
        is_finished = trainer.run(stop)
    if not is_finished:
        if not run.accelerator.is_main_process:
            return 130
        print(f"stopped at step {trainer.step} of {recipe.train.steps}, saved; go on with:", file=sys.stderr)
        print(f"  distill train {command} --resume", file=sys.stderr)
        return 130
    if not run.accelerator.is_main_process:
        return 0
    model, adapted = run.model, run.adapted
    if trainer.sharding is not None:
        model, adapted = whole_student(recipe, folder / STATE_FILE)
    if adapted is not None:
        merge_adapters(adapted)
    training = {
        "steps": trainer.step,
        "processes": run.accelerator.num_processes,
        "seconds": round(trainer.seconds, 1),
        "losses": trainer.last_losses(),
    }
    log = trainer.log_entries()
    export_student(checkpoint, model=model, processor=run.processor, recipe=recipe, training=training, log=log)
    (folder / STATE_FILE).unlink()
    _print_checkpoint(checkpoint)
    return 0


def _print_checkpoint(checkpoint: Path) -> None:
    print(f"the student is in {checkpoint}; serve it with: {serve_command(checkpoint)}")
