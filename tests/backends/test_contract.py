"""Every backend keeps the promises of ``roomkit/backends/base.py``: the contract suite on each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import pytest

from roomkit.backends.base import Backend, Commit, Ear, Events, Held, Lease, Listener, Outcome, Stored
from roomkit.backends.memory import MemoryBackend, MemoryStore
from roomkit.runtime import new_short_id
from roomkit.testing import BackendContract, ManualClock


class TestMemory(BackendContract):
    """The reference, by a clock driven by hand."""

    def setup_method(self) -> None:
        super().setup_method()
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock)

    def make_backend(self, lease_ttl: float) -> Backend:
        return MemoryBackend(self.store, lease_ttl=lease_ttl)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)


class OnRedis(BackendContract):
    """On a real server; each test under a prefix of its own."""

    url: str

    def setup_method(self) -> None:
        super().setup_method()
        self.prefix = f"test-{new_short_id()}:"

    def make_backend(self, lease_ttl: float) -> Backend:
        from roomkit.backends.redis import RedisBackend

        return RedisBackend(self.url, prefix=self.prefix, lease_ttl=lease_ttl, timeout=10)


class TestRedis(OnRedis):
    """One server."""

    @pytest.fixture(autouse=True)
    def on_a_server(self, redis_url: str) -> None:
        self.url = redis_url


class TestRedisCluster(OnRedis):
    """Three masters."""

    @pytest.fixture(autouse=True)
    def on_a_cluster(self, cluster_url: str) -> None:
        self.url = cluster_url


class NoFence(MemoryBackend):
    """Whoever had the lease once may commit."""

    def _is_current_locked(self, lease: Lease) -> bool:
        return lease.scope in self._store.scopes


class NoRevision(MemoryBackend):
    """Commits in any order."""

    def _commit_locked(self, step: Commit, restore: bool) -> Outcome:
        room = self._store.rooms.get(step.room_id)
        return super()._commit_locked(step._replace(revision=room.revision + 1 if room is not None else 1), restore)


class Forgetful(MemoryBackend):
    """Does not know a repeated commit again."""

    def _commit_locked(self, step: Commit, restore: bool) -> Outcome:
        outcome = super()._commit_locked(step, restore)
        room = self._store.rooms.get(step.room_id)
        if room is not None:
            room.token = -1
        return outcome


class NoLock(MemoryBackend):
    """Everybody gets the lease."""

    def _acquire_locked(self, instance: str, name: str, now: float) -> Lease | Held:
        self._store.scopes.pop(name, None)
        return super()._acquire_locked(instance, name, now)


class Endless(MemoryBackend):
    """A lease never ends."""

    def _acquire_locked(self, instance: str, name: str, now: float) -> Lease | Held:
        answer = super()._acquire_locked(instance, name, now)
        self._store.scopes[name].until = math.inf
        return answer


class SameToken(MemoryBackend):
    """Tokens do not rise."""

    def _acquire_locked(self, instance: str, name: str, now: float) -> Lease | Held:
        self._store.token = 0
        return super()._acquire_locked(instance, name, now)


class Overwriting(MemoryBackend):
    """A room is made where there is one."""

    def _commit_locked(self, step: Commit, restore: bool) -> Outcome:
        if step.revision == 1 and self._is_current_locked(step.lease):
            self._store.rooms.pop(step.room_id, None)
        return super()._commit_locked(step, restore)


class HalfRead(MemoryBackend):
    """A part of the events as if it were all."""

    def read(self, room_id: str, epoch: str, after: int, limit: int = 1000) -> Events | None:
        room = self._store.rooms.get(room_id)
        if room is None or room.position.epoch != epoch or after > room.position.seq:
            return None
        return Events(after + 1, tuple(room.events[-limit:][-(room.position.seq - after) :]))


class NoOrphans(MemoryBackend):
    """Forgets what an instance owned when it is gone."""

    def withdraw(self, name: str) -> None:
        super().withdraw(name)
        self._store.held.pop(name, None)


class StaleEvents(MemoryBackend):
    """A room that is made anew keeps the events of the one before."""

    def _commit_locked(self, step: Commit, restore: bool) -> Outcome:
        before = self._store.rooms.get(step.room_id)
        outcome = super()._commit_locked(step, restore)
        if outcome == "committed" and step.record is None and before is not None:
            self._store.rooms[step.room_id] = before
        return outcome


class NoCommands(MemoryBackend):
    """Forgets which commands it carried out."""

    def _commit_locked(self, step: Commit, restore: bool) -> Outcome:
        return super()._commit_locked(step._replace(acted=()), restore)


class CommandsUncut(MemoryBackend):
    """Tells of all commands, whatever is read."""

    def read(self, room_id: str, epoch: str, after: int, limit: int = 1000) -> Events | None:
        events = super().read(room_id, epoch, after, limit)
        return None if events is None else events._replace(acted=tuple(self._store.rooms[room_id].acted))


class Stale(MemoryBackend):
    """Who looks at a room sees it as it was made."""

    first: ClassVar[dict[str, Stored]] = {}

    def look(self, room_id: str) -> Stored | None:
        stored = super().look(room_id)
        return None if stored is None else self.first.setdefault(room_id, stored)


class HearsRefused(MemoryBackend):
    """Commits are heard before anybody knows whether they are stored."""

    def _seq_locked(self, step: Commit) -> int:
        self.looked = not getattr(self, "looked", False)
        return 0 if self.looked else step.position.seq


class Deaf(MemoryBackend):
    """Commits are never heard."""

    def _seq_locked(self, step: Commit) -> int:
        return 0


class Faithful(MemoryBackend):
    """Who followed once follows for ever."""

    def listen(self, name: str, listener: Listener) -> Ear:
        ear: Any = super().listen(name, listener)
        ear.unfollow = lambda room_ids: None
        return cast("Ear", ear)


class Twice(MemoryBackend):
    """Who follows twice hears twice."""

    def listen(self, name: str, listener: Listener) -> Ear:
        ear: Any = super().listen(name, listener)
        ear.follow = lambda room_ids: [self._store.followers.setdefault(one, []).append(ear) for one in room_ids]
        return cast("Ear", ear)


class Shouting(MemoryBackend):
    """Everybody hears every letter."""

    def send(self, letters: Sequence[tuple[str, bytes]]) -> list[bool]:
        super().send([(name, body) for _, body in letters for name in self._store.ears])
        return [name in self._store.ears for name, _ in letters]


class Backwards(MemoryBackend):
    """The last letter first."""

    def send(self, letters: Sequence[tuple[str, bytes]]) -> list[bool]:
        return super().send(letters[::-1])[::-1]


class Hopeful(MemoryBackend):
    """Every letter is said to be heard."""

    def send(self, letters: Sequence[tuple[str, bytes]]) -> list[bool]:
        return [True] * len(super().send(letters))


class Undead(MemoryBackend):
    """A closed backend goes on hearing."""

    def close(self) -> None:
        pass


BROKEN = [
    *(NoFence, NoRevision, Forgetful, NoLock, Endless, SameToken, Overwriting, HalfRead, NoOrphans, StaleEvents),
    *(NoCommands, CommandsUncut, Stale, HearsRefused, Deaf, Faithful, Twice, Shouting, Backwards, Hopeful, Undead),
]


@pytest.mark.parametrize("broken", BROKEN)
def test_the_contract_catches(broken: type[MemoryBackend]) -> None:
    """Backends that are wrong on purpose, one promise each: the suite fails on every one."""

    class OnBroken(TestMemory):
        patience = 0.2

        def make_backend(self, lease_ttl: float) -> Backend:
            return broken(self.store, lease_ttl=lease_ttl)

    failed = []
    for name in sorted(vars(BackendContract)):
        if name.startswith("test_"):
            suite = OnBroken()
            suite.setup_method()
            try:
                getattr(suite, name)()
            except (AssertionError, ValueError):
                failed.append(name)
            finally:
                suite.teardown_method()
    assert failed
