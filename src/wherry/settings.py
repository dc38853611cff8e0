"""Every setting, and the only reader of the environment.

Order of precedence: flag > environment (`WHERRY_*`) > TOML file > default. The reference page
`docs/settings.md` is generated from the docstrings below.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from wherry.errors import InvalidInput

PREFIX = "WHERRY_"
CLIENT_VARIABLES = frozenset({"WHERRY_URL", "WHERRY_API_KEY", "WHERRY_CONFIG"})
"""Read by the client and the CLI, not settings of a server."""

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of one server. Built once, in `wherry.app`, and passed down."""

    data: str = ""
    """Folder of everything the server keeps; default `~/.wherry`."""
    host: str = "127.0.0.1"
    """Address to listen on. Another than loopback needs TLS or `behind_proxy`."""
    port: Port = 8000
    """TCP port of all HTTP doors; 0 lets the system choose."""
    grpc_port: Port | None = None
    """TCP port of the gRPC door, usually 8001; 0 lets the system choose. Off unless it is set."""
    gateways: Annotated[int, Meta(ge=1, le=64)] = 1
    """Gateway processes sharing the ports."""
    tls_cert: str = ""
    """PEM file with the certificate chain."""
    tls_key: str = ""
    """PEM file with the private key."""
    behind_proxy: bool = False
    """A trusted proxy in front terminates TLS: allows a bind other than loopback."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that requests may carry, besides loopback and the bind address; `*` = any."""
    database_url: str = ""
    """SQLAlchemy URL; default an SQLite file in `data`."""
    admin_key: str = ""
    """First admin key (at least 32 characters); default: one is made and kept 0600 in `data`."""
    allow_code: bool = False
    """Allow models that bring Python code; `sandbox` says what holds it."""
    allow_pickle: bool = False
    """Allow scikit-learn models as pickle or joblib: loading one can run any code in it."""
    trusted_sklearn_types: tuple[str, ...] = ()
    """Extra types that skops may load, e.g. `mypackage.MyTransformer`."""
    max_body_bytes: Positive = 64 << 20
    """Largest request body; a deployment may lower it."""
    max_upload_bytes: Positive = 64 << 30
    """Largest uploaded model file."""
    max_file_bytes: Positive = 512 << 20
    """Largest file of `/v1/files`."""
    max_team_files_bytes: Positive = 16 << 30
    """Bytes that the files of one team may take together."""
    max_batch_bytes: Positive = 200 << 20
    """Largest input file of a batch."""
    max_batch_lines: Positive = 50_000
    """Most requests in one batch."""
    max_in_flight_bytes: Positive = 512 << 20
    """Bytes of request bodies, and of answers between steps, that one gateway holds at once."""
    fast_lane: bool = True
    """Answer the busiest requests inside the HTTP protocol; off, all take the ordinary way."""
    request_timeout_seconds: Seconds = 120.0
    """Deadline of a request that names none."""
    stream_timeout_seconds: Seconds = 600.0
    """Deadline of a streaming request that names none."""
    client_stall_seconds: Seconds = 20.0
    """A client that sends or reads nothing for so long in the middle of it is cut off."""
    keep_alive_seconds: Seconds = 75.0
    """How long a connection without a request stays open."""
    max_connections: Positive = 20_000
    """Connections that one gateway serves at once, as far as its limit of open files allows."""
    memory_limit_mib: Annotated[int, Meta(ge=0)] = 0
    """Memory that models may use together; 0 = four fifths of this machine's."""
    worker_memory_mib: Annotated[int, Meta(ge=0)] = 0
    """Memory that one worker may use; 0 = twice what was measured at its import, and 1 GiB."""
    sandbox: Literal["auto", "required", "off"] = "auto"
    """`auto` holds models by all that the kernel has; `required` refuses them if a part is missing."""
    durability: Literal["process", "power"] = "process"
    """When a reply may leave: its record is in the kernel (`process`) or on disk (`power`)."""
    responses_kept_days: Annotated[float, Meta(gt=0)] = 30.0
    """How long a stored response can be read after it was made, or a conversation went on from it."""
    responses_mib_per_team: Positive = 1024
    """What a team's stored responses may hold; the conversations that rested longest go first."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """`auto` is text on a terminal, JSON lines elsewhere."""

    @property
    def folder(self) -> Path:
        """The data folder as a path."""
        return Path(self.data).expanduser().absolute() if self.data else default_data_folder()


def default_data_folder() -> Path:
    """Where a server keeps its data unless told otherwise."""
    return Path.home() / ".wherry"


def load_settings(
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """Settings from flags (None = not given), environment and file, in that order.

    Raises:
        InvalidInput: a key is unknown or a value has the wrong type; the message names its place.
    """
    environment = os.environ if environment is None else environment
    named = environment.get("WHERRY_CONFIG")
    file = file or (Path(named) if named else None)
    merged = {**_from_file(file), **_from_environment(environment)}
    merged |= {name: value for name, value in (flags or {}).items() if value is not None}
    known = {field.name for field in msgspec.structs.fields(Settings)}
    for name in merged:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise InvalidInput(
                f"{name!r} is no setting",
                hint=f"did you mean {near[0]!r}?" if near else "wherry serve --help lists them",
            )
    try:
        return msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`")
        raise InvalidInput(
            f"setting {name!r} (WHERRY_{name.upper()}) is wrong: {what}",
            hint="wherry serve --help says what it takes",
        ) from error


def _from_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInput(f"no configuration file {str(file)!r}") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{str(file)!r} is not valid TOML: {error}") from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    lists = {
        field.name for field in msgspec.structs.fields(Settings) if field.type == tuple[str, ...]
    }
    known = {field.name for field in msgspec.structs.fields(Settings)}
    found: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable in CLIENT_VARIABLES:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in known:
            continue
        found[name] = (
            [part.strip() for part in text.split(",") if part.strip()] if name in lists else text
        )
    return found


def client_environment() -> dict[str, str]:
    """What the client and the CLI read: `WHERRY_URL`, `WHERRY_API_KEY`, if set."""
    return {name: os.environ[name] for name in CLIENT_VARIABLES if os.environ.get(name)}


PASSED_TO_WORKERS = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "TZ",
)
"""What workers get of our environment: how native libraries run here, and no secrets."""


def worker_environment() -> dict[str, str]:
    """The few variables that workers inherit."""
    return {name: os.environ[name] for name in PASSED_TO_WORKERS if name in os.environ}


def current_environment(*, without_settings: bool = False) -> dict[str, str]:
    """Our environment, for trusted children; without `WHERRY_*`, which may hold secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if not (without_settings and name.startswith(PREFIX))
    }


SECRET_PREFIX = "env:WHERRY_SECRET_"  # noqa: S105 - a prefix of names
"""Only such variables may be named by a deployment: a caller with the scope `operate` must not be
able to send any other part of the server's environment to an upstream of their choice."""


def resolve_secret(reference: str) -> str:
    """The value behind `env:WHERRY_SECRET_NAME`; other text stands for itself."""
    if not reference.startswith(SECRET_PREFIX):
        return reference
    name = reference.removeprefix("env:")
    value = os.environ.get(name)
    if value is None:
        raise InvalidInput(
            f"the server's environment has no variable {name!r}", hint="set it and restart"
        )
    return value
