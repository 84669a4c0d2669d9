"""The one parser of image URLs: strict, so that no other reader of the same text can see another host in it."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from server.media.source import ImageError

MAX_LENGTH = 8192
DEFAULT_PORTS = {"https": 443, "http": 80}

# RFC 3986's characters, and what is common in queries beside them. No space, quote, backslash, control character or
# anything outside ASCII: those are what URL parsers differ on.
_PATH = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*"
_QUERY = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?|\[\]]|%[0-9A-Fa-f]{2})*"
_URL = re.compile(
    rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)"
    rf"(?P<path>(?:/{_PATH})?)(?P<query>(?:\?{_QUERY})?)(?:#{_QUERY})?"
)
_AUTHORITY = re.compile(r"(?P<host>[A-Za-z0-9_.-]{1,253})(?::(?P<port>[1-9][0-9]{0,4}))?")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
# The last label starts with a letter, which no way to write an address as a number does (127.1, 0x7f.1, 2130706433).
_HOST = re.compile(rf"(?:{_LABEL}\.)*[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Link:
    """An image's URL, taken apart."""

    scheme: str
    host: str
    """A name in lower case, never an address."""
    port: int
    target: str
    """Path and query as the client wrote them."""

    @property
    def endpoint(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class LinkRules:
    """Which links may be followed."""

    hosts: Sequence[str]
    """Exact names, or suffixes with a leading dot; all if empty."""
    trusted: Collection[str]
    """Endpoints that may be asked over http, at their own port."""

    def read(self, url: str) -> Link:
        """Takes a URL apart.

        Raises:
            ImageError: names the rule that the URL breaks, and quotes none of it.
        """
        link = parse_link(url)
        if link.endpoint in self.trusted:
            return link
        if link.scheme != "https":
            raise ImageError("expected an https: URL, got an http: URL")
        if link.port != DEFAULT_PORTS["https"]:
            raise ImageError("expected an https: URL without a port")
        if "." not in link.host:
            raise ImageError("its host is not a public name")
        if self.hosts and not any(_matches(link.host, allowed) for allowed in self.hosts):
            raise ImageError("its host is not one from which this server fetches images")
        return link


def parse_link(url: str) -> Link:
    """Takes an http or https URL apart; the fragment is dropped.

    Raises:
        ImageError: names the rule that the URL breaks, and quotes none of it.
    """
    if len(url) > MAX_LENGTH:
        raise ImageError(f"a URL of {len(url)} characters, expected at most {MAX_LENGTH}")
    match = _URL.fullmatch(url)
    if match is None:
        raise ImageError(
            "not a plain URL: characters outside ASCII, spaces, quotes and backslashes must be percent-encoded, "
            "and a host name be in its xn-- form"
        )
    scheme = match["scheme"].lower()
    if scheme not in DEFAULT_PORTS:
        raise ImageError("expected an https: or data: URL")
    if "@" in match["authority"]:
        raise ImageError("a URL with a user name or password")
    authority = _AUTHORITY.fullmatch(match["authority"])
    host = authority["host"].lower() if authority is not None else ""
    if authority is None or not _HOST.fullmatch(host):
        raise ImageError("expected a host by its name, without a trailing dot; addresses are refused")
    return Link(
        scheme=scheme,
        host=host,
        port=int(authority["port"] or DEFAULT_PORTS[scheme]),
        target=(match["path"] or "/") + match["query"],
    )


def follow(link: Link, location: str) -> str:
    """The URL that a redirect's `Location` means, unchecked: it goes through the parser like the first one."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", location):
        return location
    if location.startswith("//"):
        return f"{link.scheme}:{location}"
    origin = f"{link.scheme}://{link.endpoint}"
    path = link.target.partition("?")[0]
    if location.startswith("/"):
        return origin + location
    if location.startswith(("?", "#")):
        return origin + path + location
    return origin + path.rpartition("/")[0] + "/" + location


def check_endpoint(text: str) -> str:
    """The text in lower case, if it is `host` or `host:port`.

    Raises:
        ValueError: it is neither.
    """
    try:
        link = parse_link(f"https://{text}/")
    except ImageError:
        link = None
    if link is None or "/" in text:
        raise ValueError(f"{text!r}: expected a host name, or host:port")
    return text.lower()


def check_host_rule(text: str) -> str:
    """The text in lower case, if it is a host name or a suffix of names with a leading dot.

    Raises:
        ValueError: it is neither.
    """
    if ":" in text:
        raise ValueError(f"{text!r}: expected a host name or a .suffix, without a port")
    check_endpoint(text.removeprefix("."))
    return text.lower()


def expand_endpoint(text: str) -> tuple[str, ...]:
    """The endpoints that a checked `host` or `host:port` stands for."""
    return (text,) if ":" in text else tuple(f"{text}:{port}" for port in DEFAULT_PORTS.values())


def _matches(host: str, allowed: str) -> bool:
    return host.endswith(allowed) if allowed.startswith(".") else host == allowed
