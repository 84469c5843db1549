"""What a seed makes of a scenario: how many there are, what they do how often, and how tight the bounds are."""

from __future__ import annotations

import random

from roomkit import RoomConfig

#: ``any`` is one of these; ``sharing`` is a world of its own (sharing.py), and ``following`` the same with more that is
#: asked, heard late or not at all.
ANY = ("mixed", "drops", "resume", "expiry", "shutdown", "crowd", "server", "switch")
SHARED = ("sharing", "following")
#: Most players come by a session (sessions.py); some do too wherever there are I/O threads.
SESSIONS = "sessions"
SCENARIOS = (*ANY, SESSIONS, *SHARED)
#: Who drains the rooms: threads of theirs, the server's I/O threads, or these once the former have been at work.
BROADCASTERS = ("library", "server", "switch")


class Knobs:
    """What a seed makes of a scenario."""

    def __init__(self, rng: random.Random, scenario: str, more: random.Random | None = None) -> None:
        """``more``: what was added later is drawn from it, so that the seeds before that are what they were."""
        more = more or random.Random(0)
        self.scenario = scenario if scenario != "any" else rng.choices(ANY, (4, 4, 4, 3, 3, 2, 2, 2))[0]
        kind = self.scenario
        self.players = rng.randint(3, 5) if kind != "crowd" else rng.randint(5, 7)
        self.steps = rng.randint(6, 18)
        self.rooms = rng.choice((1, 1, 2, 3)) if kind != "drops" else 1
        self.pause = rng.choice((0.0, 0.01, 0.2)) if kind != "expiry" else rng.choice((0.2, 1.0))
        self.hiccup = {"drops": 0.3, "resume": 0.1}.get(kind, rng.choice((0.0, 0.1)))
        self.linger = rng.choice((5.0, 0.05, 0.0))
        self.failing = rng.choice((0.0, 0.0, 0.02))
        self.observed = rng.random() < 0.7
        self.abrupt = kind == "shutdown" or rng.random() < 0.1
        self.aged = not self.abrupt and (kind == "expiry" or rng.random() < 0.2)
        self.max_rooms = rng.choice((0, 3, 4))
        self.per_owner = rng.choice((0, 1, 2))
        queue_size = rng.randint(1, 6) if kind == "drops" else rng.choice((3, 8, 100))
        max_players = rng.randint(1, 3) if kind == "crowd" else rng.randint(2, 5)
        short = kind == "expiry"
        self.config = RoomConfig(
            max_players=max_players,
            min_players=rng.randint(1, max_players),
            queue_size=queue_size,
            queue_ceiling=rng.choice((None, None, queue_size * 2)),
            history_size=rng.choice((0, 3, 12, 1000, 1000)),
            max_lifetime=rng.choice((3, 30, 60)) if short else 60,
            closed_ttl=rng.choice((0, 0.5, 2)),
            empty_ttl=rng.choice((0.3, 2)) if short else rng.choice((2, 20)),
            finished_ttl=rng.choice((0.2, 1)),
            reconnect_grace=rng.choice((0.1, 1)) if short else rng.choice((0.5, 5, 30)),
            reservation_ttl=rng.choice((0.1, 2)),
            busy_timeout=rng.choice((0.05, 0.5)),
        )
        weights = dict(_WEIGHTS)
        if kind == "drops":
            weights.update(message=30, keyed=25, close=0, leave=1, kick=0)
        elif kind == "resume":
            weights.update(drop=25, message=15, keyed=5, close=0, kick=0)
        elif kind == "crowd":
            weights.update(leave=15, drop=8, close=0, lock=1)
        elif kind == "switch":
            weights.update(host=10, close=4, transfer=6)
        self.broadcaster = kind if kind in BROADCASTERS else rng.choices(BROADCASTERS, (10, 1, 1))[0]
        self.io_threads = rng.choice((1, 1, 2))
        self.max_rounds = rng.choice((1, 2, 16))
        self.lines = rng.choice((0.5, 0.9, 1.0))  # the share of connections that are the server's
        self.sessions = more.choice((0.0, 0.0, 0.5))  # the share of these that have a RoomSession
        self.over_rate = more.choice((0.0, 0.0, 0.05))
        self.stalling = more.choice((0.0, 0.02, 0.1))
        self.vanishing = more.choice((0.0, 0.1))
        self.holds = (0.0, 0.01)  # how long a room is read
        if kind == SESSIONS:
            weights.update(more.choice(({}, {"drop": 25, "message": 15, "hold": 10}, {"keyed": 20, "close": 0})))
            self.sessions = more.choice((0.6, 1.0))
            self.lines = max(self.lines, 0.9)
            self.broadcaster = more.choice(("server", "server", "server", "switch"))
            self.holds = more.choice(((0.0, 0.01), (0.1, 0.6)))
            weights["hold"] = more.choice((2, 12))
        self.operations = tuple(weights)
        self.weights = tuple(weights.values())

    def __str__(self) -> str:
        shown = {k: v for k, v in vars(self).items() if k not in ("operations", "weights", "config")}
        return ", ".join(f"{name}={value}" for name, value in shown.items()) + f"\n{self.config}"


_WEIGHTS = {
    "message": 12,
    "keyed": 8,
    "ready": 12,
    "song": 6,
    "settings": 3,
    "start": 8,
    "finish": 5,
    "drop": 8,
    "leave": 3,
    "kick": 3,
    "lock": 3,
    "close": 1,
    "transfer": 2,
    "host": 2,
    "look": 6,
    "hold": 2,
    "catch_up": 3,
}
