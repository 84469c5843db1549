"""The flags of ``roomkit bench``, and its exit status."""

from __future__ import annotations

import argparse
import json

from roomkit.tools import remote
from roomkit.tools.bench.plan import OPERATIONS, Plan
from roomkit.tools.console import save, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    default = Plan()
    parser.add_argument("url", metavar="URL", help="the server, like http://127.0.0.1:8080")

    def number(name: str, kind: type, text: str) -> None:
        value = getattr(default, name)
        parser.add_argument(f"--{name}", type=kind, default=value, metavar="N", help=f"{text} [default: {value:g}]")

    number("rooms", int, "rooms to make")
    number("players", int, "players in each room")
    number("rate", float, "messages a second in each room, from its players in turn")
    number("seconds", float, "for how long")
    number("ramp", float, "seconds over which the connections are opened; 0: as fast as the server takes them")
    number("size", int, "characters of padding in each message")
    parser.add_argument(
        "--operation",
        choices=OPERATIONS,
        default=default.operation,
        help=f"what is sent [default: {default.operation}]",
    )
    parser.add_argument("--plot", metavar="FILE", help="draw latencies and deliveries: .svg, or .png with matplotlib")
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """0: everything was carried out and delivered; 1: not, or the test could not be made; 130: interrupted."""
    from roomkit.tools.bench.engine import Engine
    from roomkit.tools.bench.plot import check_format, draw
    from roomkit.tools.bench.report import Progress, summary

    plan = Plan(**{name: getattr(arguments, name) for name in Plan.__dataclass_fields__})
    if arguments.plot is not None:
        check_format(arguments.plot)
    for path in (arguments.plot, arguments.json):
        if path is not None:
            save(path, b"")  # better now than after the test
    with remote.Remote(arguments.url) as server:
        progress = Progress(plan)
        try:
            result = Engine(server, plan, progress).run()
        finally:
            progress.clear()
        status = write(summary(result, server.address))
        if arguments.json is not None:
            save(arguments.json, (json.dumps(result.to_dict(), indent=2) + "\n").encode())
        if arguments.plot is not None:
            title = f"{plan.rooms} rooms of {plan.players}, {plan.rate:g} messages a second in each, {plan.operation}"
            save(arguments.plot, draw(result, arguments.plot, title))
    if result.interrupted:
        return 130
    return status or (0 if result.flawless else 1)
