"""What tenants may keep and see, and that crashes, restarts and many processes at once leave the folder whole."""

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server.errors import GatewayError, Reason
from server.files.store import ID, FileStore, Quota, StoredFile

QUOTA = Quota(num_files=5, num_bytes=1000)
HOUR = 3600


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_store(tmp_path: Path, clock: Clock) -> Callable[..., FileStore]:
    def make(quota: Quota = QUOTA) -> FileStore:
        return FileStore(tmp_path / "files", quota, clock=clock)

    return make


@pytest.fixture
def store(make_store: Callable[..., FileStore]) -> FileStore:
    return make_store()


def add(store: FileStore, content: bytes = b"a", tenant: str = "t", **changes: Any) -> StoredFile:
    options = {"filename": "a.png", "purpose": "vision", "lifetime_seconds": HOUR} | changes
    return store.add(tenant, content, **options)


def images(tmp_path: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in (tmp_path / "files" / "images").iterdir())


def refusal(act: Callable[[], object]) -> GatewayError:
    with pytest.raises(GatewayError) as refused:
        act()
    return refused.value


def test_a_file_is_found_as_it_was_added(store: FileStore) -> None:
    file = add(store, b"content", filename="ü.png", purpose="user_data", lifetime_seconds=2 * HOUR)

    assert ID.fullmatch(file.id)
    assert (file.num_bytes, file.filename, file.purpose) == (7, "ü.png", "user_data")
    assert (file.created_at, file.expires_at) == (1_000_000, 1_000_000 + 2 * HOUR)
    assert store.find("t", [file.id, file.id]) == {file.id: file}
    assert file.path.read_bytes() == b"content"
    with store.open("t", file.id) as opened:
        assert opened.read() == b"content"


def test_files_survive_a_restart_and_only_this_user_reads_them(
    make_store: Callable[..., FileStore], tmp_path: Path
) -> None:
    file = add(make_store())

    again = make_store()
    again.sweep()

    assert again.find("t", [file.id]) == {file.id: file}
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in (tmp_path / "files", tmp_path / "files" / "images"))


def test_equal_content_is_one_image_until_its_last_file_is_removed(store: FileStore, tmp_path: Path) -> None:
    first, second, other = add(store), add(store), add(store, tenant="other")

    assert first.id != second.id
    assert (first.path, images(tmp_path)) == (second.path, [b"a", b"a"])  # each tenant has its own
    assert first.path != other.path
    store.remove("t", first.id)
    assert second.path.read_bytes() == b"a"
    store.remove("t", second.id)
    assert not second.path.exists()
    assert other.path.read_bytes() == b"a"
    assert add(store).path != first.path  # a name is never used again


def test_another_tenants_file_is_one_that_does_not_exist(store: FileStore) -> None:
    file = add(store, tenant="owner")
    unknown = f"file-{'0' * 32}"

    assert store.find("t", [file.id, unknown]) == {}
    assert store.page("t", limit=9, descending=True, after=None, purpose=None) == []
    for act in (
        store.open,
        store.remove,
        lambda tenant, id_: store.page(tenant, limit=9, descending=True, after=id_, purpose=None),
    ):
        theirs, nobodys = (refusal(lambda act=act, id_=id_: act("t", id_)) for id_ in (file.id, unknown))
        assert theirs.status == nobodys.status == 404
        assert theirs.message.replace(file.id, unknown) == nobodys.message
    assert store.find("owner", [file.id])


@pytest.mark.parametrize(
    "file_id", ["", "file-", "../files.sqlite", "file-" + "g" * 32, "file-\x00", "x" * 9999, "\ud800"]
)
def test_odd_ids_are_unknown(store: FileStore, file_id: str) -> None:
    add(store)

    assert store.find("t", [file_id]) == {}
    assert refusal(lambda: store.open("t", file_id)).status == 404
    assert refusal(lambda: store.remove("t", file_id)).status == 404


def test_pages_go_both_ways_without_gaps(store: FileStore) -> None:
    ids = [add(store, bytes([i]), purpose=("vision", "user_data")[i % 2]).id for i in range(5)]

    def page(**options: Any) -> list[str]:
        defaults = {"limit": 10, "descending": True, "after": None, "purpose": None}
        return [file.id for file in store.page("t", **(defaults | options))]

    assert page() == ids[::-1]
    assert page(descending=False) == ids
    assert page(limit=2) == ids[:2:-1]
    assert page(limit=2, after=ids[3]) == [ids[2], ids[1]]
    assert page(descending=False, limit=2, after=ids[0]) == ids[1:3]
    assert page(after=ids[0]) == []
    assert page(purpose="vision") == ids[::-2]
    assert page(purpose="%") == []


def test_expired_files_are_gone_and_make_room(store: FileStore, clock: Clock, tmp_path: Path) -> None:
    short, long = add(store, b"s" * 600), add(store, b"l" * 300, lifetime_seconds=2 * HOUR)
    clock.now += HOUR

    assert set(store.find("t", [short.id, long.id])) == {long.id}
    assert [file.id for file in store.page("t", limit=9, descending=True, after=None, purpose=None)] == [long.id]
    assert refusal(lambda: store.open("t", short.id)).status == 404
    assert refusal(lambda: store.remove("t", short.id)).status == 404
    assert add(store, b"n" * 700, tenant="t").num_bytes == 700
    assert images(tmp_path) == [b"l" * 300, b"n" * 700]
    clock.now += 2 * HOUR
    store.sweep()
    assert images(tmp_path) == []
    assert store.usage() == (0, 0)


def test_a_shared_image_stays_until_the_last_file_expires(store: FileStore, clock: Clock) -> None:
    add(store)
    file = add(store, lifetime_seconds=2 * HOUR)
    clock.now += HOUR

    store.sweep()

    assert file.path.read_bytes() == b"a"


def test_quotas_hold_for_each_tenant_and_count_equal_images_once(store: FileStore, tmp_path: Path) -> None:
    add(store, b"a" * 600)
    add(store, b"a" * 600)
    assert store.usage() == (2, 600)

    error = refusal(lambda: add(store, b"b" * 401))
    assert (error.status, error.reason, error.param) == (403, Reason.FILE_QUOTA_EXCEEDED, "file")
    assert "1001" in error.message
    add(store, b"b" * 400)
    add(store, b"b" * 400)
    add(store, b"a" * 600)
    assert "5 files are kept" in refusal(lambda: add(store, b"a" * 600)).message
    add(store, b"c" * 900, tenant="other")
    assert len(images(tmp_path)) == 3


def test_a_quota_is_not_exceeded_by_uploads_at_once(make_store: Callable[..., FileStore], tmp_path: Path) -> None:
    stores = [make_store(Quota(num_files=100, num_bytes=1000)) for _ in range(8)]
    start = threading.Barrier(8)

    def upload(number: int) -> bool:
        start.wait(60)
        try:
            add(stores[number], bytes([number]) * 300)
        except GatewayError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(upload, range(8))) == 3
    assert stores[0].usage() == (3, 900)
    assert len(images(tmp_path)) == 3


def test_what_a_crash_leaves_is_swept_away_later(store: FileStore, clock: Clock, tmp_path: Path) -> None:
    file = add(store)
    orphans = [tmp_path / "files" / "images" / name for name in ("0" * 32, "1" * 32)]
    for orphan in orphans:
        orphan.write_bytes(b"half an upl")
    os.utime(orphans[0], (clock.now - 2 * HOUR,) * 2)
    os.utime(orphans[1], (clock.now,) * 2)
    os.utime(file.path, (0, 0))

    store.sweep()

    # The younger one may be an upload that is about to get its row.
    assert [orphan.exists() for orphan in orphans] == [False, True]
    assert file.path.exists()


def test_a_failed_write_leaves_nothing(store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(OSError, match="No space"):
        add(store)
    assert images(tmp_path) == []
    assert store.usage() == (0, 0)


WORKER = """
import random, sys
from pathlib import Path
from server.errors import GatewayError
from server.files.store import FileStore, Quota

store = FileStore(Path(sys.argv[1]), Quota(num_files=1000, num_bytes=5000))
chance = random.Random(int(sys.argv[2]))
for _ in range(20):
    mine = store.page("t", limit=100, descending=True, after=None, purpose=None)
    assert sum({file.path: file.num_bytes for file in mine}.values()) <= 5000
    try:
        if chance.random() < 0.6:
            content = bytes([chance.randrange(8)]) * 1000
            file = store.add("t", content, filename="a", purpose="vision", lifetime_seconds=3600)
        elif mine:
            file = chance.choice(mine)
            with store.open("t", file.id) as opened:
                assert len(opened.read()) == 1000
            store.remove("t", file.id)
        store.sweep()
    except GatewayError as error:
        assert error.status in (403, 404), error.message
"""


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    """Uploads and removals of the same images by four processes: no image is lost, and none is left over."""
    folder = tmp_path / "files"
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, folder, str(seed)], stderr=subprocess.PIPE, text=True)
        for seed in range(4)
    ]

    for worker in workers:
        _, errors = worker.communicate()
        assert worker.returncode == 0, errors

    store = FileStore(folder, QUOTA)
    kept = store.page("t", limit=1000, descending=True, after=None, purpose=None)
    assert {file.path for file in kept} == set((folder / "images").iterdir())
    contents = {file.path: file.path.read_bytes() for file in kept}
    assert len(set(contents.values())) == len(contents) <= 5
    with sqlite3.connect(folder / "files.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
