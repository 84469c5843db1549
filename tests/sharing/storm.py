"""A storm: players who go on playing while instances are cut off, frozen, drained and come back; and what must hold.

Every player keeps its Story; at the end :meth:`Storm.violations` holds them against the rooms' logs.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from stories import Story, violations
from support.fakes import PATIENCE, Wire, eventually
from support.unsteady import Unsteady

from roomkit import RoomConfig, RoomkitError, RoomManager
from roomkit.backends.base import Backend
from roomkit.core import commands as c

TTL = 0.3
_PLAYERS = 4
_ROOMS = 2


class Player(Story):
    """Plays in one room, wherever that is, on a thread of its own."""

    def __init__(self, storm: Storm, room_id: str, name: str) -> None:
        super().__init__(room_id, name)
        self._storm = storm
        self._sent = 0
        self._token: str | None = None
        self.thread = threading.Thread(target=self._run, name=f"player-{name}", daemon=True)

    def _run(self) -> None:
        while not self._storm.over.is_set():
            wire = Wire()
            try:
                room = self._storm.find(self.room_id)
                joined = room.join(self.name, wire, token=self._token, **self.known)
                self._token = joined.player.token
                wire.wait(lambda it: it.messages or it.closes)
                while not wire.closes and not self._storm.over.is_set():
                    self._send(room)
                    self._storm.over.wait(0.001)
            except RoomkitError:
                self._storm.over.wait(0.01)
            messages = list(wire.messages)
            if messages and messages[0]["type"] != "welcome":
                self.wrong.append(f"{self.name} got {messages[0]['type']} before its welcome")
            elif messages:
                self.take(messages[0]["data"], messages[1:])

    def _send(self, room: Any) -> None:
        self._sent += 1
        name = f"{self.name}.{self._sent}"
        done = threading.Event()

        def acked(seq: int) -> None:
            self.acked[name] = seq
            done.set()

        room.submit(c.SendMessage(self.name, {"n": name}, None), acked, lambda error: done.set())
        if random.random() < 0.5:
            done.wait(0.1)


class Storm:
    """See the module.

    Args:
        make_backend: one on the store that all share, with this lease_ttl.
    """

    def __init__(self, seed: int, make_backend: Callable[[float], Backend], seconds: float) -> None:
        self.over = threading.Event()
        self._random = random.Random(seed)
        self._make_backend = make_backend
        self._seconds = seconds
        self._managers: list[tuple[RoomManager, Unsteady]] = []
        self.players: list[Player] = []
        self.faults: list[str] = []
        self.plays_on = False  # whether everybody did, after it

    def _instance(self) -> None:
        backend: Any = Unsteady(self._make_backend(TTL))
        config = RoomConfig(max_players=_PLAYERS, history_size=100_000, queue_size=10_000)
        rooms = RoomManager(config, backend=backend, instance="i")
        rooms.start_cleanup()
        self._managers.append((rooms, backend))

    def find(self, room_id: str) -> Any:
        """The room, at whichever instance has it; RoomkitError: at none for now."""
        managers = [rooms for rooms, _ in self._managers]
        random.shuffle(managers)
        for rooms in managers:
            room = rooms.find_room(room_id)
            if room is not None and random.random() < 0.8:
                return room
        return managers[0].get_room(room_id)

    def run(self) -> Storm:
        """Let it rage, then let everything calm down and be stored."""
        for _ in range(3):
            self._instance()
        for n in range(_ROOMS):
            self._managers[0][0].create_room(f"r{n}")
        self.players = [Player(self, f"r{n}", f"p{n}{k}") for n in range(_ROOMS) for k in range(_PLAYERS)]
        for player in self.players:
            player.thread.start()
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            self._fault()
        for _, backend in self._managers:
            backend.down = False
            backend.deaf.clear()
        known = [len(player.acked) for player in self.players]
        with suppress(AssertionError):  # calm() tells
            eventually(lambda: self._play_on(known))
        self.plays_on = self._play_on(known)
        self.over.set()
        for player in self.players:
            player.thread.join(PATIENCE)
        for rooms, _ in self._managers:
            rooms.shutdown(5.0, spread=0.0)
        return self

    def _play_on(self, known: list[int]) -> bool:
        """Whether something more was acknowledged to everybody."""
        return all(len(player.acked) > before + 1 for player, before in zip(self.players, known, strict=True))

    def _fault(self) -> None:
        """One fault for as long as it lasts."""
        rooms, backend = self._random.choice(self._managers)
        fault = self._random.choice(["cut off", "cut off", "deaf", "drain", "slow", "calm"])
        self.faults.append(fault)
        pause = self._random.uniform(0.1, 1.0) * 2 * TTL
        if fault == "cut off":
            backend.down = True
            self.over.wait(pause)
            backend.down = False
        elif fault == "deaf":
            backend.deaf.update(("commit", "renew", "acquire"))
            self.over.wait(pause / 4)
            backend.deaf.clear()
        elif fault == "slow":  # its commit stands still, then acts: much too late, perhaps
            with backend.holding():
                self.over.wait(pause)
        elif fault == "drain":
            self._managers.remove((rooms, backend))
            self._instance()
            rooms.shutdown(5.0, spread=0.0)
        else:
            self.over.wait(TTL / 4)

    def violations(self) -> list[str]:
        """What must not be, in words."""
        return violations(self._make_backend(60.0), self.players)


def calm(storm: Storm) -> None:
    """It was a storm, and nothing was lost in it."""
    assert storm.violations() == []
    assert storm.plays_on
    assert any(player.resumed for player in storm.players)
    eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("player-")])
