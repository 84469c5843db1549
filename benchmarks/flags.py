"""First disaster: a status made of six flags against one table of transitions."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from benchmarks.result import SEED, Bars, Result, Table
from roomkit import Room, RoomkitError

SEATS = 4
PEOPLE = [f"p{n}" for n in range(6)]  # two more than there are seats: strangers want in as well
STEPS = 60  # operations on each room


class Refused(Exception):
    """The flags said no."""


class Tried(Protocol):
    """What is tried: the operations of a game."""

    @property
    def join(self) -> Callable[[str], object]: ...
    @property
    def leave(self) -> Callable[[str], object]: ...
    @property
    def ready(self) -> Callable[[str], object]: ...
    @property
    def start(self) -> Callable[[], object]: ...
    @property
    def finish(self) -> Callable[[], object]: ...
    def statuses(self) -> list[str]: ...


class FlagRoom:
    """The design's first room: each operation sets the flags that its author thought of."""

    def __init__(self) -> None:
        self.waiting, self.preparing, self.is_ready = True, False, False
        self.playing, self.finished, self.closed = False, False, False
        self.players: dict[str, bool] = {}
        self.known: set[str] = set()

    def join(self, player: str) -> None:
        if self.playing and player not in self.known:  # who has been here may come back
            raise Refused
        if len(self.players) >= SEATS or player in self.players:
            raise Refused
        self.players[player] = False
        self.known.add(player)
        self.waiting = False
        self.preparing = True  # and ready is forgotten

    def leave(self, player: str) -> None:
        if player not in self.players:
            raise Refused
        del self.players[player]
        if not self.players:
            self.preparing = False
            self.waiting = True

    def ready(self, player: str) -> None:
        if player not in self.players or not self.preparing:
            raise Refused
        self.players[player] = True
        if len(self.players) == SEATS and all(self.players.values()):
            self.preparing = False
            self.is_ready = True

    def start(self) -> None:
        if not self.is_ready:
            raise Refused
        self.is_ready = False
        self.playing = True

    def finish(self) -> None:
        if not self.playing:
            raise Refused
        self.playing = False
        self.finished = True

    def statuses(self) -> list[str]:
        flags = {
            "waiting": self.waiting,
            "preparing": self.preparing,
            "ready": self.is_ready,
            "playing": self.playing,
            "finished": self.finished,
            "closed": self.closed,
        }
        return [name for name, is_set in flags.items() if is_set]


class ResetRoom(FlagRoom):
    """The repair of that night: the join clears all the other flags first."""

    def join(self, player: str) -> None:
        super().join(player)
        self.waiting = self.is_ready = self.playing = self.finished = self.closed = False


class TableRoom:
    """roomkit."""

    def __init__(self) -> None:
        self.room = Room("room")
        self.join = self.room.add_player
        self.leave = self.room.remove_player
        self.ready = self.room.set_player_ready
        self.start = self.room.start_game
        self.finish = self.room.finish_game

    def statuses(self) -> list[str]:
        return [str(self.room.status)]


def replay(make: Callable[[], Tried], rooms: int) -> dict[str, int]:
    """The same random walks over each kind of room; what went wrong, in rooms (but ``steps`` in operations)."""
    chance = random.Random(SEED)
    wrong = dict.fromkeys(("contradictory", "steps", "started_twice", "joined_playing", "lost_game", "games"), 0)
    for _ in range(rooms):
        room = make()
        seen: set[str] = set()
        on = False  # whether a game was started and not finished, as the players saw it
        for _ in range(STEPS):
            what, who = chance.choices(("join", "ready", "start", "finish", "leave"), (5, 6, 3, 2, 1))[0], _who(chance)
            try:
                getattr(room, what)(*([who] if what in ("join", "ready", "leave") else []))
            except (Refused, RoomkitError):
                continue
            statuses = room.statuses()
            wrong["steps"] += len(statuses) != 1
            if len(statuses) != 1:
                seen.add("contradictory")
            if what == "start":
                seen.add("games")
                if on:
                    seen.add("started_twice")
                on = True
            elif what == "finish":
                on = False
            elif what == "join" and on:
                seen.add("joined_playing")
                if "playing" not in statuses:
                    seen.add("lost_game")
                    on = False
        for name in seen:
            wrong[name] += 1
    return wrong


def _who(chance: random.Random) -> str:
    return chance.choice(PEOPLE)


def run(quick: bool = False) -> Result:
    """Random walks over rooms of each kind."""
    rooms = 150 if quick else 2000
    kinds: dict[str, Callable[[], Tried]] = {
        "six flags": FlagRoom,
        "six flags, reset on join": ResetRoom,
        "one table (roomkit)": TableRoom,
    }
    found = {name: replay(make, rooms) for name, make in kinds.items()}
    headers = ["a status made of", "rooms", "contradictory", "share", "started twice", "joined while playing"]
    headers += ["game lost by a join"]
    rows = [
        [
            name,
            rooms,
            wrong["contradictory"],
            f"{100 * wrong['contradictory'] / rooms:.0f} %",
            wrong["started_twice"],
            wrong["joined_playing"],
            wrong["lost_game"],
        ]
        for name, wrong in found.items()
    ]
    labels = ["six flags", "flags, reset", "one table"]
    shown = {
        "contradictory": "contradictory",
        "started_twice": "started twice",
        "joined_playing": "joined while playing",
        "lost_game": "game lost by a join",
    }
    panel = Bars(
        "Rooms in which it happened",
        labels,
        {text: [100 * wrong[key] / rooms for wrong in found.values()] for key, text in shown.items()},
        "% of the rooms",
    )
    return Result(
        "flags",
        "1. Six flags against one table",
        [Table(f"The same {STEPS} random operations on each room; rooms in which it happened", headers, rows)],
        [panel],
        [
            "The flags are the design's, with what it forgot. Resetting them all on a join repairs less than it "
            "breaks: a player who comes back ends the game of the others. The table has no such row to forget. The "
            "shares depend on how often people do what; that the last row is nought does not."
        ],
        {f"{key}: {name}": float(value) for name, wrong in found.items() for key, value in wrong.items()},
    )
