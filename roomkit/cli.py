"""The command line: ``roomkit serve``, ``roomkit fsm``."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from roomkit._version import __version__
from roomkit.core.diagram import to_markdown, to_mermaid, to_svg
from roomkit.core.lifecycle import GAME
from roomkit.log import configure_logging
from roomkit.server import PortInUse, Server
from roomkit.settings import InvalidSetting, add_arguments, load_settings

log = logging.getLogger("roomkit")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 well, 1 failed, 2 wrong words."""
    parser = argparse.ArgumentParser(prog="roomkit", description="Live rooms on threads.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"roomkit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve = commands.add_parser("serve", help="run the server", description="Run the server.", allow_abbrev=False)
    add_arguments(serve)
    fsm = commands.add_parser("fsm", help="print the room's transition table, or draw it")
    fsm.add_argument("--format", choices=("table", "mermaid", "svg"), default="table", help="default: table")
    fsm.add_argument("--output", metavar="PATH", help="write to a file instead of standard output")
    arguments = parser.parse_args(argv)
    if arguments.command == "fsm":
        return _fsm(arguments.format, arguments.output)
    return _serve(arguments)


def _fsm(form: str, output: str | None) -> int:
    text = {"table": to_markdown, "mermaid": to_mermaid, "svg": to_svg}[form](GAME)
    if output is None:
        print(text, end="")
        return 0
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"roomkit: cannot write {output}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    try:
        settings = load_settings(arguments)
    except InvalidSetting as error:
        print(f"roomkit: {error}", file=sys.stderr)
        return 2
    configure_logging(settings.log_level, settings.log_json)
    try:
        server = Server(settings=settings)
        server.bind()
    except (PortInUse, OSError) as error:
        print(f"roomkit: {error.strerror or error}", file=sys.stderr)
        return 1
    wanted = _Signals()
    server.start()
    print(f"roomkit {__version__} listens on {server.url}" + ("  (open it in a browser)" if settings.demo else ""))
    print("stop it with Ctrl-C", flush=True)
    wanted.first.wait()
    log.info("draining for at most %g s; a second signal stops at once", settings.drain_timeout)
    drained = threading.Event()

    def drain() -> None:
        server.stop()
        drained.set()
        wanted.second.set()

    threading.Thread(target=drain, name="roomkit-drain", daemon=True).start()
    wanted.second.wait(settings.drain_timeout + 5)
    if not drained.is_set():
        log.warning("stopped before everything was drained")
        return 1
    return 0


class _Signals:
    """SIGINT and SIGTERM: the first drains, the second stops at once."""

    def __init__(self) -> None:
        self.first = threading.Event()
        self.second = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        (self.second if self.first.is_set() else self.first).set()
