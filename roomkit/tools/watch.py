"""``roomkit watch ROOM``: one room's events in the terminal, as they come.

It asks the server four times a second for what came after the last event that it has shown, so each comes once and in
order, and a room that is watched does no more work than one that is not. What is missing is told: events that the
server's history no longer has, a server that is away, a room that was made anew or is gone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from roomkit.core.ids import check_id
from roomkit.errors import InvalidId
from roomkit.log import escape
from roomkit.tools import remote
from roomkit.tools.console import CommandFailed, note, say
from roomkit.tools.remote import Refused, Remote, Unreachable

_INTERVAL = 0.25  # seconds between two questions
_FIRST_RETRY, _LONGEST_RETRY = 0.5, 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("room", metavar="ROOM", help="the room's id")
    remote.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line: the events, as players get them")


def run(arguments: argparse.Namespace) -> int:
    """Show events until the room is gone (0) or Ctrl-C (0); 1: it could not be watched from the first."""
    try:
        check_id(arguments.room, "a room's id")
    except InvalidId as error:
        raise CommandFailed(str(error), 2) from None
    with remote.from_arguments(arguments) as server:
        try:
            Watcher(server, arguments.room, arguments.json).watch(time.sleep)
        except KeyboardInterrupt:
            pass
    return 0


class Watcher:
    """Shows one room. Thread safety: none."""

    def __init__(self, server: Remote, room_id: str, as_json: bool = False) -> None:
        self._server = server
        self._room_id = room_id
        self._json = as_json
        self._epoch = ""
        self._seq: int | None = None

    def watch(self, pause: Callable[[float], object]) -> None:
        """Until the room is gone. ``pause(seconds)`` waits.

        Raises:
            CommandFailed: the first answer already was a refusal, or none came. OutputGone: nobody reads any more.
        """
        answer = self._ask(None)
        self._begin(answer)
        delay = 0.0
        while True:
            pause(delay or _INTERVAL)
            try:
                answer = self._ask(self._seq)
            except Refused as refused:
                if refused.http_status == 404:
                    note(f"the room {self._room_id} is gone")
                    return
                if refused.http_status not in (429, 503):
                    raise
                delay = self._wait_longer(delay, refused)
            except Unreachable as away:
                delay = self._wait_longer(delay, away)
            else:
                if delay:
                    note(f"{self._server.address} answers again")
                    delay = 0.0
                self._follow(answer)

    def _wait_longer(self, delay: float, why: CommandFailed) -> float:
        delay = min(_LONGEST_RETRY, 2 * delay or _FIRST_RETRY)
        note(f"{why}; trying again in {delay:g} s")
        return delay

    def _ask(self, after: int | None) -> dict[str, Any]:
        try:
            answer = self._server.get("api", "admin", "rooms", self._room_id, after=after)
        except Refused as refused:
            if refused.http_status == 404 and refused.code != "room_not_found":
                sentence = f"{self._server.address} has no admin pages: its setting dashboard is off"
                raise CommandFailed(sentence) from None
            raise
        if not isinstance(answer, dict) or not isinstance(answer.get("state"), dict):
            raise CommandFailed(f"{self._server.address} answered something else; is it a roomkit server?")
        return answer

    def _begin(self, answer: dict[str, Any]) -> None:
        """The heading, and the newest events that there are."""
        state = answer["state"]
        self._epoch = state["epoch"]
        if not self._json:
            for line in heading(state):
                say(line)
        self._seq = answer["events"][0]["seq"] - 1 if answer["events"] else state["seq"]
        self._show(answer)

    def _follow(self, answer: dict[str, Any]) -> None:
        if answer["state"]["epoch"] != self._epoch:
            note(f"the room {self._room_id} is another one now, made anew under the same id")
            self._seq = None
            self._begin(self._ask(None))
            return
        if answer["missed"]:
            note(f"{answer['missed']} events came too fast to be shown, and are left out here")
        self._show(answer)

    def _show(self, answer: dict[str, Any]) -> None:
        for event in answer["events"]:
            if event["seq"] > (self._seq or 0):
                self._seq = event["seq"]
                say(json.dumps(event) if self._json else event_line(event))


def heading(state: dict[str, Any]) -> Iterator[str]:
    """What the room is, in a few lines."""
    flags = [name for name in ("locked", "private", "has_password") if state[name]]
    yield escape(
        f"{state['id']}: {state['status']} ({state['lifecycle']}), seq {state['seq']}, since {state['created_at']}"
    )
    yield f"players {len(state['players'])} of {state['max_players']}" + "".join(f", {flag}" for flag in flags)
    for player in state["players"]:
        marks = [
            mark
            for mark, holds in (
                ("host", player["id"] == state["host"]),
                ("ready", player["ready"]),
                ("away", not player["connected"]),
            )
            if holds
        ]
        yield escape(f"  {player['id']}  {player['name']}" + (f"  ({', '.join(marks)})" if marks else ""))
    for name in ("settings", "metadata"):
        if state[name]:
            yield escape(f"{name} {_compact(state[name])}")


def event_line(event: dict[str, Any]) -> str:
    """``20:00:00.123     13  player_ready        {"player_id":"amy","ready":true}``; nothing that a terminal obeys."""
    moment = str(event["timestamp"]).partition("T")[2].rstrip("Z")
    note_of = f"  (replaced {event['conflated']} older)" if event.get("conflated") else ""
    return escape(f"{moment}  {event['seq']:>5}  {event['type']:<19}  {_compact(event['data'])}{note_of}")


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
