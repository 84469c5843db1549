"""The store of a simulated world: roomkit's own in memory, what is written down of it, and the way to it, which fails.

A room's log as it was accepted is the truth of shared rooms: nobody may be told what is not in it at that moment.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from roomkit import BackendUnavailable
from roomkit.backends.base import Commit, Events, Held, Lease, Outcome
from roomkit.backends.memory import MemoryBackend, MemoryStore

from . import primitives as p
from .scheduler import Scheduler

if TYPE_CHECKING:
    from .sharing import SharedWorld


class Log:
    """What was accepted of one life of a room, in order."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.names: dict[str, int] = {}  # of messages: their seq
        self.seats: set[str] = set()
        self.token = 0
        self.removed = False

    def append(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        data = event["data"]
        if event["type"] == "player_joined":
            self.seats.add(data["player"]["id"])
        elif event["type"] == "player_left":
            self.seats.discard(data["player_id"])


class Ledger:
    """Everything that the store accepted, and what must hold of it. Takes no lock, is no switch point."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.logs: dict[tuple[str, str], Log] = {}  # by room and epoch
        self.newest: dict[str, int] = {}  # the token of each scope's last lease
        self.committers: dict[int, str] = {}  # by token
        self.steps: dict[tuple[str, int, int], Commit] = {}  # by room, token and revision
        self.refused: set[str] = set()  # messages whose sender was told that nothing has changed

    def fail(self, kind: str, text: str) -> None:
        self.scheduler.fail(kind, text)

    def leased(self, lease: Lease | Held) -> None:
        if isinstance(lease, Lease):
            if lease.token <= self.newest.get(lease.scope, 0):
                self.fail("tokens rise", f"{lease} after {self.newest[lease.scope]}")
            self.newest[lease.scope] = lease.token

    def committed(self, step: Commit) -> None:
        """The store answers so."""
        room_id, token = step.room_id, step.lease.token
        before = self.steps.setdefault((room_id, token, step.revision), step)
        if before is not step:
            if (before.record, before.events) != (step.record, step.events):
                self.fail("stored again, and another", f"revision {step.revision} of {room_id} under token {token}")
            return
        if token != self.newest[step.lease.scope]:
            self.fail("the fence", f"{room_id} under token {token}, the newest is {self.newest[step.lease.scope]}")
        if self.committers.setdefault(token, step.lease.instance) != step.lease.instance:
            self.fail("two owners", f"{room_id}: {self.committers[token]} and {step.lease.instance}, token {token}")
        epoch, seq = step.position
        if step.record is None:
            if (log := self.logs.get((room_id, epoch))) is not None:
                log.removed = True
            return
        log = self.logs.setdefault((room_id, epoch), Log())
        if log.removed:
            self.fail("taken away, and there again", f"{room_id} in epoch {epoch}")
        log.token = token
        if seq - len(step.events) != len(log.events):
            self.fail("a hole in the log", f"{room_id}: {len(step.events)} up to {seq} after {len(log.events)}")
        for text in step.events:
            self._append(room_id, log, json.loads(text))
        record = json.loads(step.record)
        if (record["epoch"], record["seq"]) != (epoch, seq):
            self.fail("record and log", f"{room_id}: a record of {record['seq']} at {seq}")
        seats = {seat["id"] for seat in record.get("seats", ())}
        if seats != log.seats:
            self.fail("record and log", f"{room_id} at {seq}: {sorted(seats)} in it, {sorted(log.seats)} by the log")

    def _append(self, room_id: str, log: Log, event: dict[str, Any]) -> None:
        if event["seq"] != len(log.events) + 1:
            self.fail("a hole in the log", f"{room_id}: {event['seq']} after {len(log.events)}")
        log.append(event)
        name = message_of(event)
        if name:
            if name in log.names:
                self.fail("twice in the log", f"{name} in {room_id}")
            log.names[name] = event["seq"]
            self.check_refused(name)

    def refuse(self, name: str) -> None:
        """Its sender was told that nothing has changed."""
        self.refused.add(name)
        if any(name in log.names for log in self.logs.values()):
            self.check_refused(name)

    def check_refused(self, name: str) -> None:
        if name in self.refused:
            self.fail("refused and yet done", f"message {name} is in the log")

    def length(self, room_id: str, epoch: str) -> int:
        """How many events are stored at this moment; -1: the room is not."""
        log = self.logs.get((room_id, epoch))
        return -1 if log is None else len(log.events)

    def check_stored(self, room_id: str, epoch: str, seq: int, who: str) -> None:
        if self.length(room_id, epoch) < seq:
            self.fail("told, not stored", f"{who}: {seq} of {room_id}, the store has {self.length(room_id, epoch)}")

    def check_told(self, room_id: str, epoch: str, event: Mapping[str, Any], who: str) -> None:
        """Somebody hears of an event."""
        self.check_stored(room_id, epoch, event["seq"], who)
        known = self.logs[room_id, epoch].events[event["seq"] - 1]
        if (known["type"], known["data"]) != (event["type"], event["data"]):
            self.fail("another event", f"{who} got {event}, stored is {known}")


def message_of(event: Mapping[str, Any]) -> str:
    """The name of a message, which is its own; nothing: it is another event."""
    return str(event["data"]["data"]["n"]) if event["type"] == "message" else ""


class Watched(MemoryBackend):
    """roomkit's own, and what it accepts is written down in the same step."""

    def __init__(self, ledger: Ledger, store: MemoryStore, lease_ttl: float) -> None:
        super().__init__(store, lease_ttl=lease_ttl)
        self._ledger = ledger

    def _acquire_locked(self, instance: str, name: str, now: float) -> Lease | Held:
        lease = super()._acquire_locked(instance, name, now)
        self._ledger.leased(lease)
        return lease

    def _commit_locked(self, step: Commit, restore: bool) -> Outcome:
        had = step.room_id in self._store.rooms
        outcome = super()._commit_locked(step, restore)
        if outcome == "committed" and (had or step.record is not None):
            self._ledger.committed(step)
        return outcome

    def orphans(self, limit: int = 1000) -> list[str]:
        return sorted(super().orphans(limit))  # from a set, which has another order in each process


class Unsteady:
    """The way of one instance to the store.

    Attributes:
        down: no call comes through, nothing is heard. deaf: every call acts, and its answer is lost, as is what would
            be heard; when either is over, the listener is told. frozen: the chance that a call stands still for so long
            as ``pause`` says, before it acts or before its answer is there.
    """

    def __init__(self, world: SharedWorld, inner: Watched, timeout: float, name: str) -> None:
        self.world = world
        self.inner = inner
        self.timeout = timeout
        self.rng = random.Random(f"{name} {world.seed}")
        self.listeners: list[Any] = []
        self._down = self._deaf = False
        self.frozen = self.pause = 0.0

    @property
    def down(self) -> bool:
        return self._down

    @down.setter
    def down(self, down: bool) -> None:
        self._set(down, self._deaf)

    @property
    def deaf(self) -> bool:
        return self._deaf

    @deaf.setter
    def deaf(self, deaf: bool) -> None:
        self._set(self._down, deaf)

    def steady(self) -> None:
        self.frozen = 0.0
        self._set(False, False)

    def hears(self) -> bool:
        return not (self._down or self._deaf)

    def _set(self, down: bool, deaf: bool) -> None:
        heard = self.hears()
        self._down, self._deaf = down, deaf
        if self.hears() and not heard:
            for listener in list(self.listeners):
                listener.hear_again()

    def listen(self, name: str, listener: Any) -> UnsteadyEar:
        """Never fails, as the backend's does not."""
        self.world.scheduler.point("backend", "listen")
        self.listeners.append(listener)
        return UnsteadyEar(self, name, listener)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.inner, name)
        return self.wrapped(name, attribute) if callable(attribute) and name != "scope_of" else attribute

    def wrapped(self, name: str, attribute: Callable[..., Any]) -> Callable[..., Any]:
        """The method, by the way that fails."""

        def call(*args: Any, **options: Any) -> Any:
            scheduler = self.world.scheduler
            p.check_no_locks(scheduler, f"the backend's {name}()")
            scheduler.point("backend", name)
            if self.down:
                self._no_answer(name)
            self._stand_still()
            answer = attribute(*args, **options)
            if self.deaf:
                self._no_answer(name)
            self._stand_still()
            scheduler.point("answered", name)
            return answer

        return call

    def _no_answer(self, name: str) -> None:
        self.world.outcomes[f"no answer: {name}"] += 1
        self.world.scheduler.sleep(self.timeout)
        raise BackendUnavailable(f"{name}() got no answer")

    def _stand_still(self) -> None:
        if self.frozen and self.rng.random() < self.frozen:
            self.world.outcomes["stands still"] += 1
            self.world.scheduler.sleep(self.pause)


class UnsteadyEar:
    """The way back. Who speaks is the thread that commits or sends, under no lock."""

    def __init__(self, way: Unsteady, name: str, listener: Any) -> None:
        self._way = way
        self._listener = listener
        self._inner = way.inner.listen(name, self)

    def hear_events(self, room_id: str, epoch: str, events: Events) -> None:
        if self._comes_through("hear_events"):
            self._listener.hear_events(room_id, epoch, events)

    def hear_letter(self, body: bytes) -> None:
        if self._comes_through("hear_letter"):
            self._listener.hear_letter(body)

    def hear_again(self) -> None:
        if self._comes_through("hear_again"):
            self._listener.hear_again()

    def _comes_through(self, name: str) -> bool:
        scheduler = self._way.world.scheduler
        p.check_no_locks(scheduler, f"the listener's {name}()")
        scheduler.point("heard", name)
        return self._way.hears()

    def follow(self, room_ids: Sequence[str]) -> None:
        """While it is down: heard as soon as it is over, but not confirmed."""
        if self._way.down:
            self._inner.follow(room_ids)
        self._way.wrapped("follow", self._inner.follow)(room_ids)

    def unfollow(self, room_ids: Sequence[str]) -> None:
        self._inner.unfollow(room_ids)

    def close(self, timeout: float) -> bool:
        if self._listener in self._way.listeners:
            self._way.listeners.remove(self._listener)
        return bool(self._inner.close(timeout))
