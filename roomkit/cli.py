"""The command line: ``roomkit serve``, and the smaller commands, which are modules of ``roomkit/tools``.

Whatever goes wrong is one sentence on standard error. No message shows what was given for a secret, not even where the
flag before it was misspelt.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from roomkit._version import __version__
from roomkit.core.diagram import to_markdown, to_mermaid, to_page
from roomkit.core.drawing import to_svg
from roomkit.core.lifecycle import GAME
from roomkit.core.urls import show_store_url
from roomkit.log import configure_logging
from roomkit.server import PortInUse, Server
from roomkit.server.garbage import ShortCollections
from roomkit.server.process import DRAIN_SLACK, Signals, drain
from roomkit.server.scheduling import PatientThreads
from roomkit.server.supervisor import Supervisor
from roomkit.settings import InvalidSetting, Settings, add_arguments, load_settings, settings_table_markdown
from roomkit.tools import rooms, schema, watch
from roomkit.tools.bench import command as bench
from roomkit.tools.console import CommandFailed, OutputGone, fail, write


class _Tool(NamedTuple):
    module: Any
    text: str
    description: str


_TOOLS = {
    "rooms": _Tool(
        rooms, "list the rooms of a running server", "List all rooms of a running server, private ones too."
    ),
    "watch": _Tool(
        watch,
        "show a room's events as they come",
        "Show what happens in a room of a running server, until the room is gone or Ctrl-C.",
    ),
    "bench": _Tool(
        bench,
        "load a running server, and measure",
        "Load a running server with rooms and players of its own making, measure, and take them away again.",
    ),
    "schema": _Tool(
        schema, "print the schemas of what goes over the wire", "Print AsyncAPI, OpenAPI or JSON Schema documents."
    ),
}
_DRAWINGS = {"table": to_markdown, "mermaid": to_mermaid, "svg": to_svg, "page": to_page}
_START_TIMEOUT = 30.0  # seconds that worker processes have to come up
_FLAG = re.compile(r"--?[A-Za-z][A-Za-z_-]*")

_SETTINGS_PAGE = """\
# Settings of `roomkit serve`

Every setting can be given in three ways. Where it is given more than once, the first of these wins:

1. a flag: `roomkit serve --port 9000 --message-rate 20`
2. an environment variable: `ROOMKIT_PORT=9000 ROOMKIT_MESSAGE_RATE=20 roomkit serve`
3. a key of a TOML file, which `--config PATH` or `ROOMKIT_CONFIG` names:

   ```toml
   port = 9000
   message_rate = 20
   log_json = true
   origin = ["https://example.com", "https://www.example.com"]
   ```

4. the default.

A setting that does not exist or cannot be used is an error wherever it stands, even where a stronger source overrides
it. Times are seconds. What is on or off has two flags, and is `true` or `false` elsewhere. `--origin` may be repeated;
in the environment, commas stand between the origins. Keep the admin token, and a `redis` URL with a password, out of
flags, which every local user can read: they belong into the environment, or into a file that only the server can read.

{table}
Written by `roomkit settings` from the declarations in the code.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 well, 1 failed, 2 wrong words (by SystemExit)."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser, commands = _parsers()
    if not words:
        return write(parser.format_help())
    name = words[0]
    if name not in commands:
        parser.refuse_command(name, commands)
    arguments = commands[name].parse_words(words[1:])
    if name == "fsm":
        return write(_DRAWINGS[arguments.format](GAME), arguments.output)
    if name == "settings":
        return write(_SETTINGS_PAGE.format(table=settings_table_markdown()), arguments.output)
    if name in _TOOLS:
        return _run_tool(name, arguments)
    return _serve(arguments)


def _run_tool(name: str, arguments: argparse.Namespace) -> int:
    try:
        status: int = _TOOLS[name].module.run(arguments)
        return status
    except CommandFailed as failure:
        return fail(str(failure), failure.status)
    except OutputGone as gone:
        return gone.status
    except KeyboardInterrupt:
        return 130  # as a shell says it


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of one sentence that show of an unknown word only what is surely a flag's name."""

    def error(self, message: str) -> NoReturn:
        message = re.sub("ignored explicit argument .*", "takes no value", message, flags=re.DOTALL)
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def parse_words(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse all of them, or exit."""
        arguments, unknown = self.parse_known_args(words)
        if unknown:
            self.refuse(unknown, self._option_string_actions)
        return arguments

    def refuse(self, unknown: Sequence[str], flags: Iterable[str]) -> NoReturn:
        """Exit, naming the first unknown flag; what stands behind its name, or without one, may be a secret."""
        for word in unknown:
            if typed := _FLAG.match(word):
                close = _did_you_mean(typed[0], flags)
                self.error(f"unknown flag {typed[0] if close or word.startswith('--') else typed[0][:2]}{close}")
        self.error("takes flags only, and got something else")

    def refuse_command(self, word: str, commands: dict[str, _Parser]) -> NoReturn:
        """Exit on a first word that is no command, after doing what it asks if it is --help or --version."""
        if not word.startswith("-"):
            self.error(f"unknown command {word[:60]!r}{_did_you_mean(word, commands)}")
        flag = word.partition("=")[0]
        if flag in commands["serve"]._option_string_actions and flag not in self._option_string_actions:
            self.error(f"the flag {flag} goes behind the command: roomkit serve {flag} ...")
        self.parse_words([word])
        self.error("a command is missing")


def _did_you_mean(typed: str, known: Iterable[str]) -> str:
    return "".join(f"; did you mean {match}?" for match in difflib.get_close_matches(typed, list(known), n=1))


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser of the first word, which shows the help, and those of the commands by name."""
    parser = _Parser(prog="roomkit", description="Live rooms on threads.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"roomkit {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")

    def add(name: str, text: str, description: str, output: bool = False) -> _Parser:
        command = commands.add_parser(name, help=text, description=description, allow_abbrev=False)
        if output:
            command.add_argument("--output", metavar="PATH", help="write to a file instead of standard output")
        return command

    serve = add("serve", "run the server", "Run the server. SIGTERM or Ctrl-C drains it; a second one ends it at once.")
    add_arguments(serve)
    fsm = add("fsm", "print the room's transition table, or draw it", "Print or draw a room's transition table.", True)
    fsm.add_argument("--format", choices=_DRAWINGS, default="table", help="page: table and Mermaid; default: table")
    settings = add(
        "settings", "print every setting of the server", "Print what can be set, and how, in Markdown.", True
    )
    known = {"serve": serve, "fsm": fsm, "settings": settings}
    for name, tool in _TOOLS.items():
        known[name] = add(name, tool.text, tool.description)
        tool.module.add_arguments(known[name])
    return parser, known


def _serve(arguments: argparse.Namespace) -> int:
    try:
        settings = load_settings(arguments)
    except InvalidSetting as error:
        return fail(str(error), 2)
    configure_logging(settings.log_level, settings.log_json)
    with Signals() as signals:
        if settings.workers > 1:
            return _serve_with_workers(settings, signals)
        try:
            settings.host.encode("idna")
            server = Server(settings=settings)
            server.bind()
        except InvalidSetting as error:
            return fail(str(error), 2)
        except UnicodeError:
            return fail(_no_host_name(settings))
        except PortInUse as error:
            return fail(error.strerror or str(error))
        except OSError as error:
            return fail(_why_not_made(settings, error))
        with ShortCollections(), PatientThreads():
            server.start()
            _greet(settings, server.url, sharing=_sharing(settings, server))
            signals.wait()
            return 0 if drain(server.stop, settings.drain_timeout, signals) else 1


def _serve_with_workers(settings: Settings, signals: Signals) -> int:
    try:
        settings.host.encode("idna")
        supervisor = Supervisor(settings)
    except OSError as error:
        return fail(error.strerror or str(error))
    except UnicodeError:
        return fail(_no_host_name(settings))
    with supervisor:
        supervisor.start(signals.wake)
        signals.wait(_START_TIMEOUT)
        if not supervisor.ready:
            return 1 if signals.came else fail("the worker processes do not start; what they said tells why")
        _greet(settings, supervisor.url, f" with {settings.workers} workers")
        signals.wait()
        return 0 if drain(supervisor.stop, settings.drain_timeout + DRAIN_SLACK, signals) else 1


def _greet(settings: Settings, url: str, more: str = "", sharing: str = "") -> None:
    hint = "  (open it in a browser)" if settings.demo else ""
    write(f"roomkit {__version__} listens on {url}{more}{hint}\n{sharing}stop it with Ctrl-C\n")


def _sharing(settings: Settings, server: Server) -> str:
    """A line about the instance and its store, without the store's password; nothing without a store."""
    if settings.redis is None:
        return ""
    name = server.rooms.stats()["sharing"]["instance"]
    return f"instance {name} shares its rooms by {show_store_url(settings.redis)}, keys {settings.redis_prefix}*\n"


def _no_host_name(settings: Settings) -> str:
    return f"cannot listen on {settings.host}: this is no host name"


def _why_not_made(settings: Settings, error: OSError) -> str:
    reason = error.strerror or str(error)
    if settings.tls_cert is None:
        return f"cannot start: {reason}"
    return f"cannot use tls_cert {settings.tls_cert} with tls_key {settings.tls_key}: {reason}"
