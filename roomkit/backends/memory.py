"""The memory backend: a store within one process. The reference for what ``base.py`` promises."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from roomkit.backends.base import (
    REMEMBERED,
    Acted,
    Commit,
    Ear,
    Events,
    Held,
    Instance,
    Lease,
    Listener,
    Outcome,
    Position,
    Stored,
)
from roomkit.errors import BackendUnavailable

log = logging.getLogger("roomkit.backends.memory")


class _Scope:
    __slots__ = ("instance", "token", "until")

    def __init__(self) -> None:
        self.instance = ""
        self.token = 0
        self.until = 0.0


class _Room:
    __slots__ = ("acted", "events", "position", "record", "revision", "token")

    def __init__(self, record: bytes, position: Position, revision: int, token: int) -> None:
        self.record = record
        self.position = position
        self.revision = revision
        self.token = token
        self.events: list[bytes] = []  # the last has the position's seq
        self.acted: list[Acted] = []  # in the order of their last events


class MemoryStore:
    """What backends share: their rooms, leases and instances. Lives as long as the process.

    Args:
        log_size: events kept of each room. clock: monotonic seconds.
    """

    def __init__(self, *, log_size: int = 1000, clock: Callable[[], float] = time.monotonic) -> None:
        self.log_size = log_size
        self.clock = clock
        self.lock = threading.Lock()
        # Guarded by lock:
        self.token = 0
        self.instances: dict[str, tuple[Instance, float]] = {}
        self.scopes: dict[str, _Scope] = {}
        self.held: dict[str, set[str]] = {}  # instance -> what it acquired and did not release
        self.rooms: dict[str, _Room] = {}
        self.taken_away: dict[str, float] = {}  # when; in this order
        self.ears: dict[str, list[_MemoryEar]] = {}  # by the name that they listen to
        self.followers: dict[str, list[_MemoryEar]] = {}  # by room


class _MemoryEar:
    """See ``base.Ear``. What is said waits in a queue, in the order in which it was said under the store's lock; the
    thread that said it hands it to the listener afterwards, or leaves it to the one that is at it.
    """

    def __init__(self, backend: MemoryBackend, store: MemoryStore, name: str, listener: Listener) -> None:
        self.backend = backend
        self._store = store
        self._name = name
        self._listener = listener
        # Guarded by the store's lock:
        self._closed = False
        self._queue: deque[tuple[str, str, Events] | bytes] = deque()
        self._is_speaking = False
        with store.lock:
            store.ears.setdefault(name, []).append(self)

    def say_locked(self, what: tuple[str, str, Events] | bytes) -> None:
        """To be spoken: a commit's room, epoch and events, or a letter."""
        self._queue.append(what)

    def speak(self) -> None:
        """Hand over what was said, unless another thread does."""
        with self._store.lock:
            if self._is_speaking:
                return
            self._is_speaking = True
        while True:
            with self._store.lock:
                if not self._queue:
                    self._is_speaking = False
                    return
                what = self._queue.popleft()
            try:
                if isinstance(what, bytes):
                    self._listener.hear_letter(what)
                else:
                    self._listener.hear_events(*what)
            except Exception:
                log.exception("a listener failed")

    def follow(self, room_ids: Sequence[str]) -> None:
        """See Ear."""
        with self._store.lock:
            if self._closed:
                raise BackendUnavailable("the ear is closed")
            for room_id in room_ids:
                followers = self._store.followers.setdefault(room_id, [])
                if self not in followers:
                    followers.append(self)

    def unfollow(self, room_ids: Sequence[str]) -> None:
        """See Ear."""
        with self._store.lock:
            self._unfollow_locked(room_ids)

    def _unfollow_locked(self, room_ids: Iterable[str]) -> None:
        for room_id in room_ids:
            _remove(self._store.followers, room_id, self)

    def close(self, timeout: float) -> bool:
        """See Ear. It has no threads."""
        with self._store.lock:
            self._closed = True
            self._queue.clear()
            _remove(self._store.ears, self._name, self)
            self._unfollow_locked([room_id for room_id, ears in self._store.followers.items() if self in ears])
        return True


def _remove(ears: dict[str, list[_MemoryEar]], key: str, ear: _MemoryEar) -> None:
    among = ears.get(key, [])
    if ear in among:
        among.remove(ear)
        if not among:
            del ears[key]


class MemoryBackend:
    """See the module and ``base.Backend``.

    Args:
        store: what it shares with other backends in this process (default: one of its own).
        lease_ttl: seconds for which a lease is had.

    Nothing blocks.

    Thread safety: full.
    """

    timeout = 0.0

    def __init__(self, store: MemoryStore | None = None, *, lease_ttl: float = 5.0) -> None:
        self.lease_ttl = lease_ttl
        self._store = store if store is not None else MemoryStore()

    def scope_of(self, room_id: str) -> str:
        """The room itself."""
        return room_id

    # Instances.

    def announce(self, instance: Instance) -> None:
        """See Backend."""
        with self._store.lock:
            self._store.instances[instance.name] = (instance, self._store.clock() + self.lease_ttl)

    def withdraw(self, name: str) -> None:
        """See Backend."""
        with self._store.lock:
            self._store.instances.pop(name, None)

    def instances(self) -> list[Instance]:
        """See Backend."""
        with self._store.lock:
            now = self._store.clock()
            return sorted(instance for instance, until in self._store.instances.values() if until > now)

    def orphans(self, limit: int = 1000) -> list[str]:
        """See Backend."""
        with self._store.lock:
            now = self._store.clock()
            found: list[str] = []
            for name, scopes in self._store.held.items():
                if name not in self._store.instances or self._store.instances[name][1] <= now:
                    found += scopes
            return found[:limit]

    # Leases.

    def acquire(self, instance: str, scopes: Sequence[str]) -> list[Lease | Held]:
        """See Backend."""
        with self._store.lock:
            now = self._store.clock()
            return [self._acquire_locked(instance, scope, now) for scope in scopes]

    def _acquire_locked(self, instance: str, name: str, now: float) -> Lease | Held:
        scope = self._store.scopes.setdefault(name, _Scope())
        if scope.until > now and scope.instance != instance:
            return Held(name, scope.instance, scope.until - now)
        self._forget_locked(scope.instance, name)
        self._store.held.setdefault(instance, set()).add(name)
        self._store.token += 1
        scope.instance, scope.token, scope.until = instance, self._store.token, now + self.lease_ttl
        return Lease(name, instance, scope.token, scope.until)

    def _forget_locked(self, instance: str, name: str) -> None:
        scopes = self._store.held.get(instance, set())
        scopes.discard(name)
        if not scopes:
            self._store.held.pop(instance, None)

    def _is_current_locked(self, lease: Lease) -> bool:
        scope = self._store.scopes.get(lease.scope)
        return scope is not None and scope.token == lease.token

    def renew(self, leases: Sequence[Lease]) -> list[Lease | None]:
        """See Backend."""
        with self._store.lock:
            until = self._store.clock() + self.lease_ttl
            renewed: list[Lease | None] = []
            for lease in leases:
                if self._is_current_locked(lease):
                    self._store.scopes[lease.scope].until = until
                    renewed.append(lease._replace(until=until))
                else:
                    renewed.append(None)
            return renewed

    def release(self, leases: Sequence[Lease], *, orphan: bool = False) -> None:
        """See Backend."""
        with self._store.lock:
            for lease in leases:
                if self._is_current_locked(lease):
                    if not orphan or lease.scope not in self._store.rooms:
                        self._forget_locked(lease.instance, lease.scope)
                    if lease.scope in self._store.rooms:
                        self._store.scopes[lease.scope].until = 0.0
                    else:
                        del self._store.scopes[lease.scope]  # tokens are unique over all scopes, so none comes again

    def holders(self, scopes: Sequence[str]) -> list[Held | None]:
        """See Backend."""
        with self._store.lock:
            now = self._store.clock()
            found: list[Held | None] = []
            for name in scopes:
                scope = self._store.scopes.get(name)
                held = scope is not None and scope.until > now
                found.append(Held(name, scope.instance, scope.until - now) if scope is not None and held else None)
            return found

    # Rooms.

    def open(self, lease: Lease, room_id: str) -> Stored | None:
        """See Backend."""
        return self.look(room_id)

    def look(self, room_id: str) -> Stored | None:
        """See Backend."""
        with self._store.lock:
            room = self._store.rooms.get(room_id)
            return None if room is None else Stored(room.record, room.position, room.revision, room.token)

    def commit(self, commits: Sequence[Commit]) -> list[Outcome]:
        """See Backend."""
        return self._commit(commits, restore=False)

    def restore(self, commits: Sequence[Commit]) -> list[Outcome]:
        """See Backend."""
        return self._commit(commits, restore=True)

    def _commit(self, commits: Sequence[Commit], restore: bool) -> list[Outcome]:
        outcomes: list[Outcome] = []
        told: dict[_MemoryEar, None] = {}
        with self._store.lock:
            for step in commits:
                before = self._seq_locked(step)
                outcomes.append(self._commit_locked(step, restore))
                if step.events and self._seq_locked(step) > before:  # it was told before, else
                    first = step.position.seq - len(step.events) + 1
                    events = Events(first, tuple(step.events), tuple(step.acted))
                    for ear in self._store.followers.get(step.room_id, ()):
                        ear.say_locked((step.room_id, step.position.epoch, events))
                        told[ear] = None
        for ear in told:
            ear.speak()
        return outcomes

    def _seq_locked(self, step: Commit) -> int:
        """How far the room is in the commit's epoch."""
        room = self._store.rooms.get(step.room_id)
        return 0 if room is None or room.position.epoch != step.position.epoch else room.position.seq

    def _commit_locked(self, step: Commit, restore: bool) -> Outcome:
        if not self._is_current_locked(step.lease):
            return "fenced"
        room = self._store.rooms.get(step.room_id)
        revision = 0 if room is None else room.revision
        if room is not None and (room.token, revision) == (step.lease.token, step.revision):
            return "committed"  # it was told before
        if room is None and step.record is None:
            return "committed"
        if revision >= step.revision if restore else revision != step.revision - 1:
            return "conflict"
        if restore and room is None and self._was_taken_away_locked(step.room_id):
            return "conflict"
        if step.record is None:
            del self._store.rooms[step.room_id]
            self._was_taken_away_locked(step.room_id)  # lets go of older ones
            self._store.taken_away.pop(step.room_id, None)  # it goes to the end
            self._store.taken_away[step.room_id] = self._store.clock()
            return "committed"
        if room is None or room.position.epoch != step.position.epoch:
            room = self._store.rooms[step.room_id] = _Room(step.record, Position(step.position.epoch, 0), 0, 0)
        known = step.position.seq - len(step.events) - room.position.seq  # below 0: so many events are there already
        if known > 0:
            room.events.clear()  # rather than a hole
        room.events += step.events[max(0, -known) :]
        del room.events[: max(0, len(room.events) - self._store.log_size)]
        first = step.position.seq - len(room.events) + 1
        room.acted += [one for one in step.acted if one.last > room.position.seq]
        while room.acted and room.acted[0].first < first:
            del room.acted[0]
        room.record, room.position, room.revision = step.record, step.position, step.revision
        room.token = step.lease.token
        return "committed"

    def _was_taken_away_locked(self, room_id: str) -> bool:
        taken_away, since = self._store.taken_away, self._store.clock() - REMEMBERED
        while taken_away and taken_away[oldest := next(iter(taken_away))] < since:
            del taken_away[oldest]
        return room_id in taken_away

    # Events.

    def positions(self, room_ids: Sequence[str]) -> list[Position | None]:
        """See Backend."""
        with self._store.lock:
            rooms = [self._store.rooms.get(room_id) for room_id in room_ids]
            return [None if room is None else room.position for room in rooms]

    def read(self, room_id: str, epoch: str, after: int, limit: int = 1000) -> Events | None:
        """See Backend."""
        with self._store.lock:
            room = self._store.rooms.get(room_id)
            if room is None or room.position.epoch != epoch:
                return None
            missing = room.position.seq - after
            if missing < 0 or missing > len(room.events):
                return None
            begin = len(room.events) - missing
            events = tuple(room.events[begin : begin + limit])
            last = after + len(events)
            acted = tuple(one for one in room.acted if one.first > after and one.last <= last)
            return Events(after + 1, events, acted)

    # Hearing.

    def listen(self, name: str, listener: Listener) -> Ear:
        """See Backend."""
        return _MemoryEar(self, self._store, name, listener)

    def send(self, letters: Sequence[tuple[str, bytes]]) -> list[bool]:
        """See Backend."""
        heard: list[bool] = []
        told: dict[_MemoryEar, None] = {}
        with self._store.lock:
            for name, body in letters:
                ears = self._store.ears.get(name, ())
                heard.append(bool(ears))
                for ear in ears:
                    ear.say_locked(bytes(body))
                    told[ear] = None
        for ear in told:
            ear.speak()
        return heard

    def close(self) -> None:
        """See Backend."""
        with self._store.lock:
            ears = [ear for among in self._store.ears.values() for ear in among if ear.backend is self]
        for ear in ears:
            ear.close(0)
