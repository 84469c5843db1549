"""Full collections that look at what is new, in the process of a server."""

from __future__ import annotations

import gc
import weakref

from support.bench import Bench
from support.fakes import eventually

from roomkit.server import Server
from roomkit.server.garbage import ShortCollections
from roomkit.server.session import RoomSession
from roomkit.server.websocket import WebSocketConnection
from roomkit.testing import ManualClock


class Node:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


def test_what_survived_is_set_aside_and_looked_at_again_in_time() -> None:
    """A cycle that has survived one collection is not visited by the next, and found by the one that visits all."""
    clock = ManualClock()
    with ShortCollections(60, clock):
        node = Node()
        gone = weakref.ref(node)
        gc.collect(0)
        assert any(known is node for known in gc.get_objects())
        gc.collect(1)
        assert not any(known is node for known in gc.get_objects())
        del node
        gc.collect()
        assert gone() is not None
        young = weakref.ref(Node())
        gc.collect()
        assert young() is None, "what is new is collected as ever"
        clock.advance(60)
        gc.collect()
        assert gone() is None
        node = Node()
        gone = weakref.ref(node)
        gc.collect()
        del node
        clock.advance(59)
        gc.collect()
        assert gone() is not None, "the minute begins anew"
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert gone() is None
    assert not gc.get_freeze_count(), "and nothing goes on"


def test_a_room_leaves_no_cycle_behind(server: Server, bench: Bench) -> None:
    """Played in, closed and taken away, a room is freed at once, without any collection."""
    room = server.rooms.create_room("short")
    gone = [weakref.ref(room), weakref.ref(room._fanout)]
    amy = bench.join(server, "short", "amy")
    bob = bench.join(server, "short", "bob")
    amy.do("select_song", {"song_id": "one"})
    gc.collect()
    gc.disable()
    try:
        room.close()
        assert amy.wait_closed() == bob.wait_closed() == 4510
        server.rooms.remove_room("short")
        del room
        eventually(lambda: all(part() is None for part in gone))
    finally:
        gc.enable()


def test_a_connection_leaves_no_cycle_behind(server: Server, bench: Bench) -> None:
    """Who comes, plays, is refused and goes, by the closing handshake or without, is freed at once, without any
    collection. (Found by the soak: a refused message kept its connection in a cycle.)
    """

    def still_there() -> list[object]:
        return [known for known in gc.get_objects() if type(known) in (WebSocketConnection, RoomSession)]

    gc.collect()
    gc.disable()
    try:
        amy = bench.join(server, player_id="amy")
        amy.do("select_song", {"song_id": "one"})
        assert len(still_there()) == 2
        for bad in ("{", '{"type":"ready","data":{"ready":5},"id":"x"}', "[" * 300 + "]" * 300):
            amy.send_text(bad)
            amy.until("error")
        assert amy.refused("start_game") == "invalid_transition"
        amy.send("leave")
        assert amy.wait_closed() == 1000
        eventually(lambda: not still_there())
        bob = bench.join(server, player_id="bob")
        bob.do("select_song", {"song_id": "two"})
        bob.cut()
        eventually(lambda: not still_there())
    finally:
        gc.enable()
