"""SelfExtend on a model in which every position matters, against positions that were grouped before the rotation."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from distill.cli import main
from distill.evaluate.self_extend import SelfExtend, apply_self_extend

NUM_TOKENS = 40
# float32: what is rotated twice is rounded twice.
TOLERANCE = 1e-4


@pytest.fixture
def load(model_folders: dict[str, Path]) -> Any:
    return lambda: Qwen2_5_VLForConditionalGeneration.from_pretrained(model_folders["base"]).eval()


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(NUM_TOKENS)[None] + 5
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize(("group", "neighbours"), [(1, 0), (1, 7), (4, NUM_TOKENS)])
def test_without_grouping_or_without_far_keys_it_is_the_model_itself(load: Any, group: int, neighbours: int) -> None:
    model = load()
    apply_self_extend(model, SelfExtend(group=group, neighbours=neighbours))
    torch.testing.assert_close(logits(model), logits(load()), rtol=0, atol=TOLERANCE)


def test_each_pair_of_tokens_has_the_papers_distance(load: Any) -> None:
    """Attention of the first layer: near pairs by their distance, far ones by that of their groups and the shift."""
    config = SelfExtend(group=4, neighbours=10)
    model = load()
    layer, rotary = model.model.language_model.layers[0].self_attn, model.model.language_model.rotary_emb
    hidden = torch.randn(1, NUM_TOKENS, layer.q_proj.in_features, generator=torch.Generator().manual_seed(0))
    positions_3BT = torch.arange(NUM_TOKENS).expand(3, 1, -1)

    def plain(position_ids: torch.Tensor) -> torch.Tensor:
        """Rotated queries and keys at these positions, [2, heads, T, D]."""
        taken = []

        def take(_module: Any, query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any) -> Any:
            taken.append(torch.stack([query[0], key[0].repeat_interleave(layer.num_key_value_groups, 0)]))
            return query.transpose(1, 2), None

        from transformers import AttentionInterface

        AttentionInterface.register("take", take)
        model.set_attn_implementation({"text_config": "take"})
        with torch.no_grad():
            layer(hidden, position_embeddings=rotary(hidden, position_ids))
        return taken[0]

    near, far_key = plain(positions_3BT), plain(positions_3BT // 4)
    far_query = plain(positions_3BT // 4 + config.shift)
    tokens = torch.arange(NUM_TOKENS)
    is_near = tokens[:, None] - tokens < 10
    expected = torch.where(is_near, near[0] @ near[1].mT, far_query[0] @ far_key[1].mT) / math.sqrt(near.shape[-1])
    expected = expected.masked_fill(tokens[:, None] < tokens, -torch.inf).softmax(-1)
    values = layer.v_proj(hidden).view(1, NUM_TOKENS, -1, near.shape[-1]).transpose(1, 2)
    values = values.repeat_interleave(layer.num_key_value_groups, 1)
    expected_output = layer.o_proj((expected @ values).transpose(1, 2).reshape(1, NUM_TOKENS, -1))

    apply_self_extend(model, config)
    with torch.no_grad():
        output, _ = layer(hidden, position_embeddings=rotary(hidden, positions_3BT))
    torch.testing.assert_close(output, expected_output, rtol=0, atol=TOLERANCE)


def test_a_checkpoint_is_measured_so_and_not_marked(model_folders: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["evaluate", str(model_folders["base"]), "--sizes", "2", "--items", "3", "--out", str(tmp_path)]
    assert main([*arguments, "--self-extend", "4", "10"]) == 1
    # In a process of its own: which module imports transformers first matters beside wheels of several builds.
    command = [sys.executable, "-m", "distill", *arguments, "--self-extend", "4", "10", "--no-write"]
    subprocess.run(command, check=True)
    assert '"self_extend": "4:10"' in (tmp_path / "report.json").read_text()
    assert not (model_folders["base"] / "laid.json").exists()
