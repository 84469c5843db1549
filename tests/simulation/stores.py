"""The store of a simulated world: roomkit's own in memory, what is written down of it, and the way to it, which fails.

A room's log as it was accepted is the truth of shared rooms: nobody may be told what is not in it at that moment.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from roomkit import BackendUnavailable
from roomkit.backends.base import Acted, Commit, Events, Held, Lease, Outcome
from roomkit.backends.memory import MemoryBackend, MemoryStore

from . import primitives as p
from .scheduler import Scheduler

if TYPE_CHECKING:
    from .sharing import SharedWorld


class Log:
    """What was accepted of one life of a room, in order."""

    def __init__(self, begin: int, seats: set[str]) -> None:
        self.events: list[dict[str, Any]] = [{"seq": 0, "type": "before", "data": {}}] * begin
        self.names: dict[str, int] = {}  # of messages: their seq
        self.first = frozenset(seats)
        self.seats = set(seats)
        self.had = set(seats)  # who ever sat there
        self.token = 0
        self.removed = False

    def append(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        _seat(self.seats, event)
        self.had |= self.seats

    def seats_at(self, seq: int) -> set[str]:
        """Who sat there after this event."""
        seats = set(self.first)
        for event in self.events[:seq]:
            _seat(seats, event)
        return seats


def _seat(seats: set[str], event: Mapping[str, Any]) -> None:
    if event["type"] == "player_joined":
        seats.add(event["data"]["player"]["id"])
    elif event["type"] == "player_left":
        seats.discard(event["data"]["player_id"])


class Ledger:
    """Everything that the store accepted, and what must hold of it. Takes no lock, is no switch point."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.logs: dict[tuple[str, str], Log] = {}  # by room and epoch
        self.newest: dict[str, int] = {}  # the token of each scope's last lease
        self.committers: dict[int, str] = {}  # by token
        self.steps: dict[tuple[str, int, int], Commit] = {}  # by room, token and revision
        self.refused: set[str] = set()  # messages whose sender was told that nothing has changed
        self.acted: dict[str, tuple[str, Acted]] = {}  # by the command's id: of which epoch, and what

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
            if before[4:] != step[4:]:  # record, events, acted
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
        record = json.loads(step.record)
        seats = {seat["id"] for seat in record.get("seats", ())}
        log = self.logs.get((room_id, epoch))
        if log is None:
            # Some sit down before anybody else can find the room: nobody is told, and the log begins after that.
            log = self.logs[room_id, epoch] = Log(seq - len(step.events), seats if not step.events else set())
        if log.removed:
            self.fail("taken away, and there again", f"{room_id} in epoch {epoch}")
        log.token = token
        if seq - len(step.events) != len(log.events):
            self.fail("a hole in the log", f"{room_id}: {len(step.events)} up to {seq} after {len(log.events)}")
        for text in step.events:
            self._append(room_id, log, json.loads(text))
        if (record["epoch"], record["seq"]) != (epoch, seq):
            self.fail("record and log", f"{room_id}: a record of {record['seq']} at {seq}")
        for one in step.acted:
            known = self.acted.setdefault(one.id, (epoch, one))
            if known != (epoch, one):
                self.fail("acted twice", f"{one} in {epoch}, and before {known}")
            if not seq - len(step.events) < one.first <= one.last <= seq:
                self.fail("acted elsewhere", f"{one} in the step up to {seq}")
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

    def check_acknowledged(self, room_id: str, epoch: str, name: str, seq: int) -> None:
        """A message's sender is told that it is there, with its number."""
        log = self.logs.get((room_id, epoch))
        known = None if log is None else log.names.get(name)
        if known != seq:
            self.fail("told, not stored", f"{name} is said to be {seq} of {room_id}, the store has it at {known}")
        self.check_stored(room_id, epoch, seq, f"the answer to {name}")

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
            be heard. mute: calls go on, what would be heard is lost. When one is over, the listener is told. dead: it
            is down for ever, since nobody is left to use it.
        frozen: the chance that a call stands still for so long as ``pause`` says, before it acts or before its answer
            is there. loss: that a letter is lost. lag: that what is heard comes later, by up to ``lateness`` seconds.
    """

    def __init__(self, world: SharedWorld, inner: Watched, name: str) -> None:
        bounds = world.bounds
        self.world = world
        self.inner = inner
        self.timeout = bounds.timeout
        self.rng = random.Random(f"{name} {world.seed}")
        self.ears: list[UnsteadyEar] = []
        self.down = self.deaf = self.mute = self.dead = False
        self.frozen = self.pause = 0.0
        self.loss, self.lag, self.lateness = bounds.loss, bounds.lag, bounds.lateness

    def hears(self) -> bool:
        return not (self.down or self.deaf or self.mute)

    def become(self, *, down: bool = False, deaf: bool = False, mute: bool = False) -> None:
        """All that is not named is over."""
        heard = self.hears()
        self.down, self.deaf, self.mute = down or self.dead, deaf, mute
        for ear in list(self.ears):
            if not self.hears():
                ear.lose()
            elif not heard:
                ear.say_again()

    def die(self) -> None:
        self.dead = True
        self.become(down=True)

    def steady(self) -> None:
        self.frozen = self.loss = self.lag = 0.0
        self.become()

    def send(self, letters: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Some are lost on the way, one by one."""
        sent: list[bool] = []

        def some() -> list[bool]:
            for name, body in letters:
                if self.loss and self.rng.random() < self.loss:
                    self.world.outcomes["letter lost"] += 1
                    sent.append(True)
                else:
                    sent.extend(self.inner.send([(name, body)]))
            return sent

        return list(self.wrapped("send", some)())

    def listen(self, name: str, listener: Any) -> UnsteadyEar:
        """Never fails, as the backend's does not."""
        self.world.scheduler.point("backend", "listen")
        ear = UnsteadyEar(self, name, listener)
        self.ears.append(ear)
        return ear

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
            if self.deaf or self.dead:
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
    """What an instance hears with: two connections to the store, one for events and one for letters, each with a thread
    that hands over what came, sooner or later. So a letter may overtake an event, and what is under way may be lost.
    """

    def __init__(self, way: Unsteady, name: str, listener: Any) -> None:
        self._way = way
        self._listener = listener
        late = way.rng.choice(((True, True), (True, False), (False, True)))
        self._feeds = [Feed(way, f"roomkit-feed-{number}", late[number - 1]) for number in (1, 2)]
        self._inner = way.inner.listen(name, self)
        self.say_again()  # it is there for the first time

    # Of the store, by whoever commits or sends.

    def hear_events(self, room_id: str, epoch: str, events: Events) -> None:
        if self._way.hears():
            self._feeds[0].say(lambda: self._listener.hear_events(room_id, epoch, events))

    def hear_letter(self, body: bytes) -> None:
        if self._way.hears():
            self._feeds[1].say(lambda: self._listener.hear_letter(body))

    def hear_again(self) -> None:
        """Never: the store in memory has no connections."""

    # Of the way.

    def say_again(self) -> None:
        if self._way.hears():
            for feed in self._feeds:
                feed.say(self._listener.hear_again)

    def lose(self) -> None:
        for feed in self._feeds:
            feed.lose()

    # Of the instance.

    def follow(self, room_ids: Sequence[str]) -> None:
        """While it is down: heard as soon as it is over, but not confirmed."""
        if self._way.down:
            self._inner.follow(room_ids)
        self._way.wrapped("follow", self._inner.follow)(room_ids)

    def unfollow(self, room_ids: Sequence[str]) -> None:
        self._inner.unfollow(room_ids)

    def close(self, timeout: float) -> bool:
        if self in self._way.ears:
            self._way.ears.remove(self)
        self._inner.close(timeout)
        ended = [feed.stop(timeout) for feed in self._feeds]
        return all(ended)


class Feed:
    """A connection on which an instance hears, and the thread that reads it."""

    def __init__(self, way: Unsteady, name: str, may_be_late: bool) -> None:
        self._way = way
        self._may_be_late = may_be_late
        self._condition = p.Condition(p.Lock("simulation"))
        self._said: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._thread = p.Thread(target=self._run, name=name)
        self._thread.start()

    def say(self, what: Callable[[], None]) -> None:
        with self._condition:
            self._said.append(what)
            self._condition.notify()

    def lose(self) -> None:
        self._way.world.outcomes["not heard"] += len(self._said)
        self._said.clear()

    def stop(self, timeout: float) -> bool:
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        way, scheduler = self._way, self._way.world.scheduler
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._said or self._stopping)
                if self._stopping:
                    return
            if self._may_be_late and way.lag and way.rng.random() < way.lag:
                way.world.outcomes["heard late"] += 1
                scheduler.sleep(way.rng.random() * way.lateness)
            if not self._said:  # lost meanwhile
                continue
            what = self._said.popleft()
            p.check_no_locks(scheduler, "a listener")
            scheduler.point("heard", self._thread.name)
            what()
            if scheduler.current.held:
                scheduler.fail("left locked", f"a listener returned with {scheduler.current.held}")
