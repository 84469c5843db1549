"""Faults, each with a name: what is done to instances, their network, their people and the store, and undone again.

A fault is a function that yields once, while it lasts. What it does is drawn beforehand from the seed's random numbers,
so that a seed means the same faults in the same order, however fast the machine is.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from fence import Watch
from fleet import Berth, Fleet
from people import Person
from support.valkey import ValkeyServer

_TWO = ("kill, and another in a black hole", "kill, and another deaf")  # at two instances
Fault = Callable[[], AbstractContextManager[None]]


def _wait(seconds: float) -> None:
    """The time that a fault lasts; not a wait for anything."""
    threading.Event().wait(seconds)


class Weather:
    """Makes faults for a fleet and the people at it.

    Args:
        kinds: the names of those that may be; none: all that this store allows.
    """

    def __init__(
        self, rng: random.Random, fleet: Fleet, people: list[Person], watch: Watch | None, kinds: tuple[str, ...] = ()
    ) -> None:
        self._random = rng
        self._fleet = fleet
        self._people = people
        self._watch = watch
        store = fleet.store
        kinds_of = {
            "kill": self._kill,
            "freeze": self._freeze,
            "freeze past the lease": self._freeze_long,
            "drain": self._drain,
            "cut off": self._cut_off,
            "cut off past the lease": self._cut_off_long,
            "black hole": self._black_hole,
            "black hole past the lease": self._black_hole_long,
            "people lose their connections": self._lose_people,
            _TWO[0]: self._kill_and_black_hole,
            _TWO[1]: self._kill_and_deafen,
            "deaf": self._deaf,
        }
        if store.servers:
            kinds_of |= {
                "store: subscriptions lost": self._kill_subscriptions,
                "store: other connections lost": self._kill_connections,
                "store: frozen": self._freeze_store,
                "store: killed and restarted": self._restart_store,
            }
        if store.cluster is not None:
            kinds_of |= {"store: failover": self._fail_over, "store: master killed": self._kill_master}
        unknown = set(kinds) - set(kinds_of)
        assert not unknown, unknown
        self._kinds = {name: make for name, make in kinds_of.items() if not kinds or name in kinds}
        self._left: list[str] = []
        self._free: list[Berth] = []

    def next(self) -> list[tuple[str, Fault]]:
        """The next faults, at once: mostly one, sometimes two that do not meet at the same instance, or in the store.
        Each kind comes once, in random order, before any comes again.
        """
        self._free = list(self._fleet.berths)
        faults = [self._draw()]
        if self._random.random() < 0.3 and self._goes_with(faults[0][0], self._peek()):
            faults.append(self._draw())
        return faults

    def _goes_with(self, one: str, other: str) -> bool:
        in_store = one.startswith("store:") and other.startswith("store:")
        return not in_store and len(self._free) >= (2 if other in _TWO else 1)

    def _peek(self) -> str:
        if not self._left:
            self._left = sorted(self._kinds)
            self._random.shuffle(self._left)
        return self._left[-1]

    def _draw(self) -> tuple[str, Fault]:
        name = self._peek()
        self._left.pop()
        return name, contextmanager(self._kinds[name]())

    def _berth(self) -> Berth:
        berth = self._random.choice(self._free)
        self._free.remove(berth)
        return berth

    def _short(self) -> float:
        return self._random.uniform(0.2, 0.8) * self._fleet.ttl

    def _long(self) -> float:
        return self._random.uniform(1.2, 2.2) * self._fleet.ttl

    # Instances.

    def _kill(self) -> Callable[[], Iterator[None]]:
        berth, pause = self._berth(), self._short()

        def fault() -> Iterator[None]:
            berth.signal(signal.SIGKILL)
            _wait(pause)
            yield
            berth.renew().stop()

        return fault

    def _stopped(self, pause: float) -> Callable[[], Iterator[None]]:
        berth = self._berth()

        def fault() -> Iterator[None]:
            berth.signal(signal.SIGSTOP)
            try:
                _wait(pause)
                yield
            finally:
                berth.signal(signal.SIGCONT)

        return fault

    def _freeze(self) -> Callable[[], Iterator[None]]:
        return self._stopped(self._short())

    def _freeze_long(self) -> Callable[[], Iterator[None]]:
        return self._stopped(self._long())

    def _drain(self) -> Callable[[], Iterator[None]]:
        berth = self._berth()

        def fault() -> Iterator[None]:
            berth.renew().stop()
            yield

        return fault

    # Networks.

    def _without_store(self, loses: Callable[[Berth], None], pause: float) -> Callable[[], Iterator[None]]:
        berth = self._berth()

        def fault() -> Iterator[None]:
            loses(berth)
            try:
                _wait(pause)
                yield
            finally:
                berth.mend()

        return fault

    def _cut_off(self) -> Callable[[], Iterator[None]]:
        return self._without_store(Berth.cut, self._short())

    def _cut_off_long(self) -> Callable[[], Iterator[None]]:
        return self._without_store(Berth.cut, self._long())

    def _black_hole(self) -> Callable[[], Iterator[None]]:
        return self._without_store(Berth.hold, self._short())

    def _black_hole_long(self) -> Callable[[], Iterator[None]]:
        return self._without_store(Berth.hold, self._long())

    def _deaf(self) -> Callable[[], Iterator[None]]:
        return self._without_store(Berth.deafen, self._random.choice((self._short(), self._long())))

    def _lose_people(self) -> Callable[[], Iterator[None]]:
        some = [person for person in self._people if self._random.random() < 0.7]

        def fault() -> Iterator[None]:
            for person in some:
                person.lose.set()
            yield

        return fault

    def _kill_and_black_hole(self) -> Callable[[], Iterator[None]]:
        return self._kill_and(Berth.hold, self._short())

    def _kill_and_deafen(self) -> Callable[[], Iterator[None]]:
        """Until somebody has the rooms of the one that was killed: what that carried out last, and the other did not
        hear of, is asked for again there.
        """

        def loses(berth: Berth) -> None:
            berth.deafen()
            _wait(0.2)  # what it asks for now it does not hear of
            berth.cut()

        return self._kill_and(loses, self._long())

    def _kill_and(self, loses: Callable[[Berth], None], pause: float) -> Callable[[], Iterator[None]]:
        one, other = self._berth(), self._berth()

        def fault() -> Iterator[None]:
            with ExitStack() as stack:
                loses(other)
                stack.callback(other.mend)
                _wait(0.03)  # what it has asked for is carried out
                one.signal(signal.SIGKILL)
                _wait(pause)
            yield
            one.renew().stop()

        return fault

    # The store.

    def _server(self) -> ValkeyServer:
        cluster = self._fleet.store.cluster
        if cluster is None:
            return self._fleet.store.servers[0]
        return cluster.master_of(self._random.randrange(len(cluster.shards)))

    def _kill_subscriptions(self) -> Callable[[], Iterator[None]]:
        def fault() -> Iterator[None]:
            for server in self._fleet.store.servers:
                server.ask("CLIENT", "KILL", "TYPE", "pubsub")
            yield

        return fault

    def _kill_connections(self) -> Callable[[], Iterator[None]]:
        def fault() -> Iterator[None]:
            for server in self._fleet.store.servers:
                for row in (server.ask("CLIENT", "LIST", "TYPE", "normal") or b"").splitlines():
                    if row.startswith(b"id=") and b" cmd=monitor " not in row:
                        server.ask("CLIENT", "KILL", "ID", row[3:].split()[0].decode())
            yield

        return fault

    def _freeze_store(self) -> Callable[[], Iterator[None]]:
        server, pause = self._server(), self._random.choice((self._short(), self._long()))
        is_one_of_many = self._fleet.store.cluster is not None
        if is_one_of_many:  # less than it takes until its replica takes over, and it executes what it had got before
            pause = min(pause, 0.6)

        def fault() -> Iterator[None]:
            server.freeze()
            try:
                _wait(pause)
                if not is_one_of_many:  # else another fault that goes on meanwhile would make it longer
                    yield
            finally:
                server.thaw()
            if is_one_of_many:
                yield

        return fault

    def _restart_store(self) -> Callable[[], Iterator[None]]:
        server, pause = self._server(), self._short()
        if self._fleet.store.cluster is not None:
            pause = 0.0

        def fault() -> Iterator[None]:
            with self._unseen(server):
                server.kill()
                _wait(pause)
            if self._fleet.store.cluster is not None:
                self._fleet.store.cluster.wait_in_sync()
            yield

        return fault

    @contextmanager
    def _unseen(self, server: ValkeyServer) -> Iterator[None]:
        """While it is down and until it is watched again nobody gets to it, so that nothing it does is missed."""
        at = [port for _, port in self._fleet.store.addresses].index(server.port)
        networks = [berth.networks[at] for berth in self._fleet.berths]
        for network in networks:
            network.cut()
        yield
        server.start()
        if self._watch is not None:
            self._watch.attach(server.port)
        for network in networks:
            network.restore()

    def _fail_over(self) -> Callable[[], Iterator[None]]:
        cluster = self._fleet.store.cluster
        assert cluster is not None
        shard = self._random.randrange(len(cluster.shards))

        def fault() -> Iterator[None]:
            cluster.fail_over(shard)
            yield
            cluster.wait_in_sync()

        return fault

    def _kill_master(self) -> Callable[[], Iterator[None]]:
        cluster = self._fleet.store.cluster
        assert cluster is not None
        shard = self._random.randrange(len(cluster.shards))

        def fault() -> Iterator[None]:
            server = cluster.master_of(shard)
            with self._unseen(server):
                server.kill()
                cluster.wait_for_master(shard, server)
                yield
            cluster.wait_in_sync()

        return fault
