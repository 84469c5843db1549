"""Instances as processes on a real Valkey or Redis, killed, frozen, woken and drained while people play."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from stories import Story, violations
from support.fakes import PATIENCE, eventually
from support.needs import need_package
from support.rest import request
from support.serve import ServeProcess
from support.valkey import ValkeyServer
from support.ws import Closed, HandshakeFailed, WsClient

from roomkit.runtime import new_short_id

TTL = 1.0
_ROOMS = 3
_PLAYERS = 2  # in each


class WsPlayer(Story):
    """Plays over WebSockets, at whichever instance takes it."""

    def __init__(self, table: Table, room_id: str, name: str) -> None:
        super().__init__(room_id, name)
        self.token = secrets.token_urlsafe(16)
        self.last_ack = 0.0
        self.longest = 0.0  # seconds between two acknowledgements
        self.codes: set[int] = set()  # with which its connections were closed
        self.errors: set[str] = set()
        self._table = table
        self._sent = 0
        self.thread = threading.Thread(target=self._run, name=f"player-{name}", daemon=True)

    def _run(self) -> None:
        turn = 0
        while not self._table.over.is_set():
            ports = list(self._table.ports)
            turn += 1
            try:
                client = WsClient(
                    ("127.0.0.1", ports[turn % len(ports)]),
                    room_id=self.room_id,
                    player_id=self.name,
                    token=self.token,
                    patience=2 * TTL,
                    **self.known,
                )
            except (OSError, HandshakeFailed, Closed):
                self._table.over.wait(0.02)  # before the next try
                continue
            with client:
                self._play(client)
                if client.welcome:
                    if self._table.over.is_set():
                        with suppress(Closed, OSError):
                            client.until_seq(client.do("state")["seq"])
                    self.take(client.welcome, client.events)

    def _play(self, client: WsClient) -> None:
        try:
            client.expect("welcome")
            while not self._table.over.is_set():
                self._sent += 1
                name = f"{self.name}.{self._sent}"
                answer = client.ask("message", {"n": name})
                if answer["type"] == "error":
                    self.errors.add(answer["data"]["code"])
                    continue
                self.acked[name] = answer["data"]["seq"]
                now = time.monotonic()
                if self.last_ack:
                    self.longest = max(self.longest, now - self.last_ack)
                self.last_ack = now
                self._table.over.wait(0.02)  # no faster than a client may send
        except Closed as closed:
            self.codes.add(closed.code)
            self._table.over.wait(0.02)
        except (OSError, TimeoutError):  # frozen: its kernel goes on to take what is sent
            pass


class Table:
    """Three instances, and who plays at them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = f"test-{new_short_id()}:"
        self.over = threading.Event()
        self.instances = [self.start() for _ in range(3)]
        self.players: list[WsPlayer] = []

    def start(self) -> ServeProcess:
        """One more instance."""
        return ServeProcess(self.url, self.prefix, str(TTL), program="tests/sharing/instance.py")

    @property
    def ports(self) -> list[int]:
        """Where they are."""
        return [instance.port for instance in self.instances]

    def play(self) -> None:
        """Rooms at each instance, and players in them."""
        for n in range(_ROOMS):
            answer = request(("127.0.0.1", self.ports[n]), "POST", "/api/rooms", {"id": f"r{n}", "max_players": 8})
            assert answer.status == 201
        self.players = [WsPlayer(self, f"r{n}", f"p{n}{k}") for n in range(_ROOMS) for k in range(_PLAYERS)]
        for player in self.players:
            player.thread.start()
        self.goes_on()

    def goes_on(self) -> float:
        """Until everybody was acknowledged something from now on; after how many seconds."""
        begin = time.monotonic()
        eventually(lambda: all(player.last_ack > begin for player in self.players))
        return time.monotonic() - begin

    def close(self) -> None:
        """End all of them."""
        self.over.set()
        for player in self.players:
            player.thread.join(PATIENCE)
        for instance in self.instances:
            with suppress(ProcessLookupError):
                os.kill(instance.pid, signal.SIGCONT)
        for instance in self.instances:
            instance.stop()


@pytest.fixture
def table(redis_url: str) -> Iterator[Table]:
    """On a server that nobody kills."""
    need_package("redis")
    made = Table(redis_url)
    yield made
    made.close()


def check(table: Table) -> None:
    """Nothing was lost, twice or out of order."""
    from roomkit.backends.redis import RedisBackend

    table.over.set()
    for player in table.players:
        player.thread.join(PATIENCE)
    backend = RedisBackend(table.url, prefix=table.prefix)
    try:
        assert violations(backend, table.players) == []
    finally:
        backend.close()
    assert all(len(player.acked) > 1 for player in table.players)
    assert set().union(*(player.codes for player in table.players)) <= {1006, 1012, 4013}
    # The last: it may have been carried out or not, and violations() takes it for either.
    known = {"room_busy", "shutting_down", "backend_unavailable"}
    assert set().union(*(player.errors for player in table.players)) <= known


def kill(table: Table, at: int) -> None:
    """-9, and another one in its place."""
    os.kill(table.instances[at].pid, signal.SIGKILL)
    gone = table.instances[at]
    table.instances[at] = table.start()
    gone.stop()


def freeze(table: Table, at: int) -> None:
    """For longer than its leases last; then it wakes, and thinks that nothing has happened."""
    pid = table.instances[at].pid
    os.kill(pid, signal.SIGSTOP)
    table.goes_on()
    os.kill(pid, signal.SIGCONT)


def drain(table: Table, at: int) -> None:
    """SIGTERM: its rooms are handed over, not closed."""
    old = table.instances[at]
    table.instances[at] = table.start()
    assert old.stop() == 0, old.output


@pytest.mark.parametrize("fault", [kill, freeze, drain])
def test_rooms_go_on_elsewhere(table: Table, fault: Callable[[Table, int], None]) -> None:
    """Each instance in turn; everybody goes on playing, and what everybody was told is in the log, once."""
    table.play()
    for at in range(3):
        fault(table, at)
        table.goes_on()
    check(table)
    assert sum(player.resumed for player in table.players) >= 3
    longest = max(player.longest for player in table.players)
    print(f"{fault.__name__}: longest pause of a player {longest:.2f} s, leases of {TTL} s")


def test_rooms_go_on_elsewhere_on_a_cluster(cluster_url: str) -> None:
    """The rooms are on three masters; an instance is killed."""
    need_package("redis")
    table = Table(cluster_url)
    try:
        table.play()
        kill(table, 0)
        table.goes_on()
        check(table)
    finally:
        table.close()


def test_the_store_comes_back(own_server: ValkeyServer) -> None:
    """Killed and started again with its data, and frozen: operations wait or are refused; nothing told is lost."""
    need_package("redis")
    table = Table(own_server.url)
    try:
        table.play()
        own_server.kill()
        table.over.wait(TTL / 2)  # the time of the outage, not a wait for anything
        own_server.start()
        table.goes_on()
        own_server.freeze()
        table.over.wait(2 * TTL)  # and of this one
        own_server.thaw()
        table.goes_on()
        check(table)
    finally:
        table.close()
