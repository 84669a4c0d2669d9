"""A file of JSON objects, one a line or all in one list."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.data.json_stream import iter_elements
from distill.data.records import Place


class JsonFile:
    """What the formats of such files share: places, names, and reading one object at a time."""

    def __init__(self, path: Path) -> None:
        """Looks at the first line that is not blank: a list starts with a bracket."""
        self.path = path
        with path.open("rb") as file:
            start = next((line.lstrip() for line in file if line.strip()), b"")
        self._is_list = start.startswith(b"[")

    def scan(self) -> Iterator[Place]:
        """The places of all objects, in order; blank lines are none.

        Raises:
            ValueError: a list that is not valid JSON: after the fault its elements cannot be told apart.
        """
        return self._scan_list() if self._is_list else self._scan_lines()

    def name(self, place: Place) -> str:
        """File and line of an object; in a list, the line in which it starts."""
        return f"{self.path}:{place.number}"

    def record(self, place: Place) -> Any:
        """The object at a place.

        Raises:
            ValueError: not valid JSON.
        """
        with self.path.open("rb") as file:
            file.seek(place.offset)
            return json.loads(file.read(place.num_bytes))

    def _scan_list(self) -> Iterator[Place]:
        for element in iter_elements(self.path):
            yield Place(file=0, offset=element.offset, num_bytes=len(element.content), number=element.line)

    def _scan_lines(self) -> Iterator[Place]:
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield Place(file=0, offset=offset, num_bytes=len(line), number=number)
                offset += len(line)
