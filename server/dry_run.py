"""One request as far as its count: what it would take of the windows, without generating."""

from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from server.exchange import Exchange
from server.prompt.window_policy import WindowPolicy
from server.requests.admission import Measured
from server.requests.disconnect import run_until_disconnect
from server.telemetry.phases import Phase
from server.telemetry.record import Record


class DryRun(Exchange):
    """Takes the same steps as an exchange, up to the engine."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with the count, or with why the request cannot be counted.

        Raises:
            GatewayError: the request would be refused for another reason than its length.
        """
        record: Record = scope["state"]["record"]
        policy = self._policy(scope)
        try:
            with self._memory:
                async with self._gateway.slots.hold(self._caller):
                    measured = await run_until_disconnect(receive, self._measure(record, policy))
        finally:
            record.phases.end()
        name = "response" if measured.name == "input" else "chat.completion"
        await JSONResponse({"object": f"{name}.input_tokens", **describe(measured, policy)})(scope, receive, send)

    async def _measure(self, record: Record, policy: WindowPolicy) -> Measured:
        record.phases.begin(Phase.CHECK)
        loaded = await self._load(record.phases)
        return await self._check(self._gateway.admission.measure, loaded, policy)


def describe(measured: Measured, policy: WindowPolicy) -> dict[str, Any]:
    """The count as JSON: in all, by text and images, by each image, and against both windows."""
    window, error = measured.window, measured.refusal
    count = window.count
    images = []
    for i, (image, tokens) in enumerate(zip(measured.images, count.image_tokens, strict=True)):
        size = window.fitted.get(i)
        fitted = None if size is None else {"width": size.width, "height": size.height}
        images.append(
            {
                "path": image.path,
                "width": image.size.width,
                "height": image.size.height,
                "tokens": tokens,
                "fitted": fitted,
            }
        )
    return {
        "input_tokens": count.prompt_tokens,
        "text_tokens": count.prompt_tokens - count.total_image_tokens,
        "image_tokens": count.total_image_tokens,
        # As the client sent it: more than the above where images were fitted.
        "original_input_tokens": window.original.prompt_tokens,
        "original_image_tokens": window.original.total_image_tokens,
        "images": images,
        "context_length": window.context_length,
        "window_use": round(window.use, 4),
        "effective_window": None if window.effective is None else window.effective.tokens,
        "effective_window_use": None if window.effective_use is None else round(window.effective_use, 4),
        "policy": policy.value,
        "fits": error is None,
        "warning": window.warning,
        "error": None if error is None else error.body()["error"],
    }
