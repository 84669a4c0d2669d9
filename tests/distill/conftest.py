from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.miniature.models import Size, make_model
from distill.miniature.processor import make_processor

SIZES = {
    "base": Size(layers=2, hidden=64, heads=2, key_value_heads=1, mlp=48),
    "teacher": Size(layers=3, hidden=128, heads=4, key_value_heads=2, mlp=64),
}


@pytest.fixture(scope="session")
def processor() -> Any:
    return make_processor()


@pytest.fixture(scope="session")
def model_folders(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models as small as they go; the weights are scaled up so that attention is far from uniform."""
    folders = {}
    for seed, (name, size) in enumerate(SIZES.items()):
        folder = tmp_path_factory.mktemp(name)
        model = make_model(size, processor.tokenizer, seed=seed)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.data.mul_(3)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        folders[name] = folder
    return folders


RECIPE = """
output: {output}
student: {{path: {base}}}
teacher: {{path: {teacher}}}
gain: {{granularity: layer_head_frequency, target: query_key, position: log, reference_length: 8}}
loss:
  lambda_laid: 0.5
  lambda_kl: 1.0
  lambda_sft: 1.0
  matching: {{rows: question, chunk_mib: 1}}
data:
  tokens_per_step: 240
  miniature:
    open_share: 0.5
    renderings: 1
    sizes: [{{least: 1, most: 6}}]
train: {{steps: 6, seed: 7, model_lr: 1e-3, gain_lr: 1e-2, mixing_lr: 1e-2, warmup_steps: 2, save_every: 2}}
"""


@pytest.fixture(scope="session")
def write_recipe(model_folders: dict[str, Path]) -> Callable[[Path], Path]:
    """Writes a recipe of six short steps into a folder; its output is `run` beside it."""

    def write(folder: Path) -> Path:
        path = folder / "recipe.yaml"
        path.write_text(RECIPE.format(output=folder / "run", **model_folders))
        return path

    return write
