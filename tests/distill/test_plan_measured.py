"""The plan beside a real run, in a process of its own."""

import json
from pathlib import Path
from typing import Any

import pytest

from distill.cli import main
from distill.miniature.models import Size, make_model

# Large enough that a process's own ups and downs, some ten MiB, are small beside it.
SIZES = {
    "base": Size(layers=4, hidden=384, heads=12, key_value_heads=4, mlp=1024),
    "teacher": Size(layers=4, hidden=512, heads=16, key_value_heads=4, mlp=1024),
}
RECIPE = """
output: unused
student: {{path: {base}}}
teacher: {{path: {teacher}}}
gain: {{granularity: layer_head_frequency, target: query_key, position: log, reference_length: 8}}
loss: {{matching: {{rows: all, chunk_mib: 8}}}}
data:
  tokens_per_step: 3000
  miniature: {{sizes: [{{least: 40, most: 60}}]}}
train: {{steps: 3, device: cpu}}
"""


@pytest.fixture(scope="module")
def recipe_path(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    for seed, (name, size) in enumerate(SIZES.items()):
        make_model(size, processor.tokenizer, seed=seed).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(**{name: folder / name for name in SIZES}))
    return path


@pytest.mark.parametrize("overrides", [[], ["train.micro_batches=3", "lora.rank=8"]], ids=["full", "adapters in parts"])
def test_the_planned_peak_is_within_20_percent_of_the_measured_one(
    recipe_path: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(recipe_path), *overrides, "--measure", "3", "--tflops", "0.1", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    ratio = plan["memory"]["peak"] / plan["measured_bytes"]
    print(f"planned {ratio:.2f} of the measured peak")
    assert plan["memory"]["peak"] == pytest.approx(plan["measured_bytes"], rel=0.2)
