"""Declaring lifecycles: the faults of a bad table by name, an auction and a chat, and random well-formed tables."""

from __future__ import annotations

import inspect
from enum import Enum
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from roomkit import (
    GAME,
    InvalidLifecycle,
    InvalidMessage,
    InvalidTransition,
    Lifecycle,
    NotHost,
    Operation,
    OperationRefused,
    Room,
    RoomConfig,
    RoomkitError,
    RoomManager,
    RoomStatus,
)
from roomkit.core import commands as c
from roomkit.core.lifecycle import BUILTIN_OPERATIONS, GUARDS
from roomkit.core.state import RoomMachine
from roomkit.testing import CopyOfState, InlineBroadcaster, lifecycle_machine

CHAT = Lifecycle("chat", {"open": {"add_player": "open", "remove_player": "open", "close": "closed"}})


def check_bid(state: Any, player_id: str | None, data: dict[str, Any]) -> dict[str, Any]:
    """A bid must be a whole number above the one that stands."""
    price = data.get("price")
    if type(price) is not int or price <= state.settings.get("price", 0):
        raise OperationRefused("a bid is a whole number above the last one")
    return {"price": price, "bidder": player_id}


AUCTION = Lifecycle(
    "auction",
    {
        "open": {
            "add_player": "open",
            "remove_player": "open",
            "bid": [("high", "closing"), "open"],
            "hammer": "closing",
            "close": "closed",
        },
        "closing": {
            "remove_player": "closing",
            "bid": "open",
            "hammer": [("any_bid", "sold"), "closed"],
            "close": "closed",
        },
        "sold": {"remove_player": "sold", "close": "closed"},
    },
    finished=["sold"],
    guards={
        "high": lambda facts: facts.settings.get("price", 0) >= 1000,
        "any_bid": lambda facts: "price" in facts.settings,
    },
    operations={"bid": Operation(check=check_bid), "hammer": Operation(host_only=True)},
)


def new_room(lifecycle: Lifecycle, **options: Any) -> Room:
    return Room("room-1", RoomConfig(**options), lifecycle=lifecycle, broadcaster=InlineBroadcaster())


# Faults.

OPEN = {"open": {"close": "closed"}}

FAULTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no status": ({}, {}, "has no status"),
    "an unknown status": ({"open": {"close": "closed", "go": "nowhere"}}, {}, "open x go: unknown status 'nowhere'"),
    "an unknown guard": ({"open": {"close": [("nope", "closed"), "open"]}}, {}, "open x close: unknown guard 'nope'"),
    "nothing unguarded at the end": (
        {"open": {"close": [("empty", "closed")]}},
        {},
        "open x close: the last entry must be a status without a guard",
    ),
    "an empty cell": ({"open": {"close": []}}, {}, "open x close: the last entry must be a status"),
    "something behind an unguarded entry": (
        {"open": {"close": ["closed", "open"]}},
        {},
        "open x close: 'closed' has no guard, so what follows it is never reached",
    ),
    "a cell that is none": ({"open": {"close": None}}, {}, "open x close"),
    "a rule with three parts": ({"open": {"close": [("empty", "open", "x"), "closed"]}}, {}, "open x close"),
    "a status that is no text": ({1: {"close": "closed"}}, {}, "status 1 "),
    "a row that is no mapping": ({"open": "closed"}, {}, "open"),
    "a dead end": ({"open": {"close": "closed", "go": "stuck"}, "stuck": {}}, {}, "'stuck' is a dead end"),
    "a circle without a way out": (
        {"open": {"close": "closed", "go": "a"}, "a": {"go": "b"}, "b": {"go": "a"}},
        {},
        "'a' is a dead end",
    ),
    "no way to closed at all": ({"open": {"go": "open"}}, {}, "'open' is a dead end, no way to 'closed'"),
    "a status that cannot be reached": (
        {"open": {"close": "closed"}, "island": {"close": "closed"}},
        {},
        "no way from 'open' to 'island'",
    ),
    "an unknown initial status": (OPEN, {"initial": "begin"}, "unknown initial status 'begin'"),
    "an unknown finished status": (OPEN, {"finished": ["done"]}, "unknown status 'done' in finished"),
    "an operation in no row": (OPEN, {"operations": {"bid": Operation()}}, "operation 'bid' is in no row"),
    "a builtin operation declared anew": (
        OPEN,
        {"operations": {"close": Operation(host_only=True)}},
        "operation 'close' is builtin",
    ),
    "a way out of closed": ({**OPEN, "closed": {"go": "open"}}, {}, "go leaves the terminal status 'closed'"),
    "an unknown closed status": (OPEN, {"closed": "over"}, "unknown status 'closed'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named(fault: str) -> None:
    """A bad table is refused when it is declared, by an InvalidLifecycle that names the lifecycle and the fault."""
    table, options, text = FAULTS[fault]
    with pytest.raises(InvalidLifecycle) as caught:
        Lifecycle("broken", table, **options)
    assert "lifecycle 'broken'" in str(caught.value)
    assert text in str(caught.value)


def test_an_invalid_lifecycle_is_a_value_error() -> None:
    """Whoever does not know roomkit's exceptions can catch ValueError."""
    assert issubclass(InvalidLifecycle, ValueError)


# The default table.


def test_game_is_designs_table() -> None:
    """GAME has the six statuses in order, the seven operations, and begins and ends where DESIGN says."""
    assert list(GAME.statuses) == list(RoomStatus)
    assert GAME.all_operations == BUILTIN_OPERATIONS
    assert (GAME.initial, GAME.closed, GAME.finished) == ("waiting", "closed", {"finished"})
    cells = sum(GAME.allows(status, operation) for status in GAME.statuses for operation in GAME.all_operations)
    assert cells == 20


def test_a_status_that_is_not_there_allows_nothing() -> None:
    """Asking is no error."""
    assert not GAME.allows("nowhere", "close")


def test_status_is_also_its_wire_string() -> None:
    """A RoomStatus equals, prints and encodes as its text."""
    assert RoomStatus.PLAYING == "playing"
    assert f"{RoomStatus.PLAYING}" == "playing"
    assert {RoomStatus.PLAYING: 1}["playing"] == 1


def test_a_room_is_closed_in_one_way_only() -> None:
    """Also where time, a transfer or a shutdown closes it: its status is the table's own, RoomStatus.CLOSED."""
    assert GAME.closed is RoomStatus.CLOSED
    assert GAME.initial is RoomStatus.WAITING
    room = RoomManager().create_room()
    room.execute(c.Close(None, "why", force=True))
    assert room.status is RoomStatus.CLOSED


def test_every_guard_that_is_promised_is_there() -> None:
    """The guards that a table may name without declaring them."""
    assert set(GUARDS) == {"enough_players", "too_few_players", "full", "empty", "all_ready"}


# Examples.


def test_chat_needs_no_game() -> None:
    """A chat: people come, talk and go while it is open; the game's operations are refused by name."""
    room = new_room(CHAT, max_players=50)
    room.add_player("amy")
    room.add_player("bob")
    room.send_message("bob", {"text": "hi"})
    for operation, call in (
        ("set_player_ready", lambda: room.set_player_ready("amy")),
        ("select_song", lambda: room.select_song("amy", "song-1")),
        ("start_game", lambda: room.start_game("amy")),
        ("wave", lambda: room.perform("wave", "amy")),
        ("add_player", lambda: room.perform("add_player", "amy")),
    ):
        with pytest.raises(InvalidTransition, match=f"is open: {operation} "):
            call()
    room.remove_player("amy")
    room.close("good night", "bob")
    state = room.get_state()
    assert (state.status, state.lifecycle, state.host) == ("closed", "chat", "bob")


def test_auction() -> None:
    """An auction: bids must rise, a high one closes the bidding, only the host brings down the hammer."""
    room = new_room(AUCTION)
    for player in ("amy", "bob", "cat"):
        room.add_player(player)
    room.perform("bid", "bob", {"price": 10})
    before = room.get_state().to_dict()
    with pytest.raises(OperationRefused):
        room.perform("bid", "cat", {"price": 10})
    with pytest.raises(NotHost):
        room.perform("hammer", "bob")
    assert room.get_state().to_dict() == before
    room.perform("bid", "cat", {"price": 1000})
    assert room.status == "closing"
    room.perform("bid", "bob", {"price": 1001})
    assert room.status == "open"
    room.perform("hammer", "amy")
    room.perform("hammer")
    state = room.get_state()
    assert (state.status, dict(state.settings)) == ("sold", {"price": 1001, "bidder": "bob"})
    events = room.get_events()
    assert events is not None
    assert events[-2].data == {"operation": "hammer", "player_id": None, "data": {}, "settings": {}}


def test_an_unsold_auction_closes() -> None:
    """An operation of one's own may lead to closed, and room_closed follows."""
    room = new_room(AUCTION)
    room.add_player("amy")
    room.perform("hammer", "amy")
    room.perform("hammer", "amy")
    assert [event.type for event in room.get_recent_events(3)] == ["operation_performed", "room_status", "room_closed"]


def test_what_a_check_returns_must_have_a_json_form() -> None:
    """A check that returns what cannot be sent is refused like any bad input, and nothing is changed."""
    table = {"open": {"add_player": "open", "go": "open", "close": "closed"}}
    returned: list[Any] = []
    operations = {"go": Operation(check=lambda state, player_id, data: returned[-1])}
    room = new_room(Lifecycle("own", table, operations=operations))
    room.add_player("amy")
    before = room.get_state().to_dict()
    for bad in ({"x": object()}, {"x": "\ud800"}, ["x"], True, {"x" * 5 + str(i): 1 for i in range(65)}):
        returned.append(bad)
        with pytest.raises(InvalidMessage):
            room.perform("go", "amy")
        assert room.get_state().to_dict() == before
    shared = {"list": [1]}
    returned.append(shared)
    room.perform("go", "amy")
    shared["list"].append(2)
    assert room.get_state().settings["list"] == [1]


def test_a_failing_guard_changes_nothing() -> None:
    """Guards run after the effect; one that raises leaves the room as it was, and the room goes on."""
    table = {
        "open": {"add_player": "open", "remove_player": "open", "go": [("bad", "open"), "open"], "close": "closed"},
    }
    guards = {"bad": lambda facts: facts.settings["missing"] > 1}
    table["open"]["select_song"] = [("bad", "open"), "open"]
    table["open"]["remove_player"] = [("bad", "open"), "open"]
    operations = {"go": Operation(check=lambda state, player_id, data: {"x": 1})}
    room = new_room(Lifecycle("own", table, guards=guards, operations=operations))
    room.add_player("amy")
    before = (room.get_state().to_dict(), room.get_events())
    for call in (
        lambda: room.perform("go", "amy"),
        lambda: room.select_song("amy", "song-1"),
        lambda: room.remove_player("amy"),
    ):
        with pytest.raises(KeyError, match="missing"):
            call()
        assert (room.get_state().to_dict(), room.get_events()) == before
    room.send_message("amy", {"text": "still here"})
    assert room.get_state().seq == before[0]["seq"] + 1


def test_statuses_may_be_an_enum_of_ones_own() -> None:
    """A str Enum without a __str__ of its own works, and its values are what is sent."""

    class Step(str, Enum):
        OPEN = "open"
        OVER = "over"

    table = {Step.OPEN: {"add_player": Step.OPEN, "close": Step.OVER}}
    room = new_room(Lifecycle("own", table, closed=Step.OVER))
    room.add_player("amy")
    assert room.get_state().to_dict()["status"] == "open"
    assert room.lifecycle.allows(Step.OPEN, "close")
    room.close()
    assert room.get_state().status == Step.OVER
    assert room.get_state().to_dict()["status"] == "over"
    with pytest.raises(InvalidTransition, match="is over: add_player "):
        room.add_player("bob")


def test_a_copy_follows_rounds_and_other_names_for_closed() -> None:
    """A lifecycle that starts again forgets old results, and one may call its end otherwise: the copy follows."""
    table = {
        "idle": {"add_player": "idle", "start_game": "busy", "close": "over"},
        "busy": {"finish_game": "idle", "close": "over"},
    }
    room = new_room(Lifecycle("rounds", table, closed="over"))
    copy = CopyOfState(room.get_state().to_dict())
    room.add_player("amy")
    for _ in range(2):
        room.start_game()
        room.finish_game(results={"amy": 1})
    room.start_game()
    assert room.get_state().results is None
    room.close()
    copy.apply_all(room.get_events() or ())
    assert copy.to_dict() == room.get_state().to_dict()
    assert copy.state["status"] == "over"


# Random tables.


@st.composite
def lifecycles(draw: st.DrawFn) -> Lifecycle:
    """A well-formed table: 1 to 4 statuses in a chain, so that each is reached and leads on, and random cells."""
    size = draw(st.integers(1, 4))
    statuses = [f"s{number}" for number in range(size)]
    everywhere = [*statuses, "closed"]
    guards = st.sampled_from(sorted(GUARDS))
    names = [*BUILTIN_OPERATIONS[:-1], "own-1", "own-2"]
    target = st.sampled_from(everywhere)
    table: dict[str, dict[str, Any]] = {}
    for number, status in enumerate(statuses):
        row: dict[str, Any] = {}
        for operation in draw(st.lists(st.sampled_from(names), unique=True)):
            ways = draw(st.lists(st.tuples(guards, target), max_size=2))
            row[operation] = [*ways, draw(target)]
        row["step"] = everywhere[number + 1]
        row.setdefault("add_player", status)
        if draw(st.booleans()):
            row["close"] = "closed"
        table[status] = row
    return Lifecycle("random", table, operations={"step": Operation(host_only=draw(st.booleans()))})


@settings(max_examples=15, suppress_health_check=[HealthCheck.nested_given])
@given(lifecycle=lifecycles(), size=st.integers(1, 4), data=st.data())
def test_random_tables_keep_what_the_machine_checks(lifecycle: Lifecycle, size: int, data: st.DataObject) -> None:
    """What lifecycle_machine checks holds for any well-formed table."""
    least = data.draw(st.integers(1, size))
    machine = lifecycle_machine(lifecycle, config=RoomConfig(max_players=size, min_players=least))
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=8, stateful_step_count=15, suppress_health_check=[HealthCheck.nested_given]),
    )


def everything(machine: RoomMachine) -> tuple[Any, ...]:
    return machine.snapshot(), {seat.id: (seat.token, seat.kept_until) for seat in machine.seats.values()}


@settings(max_examples=150)
@given(lifecycle=lifecycles(), size=st.integers(1, 3), data=st.data())
def test_random_tables_are_obeyed_cell_by_cell(lifecycle: Lifecycle, size: int, data: st.DataObject) -> None:
    """The next status is that of the first way whose guard holds after the effect; a missing cell refuses."""
    least = data.draw(st.integers(1, size))
    machine = RoomMachine("r", "e", 0.0, 0.0, RoomConfig(max_players=size, min_players=least), lifecycle)
    for step in range(20):
        names = [*lifecycle.all_operations, *BUILTIN_OPERATIONS]
        operation = data.draw(st.sampled_from(names))
        player = data.draw(st.sampled_from(["amy", "bob", "cat", "dan"]))
        status, before = machine.status, everything(machine)
        commands: dict[str, Any] = {
            "add_player": c.AddPlayer(player, player, "token"),
            "remove_player": c.RemovePlayer(player),
            "set_player_ready": c.SetPlayerReady(player, data.draw(st.booleans())),
            "select_song": c.UpdateSettings(None, {"song_id": f"song-{step % 3}"}, song=True),
            "start_game": c.StartGame(None),
            "finish_game": c.FinishGame(None, None),
            "close": c.Close(None),
        }
        command = commands.get(operation, c.Perform(None, operation, {}))
        rules = lifecycle.table.get(status, {}).get(operation)
        try:
            events = machine.apply(command, float(step), float(step))
        except InvalidTransition:
            assert rules is None
            assert everything(machine) == before
            continue
        except RoomkitError:
            assert everything(machine) == before
            continue
        assert rules is not None
        moves = [event for event in events if event.type == "room_status"]
        if status == "closed":
            assert moves == []
            continue
        ready_then = everybody_ready_after(before[0], operation, command, machine)
        count = len(machine.seats)
        holds = {
            "enough_players": count >= least,
            "too_few_players": count < least,
            "full": count == size,
            "empty": count == 0,
            "all_ready": ready_then,
        }
        expected = next(rule.status for rule in rules if rule.guard is None or holds[rule.guard])
        assert machine.status == expected
        assert [event.data["status"] for event in moves] == ([] if expected == status else [expected])


def everybody_ready_after(before: Any, operation: str, command: Any, machine: RoomMachine) -> bool:
    """Whether all flags were set after the effect and before the move (which may have cleared them)."""
    ready = {player.id: player.ready for player in before.players}
    if operation == "set_player_ready":
        ready[command.player_id] = command.ready
    if operation == "select_song" and before.song_id != command.settings["song_id"]:
        ready = dict.fromkeys(ready, False)
    flags = [ready.get(player_id, False) for player_id in machine.seats]
    return bool(flags) and all(flags)


# The tool itself.

bids = st.fixed_dictionaries({"price": st.integers(0, 1200)})


class TestAuctionMachine(lifecycle_machine(AUCTION, data={"bid": bids}).TestCase):  # type: ignore[misc]
    """The machine as a user runs it, on a lifecycle with guards, checks and operations of its own."""

    settings = settings(max_examples=40, stateful_step_count=30)


class TestChatMachine(lifecycle_machine(CHAT).TestCase):  # type: ignore[misc]
    """The machine on the smallest lifecycle."""

    settings = settings(max_examples=15, stateful_step_count=20)


class TestGameMachine(lifecycle_machine(GAME).TestCase):  # type: ignore[misc]
    """The machine on the default lifecycle."""

    settings = settings(max_examples=40, stateful_step_count=40)


def test_the_machine_finds_a_broken_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A room that lets a refused operation change something does not get past lifecycle_machine."""

    def select_without_asking(self: RoomMachine, command: Any) -> None:
        self.settings["song_id"] = command.settings["song_id"]
        self._move(self._rules("select_song"))

    monkeypatch.setitem(inspect.getmodule(RoomMachine)._HANDLERS, c.UpdateSettings, select_without_asking)  # type: ignore[union-attr]
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            lifecycle_machine(GAME),
            settings=settings(max_examples=50, phases=[Phase.generate], report_multiple_bugs=False),
        )


def test_the_machine_lets_a_guards_error_through() -> None:
    """An exception that is not roomkit's, from a user's guard, fails the run and is shown."""
    table = {"open": {"add_player": [("bad", "open"), "open"], "close": "closed"}}
    broken = Lifecycle("broken", table, guards={"bad": lambda facts: 1 // 0 > 0})
    with pytest.raises(ZeroDivisionError):
        run_state_machine_as_test(
            lifecycle_machine(broken), settings=settings(max_examples=20, phases=[Phase.generate])
        )
