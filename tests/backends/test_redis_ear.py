"""What is heard of Redis through outages: connections that are killed, a server that is frozen, killed, absent at
first, locked, moved, or speaks nonsense. Whatever happens the threads go on, and the listener is told when it missed
something.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.fakes import PATIENCE, eventually
from support.needs import need_package
from support.valkey import ValkeyCluster, ValkeyServer

from roomkit import BackendUnavailable
from roomkit.backends.base import Commit, Ear, Events, Lease, Position
from roomkit.backends.contract import Heard
from roomkit.runtime import new_short_id

if TYPE_CHECKING:
    from roomkit.backends.redis import RedisBackend

TIMEOUT = 0.5
ROOMS = [f"room-{n}" for n in range(30)]  # on all nodes of a cluster


class Hearing:
    """A backend that commits, and one that hears under the name "ear"; each has rooms of its prefix."""

    def __init__(self, url: str, timeout: float = TIMEOUT, hear_url: str | None = None) -> None:
        need_package("redis")
        from roomkit.backends.redis import RedisBackend

        self.prefix = f"test-{new_short_id()}:"
        self.made: list[RedisBackend] = []
        for where in (url, hear_url or url):
            self.made.append(RedisBackend(where, prefix=self.prefix, lease_ttl=600, timeout=timeout))
        self.speaker, hearer = self.made
        self.heard = Heard()
        self.ear: Ear = hearer.listen("ear", self.heard)
        self.seq = 0

    def ready(self) -> None:
        """Until letters are heard, and what was missed before was told."""
        eventually(self.is_heard)
        self.heard.again = 0

    def is_heard(self) -> bool:
        try:
            return self.speaker.send([("ear", b"?")]) == [True] and self.heard.again > 0
        except BackendUnavailable:
            return False

    def own(self, rooms: list[str]) -> None:
        self.leases = [lease for lease in self.speaker.acquire("one", rooms) if isinstance(lease, Lease)]
        assert len(self.leases) == len(rooms)

    def commit(self) -> int:
        """One event for every room; its seq, once the store has it."""
        self.seq += 1
        event = b'{"seq":%d}' % self.seq
        steps = [Commit(lease, lease.scope, Position("e", self.seq), self.seq, b"{}", [event]) for lease in self.leases]

        def stored() -> bool:
            try:
                return set(self.speaker.commit(steps)) == {"committed"}
            except BackendUnavailable:
                return False

        eventually(stored)
        return self.seq

    def hears_all(self) -> None:
        """What is committed now is heard, of every room."""
        seq = self.commit()
        eventually(lambda: all(self.heard.last(lease.scope) == seq for lease in self.leases))

    def close(self) -> None:
        assert self.ear.close(PATIENCE)
        for backend in self.made:
            backend.close()


@pytest.fixture
def hearing() -> Iterator[Callable[..., Hearing]]:
    """Makes them, and ends them after the test."""
    made: list[Hearing] = []

    def make(*args: Any, **options: Any) -> Hearing:
        made.append(Hearing(*args, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def feeds() -> list[str]:
    """The threads that hear."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("roomkit-feed-")]


def test_connections_that_are_killed(own_server: ValkeyServer, hearing: Callable[..., Hearing]) -> None:
    """By an operator, or since the server's buffer for them was full: told, and all is heard again."""
    it = hearing(own_server.url, timeout=10)
    it.ready()
    it.own(ROOMS)
    it.ear.follow(ROOMS)
    assert it.heard.again == 0  # following says nothing
    for times in (1, 2, 3):
        assert own_server.ask("CLIENT", "KILL", "TYPE", "pubsub") == b":1\r\n"
        eventually(lambda times=times: it.heard.again == times)
        it.hears_all()
    assert it.heard.again == 3
    assert len(feeds()) == 1


def test_a_server_that_is_frozen(
    own_server: ValkeyServer, hearing: Callable[..., Hearing], caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection stays open and says nothing: after two timeouts it counts as lost. Once it wakes all is heard."""
    it = hearing(own_server.url)
    it.ready()
    it.own(ROOMS)
    it.ear.follow(ROOMS)
    it.hears_all()
    own_server.freeze()
    try:
        with pytest.raises(BackendUnavailable, match="rooms are not heard yet"):
            it.ear.follow(["another"])
        eventually(lambda: "it is silent" in caplog.text)
    finally:
        own_server.thaw()
    eventually(lambda: it.heard.again > 0)
    it.hears_all()
    it.own(["another"])  # what was not confirmed in time is heard now
    it.seq = 0
    it.hears_all()


def test_a_quiet_server_is_no_lost_one(own_server: ValkeyServer, hearing: Callable[..., Hearing]) -> None:
    """Nothing is said for many timeouts: it is asked whether it is there, and the connection stays."""
    it = hearing(own_server.url, timeout=0.2)
    it.ready()

    def pings() -> int:
        stats = (own_server.ask("INFO", "commandstats") or b"").decode()
        return int(stats.split("cmdstat_ping:calls=")[1].split(",")[0])

    before = pings()
    eventually(lambda: pings() >= before + 5)
    assert it.heard.again == 0


def test_a_server_that_is_killed_and_comes_back(own_server: ValkeyServer, hearing: Callable[..., Hearing]) -> None:
    """While it is away rooms come and go; when it is back those that are followed then are heard."""
    it = hearing(own_server.url)
    it.ready()
    it.own(ROOMS[:3])
    it.ear.follow(ROOMS[:2])
    own_server.kill()
    with pytest.raises(BackendUnavailable):
        it.ear.follow([ROOMS[2]])
    it.ear.unfollow([ROOMS[0]])
    own_server.start()
    eventually(lambda: it.heard.again > 0)
    it.ear.follow(ROOMS[1:3])
    seq = it.commit()
    eventually(lambda: [it.heard.last(room) for room in ROOMS[1:3]] == [seq] * 2)
    assert it.heard.last(ROOMS[0]) == 0
    it.ready()


def test_a_server_that_is_absent_at_first(own_server: ValkeyServer, hearing: Callable[..., Hearing]) -> None:
    """Listening does not fail and does not wait; it begins with the server. Closing does not wait for it either."""
    own_server.kill()
    it, other = hearing(own_server.url), hearing(own_server.url)
    with pytest.raises(BackendUnavailable):
        it.ear.follow(ROOMS)
    assert other.ear.close(PATIENCE)
    own_server.start()
    it.ready()
    it.own(ROOMS)
    it.hears_all()


def test_a_password_and_a_user(tmp_path: Path, hearing: Callable[..., Hearing]) -> None:
    """The password is good for hearing too, and so is a user who may use roomkit's keys and channels alone."""
    server = ValkeyServer(tmp_path / "locked")
    try:
        server.ask("ACL", "SETUSER", "roomkit", "on", ">s3cret", "~test-*", "&test-*", "+@all")
        server.ask("CONFIG", "SET", "requirepass", "s3cret")
        for who in ("", "roomkit"):
            it = hearing(server.url.replace("//", f"//{who}:s3cret@"), timeout=10)
            it.ready()
            it.own(ROOMS)
            it.ear.follow(ROOMS)
            it.hears_all()
            it.close()
    finally:
        server.stop()


def test_a_wrong_password(tmp_path: Path, hearing: Callable[..., Hearing], caplog: pytest.LogCaptureFixture) -> None:
    """It is tried again and again, told once, and neither it nor the right one stands in a log."""
    server = ValkeyServer(tmp_path / "locked")
    try:
        server.ask("CONFIG", "SET", "requirepass", "s3cret")
        it = hearing(server.url.replace("//", "//:wr0ng@"))
        with pytest.raises(BackendUnavailable):
            it.ear.follow(ROOMS)
        eventually(lambda: "the store is not heard" in caplog.text)
        assert "s3cret" not in caplog.text
        assert "wr0ng" not in caplog.text
        it.close()
    finally:
        server.stop()


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"not json",
        b"\xff\x00\r\n",
        b'{"epoch":"e","first":0,"events":[1]}',
        b'{"epoch":"e","first":1,"events":1}',
        b'{"epoch":5,"first":1,"events":[1]}',
        b'{"epoch":"e","first":1,"events":[1],"acted":[["",1,1]]}',
        b'{"epoch":"e","first":1,"events":[1],"acted":[["%s",1,1]]}' % (b"x" * 201),
        b'{"epoch":"e","first":1,"events":[1],"acted":[["c",1,2]]}',
        b'{"epoch":"e","first":2,"events":[1],"acted":[["c",1,2]]}',
        b'{"epoch":"e","first":2,"events":[1,2],"acted":[["c",3,2]]}',
        b"[" * 100_000,
    ],
)
def test_nonsense(
    garbage: bytes, redis_url: str, hearing: Callable[..., Hearing], caplog: pytest.LogCaptureFixture
) -> None:
    """On a room's channel it is passed over and logged, and counts as something missed; as a letter it is a letter."""
    import redis

    it = hearing(redis_url, timeout=10)
    it.ready()
    it.own(ROOMS[:1])
    it.ear.follow(ROOMS[:1])
    with redis.Redis.from_url(redis_url) as by_hand:
        by_hand.publish(f"{it.prefix}room:{{{ROOMS[0]}}}:events", garbage)
        eventually(lambda: it.heard.again == 1)
        assert it.heard.commits == []
        assert "what was heard of a room is passed over" in caplog.text
        by_hand.publish(f"{it.prefix}instance:{{ear}}:letters", garbage)
        eventually(lambda: it.heard.letters[-1:] == [garbage])
    it.hears_all()
    assert it.heard.again == 1


def test_ten_thousand_rooms(redis_url: str, hearing: Callable[..., Hearing]) -> None:
    """Followed at once, in few commands; and after a lost connection again."""
    import redis

    it = hearing(redis_url, timeout=10)
    it.ready()
    it.own(ROOMS)
    rooms = [f"many-{n}" for n in range(10_000)]
    with redis.Redis.from_url(redis_url) as by_hand:

        def calls() -> int:
            stats: Any = by_hand.info("commandstats")
            return int(stats["cmdstat_subscribe"]["calls"])

        before = calls()
        it.ear.follow([*rooms, *ROOMS])
        assert calls() - before <= 25
        it.hears_all()
        by_hand.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        eventually(lambda: it.heard.again > 0)
        it.hears_all()
        it.ear.unfollow(rooms)
        channel = f"{it.prefix}room:{{{rooms[-1]}}}:events"
        eventually(lambda: by_hand.publish(channel, b"") == 0)
        it.hears_all()


def test_a_big_commit_and_many_letters(redis_url: str, hearing: Callable[..., Hearing]) -> None:
    """Answers that come in many pieces are heard whole, in order."""
    it = hearing(redis_url, timeout=10)
    it.ready()
    bodies = [b"%d" % n * (1 + n * 997 % 200_000) for n in range(60)]
    for body in bodies:
        assert it.speaker.send([("ear", body)]) == [True]
    eventually(lambda: it.heard.letters[-1:] == bodies[-1:])
    assert [body for body in it.heard.letters if body != b"?"] == bodies


# A cluster.


def test_rooms_on_all_masters(cluster_url: str, hearing: Callable[..., Hearing]) -> None:
    """One thread for each that has something to be heard, from when it has, until it has not."""
    it = hearing(cluster_url, timeout=10)
    it.ready()
    assert len(feeds()) == 1
    it.own(ROOMS)
    it.ear.follow(ROOMS)
    assert len(feeds()) == 3
    it.hears_all()
    assert it.heard.again == 0
    it.ear.unfollow(ROOMS)
    eventually(lambda: len(feeds()) == 1)
    it.ear.follow(ROOMS)
    it.hears_all()


def test_a_master_that_is_gone(tmp_path: Path, hearing: Callable[..., Hearing]) -> None:
    """Its rooms are heard again when it is back; it is told that something was missed."""
    cluster = ValkeyCluster(tmp_path / "cluster")
    try:
        it = hearing(cluster.url)
        it.ready()
        it.own(ROOMS)
        it.ear.follow(ROOMS)
        it.hears_all()
        for node in (cluster.nodes[2], cluster.nodes[0]):
            it.heard.again = 0
            node.kill()
            node.start()
            eventually(lambda: it.heard.again > 0)
            it.hears_all()
        it.ready()
        it.close()
    finally:
        cluster.stop()


def test_slots_that_move(tmp_path: Path, hearing: Callable[..., Hearing]) -> None:
    """The old node ends their subscriptions: they are heard at the new one, letters too, and it is told."""
    from redis.crc import key_slot

    cluster = ValkeyCluster(tmp_path / "cluster")
    try:
        it = hearing(cluster.url)
        it.ready()
        it.own(ROOMS)
        it.ear.follow(ROOMS)
        it.hears_all()
        ids = [(node.ask("CLUSTER", "MYID") or b"").split(b"\r\n")[1].decode() for node in cluster.nodes]

        def move(name: str) -> None:
            slot = key_slot(name.encode())
            old = slot * 3 // 16384
            target = (old + 1) % 3
            for lease in it.leases:  # what is stored of them is not what this is about
                if key_slot(lease.scope.encode()) == slot:
                    for key in ("", ":lease", ":log"):
                        cluster.nodes[old].ask("DEL", f"{it.prefix}room:{{{lease.scope}}}{key}")
            for n in (target, old, (old + 2) % 3):
                assert cluster.nodes[n].ask("CLUSTER", "SETSLOT", str(slot), "NODE", ids[target]) == b"+OK\r\n"

        for name in ("ear", ROOMS[0], ROOMS[1]):
            it.heard.again = 0
            move(name)
            eventually(lambda: it.heard.again > 0)
        it.ready()
        it.own(ROOMS)
        for lease in it.leases[:2]:
            step = Commit(lease, lease.scope, Position("e", 1), 1, b"{}", [b'{"seq":1}'])
            it.heard.commits.clear()
            eventually(lambda step=step: it.speaker.commit([step]) == ["committed"])
            eventually(lambda: it.heard.commits == [(lease.scope, "e", Events(1, (b'{"seq":1}',)))])  # noqa: B023
        it.close()
    finally:
        cluster.stop()
