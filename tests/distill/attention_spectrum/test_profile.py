"""Attention by image against maps that are made in full."""

from pathlib import Path
from typing import Any

import pytest
import torch

import rope_gain
from distill.attention_spectrum.haystacks import even_haystacks
from distill.attention_spectrum.profile import image_attention, measure_profiles
from distill.data.collate import Collator
from distill.evaluate.tasks import MiniatureTask
from distill.families import find_family
from distill.losses.kinds import RowKind
from distill.losses.rows import rows_where
from distill.miniature.items import make_item
from distill.model import Teacher
from distill.signals import QueryKey
from rope_gain.families import find_family as find_gain_family
from tests.rope_gain.models import build_tiny

NUM_IMAGES = 4


def test_uniform_attention_is_a_count_of_tokens() -> None:
    """Tokens: text, image 0 twice, text, image 1 three times, and two rows of text, of which the second sees more."""
    layer = QueryKey(q_BHTD=torch.zeros(1, 2, 9, 4), k_BKTD=torch.randn(1, 1, 9, 4), scale=0.5)
    image_BT = torch.tensor([[2, 0, 0, 2, 1, 1, 1, 2, 2]])
    rows = rows_where(torch.tensor([[False] * 7 + [True] * 2]))
    expected = [(2 / 8 + 2 / 9) / 2, (3 / 8 + 3 / 9) / 2]
    for found in image_attention(layer, rows, image_BT, 2)[0]:
        assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("max_pairs", [1, 30, 10_000])
def test_pieces_of_any_size_give_the_whole_map_s_sums(max_pairs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q_BHTD, k_BKTD = (torch.randn(2, heads, 13, 8, generator=generator) for heads in (4, 2))
    image_BT = torch.randint(0, 4, (2, 13), generator=generator)
    wanted_BT = torch.rand(2, 13, generator=generator) < 0.5
    wanted_BT[:, 12] = True

    found = image_attention(
        QueryKey(q_BHTD=q_BHTD, k_BKTD=k_BKTD, scale=0.3), rows_where(wanted_BT), image_BT, 3, max_pairs=max_pairs
    )

    logits = 0.3 * q_BHTD @ k_BKTD.repeat_interleave(2, dim=1).mT
    seen = torch.ones(13, 13, dtype=torch.bool).tril()
    attention = logits.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    for sample in range(2):
        mean_HT = attention[sample, :, wanted_BT[sample]].mean(dim=1)
        by_image = [mean_HT[:, image_BT[sample] == image].sum(dim=1) for image in range(3)]
        torch.testing.assert_close(found[sample], torch.stack(by_image, dim=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", ["question", "answer"])
def test_profiles_equal_the_model_s_own_attention(
    model_folders: dict[str, Path], processor: Any, monkeypatch: pytest.MonkeyPatch, rows: RowKind
) -> None:
    """Two layers, captured one at a time, against transformers' eager maps."""
    monkeypatch.setattr("distill.attention_spectrum.profile._CAPTURED_BYTES", 1)
    samples = even_haystacks(NUM_IMAGES, 1, kind="open", seed=5)
    model = rope_gain.load_pretrained(model_folders["base"])
    collate = Collator(processor, find_family(model).rope_index(model))
    advanced: list[None] = []
    profiles = measure_profiles(
        Teacher(model, feature_cache_bytes=0), collate, samples, rows, lambda: advanced.append(None)
    )
    assert len(advanced) == NUM_IMAGES
    assert profiles.attention_MLHN.shape == (NUM_IMAGES, 2, 2, NUM_IMAGES)

    eager = rope_gain.load_pretrained(model_folders["base"]).eval()
    eager.set_attn_implementation("eager")
    for sample, found_LHN in zip(samples, profiles.attention_MLHN, strict=True):
        batch = collate([sample])
        row_T = (batch.question_BT if rows == "question" else batch.answer_BT)[0]
        with torch.no_grad():
            output = eager(
                input_ids=batch.input_ids_BT,
                position_ids=batch.position_ids_3BT,
                pixel_values=torch.cat([image.pixel_values for image in batch.images]),
                image_grid_thw=torch.stack([image.grid_3 for image in batch.images]),
                output_attentions=True,
            )
        is_image_T = batch.input_ids_BT[0] == batch.image_token_id
        for layer, attention in enumerate(output.attentions):
            mean_HT = attention[0][:, row_T].mean(dim=1)
            for distance in range(NUM_IMAGES):
                # `images_before` counts from 1.
                tokens = is_image_T & (batch.images_before_BT[0] == NUM_IMAGES - distance)
                expected = mean_HT[:, tokens].sum(dim=1)
                torch.testing.assert_close(found_LHN[layer, :, distance], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "step"),
    [("Qwen2_5_VLForConditionalGeneration", 4.0), ("InternVLForConditionalGeneration", None)],
    ids=["qwen", "internvl"],
)
def test_other_families_run_and_distances_grow_by_an_image(architecture: str, step: float | None) -> None:
    """Qwen-VL: an image of two by two tokens takes two positions, and the texts around it one each."""
    model, processor = build_tiny(find_gain_family(architecture))
    collate = Collator(processor, find_family(model).rope_index(model))
    samples = even_haystacks(NUM_IMAGES, 1, kind="open", seed=5)
    profiles = measure_profiles(Teacher(model, feature_cache_bytes=0), collate, samples, "question", lambda: None)
    shares_MLH = profiles.attention_MLHN.sum(dim=-1)
    assert bool(((shares_MLH > 0) & (shares_MLH < 1)).all())
    steps = profiles.distance_positions_N.diff()
    assert bool((steps > 1).all())
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    if step is not None:
        assert steps.tolist() == pytest.approx([step] * (NUM_IMAGES - 1))


def test_needles_are_at_every_depth_equally_often() -> None:
    task = MiniatureTask(kind="open", seed=1)
    samples = even_haystacks(3, 2, kind="open", seed=1)
    assert len(samples) == 6
    for index, sample in enumerate(samples):
        item = make_item(task.item_seed(3, index), 3, "open")
        assert sample.answer == item.answer
        images, drawn = ([image.tobytes() for image in each] for each in (sample.images, item.images))
        assert sorted(images) == sorted(drawn)
        assert images.index(drawn[item.needle_index]) == index % 3
