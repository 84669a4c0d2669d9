"""Elements of JSON files too large for memory, one at a time and with their places."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

_BLANKS = re.compile(r"[ \t\r\n]*")
_AFTER_VALUE = tuple(" \t\r\n,:]}")
_BLOCK_BYTES = 2**20
_MAX_ELEMENT_BYTES = 2**26


class Element(NamedTuple):
    """One element of a list."""

    key: str | None
    """Where the file is an object: the key whose value is the list."""
    offset: int
    line: int
    content: bytes
    parsed: Any
    """The value as read from Latin-1."""

    @property
    def value(self) -> Any:
        """The value."""
        return self.parsed if self.content.isascii() else json.loads(self.content)


def iter_elements(path: Path) -> Iterator[Element]:
    """The elements of the file's list, or of every list that is a value of the file's object; other values are skipped.

    Raises:
        ValueError: not JSON; the message starts with the file and line.
    """
    with path.open("rb") as file:
        reader = _Reader(file, path)
        if reader.peek() == "[":
            yield from _list(reader, None)
        else:
            yield from _object(reader)
        reader.expect("")


def _list(reader: "_Reader", key: str | None) -> Iterator[Element]:
    reader.expect("[")
    if reader.peek() != "]":
        yield reader.element(key)
        while reader.peek() == ",":
            reader.expect(",")
            yield reader.element(key)
    reader.expect("]")


def _object(reader: "_Reader") -> Iterator[Element]:
    reader.expect("{")
    while reader.peek() == '"':
        key = reader.element(None).value
        reader.expect(":")
        if reader.peek() == "[":
            yield from _list(reader, key)
        else:
            reader.element(None)
        if reader.peek() == ",":
            reader.expect(",")
    reader.expect("}")


class _Reader:
    """A window on the file. It is read as Latin-1, so that characters are bytes: JSON's own signs are all ASCII."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._before = 0
        self._line = 1
        self._is_whole = False

    def peek(self) -> str:
        """The next sign that is not blank, empty at the end of the file."""
        while True:
            self._advance(_BLANKS.match(self._text, self._at).end())  # type: ignore[union-attr]  # matches anything
            if self._at < len(self._text) or self._is_whole:
                return self._text[self._at : self._at + 1]
            self._fill(_BLOCK_BYTES)

    def expect(self, sign: str) -> None:
        """Steps over the next sign."""
        found = self.peek()
        if found != sign:
            raise ValueError(
                f"{self._path}:{self._line}: not valid JSON: expected {sign or 'the end'!r}, got {found!r}"
            )
        self._advance(self._at + len(sign))

    def element(self, key: str | None) -> Element:
        """Steps over the next value."""
        self.peek()
        parsed, end = self._value()
        content = self._text[self._at : end].encode("latin-1")
        element = Element(key, offset=self._before + self._at, line=self._line, content=content, parsed=parsed)
        self._advance(end)
        return element

    def _value(self) -> tuple[Any, int]:
        """The next value, and where it ends in the window."""
        size = _BLOCK_BYTES
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # A number may go on behind the end of the window, and half of 1e5 is a number too.
                if self._text[end : end + 1] in _AFTER_VALUE or self._is_whole:
                    return value, end
            except json.JSONDecodeError as error:
                if self._is_whole or len(self._text) - self._at > _MAX_ELEMENT_BYTES:
                    line = self._line + self._text.count("\n", self._at, error.pos)
                    raise ValueError(f"{self._path}:{line}: not valid JSON: {error.msg}") from error
            self._fill(size)
            size *= 2

    def _fill(self, num_bytes: int) -> None:
        block = self._file.read(num_bytes)
        self._is_whole = len(block) < num_bytes
        self._before += self._at
        self._text = self._text[self._at :] + block.decode("latin-1")
        self._at = 0

    def _advance(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end
