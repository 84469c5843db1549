"""What players were told, and whether it is true: held against the room's log."""

from __future__ import annotations

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
        if welcome["recovered"]:
            self.resumed += 1
        else:
            if self.epoch is not None:
                self.wrong.append(f"{self.name} could not resume from {self.seq}")
            self.seq = welcome["seq"]
        self.epoch = welcome["epoch"]
        for event in events:
            if event["seq"] != self.seq + 1:
                self.wrong.append(f"{self.name} got {event['seq']} after {self.seq}")
            self.seq = event["seq"]
            self.got.append((event["seq"], event["type"], _message(event)))


def violations(backend: Backend, stories: Sequence[Story]) -> list[str]:
    """What must not be, in words. The backend keeps every event."""
    wrong = [text for story in stories for text in story.wrong]
    for room_id in sorted({story.room_id for story in stories}):
        log = _log(backend, room_id)
        if log is None:
            wrong.append(f"the log of {room_id} has a hole")
            continue
        if [event["seq"] for event in log] != list(range(1, len(log) + 1)):
            wrong.append(f"the log of {room_id} is not in order")
            continue
        names = [_message(event) for event in log]
        said = [name for name in names if name]
        if len(said) != len(set(said)):
            wrong.append(f"a message is twice in the log of {room_id}")
        for story in stories:
            if story.room_id != room_id:
                continue
            for name, seq in story.acked.items():
                if seq > len(log) or names[seq - 1] != name:
                    wrong.append(f"{name} was acknowledged with {seq} and is not there")
            for seq, kind, name in story.got:
                if seq > len(log) or (log[seq - 1]["type"], names[seq - 1]) != (kind, name):
                    wrong.append(f"{story.name} was told {kind} {name} with {seq}, which is not in the log")
    return wrong


def _log(backend: Backend, room_id: str) -> list[dict[str, Any]] | None:
    [position] = backend.positions([room_id])
    assert position is not None
    log: list[dict[str, Any]] = []
    while len(log) < position.seq:
        found = backend.read(room_id, position.epoch, len(log))
        if found is None:
            return None
        log += map(msgspec.json.decode, found.events)
    return log


def _message(event: dict[str, Any]) -> str:
    return str(event["data"].get("data", {}).get("n", ""))
