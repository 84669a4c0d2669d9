"""Where images come from when they are not in a request's body."""

from server.media.fetch import FetchOutcome
from server.telemetry.instruments import Instruments


class SourceMetrics:
    """Fetched images and uploaded files."""

    def __init__(self, make: Instruments) -> None:
        self.fetches = make.counters("fetches", "Images fetched for requests, by outcome.", "outcome", FetchOutcome)
        self.fetched_bytes = make.counter("fetched_bytes", "Bytes of fetched images.")
        # The same for all processes that share a folder.
        self._files = make.gauge("files", "Uploaded files that are kept.", "livemax")
        self._file_bytes = make.gauge("file_bytes", "Bytes of uploaded files, a tenant's equal images once.", "livemax")

    def set_files(self, num_files: int, num_bytes: int) -> None:
        """States what is kept."""
        self._files.set(num_files)
        self._file_bytes.set(num_bytes)
