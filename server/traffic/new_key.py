"""The `laid-keys` command."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from server.traffic.caller import Limits
from server.traffic.keys import KeysFileError, hash_key, new_key, read_keys

DESCRIPTION = """\
Makes a key for clients of laid-serve: prints it, once, and adds its hash to a keys file. Nobody can read the key
back from the file, so hand on what is printed. A running gateway takes the file's change at its next request."""

EPILOG = """\
examples:
  laid-keys new alice                                 adds [keys.alice] to keys.toml
  laid-keys new app --tenant vision --tokens-per-minute 500000 --concurrency 8
  LAID_KEYS_FILE=keys.toml laid-serve runs/student --host 0.0.0.0
  curl -H "Authorization: Bearer KEY" http://HOST:8000/v1/models

the file is TOML, a table a key, and may be edited by hand; to withdraw a key, delete its table:
  [keys.alice]
  sha256 = "..."                 of the key; a plain hash is safe because keys are random, 256 bits
  tenant = "vision"              keys of one tenant share uploaded files and cached images (default: the key's name)
  requests_per_minute = 60       each limit is optional; LAID_KEY_REQUESTS_PER_MINUTE and so on are the defaults
  tokens_per_minute = 500000
  images_per_minute = 1000
  concurrency = 8

exit status: 0 done, 2 wrong arguments or file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        key = add_key(options.file, options.name, tenant=options.tenant, limits=_limits(options))
    except (KeysFileError, OSError) as error:
        print(f"laid-keys: {error}", file=sys.stderr)
        return 2
    print(key)
    print(f"laid-keys: added [keys.{options.name}] to {options.file}; the key is shown only now", file=sys.stderr)
    return 0


def add_key(path: Path, name: str, *, tenant: str | None, limits: Limits) -> str:
    """Adds a new key to a file, which is made (readable by its owner only) if there is none; returns the key.

    Raises:
        KeysFileError: the name is taken, or the file is not one of keys.
    """
    known = read_keys(path, Limits()) if path.exists() else ()
    if any(entry.caller.name == name for entry in known):
        raise KeysFileError(f"{path}: there is a key {name!r} already; choose another name or delete its table")
    key = new_key()
    # Quoted: a dot in a bare name would begin a table within the table.
    lines = [f'[keys."{name}"]', f'sha256 = "{hash_key(key)}"']
    if tenant is not None:
        lines.append(f'tenant = "{tenant}"')
    lines += [f"{field} = {value}" for field, value in vars(limits).items() if value is not None]
    path.touch(mode=0o600)
    with path.open("a") as file:
        file.write("\n".join(["", *lines, ""]))
    return key


def _limits(options: argparse.Namespace) -> Limits:
    return Limits(**{name: getattr(options, name) for name in Limits.__dataclass_fields__})


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    return text


def _amount(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "laid-keys", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    new = commands.add_parser("new", help="make a key")
    new.add_argument("name", type=_name, metavar="NAME", help="of the key: for logs and limits")
    new.add_argument("--file", type=Path, default=Path("keys.toml"), metavar="PATH", help="default keys.toml")
    new.add_argument("--tenant", type=_name, metavar="NAME", help="with whom files and cached images are shared")
    for name in Limits.__dataclass_fields__:
        new.add_argument("--" + name.replace("_", "-"), type=_amount, metavar="N", help="no limit if left out")
    return parser


if __name__ == "__main__":
    sys.exit(main())
