"""Images behind http(s) URLs: off unless their hosts are named, fetched once, kept on disk."""

import hashlib
import os
import time
from pathlib import Path

import httpx

from distill.data.bad_samples import BadSampleError
from distill.recipe import ImagesConfig

_MAX_REDIRECTS = 3


class Downloads:
    """Fetches from the hosts of the recipe alone, redirects included, and reads again from its folder.

    The check of the data before the first step fetches everything: training itself never waits for the network, and a
    resumed run sees the same images as long as the folder is kept.
    """

    def __init__(self, config: ImagesConfig) -> None:
        self._config = config
        self._client = httpx.Client(
            timeout=config.url_seconds,
            headers={"Accept-Encoding": "identity"},
            # Nobody closes this client: no connection outlives its answer.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def read(self, url: str) -> bytes:
        """The content of a URL, at most one byte over the limit.

        Raises:
            BadSampleError: its host is not named, or it cannot be fetched within the limits.
        """
        if self._config.url_cache is None:
            raise _missing(url, "a path or a data URL, or its host in data.images.url_hosts")
        path = Path(self._config.url_cache) / hashlib.sha256(url.encode()).hexdigest()
        if not path.exists():
            content = self._fetch(url)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            partial.write_bytes(content)
            partial.replace(path)
        return path.read_bytes()

    def _fetch(self, url: str) -> bytes:
        deadline = time.monotonic() + self._config.url_seconds
        current = url
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                self._check_host(current)
                with self._client.stream("GET", current) as response:
                    if response.next_request is None:
                        return self._body(url, response, deadline)
                    current = str(response.next_request.url)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _missing(url, f"an answer ({type(error).__name__}: {error})") from error
        raise _missing(url, f"at most {_MAX_REDIRECTS} redirects")

    def _check_host(self, url: str) -> None:
        parsed = httpx.URL(url)
        host = parsed.netloc.decode()
        if parsed.scheme not in ("http", "https") or host not in self._config.url_hosts:
            raise _missing(url, f"a path or a data URL, or its host {host!r} in data.images.url_hosts")

    def _body(self, url: str, response: httpx.Response, deadline: float) -> bytes:
        if response.status_code != httpx.codes.OK:
            raise _missing(url, f"status 200, got {response.status_code}")
        content = bytearray()
        for block in response.iter_raw():
            content += block
            if len(content) > self._config.max_bytes:
                raise BadSampleError("unreadable image", f"image: {url}: more than {self._config.max_bytes} bytes")
            if time.monotonic() > deadline:
                raise _missing(url, f"the whole image within {self._config.url_seconds:g} seconds")
        return bytes(content)


def _missing(url: str, expectation: str) -> BadSampleError:
    return BadSampleError("missing image", f"image_url: {url!r}, expected {expectation}")
