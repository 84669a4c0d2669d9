"""Runs the gateway, and the engine behind it, in the foreground until it is told to stop."""

import asyncio
import gc
import signal
import socket
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import HttpUrl

from server.app import create_app
from server.checkpoint import read_checkpoint
from server.engines.engine import GRACE_SECONDS, EngineError, free_port, read_served_model, start_engine
from server.engines.supervisor import Supervisor
from server.gateway import Gateway
from server.prompt.prompt_counter import PromptCounter
from server.settings import Settings
from server.traffic.caller import Limits
from server.traffic.keys import read_keys
from server.traffic.protocol import guarded_protocol
from server.welcome import curl_command, python_snippet, write_request

KEEP_ALIVE_SECONDS = 75


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How to start an engine."""

    port: int | None
    extra_arguments: Sequence[str]
    start_timeout_seconds: float


async def serve(settings: Settings, options: EngineOptions | None) -> int:
    """Serves until SIGINT or SIGTERM; returns the process's exit status.

    Args:
        settings: of the gateway; without `options` its upstream is an engine that already runs.
        options: of the engine to start and to end.

    Raises:
        CheckpointError: before anything is started.
        KeysFileError: before anything is started.
        EngineError: the engine did not start, or none answers and the settings do not say what it serves.
        OSError: the port is taken.
    """
    checkpoint = read_checkpoint(settings.checkpoint)
    # What cannot be counted, and keys that cannot be read, are refused now, not after the engine has loaded.
    PromptCounter(checkpoint)
    if settings.keys_file is not None:
        read_keys(settings.keys_file, Limits())
    with (
        _bound_socket(settings.host, settings.port) as listener,
        tempfile.TemporaryDirectory(prefix="laid-serve-") as folder,
    ):
        run = _Run(listener=listener, folder=Path(folder), started=time.monotonic())
        run.listen_to_signals()
        if options is None:
            return await _serve_gateway(settings, run, None)
        log_path = run.folder / "engine.log"
        print(f"Starting vLLM for {checkpoint.path} (its log: {log_path}) ...", flush=True)
        port = options.port or free_port()
        start = partial(
            start_engine,
            checkpoint,
            model=settings.model,
            max_images=settings.max_images,
            port=port,
            extra_arguments=options.extra_arguments,
            log_path=log_path,
        )
        supervisor = Supervisor(start, settings, start_timeout_seconds=options.start_timeout_seconds)
        try:
            if not await _unless_stopped(run.stop, supervisor.bring_up()):
                return 0
            upstream = (HttpUrl(supervisor.engine.url),)
            return await _serve_gateway(settings.model_copy(update={"upstream": upstream}), run, supervisor)
        finally:
            supervisor.engine.stop(grace_seconds=0 if run.hurry.is_set() else GRACE_SECONDS)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What one run of the command holds."""

    listener: socket.socket
    folder: Path
    """For this run's files; removed at its end."""
    started: float
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first SIGINT or SIGTERM."""
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the second."""

    def listen_to_signals(self) -> None:
        """Sets the events from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()


async def _serve_gateway(settings: Settings, run: _Run, supervisor: Supervisor | None) -> int:
    if supervisor is not None or not {"model", "context_length"} <= settings.model_fields_set:
        settings = await _agree_with_engine(settings)
    if settings.files_folder is None:
        settings = settings.model_copy(update={"files_folder": run.folder / "files"})
    app = create_app(settings)
    gateway: Gateway = app.state.gateway
    _spare_garbage_collector()
    server = _make_server(app, settings)
    serving = asyncio.create_task(server.serve(sockets=[run.listener]))
    stop = asyncio.create_task(run.stop.wait())
    watching = [stop, asyncio.create_task(_welcome(server, gateway, run))]
    supervising = []
    if supervisor is not None:
        supervising.append(asyncio.create_task(supervisor.keep_up(gateway.engines.expect_back)))
    await asyncio.wait([serving, stop, *supervising], return_when=asyncio.FIRST_COMPLETED)
    for task in watching:
        task.cancel()
    if run.stop.is_set():
        gateway.stopping.set()
        await _unless_stopped(run.hurry, asyncio.sleep(settings.drain_notice_seconds))
    server.should_exit = True
    # The requests in flight are served to their end, unless a second signal comes.
    server.force_exit = not await _unless_stopped(run.hurry, _end_of(serving))
    await serving
    for task in supervising:
        if task.done():
            task.result()
        task.cancel()
    return 0


def _spare_garbage_collector() -> None:
    """Leaves what was made at start out of every later search for garbage, and searches less often.

    A request's objects go when their last reference does: searching at every 700 of them, Python's default, finds
    nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def _end_of(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])


async def _agree_with_engine(settings: Settings) -> Settings:
    """The settings with the name and the context length under which the first engine that answers serves its model."""
    troubles = []
    for url in settings.upstream:
        try:
            name, context_length = await read_served_model(str(url), timeout_seconds=settings.connect_timeout_seconds)
        except EngineError as error:
            troubles.append(str(error))
            continue
        if "model" in settings.model_fields_set and name != settings.model:
            raise EngineError(f"the engine serves {name!r}, the gateway was told {settings.model!r}; see --model")
        return settings.model_copy(update={"model": name, "context_length": context_length})
    raise EngineError("\n".join(troubles))


def _make_server(app: FastAPI, settings: Settings) -> "_Server":
    return _Server(
        uvicorn.Config(
            app,
            http=guarded_protocol(settings),
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=settings.drain_seconds,
            log_config=None,
            access_log=False,
            server_header=False,
            # Nothing here depends on the client's address, which a header could only forge.
            proxy_headers=False,
        )
    )


async def _welcome(server: uvicorn.Server, gateway: Gateway, run: _Run) -> None:
    settings = gateway.settings
    while not (server.started and gateway.engines.is_ready):  # noqa: ASYNC110 - neither sets an event
        await asyncio.sleep(0.05)
    # An address that means "every address" is one to listen on, not one to call.
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 - not bound here
    base_url = f"http://{host}:{settings.port}/v1"
    request_path = run.folder / "request.json"
    write_request(request_path, settings.model)
    print(
        f"""
Ready after {time.monotonic() - run.started:.0f} s. Base URL: {base_url}   model: {settings.model}   metrics: /metrics

Try it from another terminal:

{curl_command(base_url, request_path)}

or from Python (pip install openai):

{python_snippet(base_url, settings.model)}
Ctrl-C ends it.""",
        flush=True,
    )


class _Server(uvicorn.Server):
    """Leaves signals to this module: uvicorn would raise them again at its end, past the engine's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """True when `work` is done, False (and `work` cancelled) if the stop comes first."""
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not task.done():
        task.cancel()
        return False
    task.result()
    return True


def _bound_socket(host: str, port: int) -> socket.socket:
    """Bound but not yet listening: a taken port fails at once, and clients are refused until all is ready."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"{host}:{port}: {error.strerror}; choose another with --port") from error
    return listener
