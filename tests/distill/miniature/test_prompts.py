import random

import pytest
import torch

from distill.miniature.items import make_haystack, prompt_text
from distill.miniature.models import SIZES, make_model
from distill.miniature.objects import OBJECTS, draw_image
from distill.miniature.processor import make_processor
from distill.miniature.prompts import PromptMaker, answer_logits, encode_pool


@pytest.mark.parametrize("kind", ["open", "yes_no"])
def test_pooled_prompts_give_the_logits_of_the_whole_model(kind):
    processor = make_processor()
    model = make_model(SIZES["base"], processor.tokenizer, seed=0).eval()
    pool = encode_pool(model, processor, seed=1, drawings=1)
    batch = PromptMaker(model, processor, pool).make(seed=3, batch_size=2, num_images=3, kind=kind)

    rng = random.Random(f"3/3/{kind}")
    haystacks = [make_haystack(rng, 3, kind) for _ in range(2)]
    drawn = _drawings()
    whole = []
    for haystack in haystacks:
        images = [drawn[frozenset(names)] for names in haystack.contents]
        content = [
            *({"type": "image", "image": image} for image in images),
            {"type": "text", "text": prompt_text(haystack)},
        ]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=text + haystack.answer + "<|im_end|>", images=images, return_tensors="pt")
        with torch.no_grad():
            whole.append(model(**inputs).logits[0, -batch.answer_length - 1 : -1])
    with torch.no_grad():
        logits, truth = answer_logits(model, batch)
    torch.testing.assert_close(logits, torch.stack(whole), rtol=1e-4, atol=1e-4)
    answers = processor.tokenizer.batch_decode(truth)
    assert answers == [f"{haystack.answer}<|im_end|>" for haystack in haystacks]


def _drawings():
    """The pool's one drawing of each pair, drawn again in the pool's order."""
    rng = random.Random(1)
    pairs = [(a, b) for i, a in enumerate(OBJECTS) for b in OBJECTS[i + 1 :]]
    return {frozenset(pair): draw_image(pair, rng) for pair in pairs}
