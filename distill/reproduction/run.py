"""Trains and measures the arms, one process after the other; whatever is there already is not made again."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.miniature import checkpoint_path
from distill.reproduction.arms import Arm

YARN_FACTOR = 4.0
"""So that the base's effective window of about 35 images becomes the 150 that are measured."""

YARN_POSITIONS = 160
"""Of about 40 images: what the base student was mostly trained on."""

SELF_EXTEND = ("8", "80")
"""Group size and near positions: 150 images at the distances of 28."""


RECIPE = Path(__file__).with_name("laid.yaml")

ITEM_SEED = 20_260
"""Of the questions and their renderings: nothing was tuned on these."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is trained and asked."""

    seeds: tuple[int, ...]
    """One student each, of every trained arm; the recipe was tuned on seed 0."""
    settings: tuple[str, ...] = ()
    """Overrides of the recipe that every trained arm gets."""
    sizes: tuple[int, ...]
    items: int
    """At each size."""
    spectrum_sizes: tuple[int, ...]
    """In images."""


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """One experiment in one folder."""

    folder: Path
    scale: Scale

    def report(self, arm: Arm, seed: int) -> Path:
        """The folder of the arm's report, trained with this seed if it is trained."""
        return self._arm_folder(arm, seed) / "evaluation"

    def run(self, arm: Arm, seed: int) -> None:
        """Makes and measures one model, from where it was stopped.

        Raises:
            subprocess.CalledProcessError: a step failed, or was interrupted, with what it printed already shown.
        """
        report = self.report(arm, seed)
        if (report / "report.json").exists():
            return
        self._make(arm, seed)
        options = ["--self-extend", *SELF_EXTEND] if arm.self_extend else []
        _distill(
            *("evaluate", self.checkpoint(arm, seed), "--out", report, "--no-write", "--resume", *options),
            *("--items", self.scale.items, "--seed", ITEM_SEED, "--sizes", *self.scale.sizes),
        )

    def _arm_folder(self, arm: Arm, seed: int) -> Path:
        folder = self.folder / arm.name
        return folder / f"seed-{seed}" if arm.is_trained else folder

    def checkpoint(self, arm: Arm, seed: int) -> Path:
        """What is measured, once it is made."""
        folder = self._arm_folder(arm, seed)
        if arm.start != "trained":
            return folder / "checkpoint" if arm.yarn else checkpoint_path(arm.start)
        return folder / ("folded" if arm.is_folded else "student")

    def _make(self, arm: Arm, seed: int) -> None:
        checkpoint = self.checkpoint(arm, seed)
        if checkpoint.exists():
            return
        if arm.start != "trained":
            _make_yarn(checkpoint_path(arm.start), checkpoint)
            return
        folder = checkpoint.parent
        overrides = (f"output={folder}", f"train.seed={seed}", *self.scale.settings, *arm.overrides)
        _distill("train", RECIPE, *overrides, "--resume")
        if arm.is_folded:
            _distill("fold", folder / "student", checkpoint)


def run_all(reproduction: Reproduction, arms: Sequence[Arm]) -> list[str]:
    """Runs everything and returns the rows of `distill compare`: NAME=REPORT,REPORT for each arm."""
    seeds = reproduction.scale.seeds
    # Seed by seed, so that an experiment that is stopped early has whole rows.
    models = [(arm, seed) for seed in seeds for arm in arms if arm.is_trained or seed == seeds[0]]
    for number, (arm, seed) in enumerate(models, start=1):
        print(f"\n[{number}/{len(models)}] {arm.title}" + (f", seed {seed}" if arm.is_trained else ""), flush=True)
        reproduction.run(arm, seed)
    return [
        f"{arm.title}=" + ",".join(str(reproduction.report(arm, seed)) for a, seed in models if a is arm)
        for arm in arms
    ]


def measure_spectra(reproduction: Reproduction, arms: Sequence[Arm]) -> None:
    """Attention against distance in every arm's model of the first seed, all in one table and one figure.

    Raises:
        subprocess.CalledProcessError: as of `Reproduction.run`.
    """
    scale = reproduction.scale
    out = reproduction.folder / "spectra"
    if (out / "spectrum.json").exists():
        return
    # SelfExtend is a way to run the base, not a checkpoint.
    models = [f"{arm.title}={reproduction.checkpoint(arm, scale.seeds[0])}" for arm in arms if not arm.self_extend]
    _distill("spectrum", *models, "--images", *scale.spectrum_sizes, "--seed", ITEM_SEED, "--out", out)


def _distill(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "distill", *map(str, arguments)], check=True)


def _make_yarn(source: Path, folder: Path) -> None:
    """A copy of the checkpoint that rotates by YaRN (Peng et al., arXiv 2309.00071), by transformers' own means."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    path = partial / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["text_config"]["rope_parameters"] |= {
        "rope_type": "yarn",
        "factor": YARN_FACTOR,
        "original_max_position_embeddings": YARN_POSITIONS,
    }
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    partial.rename(folder)
