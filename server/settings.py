"""The gateway's settings: every limit is on by default."""

import difflib
import functools
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, DirectoryPath, Field, HttpUrl, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from server.media.links import check_endpoint, check_host_rule
from server.prompt.window_policy import WindowPolicy
from server.requests.parameters import check_allowable

MIB = 1024 * 1024
Share = Annotated[float, Field(gt=0, lt=1)]
PREFIX = "LAID_"


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _check_engines(urls: tuple[HttpUrl, ...]) -> tuple[HttpUrl, ...]:
    for url in urls:
        if url.username or url.password or url.query or url.fragment:
            raise ValueError(f"{url}: expected nothing but scheme, host, port and path")
    if not urls or len(set(urls)) < len(urls):
        raise ValueError(f"expected one URL or several different ones, got {', '.join(map(str, urls)) or 'none'}")
    return urls


def _check_secrets(folder: Path) -> Path:
    check_environment(dict.fromkeys((file.name for file in folder.iterdir()), ""))
    return folder


class Settings(BaseSettings):
    """Read once at start-up from the command line, `LAID_*` variables and files of secrets; a bad value raises."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", protected_namespaces=())

    checkpoint: Path
    """Folder of the served checkpoint: the source of tokenizer, chat template, image rule and effective window."""
    upstream: Annotated[tuple[HttpUrl, ...], NoDecode, BeforeValidator(_split), AfterValidator(_check_engines)] = (
        HttpUrl("http://127.0.0.1:8001"),
    )
    """Base URLs of the engines, without /v1; in a variable with commas between them. All serve the same model with
    the same context length."""
    model: str = Field(default_factory=lambda read: read["checkpoint"].resolve().name, min_length=1)
    """Name under which clients and the engine know the model; by default the folder's."""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    context_length: int | None = Field(default=None, ge=2)
    """The engine's own limit where it is not the checkpoint's, in tokens. `laid-serve` asks the engines for it and for
    the model's name, and does not start before one answers, unless both are given."""

    secrets_folder: Annotated[DirectoryPath, AfterValidator(_check_secrets)] | None = None
    """Folder of files named as the variables, such as `LAID_IMAGE_SECRET`, each with the value of one that is not set:
    for what should stand neither in the environment nor on the command line."""
    keys_file: Path | None = None
    """The keys that clients must show, made with `laid-keys new NAME`; without it anybody may ask, and the gateway
    listens on loopback only."""
    metrics_need_key: bool = False
    """Ask for a key on `/metrics` too. `/health`, `/ready` and `/metrics` are open by default: probes and scrapers
    carry no keys, and what they read holds no prompts, keys or clients' names."""
    key_requests_per_minute: int | None = Field(default=None, ge=1)
    """The default for keys without a limit of their own, and the limit of all clients together without keys."""
    key_tokens_per_minute: int | None = Field(default=None, ge=1)
    """Prompt tokens, of text and images together."""
    key_images_per_minute: int | None = Field(default=None, ge=1)
    key_concurrency: int | None = Field(default=None, ge=1)
    """Requests of one key at the same time."""

    window_policy: WindowPolicy = WindowPolicy.WARN
    """What is done with prompts beyond the effective window; a request may ask for `reject` or `fit` by the header
    `x-laid-window-policy`."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Text and images of one request, where less than the context length is to be served."""
    limits_storage: str = Field(default="memory://", pattern=r"^(memory|rediss?)://")
    """Where the use of each key is counted: memory:// in this process, or redis://HOST:PORT for several gateways."""
    limits_timeout_seconds: float = Field(default=0.5, gt=0)
    """How long Redis may take, each time a request's use is counted."""
    limits_fail_open: bool = True
    """Serve without limits a minute while Redis does not answer: they are about fairness, and no outage of theirs
    should become everybody's. The bounds on memory, queue and concurrency hold without Redis. False: 503."""

    lane_shares: tuple[Share, ...] = (1 / 16, 1 / 4, 1 / 2)
    """Upper bounds of the classes of prompt length, as shares of the context length (8k, 32k and 64k of 128k); what
    is longer than the last is one more class. Each class waits in a lane of its own."""
    max_prefill_tokens: int | None = Field(default=None, ge=1)
    """Prompt tokens that the engine may have before their first answer token, of all requests together; by default
    twice the context length for each engine. Each lane owns room for one of its longest, and all share the rest."""
    max_queued: int = Field(default=64, ge=0)
    """Requests that wait in one lane; one more is refused."""
    max_queue_seconds: float = Field(default=60.0, gt=0)
    """A request that would wait longer, by the measured speed of its lane, is refused at once; so is one that has."""

    allowed_parameters: Annotated[frozenset[str], AfterValidator(check_allowable)] = frozenset()
    """Parameters of vLLM that change the server's behaviour for others and are refused unless named here, such as
    `["priority"]`; those that would change the count of tokens cannot be allowed."""

    page: bool = True
    """Whether `GET /` shows a page to try the model with."""

    max_body_bytes: int = Field(default=64 * MIB, ge=1)
    max_bodies_bytes: int = Field(default=512 * MIB, ge=1)
    """All bodies in memory together. It is more than one of the largest: small bodies have a share of their own, so
    that text never waits for images. The process takes about half as much again for what it makes of them."""
    max_queued_bodies: int = Field(default=256, ge=0)
    """Requests that wait for memory; one more is refused."""
    max_body_wait_seconds: float = Field(default=30.0, gt=0)
    """How long a request may wait for memory before any of its body is read."""
    max_parameter_bytes: int = Field(default=1 * MIB, ge=1)
    """Everything in a body but its messages."""
    max_json_depth: int = Field(default=32, ge=1)
    max_messages: int = Field(default=1024, ge=1)
    max_parts: int = Field(default=4096, ge=1)
    """Content parts of all messages together."""
    max_text_characters: int = Field(default=4_000_000, ge=1)
    """All text of a request together."""
    max_images: int = Field(default=200, ge=1)
    max_image_bytes: int = Field(default=20 * MIB, ge=1)
    """One image, decoded from base64."""
    max_image_pixels: int = Field(default=32_000_000, ge=1, le=89_000_000)
    """One image, by its header; Pillow's own guard against bombs, and the engine's, stand above the largest value."""
    max_total_pixels: int = Field(default=400_000_000, ge=1)
    """All images of a request together, by their headers."""
    max_total_image_bytes: int = Field(default=128 * MIB, ge=1)
    """All images of a request together, decoded from base64, fetched or read from files."""
    max_image_tokens: int = Field(default=262_144, ge=1)
    """All images of a request together; the context length limits them too, with the text."""
    max_remembered_images: int = Field(default=65_536, ge=1)
    """Of so many images it is remembered that they decode, and their size; about 200 bytes each."""
    max_engine_images: int = Field(default=4096, ge=1)
    """Of so many images it is remembered that an engine holds them, so that only their names are sent again."""
    image_secret: SecretStr | None = Field(default=None, min_length=16)
    """Keys the names under which engines cache images; several gateways before the same engines need the same one.
    By default each process makes its own."""
    max_choices: int = Field(default=16, ge=1)
    """The largest `n`."""
    max_prompts: int = Field(default=128, ge=1)
    """In one request to `/v1/completions`; each may be as long as the context."""

    fetch_images: bool = True
    """Whether images named by https URLs are fetched; otherwise such a request is refused."""
    fetch_hosts: tuple[Annotated[str, AfterValidator(check_host_rule)], ...] = ()
    """The only hosts from which images are fetched, if any is given: exact names, or suffixes with a leading dot."""
    fetch_trusted_hosts: tuple[Annotated[str, AfterValidator(check_endpoint)], ...] = ()
    """`host` or `host:port` for which http, that port, and private addresses are allowed: one's own image store."""
    fetch_ca_file: Path | None = None
    """Certificates of further authorities, in PEM, beside the system's."""
    max_fetched_bytes: int | None = Field(default=None, ge=1)
    """All fetched images in memory together; by default four times what one request may have."""
    fetch_timeout_seconds: float = Field(default=20.0, gt=0)
    """For all images of a request together."""
    fetch_concurrency: int = Field(default=64, ge=1)
    """Fetches at once, of all requests."""
    fetch_request_concurrency: int = Field(default=8, ge=1)
    """Fetches at once, of one request."""

    files_folder: Path | None = None
    """Where uploaded files are kept; None: nowhere. `laid-serve` then keeps them until it ends. Processes may share it,
    on a file system with POSIX locks."""
    file_lifetime_seconds: int = Field(default=30 * 24 * 3600, ge=3600)
    """How long an uploaded file is kept, unless its upload asks for less."""
    max_files: int = Field(default=10_000, ge=1)
    """Of one tenant."""
    max_files_bytes: int = Field(default=2048 * MIB, ge=1)
    """Of one tenant, images uploaded several times once."""

    max_head_bytes: int = Field(default=64 * 1024, ge=1)
    """A request's first line and headers together."""
    head_timeout_seconds: float = Field(default=10.0, gt=0)
    """From the first byte of a request to the end of its headers."""
    linger_seconds: float = Field(default=10.0, gt=0)
    """How long the rest of a large body is read, and dropped, after an answer that did not need it: a client that
    sends all before it reads would else lose the answer."""
    body_timeout_seconds: float = Field(default=60.0, gt=0)
    """From the first byte of a request to the last."""
    connect_timeout_seconds: float = Field(default=5.0, gt=0)
    first_byte_timeout_seconds: float = Field(default=960.0, gt=0)
    """How long the engine may be silent: a long prompt is prefilled before the first byte."""
    health_interval_seconds: float = Field(default=2.0, gt=0)
    """Between two looks at an engine."""
    health_timeout_seconds: float = Field(default=10.0, gt=0)
    """How long an engine may take for one; vLLM is busy for seconds when many images arrive at once."""
    health_rise: int = Field(default=2, ge=1)
    """So many good looks in a row bring an engine back."""
    health_fall: int = Field(default=3, ge=1)
    """So many bad ones in a row, or requests that failed, put it out; one is enough where nobody listens."""
    max_engine_restarts: int = Field(default=5, ge=0)
    """So many times in a row `laid-serve` starts its own engine again before it gives up."""
    engine_restart_seconds: float = Field(default=1.0, gt=0)
    """The wait before the first of them; it doubles with each, up to a minute."""
    engine_steady_seconds: float = Field(default=600.0, gt=0)
    """An engine that ran for so long has not failed in a row."""
    drain_notice_seconds: float = Field(default=0.0, ge=0)
    """After SIGTERM, how long `/ready` already says no while requests are still taken, for balancers to notice."""
    drain_seconds: int = Field(default=30, ge=1)
    """How long requests may then go on; a second SIGTERM, or Ctrl-C, ends them."""
    engine_load_factor: float = Field(default=1.25, ge=1)
    """A conversation leaves its engine when that has this many times the mean of all engines' requests."""
    engine_spill_requests: int = Field(default=8, ge=1)
    """An engine with fewer requests than this never counts as too full."""
    retry_after_seconds: int = Field(default=5, ge=1)
    """What a client is told when the engine does not answer."""
    admission_threads: int = Field(default=2, ge=1)
    """Threads that parse bodies, decode images and count tokens."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class passes it by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over variables, and both over files, whose folder is itself one of the settings."""
        folder = (env_settings() | init_settings()).get("secrets_folder")
        # What is no folder is refused with the other values; the source would only warn of it.
        if folder is None or not Path(folder).is_dir():
            return init_settings, env_settings
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, secrets_dir=folder)

    @model_validator(mode="after")
    def _is_not_open_to_all(self) -> Self:
        if self.keys_file is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} is reached from other machines, so clients must show keys: make one with "
                "laid-keys new NAME and set LAID_KEYS_FILE=keys.toml, or listen on 127.0.0.1"
            )
        return self


@functools.lru_cache(maxsize=64)  # asked at every request, of the same few
def is_loopback(host: str) -> bool:
    """Whether an address that a server listens on is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_environment(environment: Mapping[str, str]) -> None:
    """Refuses a `LAID_*` variable that is no setting, which would else be ignored in silence.

    Raises:
        ValueError: names the variable and the nearest setting.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), sorted(known), n=1)
            raise ValueError(f"{name}: no such setting" + (f"; did you mean {near[0]}?" if near else ""))
