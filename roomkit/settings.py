"""Every setting of ``roomkit serve``, declared once: flags, environment, TOML keys, help and docs all come from here.

Each field of `Settings` is one declaration; `SETTINGS` is the same table as data. Where a value is given more than
once, the first of these wins: flag, environment (``ROOMKIT_*``), TOML file (``--config PATH`` or ``ROOMKIT_CONFIG``),
default. Every source is checked in full even where a stronger one overrides it.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from roomkit.core.urls import fault_in_address, fault_in_store_url

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = importlib.import_module("tomli")

T = TypeVar("T")

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
GROUPS = ("listening", "limits", "timing", "security", "sharing", "rooms", "logging")

_NOT_SETTINGS = {"ROOMKIT_CONFIG", "ROOMKIT_REDIS_URL", "ROOMKIT_URL"}  # ours, like ROOMKIT_TEST_*, but read elsewhere
# Kubernetes gives every pod such variables for a service called roomkit, ROOMKIT_PORT=tcp://... among them.
_KUBERNETES = re.compile(r"ROOMKIT_(SERVICE_|PORT_\d)")
_KUBERNETES_HINT = "unknown setting, made by Kubernetes for a service named roomkit; set enableServiceLinks: false"
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_MAX_INT = 2**31 - 1
_MAX_SECONDS = 2_000_000  # 23 days; past 2**31 milliseconds epoll's timeout overflows
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@,]*", re.IGNORECASE)


class InvalidSetting(ValueError):
    """A setting that cannot be used, and where it was given; nothing was started or changed.

    Attributes:
        name: the setting ("port"); as it was typed when there is no such setting.
        source: "flag --port", "environment ROOMKIT_PORT", "file PATH, key port", or "argument port" from Python.
        sentence: what is wrong; never the value of a secret.
    """

    def __init__(self, name: str, source: str, sentence: str) -> None:
        super().__init__(name, source, sentence)
        self.name, self.source, self.sentence = name, source, sentence

    def __str__(self) -> str:
        return f"{self.source}: {self.sentence}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of the table: all there is to know of one setting. Thread safety: immutable."""

    name: str
    kind: type  # int, float, bool, str, or tuple (of str)
    optional: bool  # None, its default, stands for "not set"
    default: Any
    group: str
    help: str
    unit: str = ""
    minimum: float = -math.inf
    maximum: float = math.inf
    zero_is_off: bool = False
    choices: tuple[str, ...] = ()
    fault: Callable[[str], str] | None = None  # what a text must be and is not; empty when it is
    word: str = ""  # what stands for the value in the help
    secret: bool = False
    has_flag: bool = True

    @property
    def flag(self) -> str:
        """The flag as typed, ``--max-rooms``; empty when the setting has none."""
        return "--" + self.name.replace("_", "-") if self.has_flag else ""

    @property
    def env(self) -> str:
        """The environment variable, ``ROOMKIT_MAX_ROOMS``."""
        return "ROOMKIT_" + self.name.upper()

    @property
    def default_text(self) -> str:
        """The default as one would write it in TOML, texts without quotes."""
        if self.default in (None, ()):
            return "none"
        return f"{self.default:.10g}" if self.kind is float else str(self.default).lower()

    @property
    def sentence(self) -> str:
        """The help with its unit, and whether 0 turns it off."""
        notes = "; ".join(note for note in (self.unit, "0 turns it off" * self.zero_is_off) if note)
        return f"{self.help} ({notes})" if notes else self.help

    def parse(self, text: str, source: str) -> Any:
        """The value that a flag or an environment variable spells. Raises `InvalidSetting` as `check` does."""
        value: object = text
        if self.kind is bool:
            value = _BOOLEANS.get(text.strip().lower(), text)
        elif self.kind is tuple:
            value = [part.strip() for part in text.split(",") if part.strip()]
        elif self.kind in (int, float):
            value = _number(text)
        return self.check(value, source)

    def check(self, value: object, source: str) -> Any:
        """The value in the setting's own type: a whole float becomes an int, a list a tuple.

        Raises:
            InvalidSetting: wrong type, not finite, out of range, empty, or not one of the choices.
        """
        if value is None and self.optional:
            return None
        if self.kind is bool:
            return value if isinstance(value, bool) else self._refuse(source, "true or false", value)
        if self.kind is tuple:
            return self._check_origins(value, source)
        return self._check_text(value, source) if self.kind is str else self._check_number(value, source)

    def _check_number(self, value: object, source: str) -> float:
        whole = self.kind is int
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._refuse(source, "a whole number" if whole else "a number", value)
        if isinstance(value, float) and (not math.isfinite(value) or (whole and not value.is_integer())):
            self._refuse(source, "a whole number" if whole else "a finite number", value)
        if value < self.minimum:
            self._refuse(source, f"at least {self.minimum:g}", value)
        if value > self.maximum:
            self._refuse(source, f"at most {self.maximum:.10g}", value)
        return int(value) if whole else float(value)

    def _check_text(self, value: object, source: str) -> str:
        if not isinstance(value, str):
            self._refuse(source, "a text", value)
        if self.choices and value.lower() not in self.choices:
            self._refuse(source, "one of " + ", ".join(self.choices), value)
        if not value:  # an empty host would mean every interface, an empty token no token
            raise InvalidSetting(self.name, source, "is empty; leave it out to use the default")
        if _CONTROL.search(value):
            self._refuse(source, "free of control characters", value)
        if self.fault is not None and (expected := self.fault(value)):
            self._refuse(source, expected, value)
        return value.lower() if self.choices else value

    def _check_origins(self, value: object, source: str) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)):
            self._refuse(source, "a list of texts", value)
        for origin in value:
            if not isinstance(origin, str) or not _ORIGIN.fullmatch(origin):
                self._refuse(source, "* or an origin like https://example.com:8080, without a path", origin)
        return tuple(value)

    def _refuse(self, source: str, expected: str, value: object) -> NoReturn:
        if self.secret:
            shown = "what was given (not shown here)"
        elif isinstance(value, (list, dict)):
            shown = "an array" if isinstance(value, list) else "a table"
        elif isinstance(value, int) and value.bit_length() > 64:
            shown = "a huge number"  # thousands of digits, which Python refuses to print
        else:
            shown = "the text " * isinstance(value, str) + _shown(repr(value))
        raise InvalidSetting(self.name, source, f"must be {expected}, not {shown}")


def _setting(default: T, group: str, text: str, **more: Any) -> T:
    """Declare one field of `Settings`; `more` are further fields of `Setting`."""
    metadata = {"group": group, "help": text, **more}
    return dataclasses.field(default=default, repr=not more.get("secret"), metadata=metadata)


def _count(default: int, group: str, text: str, low: int = 0, high: int = _MAX_INT, **more: Any) -> int:
    return _setting(default, group, text, minimum=low, maximum=high, **more)


def _seconds(default: float, group: str, text: str, **more: Any) -> float:
    return _setting(default, group, text, unit="seconds", minimum=0, maximum=_MAX_SECONDS, **more)


_OFF: dict[str, Any] = {"zero_is_off": True}
_RATE: dict[str, Any] = {"zero_is_off": True, "unit": "messages per second", "minimum": 0, "maximum": _MAX_INT}
_ADMIN_HELP = "Token that opens the admin pages to other machines; in a flag, every local user can read it"
_REDIS_HELP = (
    "Redis or Valkey by which instances share their rooms: redis://, rediss:// (TLS) or unix://; "
    "in a flag, every local user can read its password"
)


def _fault_in_prefix(prefix: str) -> str:
    return "" if re.fullmatch(r"[^{}\s]{1,64}", prefix) else "at most 64 characters without braces and blanks"


def _fault_in_instance(name: str) -> str:
    # Of the 64 characters that an id may have, 19 are for what makes the name unique.
    return "" if re.fullmatch(r"[A-Za-z0-9_.:-]{1,45}", name) else "1 to 45 of A-Z a-z 0-9 _ . : -"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of ``roomkit serve``. Times are seconds, sizes bytes; 0 turns off what says so.

    Raises:
        InvalidSetting: a value has the wrong type, is out of range, or does not go with another one.

    Thread safety: immutable.
    """

    host: str = _setting("127.0.0.1", "listening", "Address to listen on; 0.0.0.0 or :: for every interface")
    port: int = _count(8080, "listening", "Port to listen on; 0 picks a free one", high=65535)
    io_threads: int = _count(1, "listening", "Threads that read and write connections", 1, 64)
    http_threads: int = _count(4, "listening", "Threads that answer HTTP requests", 1)
    workers: int = _count(1, "listening", "Processes that serve on the port, each its share of the rooms", 1, 64)
    compression: bool = _setting(False, "listening", "Offer permessage-deflate to WebSocket clients")
    demo: bool = _setting(True, "listening", "Serve the demo page at /")
    dashboard: bool = _setting(True, "listening", "Serve the dashboard at /dashboard, for admins")

    max_rooms: int = _count(10_000, "limits", "Rooms at one time", **_OFF)
    max_rooms_per_owner: int = _count(0, "limits", "Rooms that one owner may have at one time", **_OFF)
    max_connections: int = _count(10_000, "limits", "Connections at one time", **_OFF)
    max_connections_per_address: int = _count(
        64, "limits", "Connections at one time from one address (IPv6: network of 64 bits)", **_OFF
    )
    message_rate: float = _setting(60.0, "limits", "Messages that one connection may send, on average", **_RATE)
    message_burst: int = _count(120, "limits", "Messages that one connection may send at once", 1)
    max_message_size: int = _count(65_536, "limits", "Largest message from a client", unit="bytes", **_OFF)
    max_fragments: int = _count(1024, "limits", "Fragments that one message may come in", **_OFF)
    max_head_size: int = _count(8192, "limits", "Largest request head", 1, unit="bytes")
    max_head_lines: int = _count(100, "limits", "Most lines in a request head", 1)
    outbox_messages: int = _count(256, "limits", "Messages that may wait for one connection", **_OFF)
    outbox_bytes: int = _count(1_048_576, "limits", "Data that may wait for one connection", unit="bytes", **_OFF)

    ping_interval: float = _seconds(50.0, "timing", "Time between pings to a connection", **_OFF)
    pong_timeout: float = _seconds(60.0, "timing", "Silence that ends a connection; more than ping_interval", **_OFF)
    handshake_timeout: float = _seconds(10.0, "timing", "Time for a whole handshake", **_OFF)
    write_timeout: float = _seconds(5.0, "timing", "Time for which a write may stall", **_OFF)
    close_timeout: float = _seconds(2.0, "timing", "Wait for the client's answer to a close")
    drain_timeout: float = _seconds(10.0, "timing", "Time that a shutdown gives clients to leave")

    origin: tuple[str, ...] = _setting((), "security", "Web origin to allow besides the server's own; * allows all")
    admin_token: str | None = _setting(None, "security", _ADMIN_HELP, secret=True)
    tls_cert: str | None = _setting(None, "security", "Certificate chain for TLS, a PEM file; with tls_key")
    tls_key: str | None = _setting(None, "security", "Private key for TLS, a PEM file; with tls_cert")

    redis: str | None = _setting(None, "sharing", _REDIS_HELP, secret=True, fault=fault_in_store_url, word="URL")
    redis_prefix: str = _setting(
        "roomkit:", "sharing", "What its keys and channels begin with", fault=_fault_in_prefix, word="PREFIX"
    )
    lease_ttl: float = _setting(
        5.0,
        "sharing",
        "Time after which the rooms of an instance that is gone go on elsewhere",
        unit="seconds",
        minimum=0.5,
        maximum=60,
    )
    instance: str | None = _setting(
        None, "sharing", "Name of this instance; none: the machine's", fault=_fault_in_instance, word="NAME"
    )
    address: str | None = _setting(
        None,
        "sharing",
        "Where people and load balancers reach this instance; none: where it listens",
        fault=fault_in_address,
        word="URL",
    )

    # The defaults of each room; the bounds are RoomConfig's.
    max_players: int = _count(4, "rooms", "Seats in a room", 1, 100_000)
    min_players: int | None = _setting(
        None, "rooms", "Players who make a room prepare; none: max_players", minimum=1, maximum=100_000
    )
    queue_size: int = _count(100, "rooms", "Events that may wait for delivery", 1, 1_000_000)
    history_size: int = _count(256, "rooms", "Past events kept for players who resume", 0, 1_000_000)
    max_lifetime: float = _seconds(1800.0, "rooms", "Longest life of a room", **_OFF)
    closed_ttl: float = _seconds(60.0, "rooms", "Time after which a closed room is taken away; 0: at once")
    empty_ttl: float = _seconds(300.0, "rooms", "Time after which a room with nobody connected closes; 0: never")
    finished_ttl: float = _seconds(300.0, "rooms", "Time after which a finished room closes; 0: never")
    reconnect_grace: float = _seconds(300.0, "rooms", "Time for which a dropped player's seat is kept; 0: no limit")
    busy_timeout: float = _seconds(1.0, "rooms", "Longest wait for space in a full queue")

    log_level: str = _setting(
        "info", "logging", "Least severe level to log: " + ", ".join(LOG_LEVELS), choices=LOG_LEVELS
    )
    log_json: bool = _setting(False, "logging", "Log one JSON object a line")

    def __post_init__(self) -> None:
        for setting in SETTINGS:
            value = setting.check(getattr(self, setting.name), f"argument {setting.name}")
            object.__setattr__(self, setting.name, value)
        _check_together(vars(self), {setting.name: f"argument {setting.name}" for setting in SETTINGS})


def _table() -> Iterator[Setting]:
    hints = get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        hint = hints[field.name]
        optional = type(None) in get_args(hint)
        kind = get_args(hint)[0] if optional else get_origin(hint) or hint  # int | None: int; tuple[str, ...]: tuple
        yield Setting(field.name, kind, optional, field.default, **field.metadata)


SETTINGS = tuple(_table())
_BY_NAME = {setting.name: setting for setting in SETTINGS}


def load_settings(
    arguments: argparse.Namespace | Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """The settings from flags, environment, TOML file and defaults, in this order of precedence. Reads the file.

    Args:
        arguments: what a parser with `add_arguments` returned (its other attributes are ignored), or a mapping of
            setting names, and `config`, to values or texts. None stands for "not given".
        environ: `os.environ` by default.

    Raises:
        InvalidSetting: the first fault found in any of the sources.
    """
    environ = os.environ if environ is None else environ
    flags = _given(arguments)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}  # strongest first
    for name, source, value in (*_from_flags(flags), *_from_environment(environ), *_from_file(flags, environ)):
        if name not in values:
            values[name], sources[name] = value, source
    _check_together({setting.name: setting.default for setting in SETTINGS} | values, sources)
    return Settings(**values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` and every setting's flag, in groups. A flag that is not given stays None in the namespace."""
    parser.add_argument("--config", metavar="PATH", help="TOML file with settings [default: none]")
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for setting in (setting for setting in SETTINGS if setting.has_flag):
        repeat = "; may be repeated" * (setting.kind is tuple)
        text = f"{setting.sentence}{repeat} [default: {setting.default_text}]".replace("%", "%%")
        how: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if setting.kind is not bool:  # texts stay texts: load_settings() makes all sources fail in the same words
            how = {"action": "append" if setting.kind is tuple else "store", "metavar": _metavar(setting)}
        groups[setting.group].add_argument(setting.flag, dest=setting.name, default=None, help=text, **how)


class SettingRow(NamedTuple):
    """One setting as the docs show it."""

    name: str
    flag: str
    env: str
    default: str
    help: str


def describe() -> tuple[SettingRow, ...]:
    """Every setting in the order of declaration, as texts for docs."""
    rows = []
    for setting in SETTINGS:
        off = f", --no-{setting.flag[2:]}" if setting.kind is bool and setting.has_flag else ""
        rows.append(SettingRow(setting.name, setting.flag + off, setting.env, setting.default_text, setting.sentence))
    return tuple(rows)


def settings_table_markdown() -> str:
    """What `describe` says as a Markdown table, ending with a newline."""
    lines = ["| setting | flag | environment | default | meaning |", "|---|---|---|---|---|"]
    for name, flags, env, default, text in describe():
        flag = ", ".join(f"`{flag}`" for flag in flags.split(", ") if flag)
        meaning = text.replace("|", r"\|").replace("*", r"\*")
        lines.append(f"| `{name}` | {flag} | `{env}` | `{default}` | {meaning} |")
    return "\n".join(lines) + "\n"


def _check_together(values: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Refuse values that are fine alone but not together; of the two, the one from the strongest source is named."""

    def refuse(first: str, second: str, sentence: str) -> NoReturn:
        name = next(name for name in sources if name in (first, second))  # the defaults alone do not clash
        raise InvalidSetting(name, sources[name], sentence)

    ping, pong = values["ping_interval"], values["pong_timeout"]
    if ping and pong and pong <= ping:
        sentence = f"pong_timeout ({pong:.10g}) must be more than ping_interval ({ping:.10g}), or one of them 0"
        refuse("pong_timeout", "ping_interval", sentence)
    if (values["tls_cert"] is None) != (values["tls_key"] is None):
        refuse("tls_cert", "tls_key", "tls_cert and tls_key go together; the other one is missing")
    if values["workers"] > 1 and values["tls_cert"] is not None:
        sentence = "several workers cannot share TLS connections; put a proxy that speaks TLS in front of them"
        refuse("workers", "tls_cert", sentence)
    if values["workers"] > 1 and values["redis"] is not None:
        sentence = "workers do not share rooms by redis; run that many instances instead, each without workers"
        refuse("workers", "redis", sentence)
    low, high = values["min_players"], values["max_players"]
    if low is not None and low > high:
        refuse("min_players", "max_players", f"min_players ({low}) must be at most max_players ({high})")


def _given(arguments: argparse.Namespace | Mapping[str, object] | None) -> dict[str, object]:
    """What was given of flags, by setting name."""
    known = [*_BY_NAME, "config"]
    if isinstance(arguments, argparse.Namespace):  # the rest of the command line is in there too
        given = {name: value for name, value in vars(arguments).items() if name in known}
    else:
        given = {name.replace("-", "_"): value for name, value in (arguments or {}).items()}
    for name in given:
        if name not in known:
            _unknown(name, f"flag {_flag(name)}", _flag(name), map(_flag, known))
    return {name: value for name, value in given.items() if value is not None}


def _from_flags(flags: Mapping[str, object]) -> Iterator[tuple[str, str, Any]]:
    for name in (name for name in flags if name in _BY_NAME):
        setting, value, source = _BY_NAME[name], flags[name], f"flag {_flag(name)}"
        yield name, source, setting.parse(value, source) if isinstance(value, str) else setting.check(value, source)


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, str, Any]]:
    known = {setting.env for setting in SETTINGS} | _NOT_SETTINGS
    for name in sorted(environ):
        source = f"environment {name}"
        if not name.startswith("ROOMKIT_") or name in known or name.startswith("ROOMKIT_TEST_"):
            continue
        if _KUBERNETES.match(name):
            raise InvalidSetting(name, source, _KUBERNETES_HINT)
        _unknown(name, source, name, known)
    for setting in (setting for setting in SETTINGS if setting.env in environ):
        source = f"environment {setting.env}"
        yield setting.name, source, setting.parse(environ[setting.env], source)


def _from_file(flags: Mapping[str, object], environ: Mapping[str, str]) -> Iterator[tuple[str, str, Any]]:
    path = flags.get("config", environ.get("ROOMKIT_CONFIG"))
    if path is None:
        return
    if not isinstance(path, (str, Path)) or not str(path) or _CONTROL.search(str(path)):
        source = "flag --config" if "config" in flags else "environment ROOMKIT_CONFIG"
        raise InvalidSetting("config", source, "must be the path of a TOML file")
    seen = set()
    for key, value in _read_toml(path).items():
        name, source = key.replace("-", "_"), f"file {path}, key {_shown(key if key.isprintable() else repr(key))}"
        if name not in _BY_NAME:
            _unknown(key, source, name, _BY_NAME)
        if name in seen:
            raise InvalidSetting(name, source, "given twice, once with - and once with _")
        seen.add(name)
        yield name, source, _BY_NAME[name].check(value, source)


def _read_toml(path: str | Path) -> dict[str, Any]:
    source = f"file {path}"
    raw = b""
    try:  # "from None": the causes carry the text of the file, which may hold a secret
        raw = Path(path).read_bytes()
        table: dict[str, Any] = tomllib.loads(raw.decode())
    except OSError as error:
        raise InvalidSetting("config", source, f"the config file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidSetting("config", source, f"the config file is not UTF-8 (at line {line})") from None
    except (ValueError, RecursionError) as error:  # "... (at line 3, column 7)" or "... (at end of document)"
        where = f", line {raw.rstrip().count(10) + 1}" if "at end of document" in str(error) else ""
        raise InvalidSetting("config", source, f"the config file is not TOML: {error}{where}") from None
    return table


def _unknown(name: str, source: str, typed: str, known: Iterable[str]) -> NoReturn:
    close = difflib.get_close_matches(typed, list(known), n=1)
    raise InvalidSetting(name, source, "unknown setting" + "".join(f"; did you mean {match}?" for match in close))


def _number(text: str) -> int | float | str:
    """The number that a text spells, or the text itself when it spells none."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(setting: Setting) -> str:
    number = {"seconds": "SECONDS", "bytes": "BYTES"}.get(setting.unit, "N")
    return number if setting.kind in (int, float) else setting.word or setting.name.upper()


def _shown(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[:limit] + "..."
