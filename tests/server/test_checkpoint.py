import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.checkpoint import CheckpointError, read_checkpoint
from server.families.qwen_vl import QwenRule
from server.prompt.prompt_counter import PromptCounter

WINDOW = {
    "threshold": 0.6,
    "kind": "absolute",
    "images": 88.2,
    "images_low": 80.1,
    "images_high": 95.0,
    "tokens": 560.1,
    "tokens_low": 500.0,
    "tokens_high": 600.0,
    "censored": False,
}
MEASURED = {"task": "miniature/open", "threshold": 0.6, "confidence": 0.95, "windows": [WINDOW]}


@pytest.fixture
def folder(checkpoint_path: Path, tmp_path: Path) -> Path:
    """A copy to damage, without the weights, which the gateway does not read."""
    return Path(shutil.copytree(checkpoint_path, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors")))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_reads_what_counting_needs(checkpoint_path: Path) -> None:
    checkpoint = read_checkpoint(checkpoint_path)

    assert checkpoint.context_length == 2048
    assert checkpoint.image_rule == QwenRule(patch_size=8, merge_size=2, min_pixels=1024, max_pixels=16384)
    assert checkpoint.image_rule.placeholder == "<|image_pad|>"
    assert checkpoint.special_tokens["eos_token"] == "<|im_end|>"
    assert checkpoint.dtype == "float32"


def test_a_stock_checkpoint_has_no_effective_window(checkpoint_path: Path) -> None:
    assert read_checkpoint(checkpoint_path).effective_window is None


@pytest.mark.parametrize("others", [[], [WINDOW | {"threshold": 0.5, "tokens": 1.0}], [WINDOW | {"kind": "relative"}]])
def test_the_effective_window_is_the_absolute_one_at_the_default_threshold(folder: Path, others: list[Any]) -> None:
    measured = MEASURED | {"windows": [*others, WINDOW]}
    (folder / "laid.json").write_text(json.dumps({"format": 1, "effective_window": measured}))

    window = read_checkpoint(folder).effective_window

    assert window is not None
    assert (window.tokens, window.images, window.threshold, window.task) == (560.1, 88.2, 0.6, "miniature/open")


def test_a_laid_json_without_measurement_is_unknown(folder: Path) -> None:
    (folder / "laid.json").write_text('{"format": 1, "effective_window": null}')

    assert read_checkpoint(folder).effective_window is None


def test_older_layouts_are_read(folder: Path) -> None:
    processor = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    del processor["size"]
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | {"min_pixels": 3136, "max_pixels": 12544}))
    (folder / "processor_config.json").unlink()
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))

    checkpoint = read_checkpoint(folder)

    assert checkpoint.image_rule == QwenRule(patch_size=8, merge_size=2, min_pixels=3136, max_pixels=12544)
    assert checkpoint.chat_template == template


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda f: edit(f / "config.json", lambda c: c.update(model_type="llama")), "model_type 'llama' is not known"),
        (lambda f: edit(f / "config.json", lambda c: c.update(model_type="qwen3")), "'qwen3' is a text model's"),
        (lambda f: edit(f / "config.json", lambda c: c["vision_config"].pop("patch_size")), "'patch_size' is missing"),
        (lambda f: (f / "chat_template.jinja").unlink(), "no chat template"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
        (lambda f: (f / "chat_template.jinja").write_text("{{ messages[0].content }}"), "as one string"),
        (lambda f: (f / "chat_template.jinja").write_text("{% for %}"), "not valid Jinja"),
        (
            lambda f: (f / "laid.json").write_text(json.dumps({"effective_window": MEASURED | {"threshold": 0.7}})),
            "no absolute entry at threshold 0.7",
        ),
    ],
    ids=["config", "json", "family", "text", "patch", "template", "tokenizer", "string", "jinja", "window"],
)
def test_what_cannot_be_counted_is_refused_by_file_and_key(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)

    with pytest.raises(CheckpointError, match=message):
        PromptCounter(read_checkpoint(folder))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        read_checkpoint(tmp_path / "nowhere")
