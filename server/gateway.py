"""What every request needs: made once by the app factory, the same for all."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from server.checkpoint import Checkpoint, read_checkpoint
from server.engines.pool import EnginePool
from server.engines.upstream import Upstream
from server.files.store import FileStore, Quota
from server.media.fetch import Fetcher
from server.media.identity import Identity
from server.media.images import quiet_pillow
from server.media.loader import SourceLoader
from server.media.request_images import ImageChecker
from server.prompt.length import LengthLimits
from server.prompt.prompt_counter import PromptCounter
from server.prompt.window import Windows, WindowUse
from server.requests.admission import Admission
from server.settings import Settings
from server.telemetry.metrics import Metrics
from server.telemetry.tracing import Tracing, make_tracing
from server.telemetry.worker_files import worker_files
from server.traffic.bounds import make_body_lanes, make_fetch_lanes, make_prefill_lanes
from server.traffic.door import Door
from server.traffic.lanes import Lanes
from server.traffic.leases import Leases
from server.traffic.limiter import Limiter
from server.traffic.slots import Slots
from server.traffic.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """The objects behind the routes."""

    settings: Settings
    checkpoint: Checkpoint
    context_length: int
    """In tokens."""
    engines: EnginePool
    files: FileStore | None
    """Uploaded images; None: none are kept."""
    loader: SourceLoader
    images: ImageChecker
    admission: Admission
    door: Door
    limiter: Limiter
    storage: Storage
    """Where limiter and slots count."""
    slots: Slots
    prefill: Lanes
    """Prompt tokens that the engine has before their first answer token."""
    memory: Lanes
    """Bytes of bodies."""
    fetched: Lanes
    """Bytes of fetched images."""
    metrics: Metrics
    tracing: Tracing | None
    """None where the environment asks for no traces."""
    stopping: asyncio.Event
    """Set when the gateway is going to end; until then it serves what still comes."""
    threads: ThreadPoolExecutor
    """For whatever takes longer than the event loop may wait."""

    async def aclose(self) -> None:
        """Closes connections and threads."""
        await self.engines.aclose()
        await self.storage.aclose()
        await self.loader.aclose()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        self.threads.shutdown()

    def observe_window(self, window: WindowUse) -> dict[str, str]:
        """Counts a prompt against the windows, and says the same as headers of the answer."""
        self.metrics.prompts.observe_window(window)
        return window.headers()


def make_gateway(settings: Settings) -> Gateway:
    """Builds everything for one checkpoint and the engines that serve it.

    Raises:
        CheckpointError: the checkpoint's tokens cannot be counted.
        KeysFileError: the keys file cannot be read.
        ValueError: bounds that leave no room for one of the largest requests.
        OSError: the folder for uploaded files cannot be written.
    """
    quiet_pillow()
    checkpoint = read_checkpoint(settings.checkpoint)
    context_length = settings.context_length or checkpoint.context_length
    settings = settings.model_copy(update={"context_length": context_length})
    names = [str(index) for index in range(len(settings.upstream))]
    metrics = Metrics(settings.model, engines=names, workers=worker_files(os.environ))
    window = checkpoint.effective_window
    metrics.prompts.set_windows(context_length, 0 if window is None else window.tokens)
    counter = PromptCounter(checkpoint)
    secret = settings.image_secret
    identity = Identity(None if secret is None else secret.get_secret_value())
    images = ImageChecker(settings, counter, identity)
    storage = Storage(settings, metrics)
    limiter = Limiter(storage, metrics)
    leases = None if storage.pool is None else Leases(storage, storage.pool)
    limits = LengthLimits(context_length=context_length, max_prompt_tokens=settings.max_prompt_tokens)
    windows = Windows(limits, window, checkpoint.image_rule)
    threads = ThreadPoolExecutor(settings.admission_threads, thread_name_prefix="admission")
    files = _make_store(settings)
    engines = [
        Upstream(name, url, settings, on_health=partial(metrics.engines.set_up, name))
        for name, url in zip(names, settings.upstream, strict=True)
    ]
    return Gateway(
        settings=settings,
        checkpoint=checkpoint,
        context_length=context_length,
        engines=EnginePool(engines, settings, metrics.engines),
        files=files,
        loader=SourceLoader(Fetcher(settings), files, threads, metrics.sources),
        images=images,
        admission=Admission(settings, counter, images, windows),
        door=Door(settings, metrics, limiter),
        limiter=limiter,
        storage=storage,
        slots=Slots(leases, metrics, retry_after_seconds=settings.retry_after_seconds),
        prefill=make_prefill_lanes(settings, metrics, context_length=context_length),
        memory=make_body_lanes(settings, metrics),
        fetched=make_fetch_lanes(settings, metrics),
        metrics=metrics,
        tracing=make_tracing(settings.model, os.environ),
        stopping=asyncio.Event(),
        threads=threads,
    )


def _make_store(settings: Settings) -> FileStore | None:
    if settings.files_folder is None:
        return None
    return FileStore(settings.files_folder, Quota(num_files=settings.max_files, num_bytes=settings.max_files_bytes))
