"""Fetches the images that a request names by https URLs: only from public addresses, under limits on everything."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from server.media.addresses import is_public, is_usable
from server.media.links import Link, LinkRules, expand_endpoint, follow
from server.media.source import ImageError
from server.settings import Settings

MAX_REDIRECTS = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})
LOOKUP_THREADS = 8
_HEADERS = {"accept": "image/*", "accept-encoding": "identity", "user-agent": "LAid-gateway"}

Lookup = Callable[[str, int], Awaitable[list[ResolveResult]]]
"""Host and port to everything that the name resolves to; raises OSError."""


class FetchOutcome(StrEnum):
    """How a fetch ended: a label of the metric."""

    OK = "ok"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    CERTIFICATE = "certificate"
    STATUS = "status"
    REDIRECTS = "redirects"
    TOO_LARGE = "too_large"
    TIMEOUT = "timeout"
    BROKEN = "broken"


class FetchError(ImageError):
    """An image that could not be fetched; the message is for the client and tells nothing of this server's network."""

    def __init__(self, outcome: FetchOutcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


# One text for a name that does not resolve, one that resolves to a private address, and one where nobody listens:
# nobody can map the network that the gateway is in.
_UNREACHABLE = "its host cannot be reached at a public address"


class Fetcher:
    """Shared by all requests: holds the connections, and counts how many fetches run at once."""

    def __init__(
        self,
        settings: Settings,
        *,
        lookup: Lookup | None = None,
        is_public: Callable[[str], bool] = is_public,
    ) -> None:
        """`lookup` and `is_public` are the system's resolver and the rule of `addresses`, unless a test says else."""
        trusted = frozenset(endpoint for text in settings.fetch_trusted_hosts for endpoint in expand_endpoint(text))
        self._settings = settings
        self._rules = LinkRules(hosts=settings.fetch_hosts, trusted=trusted)
        self._resolver = _CheckingResolver(trusted, lookup, is_public)
        self._slots = asyncio.Semaphore(settings.fetch_concurrency)
        self._session: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        """Closes all connections."""
        if self._session is not None:
            await self._session.close()
        await self._resolver.close()

    async def fetch(self, urls: Sequence[str], *, max_total_bytes: int) -> list[bytes | FetchError]:
        """What each URL leads to, or why nothing came: all under one deadline, equal URLs once."""
        deadline = asyncio.get_running_loop().time() + self._settings.fetch_timeout_seconds
        budget = _Budget(max_total_bytes)
        turns = asyncio.Semaphore(self._settings.fetch_request_concurrency)
        async with asyncio.TaskGroup() as group:
            tasks = {url: group.create_task(self._fetch_in_turn(url, budget, turns, deadline)) for url in set(urls)}
        return [tasks[url].result() for url in urls]

    async def _fetch_in_turn(
        self, url: str, budget: "_Budget", turns: asyncio.Semaphore, deadline: float
    ) -> bytes | FetchError:
        try:
            async with asyncio.timeout_at(deadline), turns, self._slots:
                return await self._fetch_one(url, budget)
        except FetchError as error:
            return error
        except TimeoutError:
            seconds = self._settings.fetch_timeout_seconds
            return FetchError(
                FetchOutcome.TIMEOUT, f"not fetched within the {seconds:g} s that all images of a request have"
            )

    async def _fetch_one(self, url: str, budget: "_Budget") -> bytes:
        link = self._read(url, is_redirect=False)
        for _ in range(MAX_REDIRECTS + 1):
            try:
                async with self._get(link) as response:
                    if response.status not in REDIRECTS:
                        return await self._read_body(link, response, budget)
                    location = response.headers.get("location")
            except aiohttp.ClientSSLError:
                raise FetchError(FetchOutcome.CERTIFICATE, "its host has no valid certificate") from None
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                raise FetchError(FetchOutcome.UNREACHABLE, _UNREACHABLE) from None
            except aiohttp.ClientError:
                raise FetchError(FetchOutcome.BROKEN, "its host did not send a complete answer") from None
            if location is None:
                raise FetchError(FetchOutcome.BROKEN, "its host redirects it to nowhere")
            link = self._read(follow(link, location), is_redirect=True)
        raise FetchError(FetchOutcome.REDIRECTS, f"it is redirected more than {MAX_REDIRECTS} times")

    def _read(self, url: str, *, is_redirect: bool) -> Link:
        if not self._settings.fetch_images:
            raise FetchError(FetchOutcome.REFUSED, "this server fetches no images; send it as a data: URL")
        try:
            return self._rules.read(url)
        except ImageError as error:
            text = f"it is redirected to a URL that is refused: {error}" if is_redirect else str(error)
            raise FetchError(FetchOutcome.REFUSED, text) from None

    def _get(self, link: Link) -> "aiohttp.client._RequestContextManager":
        if self._session is None:
            self._session = self._make_session()
        path, _, query = link.target.partition("?")
        # Built from the checked parts and marked as encoded, so that nothing reads the text a second time.
        url = URL.build(scheme=link.scheme, host=link.host, port=link.port, path=path, query_string=query, encoded=True)
        return self._session.get(url, allow_redirects=False)

    def _make_session(self) -> aiohttp.ClientSession:
        settings = self._settings
        context = ssl.create_default_context()
        if settings.fetch_ca_file is not None:
            context.load_verify_locations(settings.fetch_ca_file)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=self._resolver,
                # Every connection is made to the addresses that were checked for it.
                use_dns_cache=False,
                ssl=context,
                limit=settings.fetch_concurrency,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_seconds),
        )

    async def _read_body(self, link: Link, response: aiohttp.ClientResponse, budget: "_Budget") -> bytes:
        if response.status != 200:
            # What a host on the operator's own network answers is not the client's to know.
            told = "" if link.endpoint in self._rules.trusted else f" (status {response.status})"
            raise FetchError(FetchOutcome.STATUS, f"its host did not answer with an image{told}")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise FetchError(FetchOutcome.BROKEN, "its host compresses the answer though asked not to")
        limit = self._settings.max_image_bytes
        if response.content_length is not None and response.content_length > limit:
            raise FetchError(FetchOutcome.TOO_LARGE, f"{response.content_length} bytes, expected at most {limit}")
        content = bytearray()
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > limit:
                raise FetchError(FetchOutcome.TOO_LARGE, f"more than {limit} bytes")
            budget.spend(len(chunk))
        return bytes(content)


class _Budget:
    """The bytes that all images of a request may have together."""

    def __init__(self, num_bytes: int) -> None:
        self._limit = num_bytes
        self._left = num_bytes

    def spend(self, num_bytes: int) -> None:
        self._left -= num_bytes
        if self._left < 0:
            raise FetchError(
                FetchOutcome.TOO_LARGE, f"the fetched images of this request have more than {self._limit} bytes"
            )


class _CheckingResolver(AbstractResolver):
    """Resolves a name and checks every address; a connection is made to what it returned and to nothing else."""

    def __init__(self, trusted: frozenset[str], lookup: Lookup | None, is_public: Callable[[str], bool]) -> None:
        # A thread of its own kind: a name server that never answers must not hold up other work.
        self._threads = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="lookup")
        self._trusted = trusted
        self._lookup = lookup or self._look_up
        self._is_public = is_public

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - the base's
    ) -> list[ResolveResult]:
        """Every address of a host, of whatever family the machine can reach.

        Raises:
            OSError: the name does not resolve, or to an address that is refused, which nobody outside can tell apart.
        """
        found = await self._lookup(host, port)
        is_allowed = is_usable if f"{host}:{port}" in self._trusted else self._is_public
        if not found or not all(is_allowed(result["host"]) for result in found):
            raise OSError(f"{host}: not every address is allowed")
        return found

    async def close(self) -> None:
        """Ends the threads without waiting for name servers."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _look_up(self, host: str, port: int) -> list[ResolveResult]:
        def find() -> list[ResolveResult]:
            return [
                ResolveResult(
                    hostname=host,
                    host=str(address[0]),
                    port=port,
                    family=family,
                    proto=protocol,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
                for family, _, protocol, _, address in socket.getaddrinfo(
                    host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
                )
            ]

        return await asyncio.get_running_loop().run_in_executor(self._threads, find)
