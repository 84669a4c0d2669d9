"""Trains and measures the arms, each step a process; whatever is there already is not made again."""

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from distill.miniature import checkpoint_path
from distill.reproduction.arms import Arm
from distill.reproduction.steps import Steps

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
    steps: Steps = field(default_factory=Steps)

    def report(self, arm: Arm, seed: int) -> Path:
        """The folder of the arm's report, trained with this seed if it is trained."""
        return self._arm_folder(arm, seed) / "evaluation"

    def run(self, arm: Arm, seed: int) -> None:
        """Makes and measures one model, from where it was stopped.

        Raises:
            StepError: a step failed, or was interrupted.
        """
        self._make(arm, seed)
        options = ["--self-extend", *SELF_EXTEND] if arm.self_extend else []
        self.steps.run(
            self._log(arm, seed),
            *("evaluate", self.checkpoint(arm, seed), "--out", self.report(arm, seed), "--no-write", "--resume"),
            *("--items", self.scale.items, "--seed", ITEM_SEED, "--sizes", *self.scale.sizes, *options),
        )

    def is_done(self, arm: Arm, seed: int) -> bool:
        """Whether `run` has nothing left to do."""
        return (self.report(arm, seed) / "report.json").exists()

    def _log(self, arm: Arm, seed: int) -> Path:
        return self._arm_folder(arm, seed) / "log.txt"

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
        if not (folder / "student").exists():
            self.steps.run(self._log(arm, seed), "train", RECIPE, *overrides, "--resume")
        if arm.is_folded:
            self.steps.run(self._log(arm, seed), "fold", folder / "student", checkpoint)


def run_all(reproduction: Reproduction, arms: Sequence[Arm], *, jobs: int) -> list[str]:
    """Runs everything, `jobs` models at a time, and returns the rows of `distill compare`: NAME=REPORT,REPORT an arm.

    Raises:
        StepError: a step failed; the others were stopped.
    """
    seeds = reproduction.scale.seeds
    # Seed by seed, so that an experiment that is stopped early has whole rows.
    models = [(arm, seed) for seed in seeds for arm in arms if arm.is_trained or seed == seeds[0]]
    missing = [model for model in models if not reproduction.is_done(*model)]
    done = len(models) - len(missing)
    with ThreadPoolExecutor(jobs) as pool, tqdm(desc="reproduce", unit="model", total=len(models), initial=done) as bar:
        futures = {pool.submit(reproduction.run, *model): model for model in missing}
        try:
            for future in as_completed(futures):
                future.result()
                arm, seed = futures[future]
                bar.set_postfix_str(f"last: {arm.title}" + (f", seed {seed}" if arm.is_trained else ""))
                bar.update()
        except BaseException:
            # Ctrl-C, or a step that failed: the rest stops where it can go on.
            reproduction.steps.stop()
            raise
    return [
        f"{arm.title}=" + ",".join(str(reproduction.report(arm, seed)) for a, seed in models if a is arm)
        for arm in arms
    ]


def measure_spectra(reproduction: Reproduction, arms: Sequence[Arm]) -> None:
    """Attention against distance in every arm's model of the first seed, all in one table and one figure.

    Raises:
        StepError: it failed.
    """
    scale = reproduction.scale
    out = reproduction.folder / "spectra"
    if (out / "spectrum.json").exists():
        return
    # SelfExtend is a way to run the base, not a checkpoint.
    models = [f"{arm.title}={reproduction.checkpoint(arm, scale.seeds[0])}" for arm in arms if not arm.self_extend]
    asked = ("--images", *scale.spectrum_sizes, "--seed", ITEM_SEED)
    try:
        reproduction.steps.run(out / "log.txt", "spectrum", *models, *asked, "--out", out)
    except BaseException:
        reproduction.steps.stop()
        raise


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
