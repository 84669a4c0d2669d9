"""Brings the images of a request that are not in its body: fetched from their URLs, or found among uploaded files."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

from server.files.store import FileStore
from server.media.fetch import Fetcher, FetchError, FetchOutcome
from server.media.source import Content, ImageError, RemoteUrl, UploadedFile
from server.telemetry.source_metrics import SourceMetrics


class SourceLoader:
    """Loads images from the network and from the folder of uploaded files."""

    def __init__(self, fetcher: Fetcher, files: FileStore | None, threads: Executor, metrics: SourceMetrics) -> None:
        self._fetcher = fetcher
        self._files = files
        self._threads = threads
        self._metrics = metrics

    async def aclose(self) -> None:
        """Closes connections."""
        await self._fetcher.aclose()

    async def load(
        self, sources: Sequence[RemoteUrl | UploadedFile], tenant: str, *, max_total_bytes: int
    ) -> list[Content | ImageError]:
        """One content, or the reason why there is none, for each source and in the same order.

        Args:
            sources: all that one request names; files come as paths, whose content never changes.
            tenant: whose uploaded files may be used.
            max_total_bytes: what may be fetched for this request, beside the limit on each image.
        """
        urls = {source.url for source in sources if isinstance(source, RemoteUrl)}
        ids = {source.file_id for source in sources if isinstance(source, UploadedFile)}
        fetched = await self._fetch(sorted(urls), max_total_bytes) if urls else {}
        found = await self._find(sorted(ids), tenant) if ids else {}
        return [fetched[source.url] if isinstance(source, RemoteUrl) else found[source.file_id] for source in sources]

    async def _fetch(self, urls: Sequence[str], max_total_bytes: int) -> dict[str, Content | ImageError]:
        results = await self._fetcher.fetch(urls, max_total_bytes=max_total_bytes)
        for result in results:
            if isinstance(result, FetchError):
                self._metrics.fetches[result.outcome].inc()
            else:
                self._metrics.fetches[FetchOutcome.OK].inc()
                self._metrics.fetched_bytes.inc(len(result))
        return dict(zip(urls, results, strict=True))

    async def _find(self, ids: Sequence[str], tenant: str) -> dict[str, Content | ImageError]:
        if self._files is None:
            return dict.fromkeys(ids, ImageError("this server keeps no uploaded files; send a data: URL"))
        found = await asyncio.get_running_loop().run_in_executor(self._threads, self._files.find, tenant, ids)
        missing = ImageError("there is no such uploaded file, or no longer")
        return {file_id: found[file_id].path if file_id in found else missing for file_id in ids}
