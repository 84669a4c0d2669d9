"""Answers items with a checkpoint folder in this process, through transformers."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from distill.evaluate.item import Item
from distill.evaluate.measure import Answer, Answered
from rope_gain import load_pretrained, wheel_guard

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BATCH_TOKENS = 16_384
"""Prompt tokens in one batch: keeps a core busy and the prefill's memory small."""

_WAITING_TOKENS = 2 * _BATCH_TOKENS
"""Of prompts that wait for others of their shape, with the pixels of their images."""


class LocalRunner:
    """Greedy generation on this machine's GPU, else on its CPU.

    Prompts are batched only with prompts of the same length: nothing is padded, and no answer depends on the
    batch it came in.
    """

    def __init__(self, checkpoint: Path, *, prepare: Callable[["PreTrainedModel"], None] | None = None) -> None:
        """Loads a checkpoint.

        Args:
            prepare: changes the loaded model, as `apply_self_extend` does.
        """
        wheel_guard.install()
        from transformers import AutoProcessor

        self._processor = AutoProcessor.from_pretrained(checkpoint)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_pretrained(checkpoint).to(self._device).eval()
        if prepare is not None:
            prepare(self._model)

    def answer(self, items: Iterable[Item], done: Callable[[Answered], None]) -> list[Answer]:
        """Answers the items; see `Runner`."""
        answers: dict[int, Answer] = {}
        for rows in self._batches(items):
            batch = _join(rows)
            num_tokens = batch["input_ids"].shape[1]
            texts = self._generate(batch, max(row.item.max_new_tokens for row in rows))
            for row, text in zip(rows, texts, strict=True):
                answers[row.number] = Answer(text=text, prompt_tokens=num_tokens)
                done(Answered(item=row.item, answer=answers[row.number]))
        return [answers[number] for number in range(len(answers))]

    def _batches(self, items: Iterable[Item]) -> Iterator[list["_Row"]]:
        """Yields rows that fit into one batch; few others wait meanwhile, whatever the prompts' lengths."""
        waiting: defaultdict[Any, list[_Row]] = defaultdict(list)
        num_waiting = 0
        for number, item in enumerate(items):
            row = _Row(number, item, self._encode(item))
            waiting[row.shape].append(row)
            num_waiting += row.num_tokens
            if len(waiting[row.shape]) * row.num_tokens >= _BATCH_TOKENS:
                fullest = row.shape
            elif num_waiting >= _WAITING_TOKENS:
                fullest = max(waiting, key=lambda shape: len(waiting[shape]) * waiting[shape][0].num_tokens)
            else:
                continue
            rows = waiting.pop(fullest)
            num_waiting -= len(rows) * rows[0].num_tokens
            yield rows
        yield from waiting.values()

    def _encode(self, item: Item) -> Any:
        return self._processor.apply_chat_template(
            item.messages(), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    @torch.inference_mode()
    def _generate(self, batch: dict[str, torch.Tensor], max_new_tokens: int) -> list[str]:
        # The checkpoint's own defaults may sample or penalise repetition; the measurement is greedy search.
        output_BT = self._model.generate(
            **{name: tensor.to(self._device) for name, tensor in batch.items()},
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
        )
        new_BT = output_BT[:, batch["input_ids"].shape[1] :]
        texts: list[str] = self._processor.batch_decode(new_BT, skip_special_tokens=True)
        return texts


class _Row(NamedTuple):
    """A prompt that waits for its batch."""

    number: int
    item: Item
    inputs: Any

    @property
    def num_tokens(self) -> int:
        return int(self.inputs["input_ids"].shape[1])

    @property
    def shape(self) -> Any:
        """What prompts of one batch have in common: their length, and of every input all axes but the first."""
        return tuple((name, tensor.shape[1:]) for name, tensor in self.inputs.items())


def _join(rows: list[_Row]) -> dict[str, torch.Tensor]:
    """Concatenates single prompts of equal length along their first axis: rows of text, patches or images."""
    return {name: torch.cat([row.inputs[name] for row in rows]) for name in rows[0].inputs}
