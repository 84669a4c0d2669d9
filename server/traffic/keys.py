"""The keys that open the gateway: a file of hashes, read again as soon as it changes."""

import hashlib
import hmac
import secrets
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from server.errors import UnknownKeyError
from server.telemetry.logs import LOGGER
from server.telemetry.metrics import Metrics
from server.traffic.caller import Caller, Limits

# Names go into logs and into the storage of limits, so they are plain.
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Amount = Annotated[int, msgspec.Meta(ge=1)]
BEARER = "bearer "


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key's table in the file."""

    sha256: Hash
    """Of the key. A plain hash is enough, and a slow one would only cost time on every request: a key made here has
    256 random bits, so nobody finds it from its hash by trying, as they would a password."""
    tenant: Name | None = None
    """The key's own name if it is left out: then it shares files and cached images with no other."""
    requests_per_minute: Amount | None = None
    tokens_per_minute: Amount | None = None
    images_per_minute: Amount | None = None
    concurrency: Amount | None = None


class KeysFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file, TOML: a table `[keys.NAME]` for each key."""

    keys: dict[Name, KeyEntry]


class KeysFileError(ValueError):
    """The keys file cannot be used; names the file, the key's path in it, and what was expected."""


@dataclass(frozen=True)
class _Known:
    digest: bytes
    caller: Caller


class Keys:
    """Knows a caller by the key of a request."""

    def __init__(self, path: Path, *, defaults: Limits, metrics: Metrics) -> None:
        """`defaults` hold for every key that has no limit of its own.

        Raises:
            KeysFileError: the file cannot be read now; later a broken file leaves the keys as they were.
        """
        self._path = path
        self._defaults = defaults
        self._metrics = metrics
        self._version = _version(path)
        self._known = read_keys(path, defaults)
        metrics.traffic.keys.set(len(self._known))

    def identify(self, authorization: str) -> Caller:
        """The caller of a request with this `Authorization` header, by the file as it is at this moment.

        Raises:
            UnknownKeyError: not one of the file's keys.
        """
        self._read_if_changed()
        if authorization[: len(BEARER)].lower() != BEARER:
            raise UnknownKeyError
        digest = hashlib.sha256(authorization[len(BEARER) :].strip().encode()).digest()
        # All are compared, each in constant time: how long it takes tells nothing about a key.
        found = [known.caller for known in self._known if hmac.compare_digest(known.digest, digest)]
        if not found:
            raise UnknownKeyError
        return found[0]

    def _read_if_changed(self) -> None:
        """One `stat` a request, so that a key added or taken away counts from the next request on."""
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._known = read_keys(self._path, self._defaults)
        except KeysFileError as error:
            self._metrics.traffic.keys_reload_errors.inc()
            LOGGER.error("keys_not_reloaded", extra={"fields": {"reason": str(error)}})
            return
        self._metrics.traffic.keys.set(len(self._known))
        LOGGER.info("keys_reloaded", extra={"fields": {"keys": len(self._known)}})


def read_keys(path: Path, defaults: Limits) -> tuple[_Known, ...]:
    """The keys of a file.

    Raises:
        KeysFileError: it cannot be read, is not TOML, or says something that is not a key.
    """
    try:
        entries = msgspec.convert(tomllib.loads(path.read_text()), KeysFile).keys
    except OSError as error:
        raise KeysFileError(f"{path}: {error.strerror}; make one with laid-keys") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise KeysFileError(f"{path}: {error}") from None
    digests = {entry.sha256 for entry in entries.values()}
    if len(digests) < len(entries):
        raise KeysFileError(f"{path}: two names have the same sha256; give each a key of its own")
    return tuple(
        _Known(bytes.fromhex(entry.sha256), Caller(name, entry.tenant or name, _limits(entry, defaults)))
        for name, entry in entries.items()
    )


def new_key() -> str:
    """A key nobody can guess: 256 random bits."""
    return "laid-" + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """What the file keeps of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def _limits(entry: KeyEntry, defaults: Limits) -> Limits:
    def choose(name: str) -> Any:
        own = getattr(entry, name)
        return getattr(defaults, name) if own is None else own

    return Limits(**{name: choose(name) for name in Limits.__dataclass_fields__})


def _version(path: Path) -> tuple[int, int, int] | None:
    """Changes with every write: editors replace the file (another inode) or write it anew (another time or size)."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
