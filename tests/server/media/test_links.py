"""URLs that different parsers read differently must not pass; plain ones must, with nothing of them changed."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from server.media.links import LinkRules, expand_endpoint, follow, parse_link
from server.media.source import ImageError
from server.settings import Settings

RULES = LinkRules(hosts=(), trusted=frozenset())


@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("https://example.com", "example.com", "/"),
        ("HTTPS://Example.COM/A.png", "example.com", "/A.png"),
        ("https://example.com:443/a", "example.com", "/a"),
        ("https://example.com?a=1", "example.com", "/?a=1"),
        ("https://a-b.co.uk/x%20y/z.jpg?sig=%2Fa+b&k[]=1|2#part", "a-b.co.uk", "/x%20y/z.jpg?sig=%2Fa+b&k[]=1|2"),
        ("https://my_bucket.s3.example/~me/(1),2;v=1/../a//b", "my_bucket.s3.example", "/~me/(1),2;v=1/../a//b"),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", "/"),
        ("https://1.2.3.example.com/", "1.2.3.example.com", "/"),
        ("https://example.com/https://other.com@third.com/", "example.com", "/https://other.com@third.com/"),
    ],
)  # fmt: skip
def test_plain_urls(url: str, host: str, target: str) -> None:
    link = RULES.read(url)

    assert (link.scheme, link.host, link.port, link.target) == ("https", host, 443, target)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://example.com/", "got an http: URL"),
        ("http://example.com:443/", "got an http: URL"),
        ("ftp://example.com/", "expected an https"),
        ("file:///etc/passwd", "expected an https"),
        ("gopher://example.com/", "expected an https"),
        ("https:/example.com/", "not a plain URL"),
        ("https:example.com", "not a plain URL"),
        ("//example.com/", "not a plain URL"),
        ("", "not a plain URL"),
        ("https://", "by its name"),
        ("https:///example.com", "by its name"),
        ("https://user@example.com/", "user name or password"),
        ("https://user:password@example.com/", "user name or password"),
        ("https://example.com@127.0.0.1/", "user name or password"),
        ("https://example.com\\@127.0.0.1/", "user name or password|not a plain URL"),
        ("https://127.0.0.1\\.example.com/", "by its name"),
        ("https://example.com/\\\\127.0.0.1/", "not a plain URL"),
        ("https://exam ple.com/", "by its name"),
        (" https://example.com/", "not a plain URL"),
        ("https://example.com/ ", "not a plain URL"),
        ("https://example.com/\n", "not a plain URL"),
        ("https://example.com/\r\nHost: other", "not a plain URL"),
        ("https://example.com\n/", "by its name"),
        ("https://example.com\t.evil.com/", "by its name"),
        ("https://example.com%2f.evil.com/", "by its name"),
        ("https://example.com%00/", "by its name"),
        ("https://exämple.com/", "by its name"),
        ("https://example。com/", "by its name"),
        ("https://ⓔxample.com/", "by its name"),
        ("https://example.com/ä", "not a plain URL"),
        ("https://example.com/%", "not a plain URL"),
        ("https://example.com/%zz", "not a plain URL"),
        ("https://example.com/a?b#c#d", "not a plain URL"),
        ("https://example.com./", "by its name"),
        ("https://.example.com/", "by its name"),
        ("https://example..com/", "by its name"),
        ("https://-example.com/", "by its name"),
        (f"https://{'a' * 64}.com/", "by its name"),
        (f"https://{'a.' * 126}com/", "by its name"),
        ("https://example.com:/", "by its name"),
        ("https://example.com:0443/", "by its name"),
        ("https://example.com:+443/", "by its name"),
        ("https://example.com:80:443/", "by its name"),
        ("https://example.com:8443/", "without a port"),
        ("https://example.com:99999/", "without a port"),
        ("https://127.0.0.1/", "by its name"),
        ("https://127.1/", "by its name"),
        ("https://2130706433/", "by its name"),
        ("https://0x7f000001/", "by its name"),
        ("https://0x7f.0.0.0x1/", "by its name"),
        ("https://0177.0.0.1/", "by its name"),
        ("https://[::1]/", "by its name"),
        ("https://[::ffff:127.0.0.1]/", "by its name"),
        ("https://::1/", "by its name"),
        ("https://localhost/", "not a public name"),
        ("https://metadata/", "not a public name"),
        ("https://example.com/" + "a" * 9000, "9020 characters"),
    ],
)  # fmt: skip
def test_odd_urls_are_refused_by_the_rule_they_break(url: str, rule: str) -> None:
    with pytest.raises(ImageError, match=rule):
        RULES.read(url)


def test_every_control_character_is_refused_everywhere() -> None:
    for code in (*range(0x21), 0x7F, *range(0x80, 0x100), 0xFEFF, 0x2028, 0xFF0F, 0xDC80):
        for url in (
            "https://{}example.com/",
            "https://example.com{}",
            "https://example.com/a{}b?c",
            "https://a.com/?{}",
        ):
            with pytest.raises(ImageError):
                RULES.read(url.format(chr(code)))


def test_an_allow_list_means_whole_names() -> None:
    rules = LinkRules(hosts=("example.com", ".images.example"), trusted=frozenset())
    for host in ("example.com", "a.images.example", "a.b.images.example"):
        assert rules.read(f"https://{host}/").host == host
    for host in ("www.example.com", "example.com.evil.com", "evilexample.com", "images.example", "evil-images.example"):
        with pytest.raises(ImageError, match="not one from which"):
            rules.read(f"https://{host}/")


def test_trusted_endpoints_may_use_http_and_their_port() -> None:
    trusted = frozenset((*expand_endpoint("store"), *expand_endpoint("minio.internal:9000")))
    rules = LinkRules(hosts=("example.com",), trusted=trusted)
    for url in ("http://store/", "https://store/", "http://MinIO.internal:9000/a", "https://minio.internal:9000/a"):
        assert rules.read(url)
    for url in ("http://store:81/", "https://minio.internal/", "http://minio.internal:9001/", "http://example.com/"):
        with pytest.raises(ImageError):
            rules.read(url)


@pytest.mark.parametrize(
    "text", ["", "http://store", "store/", "store:", "store:0", "127.0.0.1", "[::1]:80", "a@b", "*"]
)
@pytest.mark.parametrize("name", ["fetch_hosts", "fetch_trusted_hosts"])
def test_hosts_in_the_settings_are_names(name: str, text: str) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(checkpoint=Path(), **{name: (text,)})  # type: ignore[arg-type]


def test_hosts_in_the_settings_may_be_suffixes_or_have_a_port() -> None:
    settings = Settings(checkpoint=Path(), fetch_hosts=(".A.example",), fetch_trusted_hosts=("Store:9000",))

    assert (settings.fetch_hosts, settings.fetch_trusted_hosts) == ((".a.example",), ("store:9000",))
    with pytest.raises(ValidationError, match="without a port"):
        Settings(checkpoint=Path(), fetch_hosts=("a.example:443",))


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("https://b.example/y", "https://b.example/y"),
        ("javascript:alert(1)", "javascript:alert(1)"),
        ("//b.example/y", "https://b.example/y"),
        ("/y", "https://a.example:443/y"),
        ("y", "https://a.example:443/d/y"),
        ("../y", "https://a.example:443/d/../y"),
        ("?z", "https://a.example:443/d/x?z"),
        ("", "https://a.example:443/d/"),
    ],
)  # fmt: skip
def test_redirects_are_resolved_against_the_link(location: str, url: str) -> None:
    assert follow(parse_link("https://a.example/d/x?q"), location) == url
