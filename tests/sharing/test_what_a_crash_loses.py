"""The store and the owner of a room die in the same moment: what of that which was acknowledged is gone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.fakes import eventually
from support.needs import need_package
from support.rest import request
from support.serve import ServeProcess
from support.valkey import ValkeyServer
from support.ws import WsClient

_SAID = 100


def start(url: str) -> ServeProcess:
    """An instance."""
    return ServeProcess(url, "crash:", "1.0", program="tests/sharing/instance.py")


def say(instance: ServeProcess) -> int:
    """Somebody says something, and is acknowledged each time; the last seq."""
    with WsClient(("127.0.0.1", instance.port), room_id="r", player_id="amy", token="a" * 22) as amy:
        amy.expect("welcome")
        seq = 0
        for n in range(_SAID):
            seq = int(amy.do("message", {"n": n})["seq"])
        return seq


@pytest.mark.parametrize("fsync", ["always", "everysec", None])
def test_store_and_owner_are_killed_at_once(tmp_path: Path, fsync: str | None) -> None:
    """A store that writes a log has everything when its process dies, however seldom the disk is waited for: what it
    has answered for was written to the file before. One that writes nothing has lost the room, and nothing else
    happens: nobody is told of another room in its place.
    """
    need_package("redis")
    flags = ("--appendonly", "yes", "--appendfsync", fsync) if fsync is not None else ()
    store = ValkeyServer(tmp_path / "valkey", *flags)
    owner = other = None
    try:
        owner = start(store.url)
        address = ("127.0.0.1", owner.port)
        assert request(address, "POST", "/api/rooms", {"id": "r"}).status == 201
        told = say(owner)
        os.kill(owner.pid, signal.SIGKILL)
        store.kill()
        store.start()
        other = start(store.url)
        address = ("127.0.0.1", other.port)
        eventually(lambda: request(address, "GET", "/readyz").status == 200)
        found = request(address, "GET", "/api/rooms/r")
        kept = found.json["seq"] if found.status == 200 else 0
        print(f"appendfsync {fsync}: of {told} events that were acknowledged {max(0, told - kept)} were lost")
        if fsync is None:
            assert found.status == 404
        else:
            eventually(lambda: request(address, "GET", "/api/rooms/r").json["seq"] >= told)
    finally:
        for instance in (owner, other):
            if instance is not None:
                instance.stop()
        store.stop()


def test_a_store_that_forgets_everything_is_given_it_again(tmp_path: Path) -> None:
    """While the owner lives nothing is lost, whatever the store forgets; nor for who comes back at another instance."""
    need_package("redis")
    store = ValkeyServer(tmp_path / "valkey")
    owner = other = None
    try:
        owner, other = start(store.url), start(store.url)
        assert request(("127.0.0.1", owner.port), "POST", "/api/rooms", {"id": "r"}).status == 201
        told = say(owner)
        store.kill()
        store.start()
        here = ("127.0.0.1", other.port)
        eventually(lambda: request(here, "GET", "/api/rooms/r").status == 200)
        assert request(here, "GET", "/api/rooms/r").json["seq"] >= told
        with WsClient(here, room_id="r", player_id="amy", token="a" * 22) as amy:
            amy.expect("welcome")
            assert amy.do("message", {"n": "after"})["seq"] > told
    finally:
        for instance in (owner, other):
            if instance is not None:
                instance.stop()
        store.stop()
