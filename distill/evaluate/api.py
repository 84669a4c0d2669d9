"""Answers items with any server that speaks the OpenAI chat completions protocol."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from openai import AsyncOpenAI, OpenAI, OpenAIError

from distill.evaluate.item import Item
from distill.evaluate.measure import Answer, Answered

_TIMEOUT_SECONDS = 600.0
"""For one request: a long prompt on a CPU may wait behind others for minutes."""


class ApiRunner:
    """Temperature 0, one request an item, at most `concurrency` of them at a time."""

    def __init__(self, url: str, model: str, api_key: str, concurrency: int) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency: {concurrency}, expected at least 1")
        self._url, self._model, self._api_key, self._concurrency = url, model, api_key, concurrency

    def answer(self, items: Iterable[Item], done: Callable[[Answered], None]) -> list[Answer]:
        """Answers the items; see `Runner`.

        Raises:
            ValueError: the server refuses a request, or leaves the usage out.
        """
        try:
            return asyncio.run(self._answer_all(items, done))
        except ExceptionGroup as errors:
            refusals = errors.subgroup(OpenAIError)
            if refusals is None:
                # Such as an image that cannot be read: one of the errors says it all.
                raise errors.exceptions[0] from errors
            raise ValueError(f"{self._url}: {refusals.exceptions[0]}") from errors

    async def _answer_all(self, items: Iterable[Item], done: Callable[[Answered], None]) -> list[Answer]:
        numbered = enumerate(items)
        answers: dict[int, Answer] = {}
        async with AsyncOpenAI(base_url=self._url, api_key=self._api_key, timeout=_TIMEOUT_SECONDS) as client:

            async def ask_in_turn() -> None:
                # Takes an item only when it can ask it: never are there more in memory than requests under way.
                for number, item in numbered:
                    answers[number] = await self._ask(client, item)
                    done(Answered(item=item, answer=answers[number]))

            # A group, not gather: the first refusal cancels the requests still under way.
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(ask_in_turn())
        return [answers[number] for number in range(len(answers))]

    async def _ask(self, client: AsyncOpenAI, item: Item) -> Answer:
        messages: Any = item.openai_messages()
        completion = await client.chat.completions.create(
            model=self._model, messages=messages, max_tokens=item.max_new_tokens, temperature=0.0
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
