"""Redis against the memory backend: the same calls in any order give the same answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from support.needs import need_package

from roomkit.backends.base import Acted, Backend, Commit, Instance, Lease, Position
from roomkit.backends.memory import MemoryBackend
from roomkit.runtime import new_short_id

ROOMS = ["a", "b", "c"]
NAMES = ["one", "two"]
LONG = 600.0  # seconds: no lease ends by itself in a test

rooms = st.sampled_from(ROOMS)
names = st.sampled_from(NAMES)


class Side:
    """One backend, and the leases that its instances believe they have, newest last."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.leases: dict[str, list[Lease]] = {room: [] for room in ROOMS}

    def acquire(self, name: str, wanted: list[str]) -> list[object]:
        answers: list[object] = []
        for room, answer in zip(wanted, self.backend.acquire(name, wanted), strict=True):
            if isinstance(answer, Lease):
                older = self.leases[room]
                answers.append(("lease", answer.scope, answer.instance, all(answer.token > one.token for one in older)))
                older.append(answer)
            else:
                answers.append(("held", answer.scope, answer.instance))
        return answers

    def lease(self, room: str, which: int) -> Lease:
        """One that was had, or one that never was."""
        had = self.leases[room]
        return had[max(-len(had), -1 - which)] if had else Lease(room, "one", 1, 0.0)

    def opened(self, room: str) -> object:
        """The room as it is stored, and under which of its leases: tokens themselves differ from store to store."""
        stored = self.backend.open(self.lease(room, 0), room)
        return stored and (*stored[:3], [lease.token for lease in self.leases[room]].index(stored.token))

    def look(self) -> object:
        """All that can be seen."""
        backend = self.backend
        held = [None if held is None else held.instance for held in backend.holders(ROOMS)]
        opened = [self.opened(room) for room in ROOMS]
        read = [
            backend.read(room, epoch, after, limit)
            for room in ROOMS
            for epoch in ("e1", "e2")
            for after, limit in ((0, 1000), (2, 1000), (0, 2))
        ]
        whole = [piece if piece is None or len(piece.events) < 2 else piece.events[:2] for piece in read[2::3]]
        looked = [stored and stored[:3] for stored in map(backend.look, ROOMS)]
        return (
            held,
            opened,
            looked,
            read[0::3],
            read[1::3],
            whole,
            backend.positions(ROOMS),
            sorted(backend.orphans()),
            backend.instances(),
        )


class Pair(RuleBasedStateMachine):
    """The same of both, and the same seen afterwards."""

    redis_url = ""

    def __init__(self) -> None:
        super().__init__()
        from roomkit.backends.redis import RedisBackend

        self.sides = [
            Side(MemoryBackend(lease_ttl=LONG)),
            Side(RedisBackend(self.redis_url, prefix=f"test-{new_short_id()}:", lease_ttl=LONG, timeout=10)),
        ]

    def teardown(self) -> None:
        for side in self.sides:
            side.backend.close()

    def both(self, call: Any) -> None:
        one, two = [call(side) for side in self.sides]
        assert one == two

    @initialize()
    def begin(self) -> None:
        self.both(lambda side: [side.backend.announce(Instance(name, f"http://{name}")) for name in NAMES])

    @rule(name=names, wanted=st.lists(rooms, unique=True))
    def acquire(self, name: str, wanted: list[str]) -> None:
        self.both(lambda side: side.acquire(name, wanted))

    @rule(room=rooms, which=st.integers(0, 2))
    def renew(self, room: str, which: int) -> None:
        self.both(lambda side: [lease is not None for lease in side.backend.renew([side.lease(room, which)])])

    @rule(room=rooms, which=st.integers(0, 2), orphan=st.booleans())
    def release(self, room: str, which: int, orphan: bool) -> None:
        self.both(lambda side: side.backend.release([side.lease(room, which)], orphan=orphan))

    @rule(name=names, alive=st.booleans())
    def come_or_go(self, name: str, alive: bool) -> None:
        if alive:
            self.both(lambda side: side.backend.announce(Instance(name, f"http://{name}")))
        else:
            self.both(lambda side: side.backend.withdraw(name))

    @rule(
        room=rooms,
        which=st.sampled_from([0, 0, 0, 1, 2]),
        epoch=st.sampled_from(["e1", "e1", "e2"]),
        ahead=st.sampled_from([1, 1, 1, 1, 0, 2]),
        count=st.integers(0, 3),
        gone=st.sampled_from([False, False, False, True]),
    )
    def commit(self, room: str, which: int, epoch: str, ahead: int, count: int, gone: bool) -> None:
        """Mostly the commit that follows; sometimes an old lease's, a repeated one, one too many, a removal."""
        self.both(lambda side: side.backend.commit([self.step(side, room, which, epoch, ahead, count, gone)]))

    @rule(room=rooms, which=st.integers(0, 1), ahead=st.integers(0, 4), count=st.integers(0, 6))
    def restore(self, room: str, which: int, ahead: int, count: int) -> None:
        self.both(lambda side: side.backend.restore([self.step(side, room, which, "e1", ahead, count, False)]))

    def step(self, side: Side, room: str, which: int, epoch: str, ahead: int, count: int, gone: bool) -> Commit:
        lease = side.lease(room, which)
        stored = side.backend.open(lease, room)
        known, revision = (stored.position, stored.revision) if stored is not None else (Position(epoch, 0), 0)
        if stored is not None and ahead != 1:
            epoch = known.epoch  # another one follows a removal only
        seq = (known.seq if known.epoch == epoch else 0) + count
        events = [b'{"seq":%d}' % n for n in range(seq - count + 1, seq + 1)]
        record = None if gone else b'{"of":"%b","seq":%d}' % (room.encode(), seq)
        acted = [Acted(f"c{n}", n, n) for n in range(seq - count + 1, seq + 1)]
        if count > 1:
            acted.append(Acted("all", seq - count + 1, seq))
        return Commit(lease, room, Position(epoch, seq), revision + ahead, record, events, acted)

    @invariant()
    def the_same_is_seen(self) -> None:
        self.both(Side.look)


@pytest.fixture
def pair(redis_url: str) -> type[Pair]:
    """The machine, on the server."""
    need_package("redis")
    Pair.redis_url = redis_url
    return Pair


def test_redis_answers_as_the_memory_backend(pair: type[Pair]) -> None:
    """Leases, commits in and out of turn, restored and removed rooms, cursors, instances that come and go."""
    run_state_machine_as_test(pair, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))
