"""LLaVA-OneVision's count against the real processor's, over thousands of sizes and through whole prompts."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.checkpoint import CheckpointError
from server.families import read_processor_files
from server.families.llava_onevision import LlavaOnevisionRule, read_llava_onevision
from server.media.images import ImageSize
from tests.rope_gain.models import llava_onevision_config, llava_onevision_processor, tokenizer_of
from tests.server.families.folder import write_folder
from tests.server.families.sizes import sizes


def rule_of(processor: Any, folder: Path, **vision: int) -> LlavaOnevisionRule:
    config = llava_onevision_config(tokenizer_of(processor))
    config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints
    for name, value in vision.items():
        setattr(config.vision_config, name, value)
    write_folder(processor, config, folder)
    rule = read_llava_onevision(read_processor_files(folder))
    assert isinstance(rule, LlavaOnevisionRule)
    return rule


@pytest.fixture
def released() -> Any:
    """With the sizes of the released checkpoints: SigLIP at 384, patches of 14, grids up to 6x6."""
    processor = llava_onevision_processor()
    processor.image_processor = type(processor.image_processor)()
    processor.num_image_tokens = 729
    return processor


def test_equals_transformers_over_thousands_of_sizes(released: Any, tmp_path: Path) -> None:
    rule = rule_of(released, tmp_path, image_size=384, patch_size=14)
    tried = sizes(6000, step=384)

    found = [rule.count(ImageSize(width=w, height=h)) for w, h in tried]

    expected = released._get_num_multimodal_tokens(image_sizes=[(h, w) for w, h in tried])["num_image_tokens"]
    assert found == expected
    assert len(set(found)) > 100


def test_equals_transformers_in_the_tiny_world(tmp_path: Path) -> None:
    processor = llava_onevision_processor()
    rule = rule_of(processor, tmp_path)
    tried = sizes(3000, step=32)

    found = [rule.count(ImageSize(width=w, height=h)) for w, h in tried]

    expected = processor._get_num_multimodal_tokens(image_sizes=[(h, w) for w, h in tried])["num_image_tokens"]
    assert found == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (31, 33), (64, 64), (127, 129), (150, 3), (100, 60)])
def test_equals_the_real_processors_prompt_of_one_image(tmp_path: Path, size: tuple[int, int]) -> None:
    processor = llava_onevision_processor()
    rule = rule_of(processor, tmp_path)

    ids = processor(text=[rule.placeholder], images=[Image.new("RGB", size)])["input_ids"][0]

    assert rule.count(ImageSize(width=size[0], height=size[1])) == len(ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_select_strategy": "class"}, "vision_feature_select_strategy 'class'; expected full or"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "expected 'siglip_vision_model'"),
    ],
)
def test_what_cannot_be_counted_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rule_of(llava_onevision_processor(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match=message):
        read_llava_onevision(read_processor_files(tmp_path))
