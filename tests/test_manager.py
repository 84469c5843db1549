"""RoomManager: making, finding, listing and ending rooms."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.fakes import PATIENCE, Blocker, Listener, Wire, eventually, raise_any, rooms_threads, run_together

from roomkit import (
    BadPassword,
    InvalidConfig,
    InvalidId,
    InvalidMessage,
    Lifecycle,
    LimitExceeded,
    PlayerExists,
    Room,
    RoomConfig,
    RoomExists,
    RoomManager,
    RoomNotFound,
    RoomState,
    RoomStatus,
    ShuttingDown,
)
from roomkit.testing import InlineBroadcaster, ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def manager(clock: ManualClock) -> RoomManager:
    """A manager whose rooms run in the calling thread."""
    manager = RoomManager(clock=clock, wall_clock=clock.wall)
    manager.use_broadcaster(InlineBroadcaster())
    return manager


def ids(states: tuple[RoomState, ...]) -> list[str]:
    return [state.id for state in states]


# Making and finding.


def test_a_room_is_found_by_its_id(manager: RoomManager) -> None:
    """Under its own id or a generated one; get, find, in, len and rooms agree."""
    one, two = manager.create_room("room-1"), manager.create_room()
    assert two.id not in ("", "room-1")
    for room in (one, two):
        assert manager.get_room(room.id) is room
        assert manager.find_room(room.id) is room
        assert room.id in manager
    assert (len(manager), manager.rooms()) == (2, (one, two))
    assert manager.find_room("room-3") is None
    assert "room-3" not in manager
    with pytest.raises(RoomNotFound):
        manager.get_room("room-3")


def test_an_id_in_use_is_refused_until_its_room_is_gone(manager: RoomManager) -> None:
    """RoomExists while the room is there, closed or not; afterwards the id is free, for another incarnation."""
    room = manager.create_room("room")
    epoch = room.get_state().epoch
    for _ in range(2):
        with pytest.raises(RoomExists):
            manager.create_room("room")
        assert manager.get_room("room") is room
        room.close()
    manager.remove_room("room")
    assert manager.create_room("room").get_state().epoch != epoch
    with pytest.raises(RoomNotFound):
        manager.remove_room("another")


def test_five_hundred_make_the_same_room() -> None:
    """One of them makes it, the others are told that it exists."""
    manager = RoomManager()
    results = run_together([lambda: manager.create_room("room")] * 500)
    (room,) = [result for result in results if isinstance(result, Room)]
    assert sum(isinstance(result, RoomExists) for result in results) == 499
    assert manager.rooms() == (room,)


def test_a_generated_id_that_is_in_use_is_refused() -> None:
    """Should a user's own generator repeat itself, the older room is not replaced."""
    manager = RoomManager(new_room_id=lambda: "always-the-same")
    room = manager.create_room()
    with pytest.raises(RoomExists):
        manager.create_room()
    assert manager.rooms() == (room,)


def test_a_room_is_made_with_the_options_given(manager: RoomManager) -> None:
    """The manager's bounds, changed by the room's own; a smaller house needs fewer to start."""
    assert manager.create_room().config == manager.config
    room = manager.create_room(max_players=8, min_players=2, queue_size=7, metadata={"mode": "duel"}, private=True)
    state = room.get_state()
    assert (state.max_players, state.min_players, room.config.queue_size) == (8, 2, 7)
    assert (dict(state.metadata), state.private, state.has_password) == ({"mode": "duel"}, True, False)
    manager.config = RoomConfig(max_players=6, min_players=5)
    assert manager.create_room(max_players=3).get_state().min_players == 3
    assert manager.create_room(max_players=5).get_state().min_players == 5
    chat = Lifecycle("chat", {"open": {"add_player": "open", "close": "closed"}})
    assert manager.create_room(lifecycle=chat).get_state().lifecycle == "chat"


BAD: list[tuple[str, type[Exception], Callable[[RoomManager], object]]] = [
    ("an empty id", InvalidId, lambda m: m.create_room("")),
    ("a long id", InvalidId, lambda m: m.create_room("x" * 65)),
    ("a slash", InvalidId, lambda m: m.create_room("a/b")),
    ("a line's end", InvalidId, lambda m: m.create_room("a\n")),
    ("no text", InvalidId, lambda m: m.create_room(7)),  # type: ignore[arg-type]
    ("a generator's bad id", InvalidId, lambda m: (setattr(m, "_new_room_id", lambda: "a b"), m.create_room())),
    ("no players", InvalidConfig, lambda m: m.create_room(max_players=0)),
    ("players as text", InvalidConfig, lambda m: m.create_room(max_players="4")),
    ("players as text, more to start", InvalidConfig, lambda m: m.create_room(config=DUEL, max_players="4")),
    ("no number of players", InvalidConfig, lambda m: m.create_room(config=DUEL, max_players=None)),
    ("more to start than seats", InvalidConfig, lambda m: m.create_room(max_players=2, min_players=3)),
    ("an unknown option", InvalidConfig, lambda m: m.create_room(max_player=2)),
    ("a negative time", InvalidConfig, lambda m: m.create_room(empty_ttl=-1)),
    ("metadata without a JSON form", InvalidMessage, lambda m: m.create_room(metadata={"a": object()})),
    ("an empty password", InvalidMessage, lambda m: m.create_room(password="")),
    ("a bad player", InvalidId, lambda m: m.join_or_create("no good")),
    ("a bad name", InvalidMessage, lambda m: m.join_or_create("amy", "\n")),
    ("a bad option", InvalidConfig, lambda m: m.join_or_create("amy", max_players=0)),
    ("a bad name, reserving", InvalidMessage, lambda m: m.join_or_create("amy", "\n", reserve=True)),
]
DUEL = RoomConfig(max_players=2, min_players=2)


@pytest.mark.parametrize(("error", "attempt"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_makes_no_sense_is_refused_and_leaves_nothing(
    manager: RoomManager, error: type[Exception], attempt: Callable[[RoomManager], object]
) -> None:
    """No room, no deadline, no owner, and nothing counted."""
    with pytest.raises(error):
        attempt(manager)
    assert len(manager) == 0
    assert (len(manager._heap), manager._owners) == (0, {})
    assert manager.tally.get("rooms_created") == 0


def test_there_are_at_most_max_rooms() -> None:
    """Also when many ask at once; a room that goes makes place for another."""
    manager = RoomManager(max_rooms=5)
    results = run_together([lambda n=n: manager.create_room(f"r{n}") for n in range(50)])
    assert sum(isinstance(result, LimitExceeded) for result in results) == 45
    assert len(manager) == 5
    with pytest.raises(LimitExceeded):
        manager.join_or_create("amy", metadata={"nobody": "has this"})
    assert manager.join_or_create("amy")[0] in manager.rooms()
    manager.remove_room(manager.rooms()[0].id)
    manager.create_room("another")
    assert len(manager) == 5


def test_an_owner_has_at_most_so_many_rooms() -> None:
    """Each owner for itself, rooms without an owner not at all; also when many ask at once."""
    manager = RoomManager(max_rooms_per_owner=2)
    results = run_together([lambda: manager.create_room(owner="amy")] * 20)
    assert sum(isinstance(result, LimitExceeded) for result in results) == 18
    manager.create_room(owner="bob")
    for _ in range(5):
        manager.create_room()
    with pytest.raises(LimitExceeded):
        manager.join_or_create("p", metadata={"new": 1}, owner="amy")
    amys = next(result for result in results if isinstance(result, Room))
    manager.remove_room(amys.id)
    manager.join_or_create("p", metadata={"new": 1}, owner="amy")
    with pytest.raises(LimitExceeded):
        manager.create_room(owner="amy")
    assert len(manager) == 2 + 1 + 5


def test_a_room_that_is_removed_is_closed_first(manager: RoomManager) -> None:
    """Everybody who is there is told."""
    room = manager.create_room("room")
    wire = Wire()
    room.join("amy", wire)
    manager.remove_room("room", "by the admin")
    assert wire.types[-1] == "room_closed"
    assert wire.closed == (4510, "by the admin")
    assert manager.stats()["rooms_removed"] == 1


# Listing.


@pytest.fixture
def house(manager: RoomManager, clock: ManualClock) -> RoomManager:
    """Rooms that differ: in players, status, space, lock, metadata, privacy; made one second after each other."""
    for name, options in {
        "empty": {},
        "half": {"metadata": {"mode": "duel", "level": 2}},
        "full": {"max_players": 2, "metadata": {"mode": "duel"}},
        "locked": {"metadata": {"mode": "chat"}},
        "playing": {"max_players": 1},
        "closed": {},
        "private": {"private": True},
        "secret": {"password": "pw"},
    }.items():
        manager.create_room(name, **options)  # type: ignore[arg-type]
        clock.advance(1)
    for name, count in {"half": 2, "full": 2, "locked": 3, "playing": 1}.items():
        for n in range(count):
            manager.get_room(name).add_player(f"{name}-{n}")
    manager.get_room("locked").lock()
    manager.get_room("playing").set_player_ready("playing-0")
    manager.get_room("playing").start_game()
    manager.get_room("closed").close()
    return manager


PUBLIC = ["empty", "half", "full", "locked", "playing", "closed", "secret"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, PUBLIC),
        ({"include_private": True}, [*PUBLIC[:6], "private", "secret"]),
        ({"status": "playing"}, ["playing"]),
        ({"status": RoomStatus.PREPARING}, ["full"]),
        ({"status": ["playing", RoomStatus.CLOSED]}, ["playing", "closed"]),
        ({"status": "unheard-of"}, []),
        ({"has_space": True}, ["empty", "half", "secret"]),
        ({"has_space": False}, ["full", "locked", "playing", "closed"]),
        ({"metadata": {"mode": "duel"}}, ["half", "full"]),
        ({"metadata": {"mode": "duel", "level": 2}}, ["half"]),
        ({"metadata": {"mode": None}}, []),
        ({"metadata": {}}, PUBLIC),
        ({"has_space": True, "metadata": {"mode": "duel"}, "status": "waiting"}, ["half"]),
        ({"sort": "-created_at"}, PUBLIC[::-1]),
        ({"sort": "id"}, sorted(PUBLIC)),
        ({"sort": "-id"}, sorted(PUBLIC, reverse=True)),
        ({"sort": "players"}, ["closed", "empty", "secret", "playing", "full", "half", "locked"]),
        ({"sort": "-players"}, ["locked", "half", "full", "playing", "secret", "empty", "closed"]),
        ({"limit": 2}, ["empty", "half"]),
        ({"limit": 0}, []),
    ],
    ids=str,
)
def test_a_listing_filters_and_sorts(house: RoomManager, query: dict[str, Any], expected: list[str]) -> None:
    """Each filter alone and together, each sort both ways, equal ones by id; private rooms only when asked for."""
    page = house.list_rooms(**query)
    assert ids(page) == expected
    assert (page.next_cursor is not None) == (query.get("limit", 0) > 0)


@pytest.mark.parametrize("sort", ["created_at", "-created_at", "id", "-id", "players", "-players"])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_pages_make_up_the_whole(house: RoomManager, sort: str, limit: int) -> None:
    """One after the other they give each room once, in the listing's order; the last has no cursor."""
    found: list[str] = []
    cursor = None
    while True:
        page = house.list_rooms(sort=sort, limit=limit, cursor=cursor)
        found += ids(page)
        assert len(page) == limit or page.next_cursor is None
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == ids(house.list_rooms(sort=sort))


@pytest.mark.parametrize("sort", ["created_at", "-created_at", "id"])
def test_pages_are_stable_while_rooms_come_and_go(manager: RoomManager, clock: ManualClock, sort: str) -> None:
    """Rooms go, the one that the cursor names among them, and come: none that stays is told twice or missed."""
    for n in range(30):
        manager.create_room(f"room-{n:02}")
        clock.advance(1)
    stay = {f"room-{n:02}" for n in range(30) if n % 5}
    found: list[str] = []
    cursor = None
    for turn in range(100):
        page = manager.list_rooms(sort=sort, limit=4, cursor=cursor)
        found += ids(page)
        cursor = page.next_cursor
        if cursor is None:
            break
        for room_id in {*ids(page)[-1:], "room-00", "room-25"} - stay:
            if room_id in manager:
                manager.remove_room(room_id)
        clock.advance(1)
        manager.create_room(f"new-{turn}")
    assert len(found) == len(set(found))
    assert stay <= set(found)


def cursor_of(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode()


@pytest.mark.parametrize(
    "query",
    [
        {"sort": "name"},
        {"sort": ""},
        {"sort": "--id"},
        {"limit": -1},
        {"cursor": "rubbish"},
        {"cursor": "\ud800"},
        {"cursor": ""},
        {"cursor": 7},
        {"cursor": cursor_of(b"[1]")},
        {"cursor": cursor_of(b'["created_at", "x", "y"]')},
        {"cursor": cursor_of(b'["created_at", null, "y"]')},
        {"cursor": cursor_of(b'["created_at", 1, 2]')},
        {"cursor": cursor_of(b'{"created_at": 1}')},
        {"sort": "id", "cursor": cursor_of(b'["id", 1, "y"]')},
    ],
    ids=ascii,
)
def test_a_listing_that_makes_no_sense_is_refused(house: RoomManager, query: dict[str, Any]) -> None:
    """InvalidMessage for an unknown sort, a negative limit, and every cursor that no listing gave."""
    with pytest.raises(InvalidMessage):
        house.list_rooms(**query)


def test_a_cursor_belongs_to_its_sort(house: RoomManager) -> None:
    """One from another sort is refused instead of leading somewhere."""
    cursor = house.list_rooms(sort="id", limit=1).next_cursor
    for sort in ("-id", "created_at", "players"):
        with pytest.raises(InvalidMessage):
            house.list_rooms(sort=sort, cursor=cursor)


# Joining what fits.


def test_a_player_joins_the_fullest_room_that_fits(house: RoomManager) -> None:
    """Not locked, private, protected, full, playing or closed; of two alike the older."""
    room, player = house.join_or_create("amy", "Amy")
    assert (room.id, player.name) == ("half", "Amy")
    assert player.token
    assert house.join_or_create("bob")[0].id == "half"  # and now it is full
    assert house.join_or_create("cleo")[0].id == "empty"
    assert len(house) == 8


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"metadata": {"mode": "duel"}}, "half"),
        ({"metadata": {"mode": "chat"}}, None),
        ({"metadata": {"level": 2}}, "half"),
        ({"max_players": 4}, "half"),
        ({"max_players": 3}, None),
        ({"min_players": 4}, "half"),
        ({"min_players": 2}, None),
        ({"max_players": None}, "half"),
    ],
    ids=str,
)
def test_what_a_player_looks_for_is_found_or_made(
    house: RoomManager, query: dict[str, Any], expected: str | None
) -> None:
    """By metadata and size; where there is none a room with just these is made."""
    if query == {"max_players": None}:
        query = {}
    room, player = house.join_or_create("amy", **query)
    assert room.get_state().get_player("amy") is not None
    if expected is not None:
        assert room.id == expected
        return
    state = room.get_state()
    assert room.id not in PUBLIC
    assert dict(state.metadata) == query.get("metadata", {})
    for key in ("max_players", "min_players"):
        assert getattr(state, key) == query.get(key, 4 if key == "max_players" or "max_players" not in query else 3)
    assert player.id == "amy"


def test_who_sits_somewhere_already_gets_another_seat_elsewhere(house: RoomManager) -> None:
    """A room in which the id is seated is passed over: its token was not shown."""
    house.join_or_create("amy")
    assert house.join_or_create("amy")[0].id == "empty"
    with pytest.raises(PlayerExists):
        house.get_room("half").add_player("amy")


def test_a_seat_that_was_only_reserved_is_given_up(manager: RoomManager, clock: ManualClock) -> None:
    """As the REST door takes them; with a room of its own and a password, too."""
    room, player = manager.join_or_create("amy", reserve=True, password="pw")
    assert room.get_state().has_password
    assert player.token
    other, _ = manager.join_or_create("bob", reserve=True)
    assert other is not room
    with pytest.raises(BadPassword):
        room.join("cleo")
    clock.advance(29.9)
    manager.cleanup()
    assert len(room.get_players()) == 1
    clock.advance(0.2)
    manager.cleanup()
    assert room.get_players() == ()


# The end.


def test_a_shutdown_sends_clients_away_to_come_back(clock: ManualClock) -> None:
    """1012 and how many seconds to wait, spread; what was queued is delivered before; rooms and threads are gone."""
    manager = RoomManager(clock=clock)
    wires: list[Wire] = []
    listener = Listener()
    for n in range(10):
        room = manager.create_room(f"r{n}")
        wires.append(Wire())
        room.join("amy", wires[-1])
        room.send_message("amy", {"last": "words"})
    manager.get_room("r0").subscribe(listener)
    manager.start_cleanup()
    assert manager.shutdown(PATIENCE, spread=8) is True
    waits = []
    for wire in wires:
        assert wire.types == ["welcome", "message"]
        assert len(wire.closes) == 1
        code, reason = wire.closes[0]
        assert code == 1012
        assert reason.startswith("restarting; come back in ")
        waits.append(float(reason.removeprefix("restarting; come back in ").removesuffix(" s")))
        assert wire.late_messages == []
    assert all(0 <= wait <= 8 for wait in waits)
    assert len(set(waits)) > 1
    assert listener.types[-1] == "room_closed"
    assert (len(manager), rooms_threads(), manager.is_shut_down) == (0, [], True)


def test_a_manager_that_is_shut_down_admits_nothing(manager: RoomManager) -> None:
    """Every way in raises ShuttingDown and makes nothing; a second shutdown is quiet."""
    manager.create_room("room")
    assert manager.shutdown()
    for attempt in (
        lambda: manager.create_room("another"),
        lambda: manager.join_or_create("amy"),
        manager.start_cleanup,
    ):
        with pytest.raises(ShuttingDown):
            attempt()
    assert (len(manager), len(manager._heap), rooms_threads()) == (0, 0, [])
    assert manager.shutdown() is True
    assert manager.cleanup() == []
    assert manager.list_rooms() == ()


def test_rooms_made_while_it_shuts_down_are_in_or_out() -> None:
    """Two hundred threads make rooms during the shutdown: none is left over, each was made and closed or refused."""
    manager = RoomManager()
    made: list[Room] = []

    def create() -> None:
        room = manager.create_room()
        room.add_player("amy")
        made.append(room)

    results = run_together([create] * 100 + [lambda: manager.shutdown(PATIENCE)] + [create] * 100)
    assert results[100] is True
    assert len(manager) == 0
    assert all(room.status == "closed" for room in made)
    raise_any(
        r for r in results if isinstance(r, BaseException) and "closed" not in str(r) and "shutting" not in str(r)
    )


def test_a_shutdown_is_over_in_time_whatever_blocks() -> None:
    """A connection that never comes back from deliver: False within the timeout; the other rooms ended properly."""
    manager = RoomManager(RoomConfig(queue_size=2))
    blocker, wire, listener = Blocker(), Wire(), Listener()
    stuck, good = manager.create_room("stuck"), manager.create_room("good")
    stuck.join("amy", blocker)
    blocker.wait_for_seq(stuck.get_state().seq)
    blocker.block()
    for _ in range(5):
        stuck.send_message(None, {})
    assert blocker.entered.wait(PATIENCE)
    good.join("bob", wire)
    good.subscribe(listener)
    done = threading.Event()
    results = run_together([lambda: (manager.shutdown(0.3), done.set())[0]])
    assert results == [False]
    assert done.is_set()
    assert wire.wait_closed() == 1012
    assert len(manager) == 0
    blocker.let_go()
    assert blocker.wait_closed() == 1012
    eventually(lambda: rooms_threads() == [])


def test_a_shutdown_waits_for_subscribers_within_its_bound() -> None:
    """What they had in hand is finished before it returns True; one that blocks makes it return False."""
    for blocks in (False, True):
        manager = RoomManager()
        room = manager.create_room("room")
        gate, entered, seen = threading.Event(), threading.Event(), Listener()

        def slow(
            event: Any, seen: Listener = seen, gate: threading.Event = gate, entered: threading.Event = entered
        ) -> None:
            entered.set()
            assert gate.wait(PATIENCE)
            seen(event)

        room.subscribe(slow)
        room.send_message(None, {})
        assert entered.wait(PATIENCE)
        if blocks:
            assert manager.shutdown(0.1) is False
            gate.set()
        else:
            ((ended, types),) = run_together(
                [lambda: (gate.set(), (manager.shutdown(PATIENCE), list(seen.types)))[1]]  # noqa: B023
            )
            assert ended is True
            assert types == ["message", "room_status", "room_closed"]
        eventually(lambda: rooms_threads() == [])


def test_a_shutdown_may_be_asked_for_by_a_subscriber() -> None:
    """By a thread of the manager's own: it does not wait for itself."""
    manager = RoomManager()
    room = manager.create_room("room")
    answers: list[bool] = []
    room.subscribe(lambda event: answers.append(manager.shutdown(PATIENCE)) if event.type == "message" else None)
    room.send_message(None, {})
    eventually(lambda: answers)
    assert answers == [True]
    eventually(lambda: rooms_threads() == [])


def test_a_manager_is_a_context_that_starts_and_ends_its_reaper() -> None:
    """Within it there is one reaper, however often it is started; afterwards no thread, also after an exception."""
    manager = RoomManager()

    def use() -> None:
        with manager as same:
            assert same is manager
            manager.start_cleanup()
            assert rooms_threads() == ["roomkit-reaper"]
            manager.create_room("room")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert manager.is_shut_down
    assert len(manager) == 0
    assert rooms_threads() == []


def test_a_manager_starts_no_thread_before_it_needs_one() -> None:
    """Rooms with players, played to the end and expired by hand: none at all."""
    clock = ManualClock()
    manager = RoomManager(clock=clock)
    room = manager.create_room(max_players=1)
    room.add_player("amy")
    room.set_player_ready("amy")
    room.start_game()
    room.finish_game()
    clock.advance(1800)
    manager.cleanup()
    assert len(manager) == 0
    assert rooms_threads() == []
    assert manager.shutdown()


def test_another_broadcaster_takes_over_rooms_that_are_there_and_those_to_come() -> None:
    """What is queued is delivered once, by the one or the other; the old threads end."""
    manager = RoomManager()
    old = manager.create_room("old")
    wire = Wire()
    old.join("amy", wire)
    for n in range(50):
        old.send_message("amy", {"n": n})
        if n == 25:
            manager.use_broadcaster(InlineBroadcaster(), PATIENCE)
            assert rooms_threads() == []
    seq = old.get_state().seq
    assert wire.seqs == list(range(wire.welcome["seq"] + 1, seq + 1))
    new = manager.create_room("new")
    other = Wire()
    new.join("bob", other)
    new.send_message("bob", {})
    assert other.types == ["welcome", "message"]  # at once: it is drained by the calling thread
    assert rooms_threads() == []
    manager.shutdown()
    assert wire.closes[0][0] == other.closes[0][0] == 1012


def test_stats_count_what_is_there(manager: RoomManager) -> None:
    """The seed's page: total, active, zombie, by status, players, connections, operations and deliveries."""
    for name in ("live", "left", "empty", "closed"):
        manager.create_room(name, max_players=2)
    live = manager.get_room("live")
    live.join("amy", Wire())
    live.join("bob", Wire())
    manager.get_room("left").join("cleo", Wire())
    manager.get_room("left").remove_connection("cleo")
    manager.get_room("closed").close()
    stats = manager.stats()
    assert (stats["total_rooms"], stats["active_rooms"], stats["zombie_rooms"]) == (4, 1, 3)
    assert stats["by_status"] == {"preparing": 1, "waiting": 2, "closed": 1}
    assert (stats["players"], stats["connections"]) == (3, 2)
    assert stats["operations"] == {"Join": 3, "Disconnect": 1, "Close": 1}
    assert (stats["queue_depth"], stats["deepest_queue"], stats["dropped"], stats["busy"]) == (0, 0, {}, 0)
    assert stats["deliveries"] == 3 + 2  # welcomes, and bob's arrival (joined, status) told to amy
