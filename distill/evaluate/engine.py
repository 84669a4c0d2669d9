"""Answers items with a checkpoint folder in vLLM, without a server; gains work through its plug-in."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.evaluate.item import Item
from distill.evaluate.measure import Answer, Answered
from rope_gain import wheel_guard

_CHUNK_ITEMS = 64
_CHUNK_IMAGES = 1024
"""What is handed to the engine at once: enough to fill its batches, little enough to hold the images."""


class EngineRunner:
    """Greedy generation by vLLM's offline engine, which batches by itself."""

    def __init__(self, checkpoint: Path, most_images: int, engine_args: Mapping[str, Any]) -> None:
        """Starts the engine.

        Args:
            most_images: images that the longest prompt has.
            engine_args: further arguments of vLLM's `LLM`, such as max_model_len.

        Raises:
            ValueError: vLLM is not installed, or refuses the checkpoint or an argument.
        """
        wheel_guard.install()
        try:
            from vllm import LLM
        except ImportError as error:
            raise ValueError(f"--engine vllm: vLLM is not installed ({error}); leave --engine out") from error
        from transformers import AutoProcessor

        self._processor = AutoProcessor.from_pretrained(checkpoint)
        settings = {"limit_mm_per_prompt": {"image": most_images}, "seed": 0, **engine_args}
        try:
            self._engine = LLM(str(checkpoint), **settings)
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"--engine vllm: {error}") from error

    def answer(self, items: Iterable[Item], done: Callable[[Answered], None]) -> list[Answer]:
        """Answers the items; see `Runner`."""
        from vllm import SamplingParams

        answers = []
        for chunk in _chunks(items):
            sampling = [SamplingParams(temperature=0.0, max_tokens=item.max_new_tokens) for item in chunk]
            outputs = self._engine.generate([self._prompt(item) for item in chunk], sampling, use_tqdm=False)
            for item, output in zip(chunk, outputs, strict=True):
                answer = Answer(text=output.outputs[0].text, prompt_tokens=len(output.prompt_token_ids))
                done(Answered(item=item, answer=answer))
                answers.append(answer)
        return answers

    def _prompt(self, item: Item) -> Any:
        """The checkpoint's own chat template, as the local runner applies it."""
        messages = item.messages()
        text = self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        images = [part["image"] for part in messages[0]["content"] if part["type"] == "image"]
        return {"prompt": text, "multi_modal_data": {"image": images}} if images else {"prompt": text}


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    num_images = 0
    for item in items:
        chunk.append(item)
        num_images += item.num_images
        if len(chunk) >= _CHUNK_ITEMS or num_images >= _CHUNK_IMAGES:
            yield chunk
            chunk, num_images = [], 0
    if chunk:
        yield chunk
