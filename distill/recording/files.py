"""Files that survive a kill: whole under their name, or not there."""

import hashlib
import os
from pathlib import Path

PARTIAL_SUFFIX = ".partial"


def replace_durably(path: Path, content: bytes) -> None:
    """Writes a file; at no moment is there half a file of that name, and once this returns a power cut keeps it."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


def append_durably(path: Path, content: bytes) -> None:
    """Adds to a file; a kill may leave the first bytes of it only, a power cut after this returns loses none."""
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def file_sha256(path: Path) -> str:
    """Digest of a file's bytes, read block by block."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Makes a rename in this folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
