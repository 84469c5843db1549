"""``roomkit rooms``: the rooms of a running server, as a table."""

from __future__ import annotations

import argparse
import json
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from roomkit.log import escape
from roomkit.tools import remote
from roomkit.tools.console import CommandFailed, say
from roomkit.tools.remote import Refused, Remote

_PAGE = 200
_WIDTH = 100  # where there is no terminal


class _Column(NamedTuple):
    title: str
    width: int  # that it may be cut to when the terminal is narrow
    needed: int  # on a narrow terminal those that are needed least go first
    right: bool = False


_COLUMNS = (
    _Column("ID", 12, 10),
    _Column("STATUS", 9, 9),
    _Column("PLAYERS", 7, 8, True),
    _Column("HERE", 4, 4, True),
    _Column("HOST", 8, 5),
    _Column("FLAGS", 5, 2),
    _Column("QUEUE", 5, 3, True),
    _Column("DROPPED", 7, 6, True),
    _Column("CREATED", 19, 1),
    _Column("METADATA", 12, 7),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    remote.add_arguments(parser)
    parser.add_argument("--status", help="only rooms with this status")
    parser.add_argument("--search", metavar="TEXT", help="only rooms with this in their id, players or metadata")
    parser.add_argument(
        "--sort",
        default="-created_at",
        help="created_at, players, queue_depth or dropped, with - in front for descending: --sort=-players "
        "[default: -created_at]",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, as the server sent it")


def run(arguments: argparse.Namespace) -> int:
    """Print them all, page by page; 1 when the server cannot be asked."""
    with remote.from_arguments(arguments) as server:
        if arguments.json:
            for room in every_room(server, arguments.search, arguments.status, arguments.sort):
                say(json.dumps(room))
            return 0
        rooms = list(every_room(server, arguments.search, arguments.status, arguments.sort))
    for line in table([_cells(room) for room in rooms], shutil.get_terminal_size((_WIDTH, 24)).columns):
        say(line)
    say(f"{len(rooms)} room{'s' * (len(rooms) != 1)}")
    return 0


def every_room(server: Remote, search: str | None, status: str | None, sort: str) -> Iterator[dict[str, Any]]:
    """All that match, each once, though rooms come, go and change their places between two pages.

    Raises:
        CommandFailed: the server cannot be asked.
    """
    seen: set[str] = set()
    cursor: str | None = None
    while True:
        page = _page(server, search=search, status=status, sort=sort, limit=_PAGE, cursor=cursor)
        for room in page["rooms"]:
            if room["id"] not in seen:
                seen.add(room["id"])
                yield room
        cursor = page["next_cursor"]
        if cursor is None:
            return


def _page(server: Remote, **query: object) -> dict[str, Any]:
    try:
        page = server.get("api", "admin", "rooms", **query)
    except Refused as refused:
        if refused.http_status == 404:
            raise CommandFailed(f"{server.address} has no admin pages: its setting dashboard is off") from None
        raise
    if not isinstance(page, dict) or not isinstance(page.get("rooms"), list) or "next_cursor" not in page:
        raise CommandFailed(f"{server.address} answered something else; is it a roomkit server?")
    return page


def _cells(room: dict[str, Any]) -> list[str]:
    flags = "".join(
        letter for letter, name in (("L", "locked"), ("P", "private"), ("W", "has_password")) if room.get(name)
    )
    return [
        escape(str(value))
        for value in (
            room["id"],
            room["status"],
            f"{room['player_count']}/{room['max_players']}",
            room["connected_count"],
            room["host"] or "",
            flags,
            room["queue_depth"],
            room["dropped"],
            str(room["created_at"]).partition(".")[0].replace("T", " "),
            room["metadata_text"],
        )
    ]


def table(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lines of at most ``width`` columns: a heading, and the rows; what does not fit ends in an ellipsis.

    The widest columns give first. Where even the least of all is too much, whole columns are left out.
    """
    lines = [[column.title for column in _COLUMNS], *rows]
    widths = {n: max(_columns(row[n]) for row in lines) for n in range(len(_COLUMNS))}
    least = {n: min(widths[n], column.width) for n, column in enumerate(_COLUMNS)}
    while len(widths) > 1 and sum(least[n] for n in widths) + 2 * (len(widths) - 1) > width:
        del widths[min(widths, key=lambda n: _COLUMNS[n].needed)]
    over = sum(widths.values()) + 2 * (len(widths) - 1) - width
    while over > 0:
        widest = max((n for n in widths if widths[n] > least[n]), key=lambda n: widths[n], default=None)
        if widest is None:
            break
        widths[widest] -= 1
        over -= 1
    return ["  ".join(_fit(row[n], widths[n], _COLUMNS[n].right) for n in widths).rstrip() for row in lines]


def _columns(text: str) -> int:
    """How many columns of a terminal the text takes: East Asian characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _fit(text: str, width: int, right: bool) -> str:
    if _columns(text) > width:
        while _columns(text) > width - 1:
            text = text[:-1]
        text += "…"
    space = " " * (width - _columns(text))
    return space + text if right else text + space
