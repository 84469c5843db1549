"""What must hold: the truth about a room, written down as it happens, and what everybody is told held against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from roomkit.core import commands as c
from roomkit.core.events import CRITICAL_TYPES, Event
from roomkit.core.snapshot import RoomState
from roomkit.core.state import RoomMachine

from .scheduler import Scheduler, Task

#: The row of the table that a command stands under. The others stand under none.
OPERATIONS: dict[type, str] = {
    c.AddPlayer: "add_player",
    c.Join: "add_player",
    c.RemovePlayer: "remove_player",
    c.Kick: "remove_player",
    c.ExpireNext: "remove_player",
    c.SetPlayerReady: "set_player_ready",
    c.UpdateSettings: "select_song",
    c.StartGame: "start_game",
    c.FinishGame: "finish_game",
    c.Close: "close",
}

#: These may close a room from any status.
MAY_CLOSE = (c.Close, c.Transfer, c.ExpireNext)


class Truth:
    """One room's events in the order in which its machine made them, and its state after each change."""

    def __init__(self, scheduler: Scheduler, machine: RoomMachine) -> None:
        self.scheduler = scheduler
        self.machine = machine
        self.events: list[Event] = []
        self.keys: list[object] = []  # by which an event may have been replaced; None: by none
        self.states: dict[int, RoomState] = {machine.seq: machine.snapshot()}
        self.settled = 0  # the last event of an operation that has returned
        self.inside: Task | None = None
        self.last_now = 0.0

    @property
    def seq(self) -> int:
        return len(self.events)

    def fail(self, kind: str, text: str) -> None:
        self.scheduler.fail(kind, f"room {self.machine.id}: {text}")

    # The machine, before and after a command.

    def enter(self, now: float) -> tuple[Any, ...]:
        me = self.scheduler.current
        if self.inside is not None:
            self.fail("two writers at once", f"{self.inside.name} and {me.name} change it")
        self.inside = me
        if now < self.last_now:
            self.fail("time went back", f"from {self.last_now} to {now}")
        self.last_now = now
        return self._digest()

    def _digest(self) -> tuple[Any, ...]:
        machine = self.machine
        return machine.seq, machine.status, machine.host, tuple(machine.seats), machine.connected_count, machine.locked

    def refused(self, before: tuple[Any, ...], error: BaseException) -> None:
        self.inside = None
        if self._digest() != before:
            self.fail("refused and yet changed", f"{error!r}: {before} became {self._digest()}")

    def applied(self, before: tuple[Any, ...], command: c.Command, events: list[Event]) -> None:
        self.inside = None
        machine = self.machine
        if machine.config.max_players < len(machine.seats):
            self.fail("over capacity", f"{len(machine.seats)} players, {machine.config.max_players} seats")
        if machine.seats and machine.host not in machine.seats:
            self.fail("host", f"{machine.host!r} is not among {list(machine.seats)}")
        if machine.connected_count != sum(seat.connected for seat in machine.seats.values()):
            self.fail("count of the connected", str(machine.connected_count))
        self._check_status(str(before[1]), command, events)
        for event in events:
            if event.seq != self.seq + 1:
                self.fail("numbers", f"{event.type} has number {event.seq} after {self.seq}")
            self.events.append(event)
            key = command.key if type(command) is c.SendMessage else None
            self.keys.append(None if key is None else (event.data["player_id"], key))
        if events:
            self.states[machine.seq] = machine.snapshot()

    def _check_status(self, before: str, command: c.Command, events: list[Event]) -> None:
        machine = self.machine
        lifecycle = machine.lifecycle
        if before == lifecycle.closed and events:
            self.fail("closed for good", f"{events[0].type} after the end")
        told = before
        for event in events:
            if event.type == "room_status":
                if event.data["previous"] != told:
                    self.fail("status", f"told as {told}, then as {event.data['previous']}")
                told = event.data["status"]
        if told != machine.status:
            self.fail("status", f"told as {told}, is {machine.status}")
        if told != before:
            cell = lifecycle.table[before].get(OPERATIONS.get(type(command), ""), ())
            ways = {str(rule.status) for rule in cell}
            if isinstance(command, MAY_CLOSE):
                ways.add(lifecycle.closed)
            if told not in ways:
                self.fail("transition", f"{before} -> {told} by {type(command).__name__} is not in the table")

    def has_just_joined(self, player_id: str, seq: int) -> bool:
        """Whether the seat is new at ``seq``: the change that ends there has made it."""
        last = self.events[max(0, seq - 3) : seq]
        return any(event.type == "player_joined" and event.data["player"]["id"] == player_id for event in last)

    # What others say of it.

    def check_state(self, state: RoomState | dict[str, Any], at_least: int, who: str) -> None:
        """A snapshot that somebody got (as it is, or over the wire) is one that was, none of before ``at_least``."""
        seq = state.seq if isinstance(state, RoomState) else state["seq"]
        if seq < at_least:
            self.fail("stale read", f"{who} got the state of {seq} after {at_least} was there")
        known = self.states.get(seq)
        if known is None:
            self.fail("half a change", f"{who} got the state of {seq}, which is within a change")
        elif state != (known if isinstance(state, RoomState) else known.to_dict()):
            self.fail("half a change", f"{who} got {state} for {known}")


class Stream:
    """What one listener has been told of a room since event ``start``, in order.

    Between two events that it got, those that it did not get are a *window*. All of a window's events are droppable
    ones, and each was either announced by a gap notice in the window, or has a key and was replaced by a later one.
    """

    def __init__(self, truth: Truth, who: str, start: int, *, lossy: bool = False) -> None:
        self.truth = truth
        self.who = who
        self.start = start
        self.lossy = (
            lossy  # a subscriber with a bound of its own: critical events may be left out too, and are announced
        )
        self.known = start  # a replay went so far: a gap that tells of older ones as well is in place
        self.last = start
        self.got = 0
        self.replaced = 0
        self.announced: Counter[str] = Counter()
        self._told: Counter[str] = Counter()  # in this window
        self._earlier: Counter[str] = Counter()  # what a gap of this window may tell of before ``start``

    def fail(self, kind: str, text: str) -> None:
        self.truth.fail(kind, f"{self.who}: {text}")

    def event(self, kind: str, seq: int, data: Mapping[str, Any], conflated: int = 0) -> None:
        if seq <= self.last:
            self.fail("twice or out of order", f"event {seq} ({kind}) after {self.last}")
        if seq > self.truth.seq:
            self.fail("unheard of", f"event {seq} ({kind}), and the room is at {self.truth.seq}")
        known = self.truth.events[seq - 1]
        if known.type != kind or known.data != data:
            self.fail("another event", f"{seq} is {kind} {data}, was {known}")
        self._close_window(seq - 1)
        if conflated:
            key = self.truth.keys[seq - 1]
            if key is None or self.truth.keys[: seq - 1].count(key) < conflated:
                self.fail("replaced", f"event {seq} says that it replaced {conflated}")
            self.replaced += conflated
        self.last = seq
        self.got += 1

    def gap(self, after: int, dropped: int, types: Mapping[str, int]) -> None:
        if dropped != sum(types.values()) or dropped < 1:
            self.fail("gap", f"{dropped} dropped: {types}")
        if after < self.last:
            if self.last > self.known:
                self.fail("gap in the wrong place", f"it tells of what came after {after}, told after {self.last}")
            self._earlier.update(event.type for event in self.truth.events[after : self.known])
        self._told.update(types)
        self.announced.update(types)

    def _close_window(self, upto: int) -> None:
        told = self._told
        if upto == self.last and not told:
            return
        plain: Counter[str] = Counter()
        keyed: Counter[str] = Counter()
        for event, key in zip(self.truth.events[self.last : upto], self.truth.keys[self.last : upto], strict=True):
            if event.type in CRITICAL_TYPES and not self.lossy:
                self.fail("critical event lost", f"{event.type} {event.seq}")
            (plain if key is None else keyed)[event.type] += 1
        for kind in {**plain, **told}:
            if told[kind] < plain[kind]:
                missing = f"{plain[kind]} of {kind} between {self.last} and {upto + 1}"
                self.fail("dropped in silence", f"{missing} did not come, {told[kind]} announced")
            if told[kind] > plain[kind] + keyed[kind] + self._earlier[kind]:
                missing = f"{plain[kind] + keyed[kind]} of {kind} between {self.last} and {upto + 1}"
                self.fail("announced, not dropped", f"{missing} did not come, {told[kind]} announced")
        told.clear()
        self._earlier.clear()

    def finish(self, end: int) -> None:
        """Nothing more will come, and it was to be told everything up to ``end``."""
        if self.last > end:
            self.fail("after the end", f"event {self.last}, the end is {end}")
        self._close_window(end)
        self.last = end
