"""The settings of `ortkit serve`: from its options, and from a TOML file with the same names.

    host = "127.0.0.1"
    port = 8080
    api_keys = "/etc/ortkit/keys"     # relative to the file's folder
    slots = 4
    max_memory = "2G"
    [bundles]                         # or a list of paths and names
    small = "SmolLM2-135M-Instruct-int4"
    [indexes]                         # as `bundles`; the option is `--index`
    manuals = "/srv/manuals.index"

An option is `--max-memory`, its setting `max_memory`. Options of the command line take precedence over the file.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ...runtime.arguments import size_of
from ...runtime.bundle.manifest import PrefillChoice
from ...runtime.errors import InputError, NotFoundError
from ...runtime.trust.ownership import check_ownership
from ..console.help import close_names

BUNDLES = "bundles"
INDEXES = "indexes"
"""The tables or lists of a file that are not fields of ServerSettings: what is served."""
DEFAULT_PORT = 8080
_LARGEST_FILE = 1 << 20
_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class ServerSettings:
    """How the server listens, what it allows, and what its models may take. Sizes in bytes, times in seconds."""

    host: str = "127.0.0.1"
    """Address to listen at; one that other machines reach needs `api_keys`."""
    port: int = DEFAULT_PORT
    """0 for a free one."""
    unix_socket: Path | None = None
    """Listen at this socket instead of an address."""
    api_keys: Path | None = None
    """File of API keys; without it, every request is accepted."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that a `Host` header may have, beside the address and `localhost`; `*` for any."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API from a browser."""
    page: bool = True
    """Whether `/` has the page to try the models."""

    max_body: int = 8 * _MEBIBYTE
    """Largest body of a request; a larger one is answered 413."""
    max_inputs: int = 2048
    """Largest number of texts or documents in one request."""
    max_tokens: int | None = None
    """Largest number of tokens of an answer, whatever the request asks for; None: what fits in the context."""
    max_waiting: int = 64
    """Largest number of requests that wait for a model; one more is answered 429."""
    request_seconds: float = 600.0
    """Longest time of a request, with its wait."""
    header_seconds: float = 10.0
    """Longest time for a client to send the headers of a request, and between two parts of its body."""
    idle_seconds: float = 30.0
    """Time after which a connection without a request is closed."""
    drain_seconds: float = 30.0
    """Time that running requests have to end after SIGTERM."""
    max_connections: int = 1024
    """Connections that are open at once; the longest idle one makes room for one more."""

    slots: int = 8
    """Answers of an LLM that are computed at once."""
    context: int | None = None
    """Limit of prompt and answer together, in tokens; None: the model's."""
    prefix_memory: int | None = None
    """Bytes of KV cache that is kept for prompts that begin the same; None: decided by the batch."""
    max_memory: int | None = None
    """Bytes that the process may take, with all models; None: ORTKIT_MAX_MEMORY, or all there is."""
    prefill: str = "auto"
    """A PrefillChoice: whether prompts go through an LLM's 8-bit graph for prompts, where its bundle has one."""
    threads: int | None = None
    """Threads of each model; None: one for each usable CPU core."""
    verify: bool = False
    """Whether each bundle's certificate is replayed before it is served."""

    log_texts: bool = False
    """Whether the log has prompts and answers."""

    def __post_init__(self) -> None:
        """Raise InputError where a value is out of its range."""
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InputError(f"`{name}` must be from {least} to {most}, not {value}")

    @property
    def requests_per_model(self) -> int:
        """Requests that one model takes at once: those that run, and those that wait."""
        return self.slots + self.max_waiting

    @property
    def is_public(self) -> bool:
        """Whether other machines can reach the address."""
        return self.unix_socket is None and not is_loopback(self.host)


_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "max_body": (1024, 1 << 31),
    "max_inputs": (1, 1 << 20),
    "max_tokens": (1, 1 << 31),
    "max_waiting": (1, 100_000),
    "request_seconds": (0.1, 86_400),
    "header_seconds": (0.1, 3600),
    "idle_seconds": (0.1, 3600),
    "drain_seconds": (0, 3600),
    "max_connections": (8, 100_000),
    "slots": (1, 256),
    "context": (2, 1 << 31),
    "threads": (1, 1024),
}


@dataclass(frozen=True)
class SettingsFile:
    """What a file of settings says."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of ServerSettings that the file has."""
    bundles: tuple[tuple[str | None, str], ...] = ()
    """The bundles to serve: the name, None for the bundle's own, and its path or name."""
    indexes: tuple[tuple[str | None, str], ...] = ()
    """The search indexes to serve: the name, None for the folder's own, and its path."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_settings(path: Path) -> SettingsFile:
    """Read a TOML file of settings; raises NotFoundError and InputError, which names the file and the setting."""
    import tomllib

    check_ownership(path, "the configuration")
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no configuration `{path}`") from error
    except OSError as error:
        raise InputError(f"the configuration `{path}` cannot be read: {error.strerror or error}") from error
    if len(content) > _LARGEST_FILE:
        raise InputError(f"the configuration `{path}` has more than {_LARGEST_FILE} bytes")
    try:
        found = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the configuration `{path}` is not valid TOML: {error}") from error
    where = f"the configuration `{path}`"
    bundles = _named(found.pop(BUNDLES, []), where, BUNDLES, "bundle")
    folder = path.absolute().parent
    indexes = tuple(
        (name, str(folder / index)) for name, index in _named(found.pop(INDEXES, []), where, INDEXES, "index")
    )
    settings = {name: _checked(name, value, where, folder) for name, value in found.items()}
    return SettingsFile(settings, bundles, indexes)


def _named(value: object, where: str, setting: str, one: str) -> tuple[tuple[str | None, str], ...]:
    """A list of paths, or a table of names and paths."""
    if isinstance(value, dict) and all(isinstance(path, str) and path for path in value.values()):
        return tuple(value.items())
    if isinstance(value, list) and all(isinstance(path, str) and path for path in value):
        return tuple((None, path) for path in value)
    raise InputError(f"{where} is not valid: `{setting}` must be a list of {setting}, or a table of name = {one}")


def _checked(name: str, value: object, where: str, folder: Path) -> object:
    """The value of a setting as its field has it; raises InputError for an unknown one and for another type."""
    if name not in _TYPES:
        close = close_names(name, [*_TYPES, BUNDLES, INDEXES])
        hint = f"did you mean {' or '.join(f'`{other}`' for other in close)}?" if close else None
        raise InputError(
            f"{where} has the unknown setting `{name}`", hint=hint or f"known: {', '.join((*_TYPES, BUNDLES, INDEXES))}"
        )
    noun, convert = _TYPES[name]
    converted = convert(value, folder)
    if converted is None:
        raise InputError(f"{where} is not valid: `{name}` must be {noun}, not {_shown(value)}")
    return converted


def _shown(value: object) -> str:
    return f"`{value}`" if isinstance(value, (str, int, float)) else type(value).__name__


def _integer(value: object, _folder: Path) -> int | None:
    return value if type(value) is int else None


def _number(value: object, _folder: Path) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _flag(value: object, _folder: Path) -> bool | None:
    return value if isinstance(value, bool) else None


def _text(value: object, _folder: Path) -> str | None:
    return value if isinstance(value, str) and value else None


def _path(value: object, folder: Path) -> Path | None:
    return folder / value if isinstance(value, str) and value else None


def _texts(value: object, _folder: Path) -> tuple[str, ...] | None:
    is_valid = isinstance(value, list) and all(isinstance(text, str) and text for text in value)
    return tuple(value) if isinstance(value, list) and is_valid else None


def _prefill(value: object, _folder: Path) -> str | None:
    return value if isinstance(value, str) and value in list(PrefillChoice) else None


def _size(value: object, _folder: Path) -> int | None:
    if type(value) is int and value > 0:
        return value
    try:
        return size_of(value, "size") if isinstance(value, str) else None
    except InputError:
        return None


_INTEGER = ("an integer", _integer)
_NUMBER = ("a number of seconds", _number)
_FLAG = ("true or false", _flag)
_SIZE = ("a size such as 500M or 4G", _size)
_TEXTS = ("a list of strings", _texts)
_PATH = ("a path", _path)
_BY_NAME: dict[str, tuple[str, Callable[[object, Path], object]]] = {
    "max_body": _SIZE,
    "prefix_memory": _SIZE,
    "max_memory": _SIZE,
    "prefill": ("`auto`, `int8` or `none`", _prefill),
}
_BY_ANNOTATION: Mapping[str, tuple[str, Callable[[object, Path], object]]] = {
    "str": ("a string", _text),
    "int": _INTEGER,
    "int | None": _INTEGER,
    "float": _NUMBER,
    "bool": _FLAG,
    "Path | None": _PATH,
    "tuple[str, ...]": _TEXTS,
}
_TYPES = {one.name: _BY_NAME.get(one.name) or _BY_ANNOTATION[str(one.type)] for one in fields(ServerSettings)}
"""Name of a setting -> what it must be, and what converts it (None where it is something else)."""
