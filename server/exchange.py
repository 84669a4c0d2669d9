"""One request from its body to its answer's last byte: the order in which everything is done to it."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from server.engines.relay import Relay
from server.errors import GatewayError, StoppingError
from server.gateway import Gateway
from server.media.source import Content, ImageError, PlacedSource, RemoteUrl, UploadedFile
from server.prompt.prompt_counter import PromptCount
from server.prompt.window_policy import POLICY_HEADER, WindowPolicy, choose_policy
from server.requests.admission import Admitted, Parse
from server.requests.body import Body
from server.requests.disconnect import run_until_disconnect
from server.requests.draft import Draft
from server.telemetry.context_class import context_class_of
from server.telemetry.phases import Phase, Phases
from server.telemetry.record import Record
from server.traffic.caller import Caller
from server.traffic.lanes import Room
from server.traffic.limiter import Costs

T = TypeVar("T")
# Up to these sizes a step costs less than the way to a thread and back, or little more.
LOOP_PARSE_BYTES = 64 * 1024
LOOP_CHECK_BYTES = 4 * 1024


class Exchange:
    """A request whose body was read; an ASGI app that answers it."""

    def __init__(self, gateway: Gateway, caller: Caller, body: Body, parse: Parse) -> None:
        """`parse` is the route's own way to take its body apart."""
        self._gateway = gateway
        self._caller = caller
        self._body = body.content
        self._memory = ExitStack()
        self._memory.enter_context(body.room)
        self._parse = parse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves until the answer ends or the client leaves, which ends all work for it, here and in the engine.

        Raises:
            GatewayError: only while no byte of the response was sent.
        """
        metrics = self._gateway.metrics.requests
        record: Record = scope["state"]["record"]
        try:
            with self._memory, metrics.in_flight.track_inprogress():
                async with self._gateway.slots.hold(self._caller):
                    await run_until_disconnect(receive, self._serve(send, record, self._policy(scope)))
        except asyncio.CancelledError:
            # Not the client's leaving, which is an error of its own: the server stops.
            if record.status is not None:
                raise
            raise StoppingError from None
        except GatewayError as error:
            if record.status is None:
                raise
            record.error = error.reason
        else:
            if record.error is None:
                metrics.observe_duration(record.phases.since_read(), record.context_class)
        finally:
            record.phases.end()
            metrics.observe_phases(record.phases)

    def _policy(self, scope: Scope) -> WindowPolicy:
        return choose_policy(Headers(scope=scope).get(POLICY_HEADER), self._gateway.settings.window_policy)

    async def _serve(self, send: Send, record: Record, policy: WindowPolicy) -> None:
        record.phases.begin(Phase.CHECK)
        admitted = await self._admit(record.phases, policy)
        _note(admitted.count, record)
        with await self._take_room(admitted, record) as prefill:
            relay = Relay(
                admitted,
                engines=self._gateway.engines,
                metrics=self._gateway.metrics,
                settings=self._gateway.settings,
                headers=self._gateway.observe_window(admitted.window),
                record=record,
                prefill=prefill,
            )
            with self._gateway.metrics.traffic.tokens_in_flight_for(admitted.count.prompt_tokens):
                await relay.carry(send)

    async def _admit(self, phases: Phases, policy: WindowPolicy) -> Admitted:
        loaded = await self._load(phases)
        admitted = await self._check(self._gateway.admission.check, loaded, policy)
        self._gateway.metrics.prompts.observe_media(
            body_bytes=len(self._body), image_bytes=admitted.image_bytes, image_pixels=admitted.image_pixels
        )
        return admitted

    async def _load(self, phases: Phases) -> "_Loaded":
        """Takes the body apart, and brings to this machine what of it is elsewhere."""
        gateway = self._gateway
        draft = await self._step(LOOP_PARSE_BYTES, gateway.admission.parse, self._body, self._parse)
        sources = gateway.images.place(draft.conversation)
        elsewhere = [placed.source for placed in sources if isinstance(placed.source, RemoteUrl | UploadedFile)]
        if not elsewhere:
            return _Loaded(draft=draft, sources=sources, contents=[])
        phases.begin(Phase.FETCH)
        max_total_bytes = gateway.images.max_loaded_bytes(sources)
        num_links = sum(isinstance(source, RemoteUrl) for source in elsewhere)
        # Whoever waits here holds room for a body, and whoever waits for that holds none of this.
        room = await gateway.fetched.take(min(num_links * gateway.settings.max_image_bytes, max_total_bytes))
        self._memory.enter_context(room)
        loaded = await gateway.loader.load(elsewhere, self._caller.tenant, max_total_bytes=max_total_bytes)
        room.shrink(min(room.amount, sum(len(content) for content in loaded if isinstance(content, bytes))))
        phases.begin(Phase.CHECK)
        return _Loaded(draft=draft, sources=sources, contents=loaded)

    async def _check(self, step: Callable[..., T], loaded: "_Loaded", policy: WindowPolicy) -> T:
        """`step` is one of the two last of admission: the check, or the count alone."""
        loop_bytes = 0 if loaded.sources else LOOP_CHECK_BYTES
        return await self._step(
            loop_bytes, step, loaded.draft, loaded.sources, loaded.contents, self._caller.tenant, policy
        )

    async def _take_room(self, admitted: Admitted, record: Record) -> Room:
        """Counts the prompt against its key's limits, then waits for its turn."""
        record.phases.begin(Phase.QUEUE)
        count = admitted.count
        costs: Costs = {"tokens": count.prompt_tokens, "images": len(count.image_tokens)}
        await self._gateway.limiter.spend(self._caller, costs, record.headers)
        # Several prompts are prefilled one after the other, so that together they need no more room than the longest.
        return await self._gateway.prefill.take(min(count.prompt_tokens, self._gateway.context_length))

    async def _step(self, loop_bytes: int, step: Callable[..., T], *arguments: Any) -> T:
        """Runs a blocking step: here for a body of up to `loop_bytes`, else in a thread."""
        if len(self._body) <= loop_bytes:
            return step(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._gateway.threads, step, *arguments)


class _Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """A draft whose images are all on this machine, or known not to be."""

    draft: Draft
    sources: Sequence[PlacedSource]
    contents: Sequence[Content | ImageError]
    """Of each source that is elsewhere, in order."""


def _note(count: PromptCount, record: Record) -> None:
    record.context_class = context_class_of(count.window_tokens)
    record.prompt_tokens = count.prompt_tokens
    record.image_tokens = count.total_image_tokens
    record.num_images = len(count.image_tokens)
