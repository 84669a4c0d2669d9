"""Uploaded images on disk: which tenant has which file, and the images themselves, each kept once for a tenant.

    FOLDER/files.sqlite         one row for each file
    FOLDER/images/3f...         one image; never changed, and its name never used again

The database is the only truth. An image is written and synced under a name of its own before a transaction makes a
row for it, and removed after a transaction took away its last row, so whatever crashes in between leaves at worst an
image without a row, which is swept away later. Quotas are checked inside the transaction that adds the row. SQLite's
locks hold between threads, processes and gateways that share the folder, on every file system with POSIX locks.
"""

import os
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from server.errors import GatewayError, Reason

ID = re.compile(r"file-[0-9a-f]{32}")
ORPHAN_SECONDS = 3600
"""How old an image without a row must be to be swept away: longer than any upload takes."""
LOCK_SECONDS = 60
"""How long a call waits for those of other threads and processes."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    digest BLOB NOT NULL,
    image TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS files_of_tenant ON files (tenant, digest);
CREATE INDEX IF NOT EXISTS files_by_image ON files (image);
CREATE INDEX IF NOT EXISTS files_by_end ON files (expires_at);
"""
_INSERT = """
INSERT INTO files (tenant, digest, id, num_bytes, created_at, expires_at, filename, purpose, image)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_SELECT = "SELECT id, num_bytes, created_at, expires_at, filename, purpose, image FROM files WHERE tenant = ? AND "
_FIND = _SELECT + "id = ? AND expires_at > ?"
_PAGE = _SELECT + "expires_at > ? AND coalesce(?, purpose) = purpose AND place "
_PAGE_UP = _PAGE + "> ? ORDER BY place LIMIT ?"
_PAGE_DOWN = _PAGE + "< ? ORDER BY place DESC LIMIT ?"
_DELETE_ONE = "DELETE FROM files WHERE tenant = ? AND id = ? AND expires_at > ? RETURNING image"
_DELETE_EXPIRED = "DELETE FROM files WHERE expires_at <= ? RETURNING image"
# Files, and bytes of their images, each image once.
_USAGE_OF_ALL = """
SELECT coalesce(sum(files), 0), coalesce(sum(num_bytes), 0)
FROM (SELECT count(*) AS files, num_bytes FROM files GROUP BY image)
"""
_USAGE_OF_TENANT = """
SELECT coalesce(sum(files), 0), coalesce(sum(num_bytes), 0)
FROM (SELECT count(*) AS files, num_bytes FROM files WHERE tenant = ? GROUP BY image)
"""
_PLACE_AFTER_ALL = 2**62


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One uploaded file of a tenant."""

    id: str
    num_bytes: int
    created_at: int
    """Seconds since 1970."""
    expires_at: int
    filename: str
    """As the client gave it; never a path here."""
    purpose: str
    path: Path
    """Of the image; gone once the last file with this content is."""


@dataclass(frozen=True, kw_only=True)
class Quota:
    """What one tenant may keep."""

    num_files: int
    num_bytes: int


class FileStore:
    """All tenants' files. Every method blocks on the disk, so all are for worker threads."""

    def __init__(self, folder: Path, quota: Quota, *, clock: Callable[[], float] = time.time) -> None:
        """Makes the folder where it does not exist, readable for this user alone.

        Raises:
            OSError: it cannot be written.
        """
        self._quota = quota
        self._clock = clock
        self._images = folder / "images"
        self._database = folder / "files.sqlite"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._images.mkdir(mode=0o700, exist_ok=True)
        with self._connection() as connection:
            connection.executescript(_SCHEMA)

    def add(self, tenant: str, content: bytes, *, filename: str, purpose: str, lifetime_seconds: int) -> StoredFile:
        """Keeps a checked image.

        Raises:
            GatewayError: 403, it would exceed the tenant's quota.
            OSError: the disk is full or fails.
        """
        digest = blake3(content).digest()
        self._sweep_expired()
        with self._connection() as connection:
            # Not yet binding: spares the disk what the quota forbids anyway.
            self._check_quota(connection, tenant, digest, len(content))
        new_image = secrets.token_hex(16)
        _write(self._images / new_image, content)
        is_used = False
        try:
            with self._transaction() as connection:
                self._check_quota(connection, tenant, digest, len(content))
                image = _image_of(connection, tenant, digest) or new_image
                created_at = int(self._clock())
                row = (
                    f"file-{secrets.token_hex(16)}",
                    len(content),
                    created_at,
                    created_at + lifetime_seconds,
                    filename,
                    purpose,
                    image,
                )
                connection.execute(_INSERT, (tenant, digest, *row))
            is_used = image == new_image
        finally:
            if not is_used:
                (self._images / new_image).unlink()
        return self._file(row)

    def find(self, tenant: str, ids: Collection[str]) -> dict[str, StoredFile]:
        """Those of the files that exist, are the tenant's and have not expired, by id."""
        now = self._clock()
        with self._connection() as connection:
            rows = [
                row
                for file_id in set(ids)
                if ID.fullmatch(file_id)
                for row in connection.execute(_FIND, (tenant, file_id, now))
            ]
        return {row[0]: self._file(row) for row in rows}

    def page(
        self, tenant: str, *, limit: int, descending: bool, after: str | None, purpose: str | None
    ) -> list[StoredFile]:
        """Up to `limit` files in the order of their upload, from the one that follows `after`.

        Raises:
            GatewayError: 404, there is no file `after`.
        """
        with self._connection() as connection:
            place = _PLACE_AFTER_ALL if descending else 0
            if after is not None:
                place = _place_of(connection, tenant, after)
            rows = connection.execute(
                _PAGE_DOWN if descending else _PAGE_UP, (tenant, self._clock(), purpose, place, limit)
            ).fetchall()
        return [self._file(row) for row in rows]

    def open(self, tenant: str, file_id: str) -> BinaryIO:
        """A file's content, which stays readable when the file is removed.

        Raises:
            GatewayError: 404.
        """
        file = self.find(tenant, [file_id]).get(file_id)
        try:
            if file is not None:
                return file.path.open("rb")
        except FileNotFoundError:  # removed since
            pass
        raise unknown_file(file_id)

    def remove(self, tenant: str, file_id: str) -> None:
        """Removes a file, and its image with the last file that has it.

        Raises:
            GatewayError: 404.
        """
        if not ID.fullmatch(file_id) or not self._remove(_DELETE_ONE, (tenant, file_id, self._clock())):
            raise unknown_file(file_id)

    def sweep(self) -> None:
        """Removes what has expired, of all tenants, and what a crash left behind."""
        self._sweep_expired()
        before = self._clock() - ORPHAN_SECONDS
        old = set()
        for image in self._images.iterdir():
            with suppress(FileNotFoundError):  # removed since
                if image.stat().st_mtime < before:
                    old.add(image.name)
        with self._connection() as connection:
            kept = {name for (name,) in connection.execute("SELECT image FROM files")}
        for name in old - kept:
            (self._images / name).unlink(missing_ok=True)

    def usage(self) -> tuple[int, int]:
        """Files and bytes of all tenants."""
        with self._connection() as connection:
            return _usage(connection.execute(_USAGE_OF_ALL))

    def _sweep_expired(self) -> None:
        self._remove(_DELETE_EXPIRED, (self._clock(),))

    def _remove(self, statement: str, values: Sequence[object]) -> int:
        """Takes rows away, then the images that no row names any more: no row ever names them again."""
        with self._transaction() as connection:
            removed = connection.execute(statement, values).fetchall()
            images = {name for (name,) in removed}
            unused = [
                name
                for name in images
                if connection.execute("SELECT 1 FROM files WHERE image = ?", (name,)).fetchone() is None
            ]
        for name in unused:
            (self._images / name).unlink(missing_ok=True)
        return len(removed)

    def _check_quota(self, connection: sqlite3.Connection, tenant: str, digest: bytes, num_bytes: int) -> None:
        num_files, total = _usage(connection.execute(_USAGE_OF_TENANT, (tenant,)))
        if num_files >= self._quota.num_files:
            raise _over_quota(f"{num_files} files are kept, at most {self._quota.num_files} may be")
        is_known = _image_of(connection, tenant, digest) is not None
        if not is_known and total + num_bytes > self._quota.num_bytes:
            raise _over_quota(
                f"{total} bytes are kept, with this file {total + num_bytes}, at most {self._quota.num_bytes} may be"
            )

    def _file(self, row: tuple[str, int, int, int, str, str, str]) -> StoredFile:
        file_id, num_bytes, created_at, expires_at, filename, purpose, image = row
        return StoredFile(
            id=file_id,
            num_bytes=num_bytes,
            created_at=created_at,
            expires_at=expires_at,
            filename=filename,
            purpose=purpose,
            path=self._images / image,
        )

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        # One for each call: they may not be shared between threads or survive a fork, and opening one costs little.
        with closing(sqlite3.connect(self._database, timeout=LOCK_SECONDS, isolation_level=None)) as connection:
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                yield connection


def unknown_file(file_id: str, *, param: str = "file_id") -> GatewayError:
    """404: there is no such file, or not for this tenant, which nobody can tell apart."""
    return GatewayError(404, Reason.FILE_NOT_FOUND, f"There is no file {file_id[:64]!r}.", param=param)


def _over_quota(message: str) -> GatewayError:
    return GatewayError(403, Reason.FILE_QUOTA_EXCEEDED, f"{message}; delete some, or let them expire.", param="file")


def _place_of(connection: sqlite3.Connection, tenant: str, file_id: str) -> int:
    if ID.fullmatch(file_id):
        for (place,) in connection.execute("SELECT place FROM files WHERE tenant = ? AND id = ?", (tenant, file_id)):
            return int(place)
    raise unknown_file(file_id, param="after")


def _image_of(connection: sqlite3.Connection, tenant: str, digest: bytes) -> str | None:
    """The image in which the tenant already keeps this content."""
    found = connection.execute("SELECT image FROM files WHERE tenant = ? AND digest = ?", (tenant, digest)).fetchone()
    return None if found is None else str(found[0])


def _usage(rows: sqlite3.Cursor) -> tuple[int, int]:
    """Files, and bytes of their images, each image once."""
    num_files, num_bytes = rows.fetchone()
    return int(num_files), int(num_bytes)


def _write(path: Path, content: bytes) -> None:
    """Writes a new file, its data and its name both on the disk when this returns."""
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
