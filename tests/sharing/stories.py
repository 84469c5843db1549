"""What players were told, and whether it is true: held against the room's log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from roomkit.backends.base import Backend


class Story:
    """What one player was told, over all of its connections.

    Attributes:
        acked: its messages that were acknowledged, with the seq that it was told. got: (seq, type, message) of every
        event. resumed: how often it went on where it was.
    """

    def __init__(self, room_id: str, name: str) -> None:
        self.room_id = room_id
        self.name = name
        self.acked: dict[str, int] = {}
        self.got: list[tuple[int, str, str]] = []
        self.wrong: list[str] = []
        self.resumed = 0
        self.epoch: str | None = None
        self.seq = 0

    @property
    def known(self) -> dict[str, Any]:
        """What it says when it comes back."""
        return {} if self.epoch is None else {"epoch": self.epoch, "seq": self.seq}

    def take(self, welcome: dict[str, Any], events: Iterable[dict[str, Any]]) -> None:
        """What a connection brought, held against what it knew before."""
        self.welcomed(welcome)
        for event in events:
            self.hear(event)

    def welcomed(self, welcome: dict[str, Any]) -> None:
        """A connection begins."""
        if welcome["recovered"]:
            self.resumed += 1
        else:
            if self.epoch is not None:
                self.wrong.append(f"{self.name} could not resume from {self.seq}")
            self.seq = welcome["seq"]
        self.epoch = welcome["epoch"]

    def hear(self, event: dict[str, Any]) -> None:
        """The next event."""
        if event["seq"] != self.seq + 1:
            self.wrong.append(f"{self.name} got {event['seq']} after {self.seq}")
        self.seq = event["seq"]
        self.got.append((event["seq"], event["type"], name_of(event)))


def violations(backend: Backend, stories: Sequence[Story]) -> list[str]:
    """What must not be, in words. The backend keeps every event."""
    wrong = [text for story in stories for text in story.wrong]
    for room_id in sorted({story.room_id for story in stories}):
        log = read_log(backend, room_id)
        wrong += room_violations(room_id, log, [story for story in stories if story.room_id == room_id])
    return wrong


def room_violations(room_id: str, log: Sequence[dict[str, Any]] | None, stories: Iterable[Story]) -> list[str]:
    """What of that which its players were told is not so by its log, or that there is none."""
    if log is None:
        return [f"the log of {room_id} has a hole"]
    if [event["seq"] for event in log] != list(range(1, len(log) + 1)):
        return [f"the log of {room_id} is not in order"]
    names = [name_of(event) for event in log]
    often = Counter(name for name in names if name)
    wrong = [f"{name} is {count} times in the log of {room_id}" for name, count in often.items() if count > 1]
    for story in stories:
        for name, seq in story.acked.items():
            if seq > len(log) or names[seq - 1] != name:
                wrong.append(f"{name} was acknowledged with {seq} and is not there")
        for seq, kind, name in story.got:
            if seq > len(log) or (log[seq - 1]["type"], names[seq - 1]) != (kind, name):
                wrong.append(f"{story.name} was told {kind} {name} with {seq}, which is not in the log")
    return wrong


def read_log(backend: Backend, room_id: str) -> list[dict[str, Any]] | None:
    """Every event of a room, in the order in which they are stored; None: some are gone."""
    [position] = backend.positions([room_id])
    assert position is not None
    log: list[dict[str, Any]] = []
    while len(log) < position.seq:
        found = backend.read(room_id, position.epoch, len(log))
        if found is None:
            return None
        log += map(msgspec.json.decode, found.events)
    return log


def name_of(event: dict[str, Any]) -> str:
    """What an event was asked for by: a message's ``n``, the last part of a setting, who joined; else nothing."""
    data = event["data"]
    if event["type"] == "message":
        return str(data.get("data", {}).get("n", ""))
    if event["type"] == "settings_changed":
        return str(*data["settings"].values())
    return f"join {data['player']['id']}" if event["type"] == "player_joined" else ""
