"""The command line: ``roomkit serve``, ``roomkit fsm``, ``roomkit settings``.

Whatever goes wrong is one sentence on standard error. No message shows what was given for a secret, not even where the
flag before it was misspelt.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from roomkit._version import __version__
from roomkit.core.diagram import to_markdown, to_mermaid, to_page
from roomkit.core.drawing import to_svg
from roomkit.core.lifecycle import GAME
from roomkit.log import configure_logging
from roomkit.server import Server
from roomkit.settings import InvalidSetting, Settings, add_arguments, load_settings, settings_table_markdown

log = logging.getLogger("roomkit")

_DRAWINGS = {"table": to_markdown, "mermaid": to_mermaid, "svg": to_svg, "page": to_page}
_FLAG = re.compile(r"--?[A-Za-z][A-Za-z_-]*")
_DRAIN_SLACK = 5.0  # seconds past drain_timeout until the process ends in any case

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
in the environment, commas stand between the origins. Keep the admin token out of flags, which every local user can
read.

{table}
Written by `roomkit settings` from the declarations in the code.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 well, 1 failed, 2 wrong words (by SystemExit)."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser, commands = _parsers()
    if not words:
        return _write(parser.format_help())
    name = words[0]
    if name not in commands:
        parser.refuse_command(name, commands)
    arguments = commands[name].parse_words(words[1:])
    if name == "fsm":
        return _write(_DRAWINGS[arguments.format](GAME), arguments.output)
    if name == "settings":
        return _write(_SETTINGS_PAGE.format(table=settings_table_markdown()), arguments.output)
    return _serve(arguments)


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

    def add(name: str, text: str, description: str) -> _Parser:
        command = commands.add_parser(name, help=text, description=description, allow_abbrev=False)
        if name != "serve":
            command.add_argument("--output", metavar="PATH", help="write to a file instead of standard output")
        return command

    serve = add("serve", "run the server", "Run the server. SIGTERM or Ctrl-C drains it; a second one ends it at once.")
    add_arguments(serve)
    fsm = add("fsm", "print the room's transition table, or draw it", "Print or draw a room's transition table.")
    fsm.add_argument("--format", choices=_DRAWINGS, default="table", help="page: table and Mermaid; default: table")
    settings = add("settings", "print every setting of the server", "Print what can be set, and how, in Markdown.")
    return parser, {"serve": serve, "fsm": fsm, "settings": settings}


def _fail(sentence: str, status: int = 1) -> int:
    print(f"roomkit: {sentence}", file=sys.stderr)
    return status


def _write(text: str, output: str | None = None) -> int:
    try:
        if output is not None:
            Path(output).write_text(text, encoding="utf-8", newline="\n")
        else:
            print(text, end="", flush=True)
    except OSError as error:
        if output is not None:
            return _fail(f"cannot write {output}: {error.strerror}")
        # Python writes again what is left when it ends, and must not fail then (its docs, signal, "Note on SIGPIPE").
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if isinstance(error, BrokenPipeError) else _fail(f"cannot write the output: {error.strerror}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    try:
        settings = load_settings(arguments)
    except InvalidSetting as error:
        return _fail(str(error), 2)
    configure_logging(settings.log_level, settings.log_json)
    with _Signals() as signals:
        try:
            server = Server(settings=settings)
        except OSError as error:
            return _fail(_why_not_made(settings, error))
        try:
            settings.host.encode("idna")
            server.bind()
        except OSError as error:
            return _fail(error.strerror or str(error))
        except UnicodeError:
            return _fail(f"cannot listen on {settings.host}: this is no host name")
        server.start()
        hint = "  (open it in a browser)" if settings.demo else ""
        _write(f"roomkit {__version__} listens on {server.url}{hint}\nstop it with Ctrl-C\n")
        signals.wait()
        return _drain(server, signals)


def _why_not_made(settings: Settings, error: OSError) -> str:
    reason = error.strerror or str(error)
    if settings.tls_cert is None:
        return f"cannot start: {reason}"
    return f"cannot use tls_cert {settings.tls_cert} with tls_key {settings.tls_key}: {reason}"


def _drain(server: Server, signals: _Signals) -> int:
    """Stop the server; a signal meanwhile, and the process ends without waiting for it."""
    timeout = server.settings.drain_timeout
    log.info("draining for at most %g s; a second signal stops at once", timeout)
    stopped = threading.Event()

    def stop() -> None:
        try:
            server.stop()
            stopped.set()
        finally:
            signals.wake()

    threading.Thread(target=stop, name="roomkit-drain", daemon=True).start()  # not joined: ended with the process
    signals.wait(timeout + _DRAIN_SLACK)
    if not stopped.is_set():
        log.warning("stopped before everything was drained")
        return 1
    return 0


class _Signals:
    """SIGINT and SIGTERM from the first line on, as bytes in a pipe.

    Setting a `threading.Event` in a handler can hang: the handler runs in the main thread, between any two
    instructions, and so also where that thread holds the event's lock because it begins to wait.

    Thread safety: `wake` from any thread; the rest from the main thread.
    """

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)

    def __enter__(self) -> _Signals:
        signal.set_wakeup_fd(self._sender.fileno())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)  # has Python write to the wake-up file, and nothing more
        return self

    def __exit__(self, *exc: object) -> None:
        signal.set_wakeup_fd(-1)
        self._receiver.close()
        self._sender.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        pass

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the next signal or `wake`, at most ``timeout`` seconds."""
        self._receiver.settimeout(timeout)
        try:
            self._receiver.recv(1)
        except TimeoutError:
            pass

    def wake(self) -> None:
        """End the wait."""
        try:
            self._sender.send(b"\0")
        except OSError:  # closed: nobody waits any more
            pass
