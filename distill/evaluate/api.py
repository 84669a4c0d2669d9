"""Answers items with any server that speaks the OpenAI chat completions protocol."""

import asyncio
import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

from openai import AsyncOpenAI, OpenAI, OpenAIError
from PIL import Image

from distill.evaluate.measure import MAX_NEW_TOKENS, Answer
from distill.miniature.items import Item

_TIMEOUT_SECONDS = 600.0
"""For one request: a long prompt on a CPU may wait behind others for minutes."""


class ApiRunner:
    """Temperature 0, one request an item, at most `concurrency` of them at a time."""

    def __init__(self, url: str, model: str, api_key: str, concurrency: int) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency: {concurrency}, expected at least 1")
        self._url, self._model, self._api_key, self._concurrency = url, model, api_key, concurrency

    def answer(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Answer]:
        """Answers the items in their order; see `Runner`.

        Raises:
            ValueError: the server refuses a request, or leaves the usage out.
        """
        try:
            return asyncio.run(self._answer_all(items, advance))
        except ExceptionGroup as errors:
            refusals = errors.subgroup(OpenAIError)
            if refusals is None:
                raise
            raise ValueError(f"{self._url}: {refusals.exceptions[0]}") from errors

    async def _answer_all(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Answer]:
        slots = asyncio.Semaphore(self._concurrency)
        async with AsyncOpenAI(base_url=self._url, api_key=self._api_key, timeout=_TIMEOUT_SECONDS) as client:

            async def ask(item: Item) -> Answer:
                async with slots:
                    answer = await self._ask(client, item)
                advance(1)
                return answer

            # A group, not gather: the first refusal cancels the requests still under way.
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(item)) for item in items]
            return [task.result() for task in tasks]

    async def _ask(self, client: AsyncOpenAI, item: Item) -> Answer:
        messages: Any = openai_messages(item)
        completion = await client.chat.completions.create(
            model=self._model, messages=messages, max_tokens=MAX_NEW_TOKENS, temperature=0.0
        )
        if completion.usage is None:
            raise OpenAIError("the answer has no usage, which tells the prompt's length in tokens")
        return Answer(text=completion.choices[0].message.content or "", prompt_tokens=completion.usage.prompt_tokens)


def served_model(url: str, api_key: str) -> str:
    """The only model the server lists; ValueError, with their names, where there are several, or none."""
    try:
        with OpenAI(base_url=url, api_key=api_key) as client:
            names = [model.id for model in client.models.list()]
    except OpenAIError as error:
        raise ValueError(f"{url}: {error}") from error
    if len(names) != 1:
        raise ValueError(f"--model: {url} serves {', '.join(names) or 'no model'}; name one")
    return names[0]


def openai_messages(item: Item) -> list[dict[str, Any]]:
    """The item's messages in the OpenAI form: each image as a PNG data URL, in its place among the parts."""
    return [
        {"role": message["role"], "content": [_openai_part(part) for part in message["content"]]}
        for message in item.messages()
    ]


def _openai_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    return {"type": "image_url", "image_url": {"url": png_data_url(part["image"])}}


def png_data_url(image: Image.Image) -> str:
    """The image as `data:image/png;base64,...`, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
