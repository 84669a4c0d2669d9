"""Answers items with a checkpoint folder in this process, through transformers."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from distill.evaluate.measure import MAX_NEW_TOKENS, Answer
from distill.miniature.items import Item
from rope_gain import load_pretrained, wheel_guard

_BATCH_TOKENS = 16_384
"""Prompt tokens in one batch: keeps a core busy and the prefill's memory small."""


class LocalRunner:
    """Greedy generation on this machine's GPU, else on its CPU.

    Prompts are batched only with prompts of the same length: nothing is padded, and no answer depends on the
    batch it came in.
    """

    def __init__(self, checkpoint: Path) -> None:
        wheel_guard.install()
        from transformers import AutoProcessor

        self._processor = AutoProcessor.from_pretrained(checkpoint)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_pretrained(checkpoint).to(self._device).eval()

    def answer(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Answer]:
        """Answers the items greedily, in their order; see `Runner`."""
        answers: dict[int, Answer] = {}
        for indices, batch in self._batches(items):
            num_tokens = batch["input_ids"].shape[1]
            for index, text in zip(indices, self._generate(batch), strict=True):
                answers[index] = Answer(text=text, prompt_tokens=num_tokens)
            advance(len(indices))
        return [answers[index] for index in range(len(items))]

    def _batches(self, items: Sequence[Item]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Yields items' indices with the model's inputs for them, all prompts of a batch equally long."""
        waiting: defaultdict[int, list[tuple[int, Any]]] = defaultdict(list)
        for index, item in enumerate(items):
            inputs = self._encode(item)
            num_tokens = inputs["input_ids"].shape[1]
            waiting[num_tokens].append((index, inputs))
            if len(waiting[num_tokens]) * num_tokens >= _BATCH_TOKENS:
                yield _join(waiting.pop(num_tokens))
        for rows in waiting.values():
            yield _join(rows)

    def _encode(self, item: Item) -> Any:
        return self._processor.apply_chat_template(
            item.messages(), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    @torch.inference_mode()
    def _generate(self, batch: dict[str, torch.Tensor]) -> list[str]:
        # The checkpoint's own defaults may sample or penalise repetition; the measurement is greedy search.
        output_BT = self._model.generate(
            **{name: tensor.to(self._device) for name, tensor in batch.items()},
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
        )
        new_BT = output_BT[:, batch["input_ids"].shape[1] :]
        texts: list[str] = self._processor.batch_decode(new_BT, skip_special_tokens=True)
        return texts


def _join(rows: list[tuple[int, Any]]) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Concatenates single prompts of equal length along their first axis: rows of text, patches or images."""
    indices = [index for index, _ in rows]
    names = rows[0][1].keys()
    return indices, {name: torch.cat([inputs[name] for _, inputs in rows]) for name in names}
