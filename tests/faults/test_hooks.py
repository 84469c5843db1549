"""Hooks that end their thread, block, or call back on purpose: what they cost is bounded, told, and theirs alone.

Hooks that raise an ordinary exception, and slow subscribers, are in tests/test_room_delivery.py,
tests/test_room_concurrency.py and tests/server/test_authenticate.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.bench import Bench
from support.fakes import PATIENCE, Blocker, Listener, Wire, join, run_together, start_thread

from roomkit import Event, Lifecycle, LockUpgradeError, Operation, Room, RoomBusy, RoomConfig, RoomManager
from roomkit.testing import ManualClock

BUSY_TIMEOUT = 0.2


@pytest.fixture
def rooms() -> Iterator[RoomManager]:
    manager = RoomManager(RoomConfig(busy_timeout=BUSY_TIMEOUT))
    yield manager
    assert manager.shutdown(PATIENCE)


def table(check: Callable[..., Any] | None = None, guard: Callable[..., bool] | None = None) -> Lifecycle:
    """A lifecycle with an operation ``act`` of its own, about which the check and the guard are asked."""
    row: dict[str, Any] = {"add_player": "open", "remove_player": "open", "close": "closed"}
    if guard is None:
        return Lifecycle("faulty", {"open": {**row, "act": "open"}}, operations={"act": Operation(check=check)})
    moved = {"moved": {"close": "closed"}}
    return Lifecycle("faulty", {"open": {**row, "act": [("asked", "moved"), "open"]}, **moved}, guards={"asked": guard})


def leave(*arguments: Any) -> Any:
    """What ``sys.exit()`` in somebody's hook comes to, which ``except Exception`` does not catch."""
    raise SystemExit("made on purpose")


# A hook that would end its thread.


def test_a_subscriber_that_exits_gets_the_rest(rooms: RoomManager, caplog: pytest.LogCaptureFixture) -> None:
    """SystemExit in a callback: counted, logged, and the events behind it come, to it as to the others."""
    room = rooms.create_room("room")
    seen: list[int] = []

    def callback(event: Event) -> None:
        seen.append(event.seq)
        if event.seq == 2:
            leave()

    entered, gate = threading.Event(), threading.Event()

    def hold(event: Event) -> None:
        entered.set()
        assert gate.wait(PATIENCE)

    room.subscribe(hold)  # so that the other one gets several at once
    other = Listener()
    room.subscribe(callback)
    room.subscribe(other)
    for n in range(5):
        room.send_message(None, {"n": n})
    gate.set()
    other.wait_for_seq(5)
    last = Listener()
    room.subscribe(last)
    room.send_message(None, {})
    last.wait_for_seq(6)
    room.close()
    assert rooms.shutdown(PATIENCE)
    assert seen == list(range(1, 9))
    assert rooms.tally.get("subscriber_errors") == 1
    assert "failed on message and goes on" in caplog.text


def test_a_connection_that_exits_harms_nobody_else(rooms: RoomManager) -> None:
    """SystemExit in ``deliver``: that connection is dropped and closed (1011); who comes behind it misses nothing."""
    room = rooms.create_room("room")
    faulty = Wire(lambda batch: leave() if b'"message"' in batch.frames else None)
    good = Wire()
    room.join("amy", faulty)
    room.join("bob", good)
    room.send_message(None, {"n": 1})
    assert faulty.wait_closed() == 1011
    good.wait(lambda wire: "player_dropped" in wire.types)
    assert good.seqs == list(range(good.seqs[0], good.seqs[-1] + 1))
    assert rooms.tally.get("connection_errors") == 1


def test_a_watermark_hook_that_exits_is_called_again(rooms: RoomManager) -> None:
    """For the room behind it, in the same run, too: SystemExit costs one call."""
    called: list[str] = []
    both = threading.Event()

    def hook(room: Room, pressure: object) -> None:
        called.append(room.id)
        if len(called) == 2:
            both.set()
        leave()

    manager = RoomManager(RoomConfig(busy_timeout=BUSY_TIMEOUT, queue_size=10), on_watermark=hook)
    blockers = []
    for name in ("one", "two"):
        room, blocker = manager.create_room(name), Blocker()
        room.join("amy", blocker)
        blocker.wait_for_seq(1)
        blocker.block()
        room.send_message(None, {})
        assert blocker.entered.wait(PATIENCE)
        blockers.append(blocker)
        for _ in range(20):
            room.send_message(None, {})
    assert both.wait(PATIENCE)
    for blocker in blockers:
        blocker.let_go()
    assert manager.shutdown(PATIENCE)
    assert sorted(called[:2]) == ["one", "two"]
    assert manager.tally.get("hook_errors") == len(called)


def test_a_guard_that_exits_stops_no_sweep() -> None:
    """A room whose guard ends every thread that asks it is looked at again and again; the rooms behind it expire."""
    clock = ManualClock()
    faulty = Lifecycle(
        "faulty",
        {"open": {"add_player": "open", "remove_player": [("asked", "open"), "open"], "close": "closed"}},
        guards={"asked": leave},
    )
    manager = RoomManager(RoomConfig(reconnect_grace=1, empty_ttl=0, closed_ttl=1), clock)
    bad = manager.create_room("a", lifecycle=faulty)
    bad.join("amy", Wire())
    bad.remove_connection("amy")
    manager.create_room("b").close()
    clock.advance(2)
    assert manager.cleanup() == ["b"]
    assert [player.id for player in bad.get_players()] == ["amy"], "the room is as it was"
    assert manager._heap.get("a") is not None, "and is looked at again"
    assert manager.shutdown(PATIENCE)


@pytest.mark.parametrize("hook", ["check", "guard"])
def test_a_check_that_exits_costs_its_own_connection(bench: Bench, hook: str, caplog: pytest.LogCaptureFixture) -> None:
    """On the server's only I/O thread: 1011 for the sender, the room as it was; everybody else is served."""
    server = bench.serve()
    room = server.rooms.create_room("room", lifecycle=table(**{hook: leave}))
    server.rooms.create_room("beside")
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    zoe = bench.join(server, "beside", "zoe")
    before = room.get_state().seq
    amy.send("perform", {"operation": "act"}, id="1")
    assert amy.wait_closed() == 1011
    bob.until("player_dropped")
    assert [event["seq"] for event in bob.events][-1] == before + 1, "nothing but that"
    assert bob.do("message", {})
    assert zoe.do("message", {})
    assert server.tally.get("session_errors") == 1
    assert "a session failed" in caplog.text


# A hook that blocks.


@pytest.mark.parametrize("hook", ["check", "guard"])
def test_a_check_that_blocks_holds_up_its_room_alone(rooms: RoomManager, hook: str) -> None:
    """It runs under the room's lock: who writes to that room is told that it is busy, in time, who reads goes on with
    the state as it was, and so do the other rooms; when it lets go, its operation is done."""
    entered, gate = threading.Event(), threading.Event()

    def block(*arguments: Any) -> bool | None:
        entered.set()
        assert gate.wait(PATIENCE)
        return None if hook == "check" else True

    room, other = rooms.create_room("room", lifecycle=table(**{hook: block})), rooms.create_room("other")
    state = room.get_state()
    acting = start_thread(lambda: room.perform("act"))
    assert entered.wait(PATIENCE)
    begun = time.monotonic()
    with pytest.raises(RoomBusy):
        room.add_player("amy")
    assert time.monotonic() - begun < PATIENCE / 2
    assert room.get_state() is state
    other.add_player("amy")
    assert rooms.stats()["total_rooms"] == 2
    gate.set()
    join(acting)
    assert room.get_state().seq > state.seq
    room.send_message(None, {})


def test_a_check_that_blocks_holds_up_one_io_thread_alone(bench: Bench) -> None:
    """In a server with several I/O threads: the rooms of the others go on meanwhile, and its own afterwards."""
    entered, gate = threading.Event(), threading.Event()

    def block(*arguments: Any) -> None:
        entered.set()
        assert gate.wait(PATIENCE)

    server = bench.serve(io_threads=2)
    names = [next(f"room-{n}" for n in range(99) if server._reactor_index(f"room-{n}") == index) for index in (0, 1)]
    server.rooms.create_room(names[1], lifecycle=table(check=block))
    server.rooms.create_room(names[0])
    amy, cat = bench.join(server, names[1], "amy"), bench.join(server, names[1], "cat")
    bob = bench.join(server, names[0], "bob")
    amy.send("perform", {"operation": "act"}, id="1")
    assert entered.wait(PATIENCE)
    cat.send("message", {"waits": True}, id="2")
    assert bob.do("message", {"goes": "on"})
    gate.set()
    assert amy.until("ack")["id"] == "1"
    assert cat.until("ack")["id"] == "2"


def test_a_subscriber_that_never_returns_holds_up_nobody(rooms: RoomManager) -> None:
    """Nor the room's other subscribers, nor its players; the shutdown is bounded, and says that a thread still runs."""
    gate, entered = threading.Event(), threading.Event()

    def block(event: Event) -> None:
        entered.set()
        assert gate.wait(PATIENCE)

    manager = RoomManager(RoomConfig(busy_timeout=BUSY_TIMEOUT))
    room = manager.create_room("room")
    other, wire = Listener(), Wire()
    room.subscribe(block)
    room.subscribe(other)
    room.join("amy", wire)
    assert entered.wait(PATIENCE)
    for n in range(300):
        room.send_message("amy", {"n": n})
        wire.wait_for_seq(room.get_state().seq)
    other.wait_for_seq(300)
    begun = time.monotonic()
    assert manager.shutdown(0.2) is False
    assert time.monotonic() - begun < PATIENCE / 2
    gate.set()


# A hook that calls back.


@pytest.mark.parametrize("hook", ["check", "guard"])
@pytest.mark.parametrize("call", ["write", "read"])
def test_a_check_that_calls_its_own_room_is_refused_at_once(rooms: RoomManager, hook: str, call: str) -> None:
    """It would wait for itself: LockUpgradeError instead, and the room is as it was, and goes on."""
    room: Room

    def call_back(*arguments: Any) -> bool | None:
        if call == "write":
            room.send_message(None, {})
        else:
            room.get_events()
        return None

    room = rooms.create_room("room", lifecycle=table(**{hook: call_back}))
    before = room.get_state()
    with pytest.raises(LockUpgradeError):
        room.perform("act")
    assert room.get_state() == before
    room.add_player("amy")


@pytest.mark.parametrize("hook", ["check", "guard"])
def test_two_rooms_whose_checks_call_each_other_do_not_hang(rooms: RoomManager, hook: str) -> None:
    """Each holds its room and wants the other's, a deadlock by the book: it is bounded by busy_timeout, told as
    RoomBusy, and both rooms go on."""
    both = threading.Barrier(2)
    pair: list[Room] = []

    def call_other(*arguments: Any) -> bool | None:
        me = int(threading.current_thread().name.rpartition("-")[2])
        both.wait(PATIENCE)
        pair[1 - me].send_message(None, {"from": me})
        return None if hook == "check" else True

    pair += [rooms.create_room(f"room-{n}", lifecycle=table(**{hook: call_other})) for n in range(2)]
    before = [room.get_state().seq for room in pair]
    results: dict[int, object] = {}

    def act(me: int) -> None:
        try:
            results[me] = pair[me].perform("act")
        except RoomBusy as error:
            results[me] = error

    begun = time.monotonic()
    join(*[start_thread(lambda me=me: act(me), f"actor-{me}") for me in range(2)])  # type: ignore[misc]
    assert time.monotonic() - begun < PATIENCE / 2
    assert any(isinstance(result, RoomBusy) for result in results.values()), results
    for me, room in enumerate(pair):
        events = room.get_events(before[me]) or ()
        assert [event.seq for event in events] == list(range(before[me] + 1, room.get_state().seq + 1))
        room.send_message(None, {"goes": "on"})


def test_subscribers_that_call_into_each_other_s_rooms(rooms: RoomManager) -> None:
    """Both at once, and into their own room as well: no lock is held while they are called, so nobody waits."""
    one, two = rooms.create_room("one"), rooms.create_room("two")
    heard = {room.id: Listener() for room in (one, two)}

    def passes_on(here: Room, there: Room) -> Callable[[Event], None]:
        def callback(event: Event) -> None:
            if event.type == "message" and event.data["data"]["left"]:
                data = {"left": event.data["data"]["left"] - 1}
                there.send_message(None, data)
                here.update_settings(None, data)

        return callback

    for here, there in ((one, two), (two, one)):
        here.subscribe(passes_on(here, there))
        here.subscribe(heard[here.id])
    run_together([lambda: one.send_message(None, {"left": 50}), lambda: two.send_message(None, {"left": 50})])
    for listener in heard.values():
        listener.wait(lambda them: sum(event.type == "message" for event in them.events) == 51)
        listener.wait(lambda them: sum(event.type == "settings_changed" for event in them.events) == 50)
        assert listener.seqs == list(range(1, len(listener.seqs) + 1))
