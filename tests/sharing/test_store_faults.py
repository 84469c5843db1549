"""What the store's faults do to people who play: a master falls, the store hangs, one instance alone loses it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet import Store
from storms import Report, Storm
from support.fakes import PATIENCE, eventually
from support.rest import request
from support.ws import WsClient

TTL = 1.0
#: Seconds that a busy machine is given on top of what is promised.
_SPARE = 1.5


@contextmanager
def playing(kind: str, folder: Path) -> Iterator[tuple[Storm, Store]]:
    """Three instances, a room at each, and people in it at all of them."""
    store = Store(kind, folder)
    try:
        storm = Storm(0, 0.0, store, ttl=TTL, careless=0.0, patience=PATIENCE)
        try:
            storm.begin()
            yield storm, store
        finally:
            storm.close()
    finally:
        store.close()


def true(storm: Storm) -> Report:
    """At the end nothing that anybody was told is lost, and everybody plays."""
    report = storm.end()
    assert report.wrong == []
    assert report.after
    assert report.forwarded > 0
    return report


def wait_unready(storm: Storm, *berths: int) -> None:
    """Until the instances say that they have no store; they go on to answer otherwise."""

    def unready(port: int) -> bool:
        answer = request(("127.0.0.1", port), "GET", "/readyz")
        return (answer.status, answer.json["status"]) == (503, "store_unavailable")

    for berth in berths:
        port = storm.fleet.port(berth)
        eventually(lambda port=port: unready(port))  # type: ignore[misc]
        assert request(("127.0.0.1", port), "GET", "/healthz").status == 200


def wait_ready(storm: Storm) -> None:
    """Until all say that they have it."""
    for berth in range(3):
        here = ("127.0.0.1", storm.fleet.port(berth))
        eventually(lambda here=here: request(here, "GET", "/readyz").status == 200)  # type: ignore[misc]


def sit_down(storm: Storm, berth: int, name: str, **known: object) -> WsClient:
    """Somebody in the room of the first instance, at any."""
    here = ("127.0.0.1", storm.fleet.port(berth))
    client = WsClient(here, room_id="r0", player_id=name, token=name * 22, **known)
    client.until("welcome")
    return client


def refusal_of(client: WsClient) -> tuple[str, float]:
    """What a message is refused with, and after how many seconds."""
    began = time.monotonic()
    code = client.refused("message", {"n": ""})
    return code, time.monotonic() - began


def test_a_master_is_killed_and_its_replica_takes_over(tmp_path: Path) -> None:
    """Each of the three in turn, while people play at owners and followers; then they come back as replicas."""
    with playing("cluster", tmp_path) as (storm, store):
        assert store.cluster is not None
        for shard in range(3):
            master = store.cluster.master_of(shard)
            master.kill()
            began = time.monotonic()
            store.cluster.wait_for_master(shard, master)
            elected = time.monotonic() - began
            storm.goes_on("a master's death")
            print(f"elected after {elected:.2f} s, everybody plays after {time.monotonic() - began:.2f} s")
            master.start()
            store.cluster.wait_in_sync()
        true(storm)


def test_the_store_hangs(tmp_path: Path) -> None:
    """For ten seconds, ten times as long as a lease. Every instance says so. Who asks while it hangs is refused, at the
    owner at once, elsewhere within the bound, as is who had asked at the owner just before.
    """
    with playing("one", tmp_path) as (storm, store):
        assert store.server is not None
        waits, asks, follows = (sit_down(storm, berth, name) for berth, name in ((0, "w"), (0, "a"), (1, "f")))
        with waits, asks, follows:
            store.server.freeze()
            began = time.monotonic()
            waits.send("message", {"n": "held"}, id="held")
            wait_unready(storm, 0, 1, 2)
            code, seconds = refusal_of(follows)
            assert code == "backend_unavailable"
            assert seconds < TTL + 2.0 + _SPARE  # the bound of docs/instances.md
            code, seconds = refusal_of(asks)
            assert code == "room_busy"
            assert seconds < _SPARE
            refusal = waits.until("error")
            assert (refusal["id"], refusal["data"]["code"]) == ("held", "backend_unavailable")
            assert time.monotonic() - began < TTL + 2.0 + _SPARE
            threading.Event().wait(began + 10.0 - time.monotonic())  # the time of the outage, not a wait for anything
            store.server.thaw()
            began = time.monotonic()
            storm.goes_on("the store's hanging")
            print(f"everybody plays {time.monotonic() - began:.2f} s after the store is back")
            wait_ready(storm)
        true(storm)


def test_one_instance_alone_is_cut_off(tmp_path: Path) -> None:
    """It refuses with room_busy whoever is still connected to it; its room goes on at another within a lease and a
    second, and there its people are in their seats again; those who stayed are told to come back when it hears of it.
    """
    with playing("one", tmp_path) as (storm, _):
        stays, goes = sit_down(storm, 0, "s"), sit_down(storm, 0, "g")
        with stays, goes:
            elsewhere = [storm.people[1], storm.people[2]]  # in the same room at the others
            storm.fleet.berths[0].cut()
            began = time.monotonic()
            wait_unready(storm, 0)
            eventually(lambda: all(person.acks[-1] > began for person in elsewhere))
            gone_on = time.monotonic() - began
            assert gone_on < TTL + 1.0 + _SPARE
            print(f"the room went on at another instance after {gone_on:.2f} s")
            assert refusal_of(stays)[0] == "room_busy"
            seq = goes.welcome["seq"]
            with sit_down(storm, 1, "g", epoch=goes.welcome["epoch"], seq=seq) as back:
                assert back.welcome["recovered"]
                assert back.do("message", {"n": "back"})["seq"] > seq
            storm.fleet.berths[0].mend()
            assert stays.wait_closed() == 1012
            storm.goes_on("its network")
            wait_ready(storm)
        true(storm)
