"""One room, many threads: who gets in, what readers see, in which order events come, and how it all ends."""

from __future__ import annotations

import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from support.fakes import (
    PATIENCE,
    Listener,
    Wire,
    eventually,
    join,
    raise_any,
    rooms_threads,
    run_together,
    start_thread,
)

from roomkit import (
    InvalidTransition,
    LockUpgradeError,
    NotHost,
    PlayerBanned,
    PlayerExists,
    PlayerNotFound,
    Pressure,
    Room,
    RoomConfig,
    RoomFull,
    RoomkitError,
    RoomManager,
    RoomState,
)
from roomkit.concurrency.worker import Worker
from roomkit.testing import CopyOfState, InlineBroadcaster

#: Threads that queue for a lock on a busy machine must not be told RoomBusy: here they are to wait.
PATIENT = RoomConfig(busy_timeout=PATIENCE, queue_size=100_000, history_size=100_000)


@pytest.fixture
def rooms() -> Iterator[RoomManager]:
    """A manager of patient rooms, shut down at the end with every thread joined."""
    manager = RoomManager(PATIENT)
    yield manager
    assert manager.shutdown(PATIENCE)


@pytest.fixture(autouse=True)
def many_switches() -> Iterator[None]:
    """Have the interpreter change threads fifty times as often as usual: more interleavings in less time."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 50)
    yield
    sys.setswitchinterval(usual)


# The seed's first number: 500 fans at one room.


def test_five_hundred_at_the_door_of_four_seats(rooms: RoomManager) -> None:
    """Released at once: exactly 4 get in, the 496 others are told that it is full, and nothing is out of joint."""
    room = rooms.create_room(max_players=4)
    results = run_together([lambda n=n: room.add_player(f"fan-{n}") for n in range(500)])
    seated = [result for result in results if not isinstance(result, BaseException)]
    assert len(seated) == 4
    assert all(isinstance(r, (RoomFull, InvalidTransition)) for r in results if isinstance(r, BaseException))
    state = room.get_state()
    assert state.status == "preparing"
    assert {player.id for player in state.players} == {player.id for player in seated}
    assert state.host == state.players[0].id
    events = room.get_events(0)
    assert events is not None
    assert [event.seq for event in events] == list(range(1, state.seq + 1))
    joined = [event.data["count"] for event in events if event.type == "player_joined"]
    assert joined == [1, 2, 3, 4]
    assert Counter(event.type for event in events) == {"player_joined": 4, "host_changed": 1, "room_status": 1}


def test_one_seat_is_taken_once_however_many_ask_for_it(rooms: RoomManager) -> None:
    """A hundred threads seat the same player: one succeeds, the others get PlayerExists, one seat is taken."""
    room = rooms.create_room()
    results = run_together([lambda: room.add_player("amy")] * 100)
    assert sum(isinstance(result, PlayerExists) for result in results) == 99
    assert [player.id for player in room.get_players()] == ["amy"]
    assert room.get_state().seq == 2  # player_joined, host_changed


def test_five_hundred_at_the_door_of_the_house(rooms: RoomManager) -> None:
    """join_or_create for 500 at once: everybody sits exactly once, no room is over its capacity, none is empty."""
    results = run_together([lambda n=n: rooms.join_or_create(f"fan-{n}", max_players=4) for n in range(500)])
    raise_any(results)
    seats = Counter(player.id for room in rooms.rooms() for player in room.get_players())
    assert len(seats) == 500
    assert set(seats.values()) == {1}
    for room, player in results:
        assert room.get_state().get_player(player.id) is not None
    assert all(1 <= len(room.get_players()) <= 4 for room in rooms.rooms())


def test_nobody_takes_the_seat_for_which_a_room_is_made() -> None:
    """Somebody who looks for a room just when one is made for another cannot get in between: both are seated."""
    inner: list[Any] = []

    def token() -> str:  # asked for when a seat is about to be taken: at the worst moment somebody else comes
        if not inner:
            inner.append(None)
            inner[0] = manager.join_or_create("second", max_players=1)
        return "a secret"

    manager = RoomManager(new_token=token)
    first_room, _ = manager.join_or_create("first", max_players=1)
    second_room, _ = inner[0]
    assert first_room is not second_room
    assert [[p.id for p in room.get_players()] for room in (first_room, second_room)] == [["first"], ["second"]]
    assert len(manager) == 2


# Readers.


def check_state(state: RoomState) -> None:
    """What is true of the game between two operations, and of no half-made one."""
    ready = [player.ready for player in state.players]
    assert len(state.players) <= state.max_players
    assert (state.host is None) is (not state.players)
    assert state.host is None or state.get_player(state.host) is not None
    assert len({player.id for player in state.players}) == len(state.players)
    if state.status == "waiting":
        assert not any(ready)
        assert len(state.players) < state.min_players
    elif state.status == "preparing":
        assert len(state.players) >= state.min_players  # all may be ready: the same song was selected again
    elif state.status in ("ready", "playing"):
        assert all(ready)
    if state.status == "ready":
        assert len(state.players) >= state.min_players
    if state.status in ("playing", "finished"):
        assert state.started_at is not None


def operate_at_random(room: Room, dice: random.Random) -> None:
    """An operation that changes several fields, by server code or a player; what the room refuses is refused."""
    name = f"p{dice.randrange(5)}"
    operations: list[Callable[[], object]] = [
        lambda: room.add_player(name),
        lambda: room.add_player(name),
        lambda: room.set_player_ready(name),
        lambda: room.set_player_ready(name),
        lambda: room.set_player_ready(name),
        lambda: room.set_player_ready(name, False),
        lambda: room.remove_player(name),
        lambda: room.select_song(name, f"song-{dice.randrange(3)}"),
        lambda: room.update_settings(None, {"speed": dice.randrange(3) or None}),
        lambda: room.send_message(name, {"chat": "hi"}),
        lambda: room.set_metadata({"level": dice.randrange(100)}),
    ]
    try:
        dice.choice(operations)()
    except (InvalidTransition, PlayerExists, PlayerNotFound, RoomFull, NotHost):
        pass


def play_at_random(room: Room, seed: int, turns: int) -> None:
    """So many of them, the same for the same seed."""
    dice = random.Random(seed)
    for _ in range(turns):
        operate_at_random(room, dice)


def test_a_reader_never_sees_a_half_made_change(rooms: RoomManager) -> None:
    """Six writers, four readers: each state read satisfies the rules, seqs never go back, one seq is one state."""
    room = rooms.create_room(max_players=4, min_players=2)
    over = threading.Event()
    seen: list[dict[int, dict[str, Any]]] = [{} for _ in range(4)]

    def read(mine: dict[int, dict[str, Any]]) -> None:
        last = 0
        while not over.is_set():
            state = room.get_state()
            check_state(state)
            assert state.seq >= last, "time went back"
            if state.seq != last:
                mine[state.seq] = state.to_dict()
            last = state.seq
            with room.reading() as held:
                assert room.get_state() == held
                assert held.seq >= last

    def write_all() -> None:
        try:
            for turn in range(1000):  # until each reader has seen something of it
                raise_any(run_together([lambda n=n: play_at_random(room, 10 * turn + n, 100) for n in range(6)]))  # noqa: B023
                if turn >= 3 and all(len(mine) >= 10 for mine in seen):
                    break
        finally:
            over.set()

    raise_any(run_together([*[lambda mine=mine: read(mine) for mine in seen], write_all]))
    states: dict[int, dict[str, Any]] = {}
    for mine in seen:
        for seq, state in mine.items():
            assert states.setdefault(seq, state) == state
    assert len(states) >= 10


def test_whoever_has_an_event_reads_a_state_that_contains_it(rooms: RoomManager) -> None:
    """A subscriber that asks for the state within its callback never gets one from before the event."""
    room = rooms.create_room(max_players=4, min_players=2)
    stale: list[tuple[int, int]] = []
    seen = Listener()

    def look(event: Any) -> None:
        state = room.get_state()
        if state.seq < event.seq:
            stale.append((state.seq, event.seq))
        seen(event)

    room.subscribe(look, limit=100_000)
    raise_any(run_together([lambda n=n: play_at_random(room, n, 200) for n in range(4)]))
    room.send_message(None, {})
    seen.wait_for_seq(room.get_state().seq)
    assert stale == []


def test_the_old_state_is_gone_before_the_event_can_be_seen() -> None:
    """The same as a single step: at the moment at which the broadcaster could see the event, no older state is read."""
    room = Room("r", broadcaster=InlineBroadcaster(by_hand=True))
    room.subscribe(lambda event: None)
    room.get_state()
    stale: list[RoomState | None] = []
    queue = room._fanout.queue
    put = queue.offer

    def look_when_it_is_put(*args: Any) -> Any:
        stale.append(room._snapshot)
        return put(*args)

    queue.offer = look_when_it_is_put  # type: ignore[method-assign]
    room.send_message(None, {})
    assert [state is None or state.seq == room.get_state().seq for state in stale] == [True]


# Order.


def test_the_order_of_seqs_is_the_order_of_the_changes(rooms: RoomManager) -> None:
    """Eight writers: every listener gets all seqs in order, and applying the events gives exactly the final state."""
    room = rooms.create_room(max_players=6, min_players=2)
    wires = []
    for name in ("ann", "bob"):
        wires.append(Wire())
        room.join(name, wires[-1])
    listener = Listener()
    room.subscribe(listener, limit=100_000)
    start = room.get_state()
    raise_any(run_together([lambda n=n: play_at_random(room, n, 150) for n in range(8)]))
    room.send_message(None, {"last": True})
    final = room.get_state()
    for wire in wires:
        wire.wait_for_seq(final.seq)
        assert wire.seqs == list(range(wire.welcome["seq"] + 1, final.seq + 1))
        copy = CopyOfState(wire.welcome["state"])
        copy.apply_all(wire.events)
        assert copy.to_dict() == final.to_dict()
    listener.wait_for_seq(final.seq)
    assert listener.seqs == list(range(start.seq + 1, final.seq + 1))
    history = room.get_events(0)
    assert history is not None
    assert [event.seq for event in history] == list(range(1, final.seq + 1))


def test_a_connection_that_comes_in_the_middle_misses_nothing_and_gets_nothing_twice(rooms: RoomManager) -> None:
    """Joining, dropping and resuming while two others write: welcome, replay and live events fit without a seam."""
    room = rooms.create_room(max_players=6, min_players=6)
    player = room.add_player("eve")
    epoch = room.get_state().epoch
    over = threading.Event()
    allowed = threading.Semaphore(0)  # so that they do not run away from the reader on a slow machine

    def write() -> None:
        while allowed.acquire(timeout=PATIENCE) and not over.is_set():
            room.send_message(None, {})

    copy: CopyOfState | None = None
    seqs: list[int] = []

    def come(last: bool = False) -> Wire:
        nonlocal copy
        wire = Wire()
        seq = None if copy is None else copy.seq
        if not last:
            allowed.release(60)
        joined = room.join("eve", wire, token=player.token, epoch=epoch, seq=seq)
        assert joined.recovered is (None if copy is None else True)
        if not last:
            wire.wait_for_seq(joined.state.seq)
            assert room.remove_connection("eve", wire)
        else:
            wire.wait_for_seq(room.get_state().seq)
        if copy is None:
            copy = CopyOfState(wire.welcome["state"])
            seqs.append(copy.seq)
        got = wire.events  # what was on its way may still come, to a client that has gone
        copy.apply_all(got)
        seqs.extend(event["seq"] for event in got)
        return wire

    writers = [start_thread(write) for _ in range(2)]
    try:
        for _ in range(50):
            come()
    finally:
        over.set()
        allowed.release(2)
        join(*writers)
    come(last=True)
    final = room.get_state()
    assert seqs == list(range(seqs[0], final.seq + 1))
    assert copy is not None
    assert copy.to_dict() == final.to_dict()


# One seat, two connections.


def test_two_connections_for_one_seat_leave_exactly_one(rooms: RoomManager) -> None:
    """Both at once, fifty times over: one stays and is served, the other is closed with 4509; one link is left."""
    for _ in range(50):
        room = rooms.create_room()
        token = room.add_player("amy").token
        wires = [Wire(), Wire()]
        raise_any(run_together([partial(room.join, "amy", wire, token=token) for wire in wires]))
        room.send_message(None, {"to": "the one that stayed"})
        seq = room.get_state().seq
        eventually(lambda wires=wires: any(wire.closes for wire in wires))
        (stayed,) = [wire for wire in wires if not wire.closes]
        (closed,) = [wire for wire in wires if wire.closes]
        stayed.wait_for_seq(seq)
        assert [code for code, _ in closed.closes] == [4509]
        assert closed.late_messages == []
        assert stayed.welcome["player_id"] == "amy"
        assert room.connection_count == 1
        assert [player.connected for player in room.get_players()] == [True]
        rooms.remove_room(room.id)


def test_a_late_goodbye_of_a_replaced_connection_is_ignored(rooms: RoomManager) -> None:
    """The loss of the older connection, told after the newer one came, does not drop the seat."""
    room = rooms.create_room()
    room.add_player("amy")
    older, newer = Wire(), Wire()
    room.add_connection("amy", older)
    room.add_connection("amy", newer)
    before = room.get_state()
    assert room.remove_connection("amy", older) is False
    assert room.get_state() == before
    assert room.remove_connection("amy", newer) is True
    assert room.get_state().players[0].connected is False
    assert room.remove_connection("amy", newer) is False


# Leaving, kicking, banning, closing.


def test_nothing_of_a_player_comes_after_it_left(rooms: RoomManager) -> None:
    """Three players talk without a pause and are kicked, banned and taken out: their words end where they leave."""
    for _ in range(10):
        room = rooms.create_room(max_players=4, min_players=4)
        host, wires = Wire(), {name: Wire() for name in ("kicked", "banned", "left")}
        room.join("host", host)
        tokens = {name: room.join(name, wire).player.token for name, wire in wires.items()}

        def talk(name: str, room: Room = room) -> None:
            try:
                while True:
                    room.send_message(name, {})
            except PlayerNotFound:
                pass

        def end(host: Wire = host, room: Room = room) -> None:
            host.wait(lambda host: len(host.of_type("message")) >= 5)
            room.kick("host", "kicked")
            room.kick("host", "banned", ban=True)
            room.remove_player("left")

        raise_any(run_together([*[lambda name=name: talk(name) for name in wires], end]))
        final = room.get_state().seq
        host.wait_for_seq(final)
        gone: set[str] = set()
        for event in host.events:
            if event["type"] == "player_left":
                assert event["data"]["reason"] == event["data"]["player_id"]
                gone.add(event["data"]["player_id"])
            assert event["type"] != "message" or event["data"]["player_id"] not in gone
        assert gone == set(wires)
        for name, wire in wires.items():
            assert wire.wait_closed() == (1000 if name == "left" else 4503)
            assert len(wire.closes) == 1
            assert wire.late_messages == []
            own = [e["seq"] for e in wire.events if e["data"].get("player_id") == name and e["type"] == "player_left"]
            assert len(own) == 1
            assert not [s for s in wire.seqs if s > own[0] + 2]  # its host_changed and room_status at most
        with pytest.raises(PlayerBanned):
            room.join("banned", Wire(), token=tokens["banned"])
        room.add_player("kicked")
        assert room.connection_count == 1
        rooms.remove_room(room.id)


def test_closing_while_eight_write_ends_everything(rooms: RoomManager) -> None:
    """room_closed is the last event that anybody gets; connections are closed with 4510, once; no thread is left."""
    # A thread that would linger for longer than the test waits for it: it has to end because the room did.
    rooms.use_broadcaster(lambda room_id, drain: Worker(f"roomkit-room-{room_id}", drain, linger=10 * PATIENCE))
    room = rooms.create_room(max_players=6, min_players=2)
    wires = [Wire(), Wire()]
    for n, wire in enumerate(wires):
        room.join(f"w{n}", wire)
    listeners = [Listener(), Listener()]
    for listener in listeners:
        room.subscribe(listener, limit=100_000)

    def write(n: int) -> int:
        written = 0
        try:
            while True:
                room.send_message(None, {"n": n})
                written += 1
        except InvalidTransition:
            return written

    def close() -> None:
        wires[0].wait(lambda wire: len(wire.of_type("message")) >= 20)
        room.close("enough")

    results = run_together([lambda n=n: write(n) for n in range(8)] + [close])
    raise_any(results)
    final = room.get_state()
    assert final.status == "closed"
    history = room.get_events(0)
    assert history is not None
    assert sum(results[:8]) == Counter(event.type for event in history)["message"]
    for wire in wires:
        wire.wait_closed()
        assert wire.types[-1] == "room_closed"
        assert wire.seqs == list(range(wire.welcome["seq"] + 1, final.seq + 1))
        assert [code for code, _ in wire.closes] == [4510]
        assert wire.late_messages == []
    for listener in listeners:
        listener.wait(lambda listener: "room_closed" in listener.types)
        assert listener.types[-1] == "room_closed"
        assert listener.seqs[-1] == final.seq
    eventually(lambda: rooms_threads() == [])  # nobody has to stop them
    assert room.connection_count == 0
    before = room.get_state()
    with pytest.raises(InvalidTransition):
        room.add_connection("w0", Wire())
    with pytest.raises(InvalidTransition):
        room.add_player("late")
    assert room.close("again") is None
    assert room.get_state() == before


def test_who_comes_back_after_the_room_was_taken_away_is_told_how_it_ended(rooms: RoomManager) -> None:
    """A join that found the room just before it went: welcome, what was missed, 4510; and again no thread is left."""
    room = rooms.create_room()
    first, late = Wire(), Wire()
    joined = room.join("amy", first)
    rooms.remove_room(room.id, "gone")
    first.wait_closed()
    eventually(lambda: rooms_threads() == [])
    seq = joined.state.seq
    assert room.join("amy", late, token=joined.player.token, epoch=joined.state.epoch, seq=seq).recovered
    assert late.wait_closed() == 4510
    assert late.types == ["welcome", "room_status", "room_closed"]
    assert room.connection_count == 0
    eventually(lambda: rooms_threads() == [])


def test_a_reader_who_stays_does_not_keep_a_closed_room_from_ending() -> None:
    """Connections are closed although somebody reads for longer than the room waits for its lock."""
    room = Room("r", RoomConfig(busy_timeout=0), broadcaster=InlineBroadcaster(by_hand=True))
    wire, listener = Wire(), Listener()
    room.join("amy", wire)
    room.subscribe(listener)
    room.close()
    with room.reading():
        raise_any(run_together([room.drain]))
    assert wire.types[-1] == "room_closed"
    assert [code for code, _ in wire.closes] == [4510]
    assert room.connection_count == 0
    listener.wait(lambda listener: "room_closed" in listener.types)


# The upgrade trap.

WRITES: dict[str, Callable[[Room], object]] = {
    "add_player": lambda room: room.add_player("new"),
    "remove_player": lambda room: room.remove_player("amy"),
    "kick": lambda room: room.kick("amy", "bob"),
    "set_player_ready": lambda room: room.set_player_ready("amy"),
    "select_song": lambda room: room.select_song("amy", "another"),
    "update_settings": lambda room: room.update_settings("amy", {"speed": 2}),
    "send_message": lambda room: room.send_message("amy", {}),
    "lock": lambda room: room.lock(),
    "set_metadata": lambda room: room.set_metadata({"a": 1}),
    "close": lambda room: room.close(),
    "join": lambda room: room.join("new", Wire()),
    "add_connection": lambda room: room.add_connection("amy", Wire()),
    "remove_connection": lambda room: room.remove_connection("bob"),
    "subscribe": lambda room: room.subscribe(lambda event: None),
    "expire": lambda room: room.expire(),
}


@pytest.mark.parametrize("full", [False, True], ids=["", "with a full queue"])
@pytest.mark.parametrize("name", WRITES)
def test_an_operation_by_the_thread_that_reads_is_refused_at_once(name: str, full: bool) -> None:
    """LockUpgradeError (not a wait for the lock, nor for the queue), nothing changed, and the room goes on."""
    room = Room(
        "r", RoomConfig(busy_timeout=3, queue_size=3, min_players=2), broadcaster=InlineBroadcaster(by_hand=True)
    )
    room.add_player("amy")
    room.add_player("bob")
    room.add_connection("bob", Wire())
    room.drain()
    for _ in range(3 if full else 0):
        room.send_message("bob", {})
    before, depth = room.get_state(), room.queue_depth
    with room.reading() as state:
        assert state is before
        with pytest.raises(LockUpgradeError):
            WRITES[name](room)
        assert room.get_state() is before
        assert room.get_players() == before.players
        assert room.get_events(before.seq) == ()
        assert (room.queue_depth, room.connection_count) == (depth, 1)
    room.drain()
    assert room._fanout.queue.load == 0
    WRITES[name](room)


def test_other_threads_read_while_one_reads_and_write_when_it_has_left(rooms: RoomManager) -> None:
    """reading() holds back writers, not readers; the writer that waited then goes on."""
    room = rooms.create_room()
    with room.reading() as state:
        writer = start_thread(lambda: room.add_player("amy"))
        assert run_together([room.get_state]) == [state]
        assert room.get_state() is state
    join(writer)
    assert len(room.get_players()) == 1


# Hooks.


def test_the_watermark_hook_runs_on_its_own_thread_and_may_use_the_room() -> None:
    """It is called on roomkit-hooks, once per filling of the queue, under no lock: it reads and changes the room."""
    calls: list[tuple[str, str, float]] = []
    called = threading.Semaphore(0)

    def hook(room: Room, pressure: Pressure) -> None:
        room.update_settings(None, {"slow_down": True})
        with room.reading() as state:
            assert state.settings["slow_down"]
        manager.list_rooms()
        calls.append((threading.current_thread().name, room.id, pressure.load))
        called.release()

    manager = RoomManager(RoomConfig(queue_size=10, busy_timeout=PATIENCE), on_watermark=hook)
    manager.use_broadcaster(InlineBroadcaster(by_hand=True))
    room = manager.create_room("r")
    room.join("amy", Wire())
    room.drain()
    for filling in (1, 2):
        for _ in range(7):
            room.send_message(None, {})
        assert len(calls) == filling - 1  # 70 %: nothing yet
        room.send_message(None, {})
        assert called.acquire(timeout=PATIENCE)
        room.send_message(None, {})
        room.send_message(None, {})
        assert not called.acquire(blocking=False)
        room.drain()
    assert calls == [("roomkit-hooks", "r", pytest.approx(0.8))] * 2
    assert manager.tally.get("watermarks") == 2
    assert manager.shutdown(PATIENCE)


def test_a_hook_that_raises_is_counted_and_called_again(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the room nor the next call of the hook suffers."""
    called = threading.Semaphore(0)

    def hook(room: Room, pressure: Pressure) -> None:
        called.release()
        raise RoomkitError("from the hook")

    manager = RoomManager(RoomConfig(queue_size=2), on_watermark=hook)
    manager.use_broadcaster(InlineBroadcaster(by_hand=True))
    room = manager.create_room("r")
    room.subscribe(lambda event: None)
    for _ in range(2):
        room.send_message(None, {})
        room.send_message(None, {})
        assert called.acquire(timeout=PATIENCE)
        room.drain()
    eventually(lambda: manager.tally.get("hook_errors") == 2)
    assert manager.shutdown(PATIENCE)
    assert "on_watermark failed" in caplog.text


def test_a_high_share_of_drops_calls_the_hook_once_more(rooms: RoomManager) -> None:
    """The 80 % mark is told once per filling; more than 5 % dropped among the last events is told besides, with it."""
    told: list[Pressure] = []
    called = threading.Semaphore(0)

    def hook(room: Room, pressure: Pressure) -> None:
        told.append(pressure)
        called.release()

    manager = RoomManager(RoomConfig(queue_size=100), on_watermark=hook)
    manager.use_broadcaster(InlineBroadcaster(by_hand=True))
    room = manager.create_room("r")
    room.subscribe(lambda event: None)
    for _ in range(80):
        room.send_message(None, {})
    assert called.acquire(timeout=PATIENCE)
    for _ in range(22):  # the last two have no place
        room.send_message(None, {})
    assert manager.tally.get("watermarks") == 1
    for _ in range(10):
        room.send_message(None, {})
    assert called.acquire(timeout=PATIENCE)
    assert manager.tally.get("watermarks") == 2
    assert told[0] == (0.8, 0.0)
    assert told[1].load == 1.0
    assert told[1].drop_rate > 0.05
    assert manager.shutdown(PATIENCE)
