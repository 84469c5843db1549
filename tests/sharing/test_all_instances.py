"""What is asked of all instances: a list of rooms, and a seat in any; whoever does not answer is left out."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.fakes import eventually, run_together
from support.following import announced, die, followed, following_of, node_of
from support.unsteady import STEP, Instances, answers_of, settled, steady

from roomkit import InvalidMessage, LimitExceeded, RoomConfig, RoomManager, RoomNotFound, ShuttingDown
from roomkit.sharing import elsewhere
from roomkit.sharing.letters import Done, Refused, encode


@pytest.fixture
def three(instances: Instances) -> list[RoomManager]:
    """Instances with two rooms each, made one after the other."""
    managers = [instances.make(name) for name in ("one", "two", "three")]
    announced(instances)
    for n in range(6):
        rooms = managers[n % 3]
        room = rooms.create_room(
            f"r{n}", metadata={"mode": "duel" if n % 2 else "party"}, max_players=3, private=n == 4
        )
        for player in range(n % 4):
            room.add_player(f"p{player}")
        instances.clock.advance(0.01)
    return managers


@pytest.mark.parametrize("sort", ["created_at", "-created_at", "players", "-players", "id", "-id"])
@pytest.mark.parametrize("limit", [1, 2, 5, None])
def test_a_listing_is_of_all_instances(three: list[RoomManager], sort: str, limit: int | None) -> None:
    """Whichever is asked, page after page: each room once, in the order that was asked for."""
    counts = {n: n % 4 for n in range(6)}
    keys: dict[str, Any] = {"created_at": lambda n: n, "players": lambda n: (counts[n], f"r{n}"), "id": lambda n: n}
    public = [n for n in range(6) if n != 4]
    expected = sorted(public, key=keys[sort.removeprefix("-")], reverse=sort.startswith("-"))
    for rooms in three:
        found: list[str] = []
        cursor = None
        while True:
            page = rooms.list_rooms(sort=sort, limit=limit, cursor=cursor)
            found += [state.id for state in page]
            cursor = page.next_cursor
            if cursor is None:
                break
            assert len(page) == limit
        assert found == [f"r{n}" for n in expected]


def test_a_listing_is_filtered_where_the_rooms_are(three: list[RoomManager]) -> None:
    """By space, status, metadata and privacy; what is no filter is refused by whoever is asked."""
    for rooms in three:
        assert {state.id for state in rooms.list_rooms(has_space=False)} == {"r3"}
        assert {state.id for state in rooms.list_rooms(has_space=True)} == {"r0", "r1", "r2", "r5"}
        assert {state.id for state in rooms.list_rooms(status="preparing")} == {"r3"}
        assert {state.id for state in rooms.list_rooms(status=["preparing", "waiting"], metadata={"mode": "duel"})} == {
            "r1",
            "r3",
            "r5",
        }
        assert len(rooms.list_rooms(include_private=True)) == 6
        assert rooms.list_rooms(limit=0) == ()
        for wrong in ({"sort": "weight"}, {"limit": -1}, {"cursor": "none"}):
            with pytest.raises(InvalidMessage):
                rooms.list_rooms(**wrong)  # type: ignore[arg-type]


def test_states_come_to_the_last_digit(instances: Instances) -> None:
    """As their owner has them, all but what people do not see."""
    one, two = instances.make("one"), instances.make("two")
    announced(instances)
    instances.clock.advance(0.0001234)
    room = one.create_room("r", max_players=1, metadata={"a": [1]})
    room.add_player("amy")
    room.set_player_ready("amy")
    instances.clock.advance(0.0001234)
    room.start_game()
    [state] = two.list_rooms()
    assert (state.created_at, state.started_at) == (room.created_at, room.get_state().started_at)
    assert state.to_dict() == room.get_state().to_dict()


def test_an_instance_that_does_not_answer_is_left_out(
    three: list[RoomManager], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a second, whatever was asked; the others' answers are there."""
    monkeypatch.setattr(elsewhere, "_ANSWER", 0.05)
    one, two, silent = three
    with steady(silent).holding("send"):
        assert {state.id for state in one.list_rooms()} == {"r0", "r1", "r3"}
        assert set(one.ask_instances("list", {})) == {two.instance}
        assert one.join_or_create("zoe", metadata={"mode": "duel"})[0].id == "r1"
    assert f"instance {silent.instance} did not answer" in caplog.text
    eventually(lambda: not following_of(one)._calls)
    late = Done(silent.instance, "", f"{one.instance}/call/1", data=[])
    following_of(one).hear_letter(encode([late]))  # nobody waits any more
    assert len(one.list_rooms()) == 5


def test_one_dead_instance_is_not_asked(instances: Instances, three: list[RoomManager]) -> None:
    """Once the store has heard of it for too long no more; and the others have its rooms by then."""
    one, two, dead = three
    for rooms in three:
        settled(rooms)
    die(instances, dead)
    eventually(lambda: len(one) + len(two) == 6)
    assert node_of(one).elsewhere.names() == [two.instance]
    assert {state.id for state in one.list_rooms()} == {f"r{n}" for n in range(6) if n != 4}
    steady(dead).down = False


def test_without_the_store_there_is_what_is_here(three: list[RoomManager], caplog: pytest.LogCaptureFixture) -> None:
    """Nobody else can be asked: the own rooms are listed, and seats in them can be had until the lease ends."""
    one = three[0]
    steady(one).down = True
    assert {state.id for state in one.list_rooms()} == {"r0", "r3"}
    assert "the other instances are not asked" in caplog.text


NONSENSE: dict[str, Any] = {
    "nothing": None,
    "a number": 5,
    "a text": "r0",
    "an object": {"r0": 1},
    "rows of nothing": [None],
    "short rows": [[{}]],
    "empty states": [[{}, 1.0, None]],
    "times that are none": [[{}, "now", None]],
}


def state_of(rooms: RoomManager, **change: Any) -> list[Any]:
    """A row as it is listed, with something wrong in it."""
    [[state, created_at, started_at]] = rooms._serve_list("", {"limit": 1})
    return [[{**state, **change}, created_at, started_at]]


@pytest.mark.parametrize(
    "what",
    [
        *NONSENSE,
        "no id",
        "an odd id",
        "no time",
        "another time",
        "an endless time",
        "players that are none",
        "no metadata",
    ],
)
def test_a_list_that_makes_no_sense_is_left_out(
    three: list[RoomManager], caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """It is logged in one line, and the other instances' rooms are listed, in any order."""
    one, _, odd = three
    row = state_of(odd)
    rows = {
        **NONSENSE,
        "no id": state_of(odd, id=None),
        "an odd id": state_of(odd, id="r\nERROR forged"),
        "no time": state_of(odd, created_at=5),
        "another time": [[row[0][0], 1e300, None]],
        "an endless time": [[row[0][0], 10**400, None]],
        "players that are none": state_of(odd, players=[{"id": "amy"}]),
        "no metadata": state_of(odd, metadata=[1]),
    }[what]
    odd.answer_instances("list", lambda room_id, data: rows)
    for sort in ("id", "created_at", "players"):
        assert {state.id for state in one.list_rooms(sort=sort)} == {"r0", "r1", "r3"}
    messages = [record.getMessage() for record in caplog.records]
    assert messages
    assert all(message.isprintable() for message in messages)
    assert any(odd.instance in message for message in messages)


def test_a_room_that_is_told_of_twice_is_listed_once(three: list[RoomManager]) -> None:
    """It is being handed over, and both take it for theirs."""
    one, two, third = three
    both = [*two._serve_list("", {}), *third._serve_list("", {})]
    third.answer_instances("list", lambda room_id, data: both)
    assert sorted(state.id for state in one.list_rooms()) == ["r0", "r1", "r2", "r3", "r5"]


@pytest.mark.parametrize(
    "offers",
    [None, 5, [5], [["full", 1.0, "r1"]], [[-1, 1.0]], [[-1, 1.0, 7]], [[-9, 0.0, "nowhere"]], [[-9, 0, "a b"]]],
)
def test_offers_that_make_no_sense(three: list[RoomManager], offers: Any) -> None:
    """Nobody is sent to a room that is not there: the next best one is taken."""
    one, _, odd = three
    odd.answer_instances("open_rooms", lambda room_id, data: offers)
    assert one.join_or_create("zoe", metadata={"mode": "duel"})[0].id == "r1"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        5,
        [],
        {},
        {"room_id": "r"},
        {"room_id": 5, "name": "zoe", "token": "t"},
        {"room_id": "a b", "name": "", "token": ""},
    ],
)
def test_a_seat_that_makes_no_sense(instances: Instances, answer: Any) -> None:
    """Whoever was to make the room says something else: it is made here."""
    one, odd = instances.make("one"), instances.make("two")
    announced(instances)
    odd.answer_instances("join_or_create", lambda room_id, data: answer)
    made = [one.join_or_create(f"p{n}", metadata={"n": n}) for n in range(6)]  # some of the wishes lead there
    assert [player.id for _, player in made] == [f"p{n}" for n in range(6)]
    assert all(not room.followed for room, _ in made)
    assert len(one) == 6


def test_the_best_room_of_all_is_joined(three: list[RoomManager]) -> None:
    """The fullest that fits, then the oldest, wherever it is; with a token that opens the seat."""
    one, two, third = three
    room, player = one.join_or_create("zoe")
    assert room.id == "r2"  # two of three seats are taken
    assert third.get_room("r2").join("zoe", token=player.token)
    room, player = two.join_or_create("yan", "Yan", metadata={"mode": "duel"}, reserve=True)
    assert (room.id, player.name) == ("r1", "Yan")
    assert room.join("yan", token=player.token)
    assert one.join_or_create("xue", max_players=7)[0].id not in [f"r{n}" for n in range(6)]
    room, _ = third.join_or_create("p0")
    assert room.id not in ("r1", "r2", "r3", "r5")  # it has a seat there


def test_a_room_that_filled_up_meanwhile(three: list[RoomManager], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was offered is not there any more, or is gone as a whole: the next one."""
    one, two, third = three
    offers = node_of(one).elsewhere.open_rooms("zoe", None, {})
    assert [offer[2] for offer in sorted(offers)] == ["r2", "r1", "r5"]
    third.get_room("r2").lock()
    two.remove_room("r1")
    monkeypatch.setattr(node_of(one).elsewhere, "open_rooms", lambda *args: offers)
    assert one.join_or_create("zoe")[0].id == "r5"


@pytest.mark.parametrize("reserve", [False, True])
def test_who_wants_the_same_at_once_meets(instances: Instances, reserve: bool) -> None:
    """At several instances, with no room yet: they come into as few rooms as hold them, however the wish is written."""
    managers = [instances.make(name, config=RoomConfig(max_players=4)) for name in ("one", "two", "three")]
    announced(instances)
    for turn in range(5):
        first = {"mode": "duel", "turn": turn}
        second = dict(reversed(first.items()))
        wishes = [
            lambda rooms=rooms, n=n, turn=turn: rooms.join_or_create(  # type: ignore[misc]
                f"p{n}",
                f"P {n}",
                metadata=first if n % 2 else second,  # noqa: B023
                reserve=reserve,
                **({"max_players": 4, "min_players": 2} if n % 2 else {"min_players": 2, "max_players": 4}),
            )
            for n, rooms in enumerate(managers)
        ]
        seated = run_together(wishes)
        assert len({room.id for room, _ in seated}) == 1, seated
        for n, (room, player) in enumerate(seated):
            assert (player.id, player.name) == (f"p{n}", f"P {n}")
            assert managers[0].get_room(room.id).join(f"p{n}", token=player.token)
        assert managers[turn % 3].get_room(seated[0][0].id).player_count == 3


def test_a_wish_that_cannot_be_told(instances: Instances) -> None:
    """Options that only this process knows: the room is made here."""
    one, _ = instances.make("one"), instances.make("two")
    room, player = one.join_or_create("amy", config=RoomConfig(max_players=2))
    assert not room.followed
    assert room.get_state().max_players == 2
    assert player.token is not None


def test_what_the_instance_says_where_all_meet_is_refused(
    instances: Instances, caplog: pytest.LogCaptureFixture
) -> None:
    """It may not make another room: whoever was asked first tries by itself, and tells its own limits."""
    one, two = instances.make("one", max_rooms=3), instances.make("two", max_rooms=1)
    announced(instances)
    two.create_room("full", max_players=1).add_player("amy")
    for n in range(3):
        room, _ = one.join_or_create(f"p{n}", metadata={"n": n})
        assert not room.followed
    with pytest.raises(LimitExceeded):
        one.join_or_create("p9", metadata={"n": 9})
    assert two.stats()["total_rooms"] == 1
    for record in caplog.records:
        assert re.search("did not answer: .*there are already 1 rooms", record.getMessage())


def test_nobody_is_seated_at_an_instance_that_is_dead(instances: Instances, three: list[RoomManager]) -> None:
    """Nor offered its rooms before they go on elsewhere; while it is draining it offers nothing new."""
    one, two, dead = three
    for rooms in three:
        settled(rooms)
    steady(dead).down = True
    room, _ = one.join_or_create("zoe", metadata={"mode": "party"})
    assert room.id == "r0"  # r2 would be fuller
    die(instances, dead)
    eventually(lambda: len(one) + len(two) == 6)
    assert one.join_or_create("yan", metadata={"mode": "party"})[0].id == "r2"
    ending = answers_of(lambda: two.shutdown(5.0, spread=0.0))
    eventually(lambda: two.is_shut_down)
    with pytest.raises(ShuttingDown):
        two.join_or_create("xue")
    eventually(lambda: ending)
    assert node_of(one).elsewhere.names() == []
    assert one.join_or_create("xue")[0].id in [f"r{n}" for n in range(6)]
    steady(dead).down = False


def test_looking_for_rooms_does_not_follow_them(three: list[RoomManager]) -> None:
    """A listing and an offer cost no following; a seat there does, since its connection will come here."""
    one = three[0]
    one.list_rooms()
    assert node_of(one).elsewhere.open_rooms("zoe", None, {})
    assert following_of(one).rooms == {}
    room, _ = one.join_or_create("zoe")
    assert list(following_of(one).rooms) == [room.id]
    with pytest.raises(RoomNotFound):
        followed(one, "nowhere")


def test_asking_again_is_no_answer_twice(three: list[RoomManager]) -> None:
    """A refusal of an instance is heard at once, not after the second for which an answer is waited for."""
    one, two, third = three
    two.answer_instances("hello", lambda room_id, data: {"name": two.instance, **data})
    assert one.ask_instances("hello", {"n": 1}) == {two.instance: {"name": two.instance, "n": 1}}
    assert third.ask_instances("hello", {}) == {two.instance: {"name": two.instance}}
    assert following_of(one)._calls == {}
    following_of(one).hear_letter(encode([Refused("x", "", "nobody asked", "room_full", "no")]))
    assert STEP > 0


def test_a_manager_that_was_never_started_asks_as_well(instances: Instances) -> None:
    """Its first use may be a listing; and one that is shut down has nobody to ask."""
    one = instances.make("one")
    announced(instances)
    one.create_room("r", max_players=2)
    rooms = RoomManager(clock=instances.clock, wall_clock=instances.clock.wall, backend=steady(one).inner)
    try:
        assert [state.id for state in rooms.list_rooms()] == ["r"]
        assert rooms.join_or_create("amy")[0].id == "r"
    finally:
        assert rooms.shutdown(5.0)
    assert rooms.list_rooms() == ()
    assert rooms.ask_instances("list", {}) == {}
