"""InternVL's count against the real processor's, over thousands of sizes and through whole prompts."""

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.checkpoint import CheckpointError
from server.families import read_processor_files
from server.families.internvl import InternVLRule, read_internvl
from server.media.images import ImageSize
from tests.rope_gain.models import internvl_config, internvl_processor, tokenizer_of
from tests.server.families.folder import write_folder
from tests.server.families.sizes import sizes


@pytest.fixture(scope="module")
def tiny() -> Any:
    return internvl_processor()


def rule_of(processor: Any, folder: Path) -> InternVLRule:
    write_folder(processor, internvl_config(tokenizer_of(processor)), folder)
    rule = read_internvl(read_processor_files(folder))
    assert isinstance(rule, InternVLRule)
    return rule


@pytest.mark.parametrize(
    "tiles", [(1, 4, 32, 32), (1, 12, 448, 448), (2, 6, 448, 448), (1, 1, 448, 448), (1, 12, 448, 300)]
)
def test_equals_transformers_over_thousands_of_sizes(tmp_path: Path, tiles: tuple[int, ...]) -> None:
    least, most, width, height = tiles
    tiny = internvl_processor()
    settings = {"min_patches": least, "max_patches": most, "size": {"height": height, "width": width}}
    # What the processor itself asks for; the released checkpoints store `crop_to_patches` as false.
    tiny.image_processor = type(tiny.image_processor)(crop_to_patches=False, **settings)
    rule = rule_of(tiny, tmp_path)

    found = [rule.count(ImageSize(width=w, height=h)) for w, h in sizes(3000, step=448)]

    expected = tiny._get_num_multimodal_tokens(image_sizes=[(h, w) for w, h in sizes(3000, step=448)])
    assert found == expected["num_image_tokens"]
    assert (len(set(found)) > 1) is (most > 1)


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_real_processors_prompts(tiny: Any, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    rule = rule_of(tiny, tmp_path)
    images = [
        Image.new("RGB", (chance.randrange(1, 160), chance.randrange(1, 160))) for _ in range(chance.randrange(1, 5))
    ]
    ids = tiny(text=[rule.placeholder * len(images)], images=images)["input_ids"][0]

    assert sum(rule.count(ImageSize(width=i.width, height=i.height)) for i in images) == len(ids)
    assert set(tiny.tokenizer.convert_ids_to_tokens(ids)) == set(rule.tokens)


def test_a_tokenizer_without_the_names_is_refused(tiny: Any, tmp_path: Path) -> None:
    rule_of(tiny, tmp_path)
    settings = (tmp_path / "tokenizer_config.json").read_text().replace("start_image_token", "beginning")
    (tmp_path / "tokenizer_config.json").write_text(settings)

    with pytest.raises(CheckpointError, match="key 'start_image_token' is missing"):
        read_internvl(read_processor_files(tmp_path))
