"""What a data format gives: places of samples, and the sample at a place."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from distill.data.sample import Sample

ImageRef = str | bytes
"""Where an image is: a path, a data URL or an http(s) URL; or the encoded image itself."""

TakeImage = Callable[[ImageRef], Any]
"""Turns a reference into what the sample shall hold: the decoded image, or only its size."""


class Place(NamedTuple):
    """Where a sample lies; all that is kept of it between two uses."""

    file: int
    """Index of the file, for formats of several files."""
    offset: int
    """First byte in the file, or row of a table."""
    num_bytes: int
    number: int
    """Line of the file, or number of the sample in it, from 1; for messages."""


class Records(Protocol):
    """Samples on disk, read one at a time and in any order."""

    @property
    def form(self) -> str:
        """What a sample looks like, for messages."""
        ...

    def scan(self) -> Iterator[Place]:
        """The places of all samples, in the order of the files.

        Raises:
            ValueError: the files are damaged in such a way that samples cannot be told apart.
        """
        ...

    def name(self, place: Place) -> str:
        """File and line, for messages."""
        ...

    def read(self, place: Place, take: TakeImage) -> Sample:
        """The sample at a place, its images as `take` gives them.

        Raises:
            BadSampleError: what is wrong with it, without its name.
            ValueError, TypeError, KeyError: it has not the format's form.
        """
        ...
