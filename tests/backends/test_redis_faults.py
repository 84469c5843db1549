"""Redis that is absent, killed, frozen, empty, moved, full, or somebody else's: what the backend then says and does."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.fakes import eventually
from support.needs import need_package
from support.valkey import ValkeyCluster, ValkeyServer, free_port

from roomkit import BackendUnavailable, InvalidConfig, InvalidRecord
from roomkit.backends.base import Commit, Events, Lease, Position

if TYPE_CHECKING:
    from roomkit.backends.redis import RedisBackend

TIMEOUT = 0.5
BOUND = 5.0  # seconds: what two timeouts can never be, however busy the machine is


@pytest.fixture
def backends() -> Iterator[list[RedisBackend]]:
    """To be closed after the test."""
    made: list[RedisBackend] = []
    yield made
    for backend in made:
        backend.close()


def make(backends: list[RedisBackend], url: str, **options: Any) -> RedisBackend:
    """A backend, with long leases unless told otherwise."""
    need_package("redis")
    from roomkit.backends.redis import RedisBackend

    backends.append(RedisBackend(url, **{"lease_ttl": 600, "timeout": TIMEOUT, **options}))
    return backends[-1]


def lease_of(backend: RedisBackend, room: str = "r") -> Lease:
    """For the instance one."""
    [lease] = backend.acquire("one", [room])
    assert isinstance(lease, Lease)
    return lease


def step(lease: Lease, n: int, events: int = 1) -> Commit:
    """The n-th commit of a room with one event each."""
    log = [b'{"seq":%d}' % seq for seq in range(n - events + 1, n + 1)]
    return Commit(lease, lease.scope, Position("e", n), n, b'{"n":%d}' % n, log)


def works_again(backend: RedisBackend) -> bool:
    """Whether it answers."""
    try:
        backend.instances()
    except BackendUnavailable:
        return False
    return True


def test_a_server_that_is_not_there_yet(tmp_path: Path, backends: list[RedisBackend]) -> None:
    """Making a backend needs no server. Each use says that there is none; once there is, it works."""
    backend = make(backends, f"redis://127.0.0.1:{free_port()}/0")
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="the store did not answer"):
            backend.acquire("one", ["r"])
    server = ValkeyServer(tmp_path / "late")
    try:
        late = make(backends, server.url)
        assert late.positions(["r"]) == [None]
    finally:
        server.stop()


def test_a_server_that_was_killed_and_came_back(own_server: ValkeyServer, backends: list[RedisBackend]) -> None:
    """What it had answered as committed it still has (here it writes through), the lease is good, and the same backend
    goes on."""
    backend = make(backends, own_server.url)
    lease = lease_of(backend)
    assert backend.commit([step(lease, 1)]) == ["committed"]
    own_server.kill()
    with pytest.raises(BackendUnavailable):
        backend.commit([step(lease, 2)])
    own_server.start()
    eventually(lambda: works_again(backend))
    assert backend.commit([step(lease, 2)]) == ["committed"]
    assert backend.read("r", "e", 0) == Events(1, (b'{"seq":1}', b'{"seq":2}'))


def test_a_frozen_server_holds_nobody_for_long(own_server: ValkeyServer, backends: list[RedisBackend]) -> None:
    """Each call ends within a bound. What was sent meanwhile may be carried out when it wakes: sent again, it acts
    once."""
    backend = make(backends, own_server.url)
    lease = lease_of(backend)
    assert backend.commit([step(lease, 1)]) == ["committed"]
    own_server.freeze()
    try:
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(BackendUnavailable):
                backend.commit([step(lease, 2)])
            assert time.monotonic() - started < BOUND
    finally:
        own_server.thaw()
    eventually(lambda: works_again(backend))
    assert backend.commit([step(lease, 2)]) == ["committed"]
    assert backend.commit([step(lease, 3)]) == ["committed"]
    assert backend.read("r", "e", 0) == Events(1, (b'{"seq":1}', b'{"seq":2}', b'{"seq":3}'))


def test_a_server_that_lost_everything(forgetful_server: ValkeyServer, backends: list[RedisBackend]) -> None:
    """The owner's lease is gone and its commits are refused; with a new lease, whose token is higher, it restores what
    it has, events included."""
    backend = make(backends, forgetful_server.url)
    lease = lease_of(backend)
    for n in (1, 2, 3):
        assert backend.commit([step(lease, n)]) == ["committed"]
    forgetful_server.kill()
    forgetful_server.start()
    eventually(lambda: works_again(backend))
    assert backend.renew([lease]) == [None]
    assert backend.commit([step(lease, 4)]) == ["fenced"]
    again = lease_of(backend)
    assert again.token > lease.token
    assert backend.open(again, "r") is None
    assert backend.commit([step(again, 4)]) == ["conflict"]
    assert backend.restore([step(again, 4, events=4)]) == ["committed"]
    assert backend.read("r", "e", 0) == Events(1, tuple(b'{"seq":%d}' % n for n in (1, 2, 3, 4)))


def test_scripts_that_the_server_forgot_are_given_again(redis_url: str, backends: list[RedisBackend]) -> None:
    """As after SCRIPT FLUSH, a restart or a failover."""
    import redis

    backend = make(backends, redis_url, prefix="flushed:", timeout=10)
    lease = lease_of(backend)
    with redis.Redis.from_url(redis_url) as by_hand:
        by_hand.script_flush()
        assert backend.commit([step(lease, 1)]) == ["committed"]


def test_connections_that_ended_while_nobody_used_them(
    own_server: ValkeyServer, backends: list[RedisBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an operator, an idle timeout, a restart: nobody notices, however many there were. Letters go out as well."""
    backend = make(backends, own_server.url)
    monkeypatch.setattr("roomkit.backends.redis_pool._FRESH", 0.0)  # for a letter each is looked at

    def end_them() -> None:
        with ThreadPoolExecutor(4) as threads:  # so that there are several
            list(threads.map(lambda n: backend.instances(), range(40)))
        assert own_server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") is not None

    end_them()
    lease = lease_of(backend)
    end_them()
    assert backend.commit([step(lease, 1)]) == ["committed"]
    end_them()
    assert backend.send([("nobody", b"1"), ("nobody", b"2")]) == [False, False]


_IN_A_CHILD = """
import os, sys
from roomkit.backends.base import Instance
from roomkit.backends.redis import RedisBackend
backend = RedisBackend(sys.argv[1], prefix="forked:", lease_ttl=600)
backend.announce(Instance("parent", ""))
child = os.fork()
for n in range(200):  # side by side: each must get its own answers
    assert backend.instances()[0 if child else -1].name in ("child", "parent")
    backend.announce(Instance("parent" if child else "child", ""))
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert [one.name for one in backend.instances()] == ["child", "parent"]
backend.close()
"""


def test_a_child_has_connections_of_its_own(redis_url: str) -> None:
    """After a fork: on the parent's they would get each other's answers."""
    need_package("redis")
    done = subprocess.run([sys.executable, "-c", _IN_A_CHILD, redis_url], timeout=60, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_master_of_the_cluster_that_is_gone(tmp_path: Path, backends: list[RedisBackend]) -> None:
    """Its rooms cannot be reached while it is, the others' can or are refused as long as the cluster is down; all of
    them after it is back."""
    cluster = ValkeyCluster(tmp_path / "cluster")
    try:
        backend = make(backends, cluster.url)
        rooms = [f"room-{n}" for n in range(30)]  # on all three
        leases = [lease for lease in backend.acquire("one", rooms) if isinstance(lease, Lease)]
        assert backend.commit([step(lease, 1) for lease in leases]) == ["committed"] * 30
        cluster.nodes[2].kill()
        with pytest.raises(BackendUnavailable):
            backend.commit([step(lease, 2) for lease in leases])
        cluster.nodes[2].start()

        def committed() -> bool:
            try:
                return backend.commit([step(lease, 2) for lease in leases]) == ["committed"] * 30
            except BackendUnavailable:
                return False

        eventually(committed)
        for room in rooms:
            assert backend.read(room, "e", 0) == Events(1, (b'{"seq":1}', b'{"seq":2}'))
    finally:
        cluster.stop()


def test_a_full_server_refuses(tmp_path: Path, backends: list[RedisBackend]) -> None:
    """Out of memory, with nothing evicted: the commit is refused as a whole, and what was there stays."""
    server = ValkeyServer(tmp_path / "small")
    try:
        backend = make(backends, server.url, timeout=10)
        lease = lease_of(backend)
        assert backend.commit([step(lease, 1)]) == ["committed"]
        before = backend.open(lease, "r")
        server.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(BackendUnavailable, match=r"the store refused.*maxmemory"):
            backend.commit([step(lease, 2)])
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert backend.open(lease, "r") == before
        assert backend.commit([step(lease, 2)]) == ["committed"]
    finally:
        server.stop()


def test_keys_of_somebody_else(redis_url: str, backends: list[RedisBackend]) -> None:
    """A value of another type, or a log entry that roomkit did not write, is refused and not believed."""
    import redis

    backend = make(backends, redis_url, prefix="foreign:", timeout=10)
    lease = lease_of(backend)
    assert backend.commit([step(lease, 1)]) == ["committed"]
    with redis.Redis.from_url(redis_url) as by_hand:
        by_hand.delete("foreign:room:{r}:log")
        by_hand.xadd("foreign:room:{r}:log", {"b": b"not json"}, id="1-0")
        with pytest.raises(InvalidRecord, match="what is in the log is no commit"):
            backend.read("r", "e", 0)
        by_hand.delete("foreign:room:{r}:lease")
        by_hand.set("foreign:room:{r}:lease", "text")
        with pytest.raises(BackendUnavailable, match="the store refused"):
            backend.acquire("one", ["r"])
        by_hand.delete("foreign:room:{r}:lease")


def test_a_password_and_a_user(tmp_path: Path, backends: list[RedisBackend]) -> None:
    """They stand in the URL; without them, or with wrong ones, nothing is to be had, and no error shows them."""
    server = ValkeyServer(tmp_path / "locked")
    try:
        server.ask("ACL", "SETUSER", "roomkit", "on", ">s3cret", "~roomkit:*", "&roomkit:*", "+@all")
        server.ask("ACL", "SETUSER", "default", "off")
        good = make(backends, server.url.replace("//", "//roomkit:s3cret@"), timeout=10)
        assert good.commit([step(lease_of(good), 1)]) == ["committed"]
        for who in ("", "roomkit:wr0ng@", "nobody:s3cret@"):
            with pytest.raises(BackendUnavailable) as caught:
                make(backends, server.url.replace("//", f"//{who}")).instances()
            assert "s3cret" not in str(caught.value)
            assert "wr0ng" not in str(caught.value)
    finally:
        server.stop()


def test_installations_on_one_server_do_not_meet(redis_url: str, backends: list[RedisBackend]) -> None:
    """Each prefix is a world of its own."""
    one = make(backends, redis_url, prefix="one:", timeout=10)
    two = make(backends, redis_url, prefix="two:", timeout=10)
    assert one.commit([step(lease_of(one), 1)]) == ["committed"]
    assert two.commit([step(lease_of(two), 1)]) == ["committed"]
    assert two.commit([step(lease_of(two), 2)]) == ["committed"]
    assert one.positions(["r"]) == [Position("e", 1)]


def test_a_room_that_nobody_holds_is_kept_for_its_time(redis_url: str, backends: list[RedisBackend]) -> None:
    """``record_ttl`` after its last commit it is gone, all of it; a lease that is renewed keeps it."""
    backend = make(backends, redis_url, prefix="kept:", lease_ttl=0.5, record_ttl=2.0, timeout=10)
    kept, left = lease_of(backend, "kept"), lease_of(backend, "left")
    assert backend.commit([step(kept, 1), step(left, 1)]) == ["committed"] * 2

    def only_the_kept_one() -> bool:
        assert backend.renew([kept]) != [None]
        return backend.positions(["left"]) == [None]

    eventually(only_the_kept_one)
    assert backend.positions(["kept"]) == [Position("e", 1)]
    assert backend.read("kept", "e", 0) == Events(1, (b'{"seq":1}',))


@pytest.mark.parametrize("prefix", ["a{b", "a b", "x" * 65, "a\n"])
def test_a_prefix_that_would_break_keys_is_refused(prefix: str) -> None:
    """Braces would move a room's keys to other slots of a cluster."""
    with pytest.raises(InvalidConfig, match="a key prefix is"):
        make([], "redis://127.0.0.1:1/0", prefix=prefix)


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://127.0.0.1", "redis:/x"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """When the backend is made, not with its first use; and a password in it is not told."""
    with pytest.raises(InvalidConfig, match="a store's URL begins with redis://") as caught:
        make([], url.replace("127", "amy:s3cret@127"))
    assert "s3cret" not in str(caught.value)


def test_a_server_that_forgets_every_script_is_not_asked_for_ever(
    redis_url: str, backends: list[RedisBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a proxy, say, that sends the script to one server and the call to another."""
    backend = make(backends, redis_url, prefix="scripts:", timeout=0.2)
    from roomkit.backends.redis_nodes import Script

    monkeypatch.setattr(Script, "digest", lambda *_: "0" * 40)
    with pytest.raises(BackendUnavailable, match="the store did not answer"):
        backend.holders(["r"])


@pytest.mark.parametrize("lease_ttl", [0, 0.01, 1801])
def test_a_lease_that_makes_no_sense_is_refused(lease_ttl: float) -> None:
    """It must be long enough to be renewed, and no longer than a room is kept."""
    with pytest.raises(InvalidConfig, match="lease_ttl must be"):
        make([], "redis://127.0.0.1:1/0", lease_ttl=lease_ttl)


def test_a_closed_backend_is_closed(redis_url: str) -> None:
    """What is asked afterwards is refused; closing again does nothing."""
    backend = make([], redis_url, timeout=10)
    backend.instances()
    backend.close()
    backend.close()
    with pytest.raises(BackendUnavailable, match="the backend is closed"):
        backend.instances()
