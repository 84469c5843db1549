"""Of a shared room nothing is told that is not stored; and what is stored is told, once and in order."""

from __future__ import annotations

import pytest
from support.fakes import PATIENCE, Blocker, Listener, Wire, eventually, run_together
from support.unsteady import STEP, TTL, Instances, answers_of, settled, steady

from roomkit import BackendUnavailable, RoomBusy, RoomConfig, RoomNotFound
from roomkit.core import commands as c


def test_nothing_leaves_a_room_before_it_is_stored(instances: Instances) -> None:
    """No event, welcome, answer or close; the state goes on in memory meanwhile. Then all of it, in order."""
    rooms = instances.make("one")
    room = rooms.create_room("r")
    amy, bob, cat = Wire(), Wire(), Wire()
    room.join("amy", amy)
    room.join("bob", bob)
    listener = Listener()
    room.subscribe(listener)
    amy.wait_for_seq(3)
    bob.wait_for_seq(3)
    told: list[str] = []
    before = [list(wire.messages) for wire in (amy, bob)]
    with steady(rooms).holding() as held:
        message = answers_of(lambda: room.send_message("amy", {"n": 1}))
        assert held.wait(10)
        joined = answers_of(lambda: room.join("cat", cat))
        eventually(lambda: room.player_count == 3)
        room.submit(c.SendMessage("amy", {"n": 2}, None), lambda seq: told.append(f"seq {seq}"))
        room.when_stored(lambda: told.append("looked"))
        kicked = answers_of(lambda: room.kick("amy", "bob"))
        eventually(lambda: room.player_count == 2)
        assert [list(wire.messages) for wire in (amy, bob)] == before
        assert [message, joined, kicked, told, cat.messages, bob.closes, listener.events] == [[]] * 7
    amy.wait_for_seq(room.get_state().seq)
    bob.wait_closed()
    eventually(lambda: message and joined and kicked and len(told) == 2)
    assert not [answer for answer in (*message, *joined, *kicked) if isinstance(answer, BaseException)]
    assert told == ["seq 6", "looked"]
    assert amy.seqs == [*range(amy.welcome["seq"] + 1, 8)]
    assert bob.closes == [(4503, "kicked by the host")]
    assert cat.welcome["seq"] == 5
    assert cat.seqs == [6, 7]
    listener.wait_for_seq(7)
    assert listener.seqs == [4, 5, 6, 7]


def test_steps_that_were_stored_while_a_room_was_being_delivered_to_go_out_together(instances: Instances) -> None:
    """One batch for each connection, not one for each step: a batch is a write to a socket."""
    rooms = instances.make("one")
    room = rooms.create_room("r")
    slow, other = Blocker(), Wire()
    room.join("amy", slow)
    room.join("bob", other)
    seq = room.get_state().seq
    other.wait_for_seq(seq)
    slow.wait_for_seq(seq)
    slow.block()
    room.send_message(None, {"n": 1})
    assert slow.entered.wait(PATIENCE)
    for n in (2, 3, 4):
        room.send_message(None, {"n": n})
    slow.let_go()
    other.wait_for_seq(seq + 4)
    assert other.batches[-2:] == [1, 3]
    assert other.seqs[-4:] == [*range(seq + 1, seq + 5)]


def test_what_comes_during_a_commit_is_stored_by_the_next_one(instances: Instances) -> None:
    """However much it is: the busier, the less a change costs."""
    rooms = instances.make("one")
    made = [rooms.create_room(f"r{n}") for n in range(20)]
    for room in made:
        room.add_player("amy")
    settled(rooms)
    batches = steady(rooms).batches
    del batches[:]
    with steady(rooms).holding() as held:
        first = answers_of(lambda: made[0].send_message(None, {}))
        assert held.wait(10)
        rest = [answers_of(lambda room=room: room.send_message("amy", {})) for _ in range(10) for room in made]  # type: ignore[misc]
        eventually(lambda: sum(room.get_state().seq for room in made) == 20 * 12 + 1)
    eventually(lambda: first and all(rest))
    assert [answer for answers in rest for answer in answers] == [None] * 200
    settled(rooms)
    assert batches[0] == 1
    assert len(batches) <= 4
    assert instances.store.rooms["r0"].position.seq == 13


def test_a_reader_in_one_room_holds_up_no_other(instances: Instances) -> None:
    """Its step is taken once the reader has left; the others' meanwhile."""
    rooms = instances.make("one")
    one, two = rooms.create_room("a"), rooms.create_room("b")
    wire = Wire()
    two.join("bob", wire)
    one.execute(c.AddPlayer("amy", "amy", "t" * 22, None), wait=False)
    with one.reading():
        one._journal.mark()  # type: ignore[union-attr]
        for n in range(20):
            two.send_message("bob", {"n": n})
        wire.wait_for_seq(two.get_state().seq)
    settled(rooms)
    assert instances.store.rooms["a"].position.seq == 2


def test_a_look_costs_no_commit(instances: Instances) -> None:
    """What changes nothing is told at once when nothing else is under way, also when the lease has ended."""
    rooms = instances.make("one")
    room = rooms.create_room("r")
    settled(rooms)
    count = steady(rooms).calls.count("commit")
    told: list[int] = []
    steady(rooms).down = True
    instances.clock.advance(10 * TTL)
    room.when_stored(lambda: told.append(1))
    eventually(lambda: told)
    assert steady(rooms).calls.count("commit") == count


def test_while_the_store_is_away_changes_wait_and_then_are_refused(instances: Instances) -> None:
    """Until the lease ends they are made, and told when the store is back; afterwards they are refused."""
    rooms = instances.make("one")
    room = rooms.create_room("r")
    wire = Wire()
    room.join("amy", wire)
    wire.wait_for_seq(2)
    steady(rooms).down = True
    sent = answers_of(lambda: room.send_message("amy", {"n": 1}))
    eventually(lambda: room.get_state().seq == 3)
    instances.clock.advance(2 * TTL)
    with pytest.raises(RoomBusy, match="the store of the rooms does not answer"):
        room.send_message("amy", {"n": 2})
    assert wire.seqs == []
    eventually(lambda: not rooms.store_answers)
    steady(rooms).down = False
    wire.wait_for_seq(3)
    eventually(lambda: sent == [None])
    room.send_message("amy", {"n": 3})
    wire.wait_for_seq(4)
    eventually(lambda: rooms.store_answers)
    assert [event["data"]["data"]["n"] for event in wire.events] == [1, 3]


def test_a_caller_waits_for_a_bounded_time(instances: Instances) -> None:
    """Then it hears that nobody knows; the change is stored all the same when the store is back."""
    rooms = instances.make("one")
    room = rooms.create_room("r")
    assert room._journal is not None
    room._journal.patience = 0.05
    steady(rooms).down = True
    with pytest.raises(BackendUnavailable, match="was not confirmed within"):
        room.add_player("amy")
    steady(rooms).down = False
    settled(rooms)
    assert instances.store.rooms["r"].position.seq == room.get_state().seq


def test_an_answer_comes_in_time_or_a_refusal(instances: Instances) -> None:
    """Who does not wait is told that nobody knows; the change is stored and delivered later, and answered no more."""
    rooms = instances.make("one")
    room = rooms.create_room("r")
    wire = Wire()
    room.join("amy", wire)
    wire.wait_for_seq(2)
    assert room._journal is not None
    room._journal.patience = 0.05
    told: list[object] = []
    room.submit(c.SendMessage("amy", {"n": 1}, None), told.append, told.append)
    wire.wait_for_seq(3)
    eventually(lambda: told == [3])
    steady(rooms).down = True
    room.submit(c.SendMessage("amy", {"n": 2}, None), told.append, told.append)
    room.when_stored(lambda: told.append("looked"), told.append)
    eventually(lambda: not rooms.store_answers)
    assert told == [3]
    instances.clock.advance(0.06)  # less than the lease, and more than they wait
    eventually(lambda: len(told) == 3)
    assert [type(one) for one in told[1:]] == [BackendUnavailable, BackendUnavailable]
    assert wire.seqs[-1] == 3
    steady(rooms).down = False
    wire.wait_for_seq(4)
    settled(rooms)
    assert len(told) == 3
    assert not room._journal.pledges


@pytest.mark.parametrize("name", ["commit", "renew", "announce", "orphans"])
def test_answers_that_are_lost_do_no_harm(instances: Instances, name: str) -> None:
    """Whatever the store did without being heard is asked for again, and done once."""
    rooms = instances.make("one")
    room = rooms.create_room("r")
    wire = Wire()
    room.join("amy", wire)
    steady(rooms).deaf.add(name)
    sent = answers_of(lambda: room.send_message("amy", {"n": 1}))
    eventually(lambda: sent or steady(rooms).calls.count(name) > 3)
    steady(rooms).deaf.clear()
    room.send_message("amy", {"n": 2})
    wire.wait_for_seq(4)
    eventually(lambda: sent == [None])
    assert wire.seqs == [3, 4]
    assert instances.store.rooms["r"].position.seq == 4
    assert [len(instances.store.rooms["r"].events)] == [4]


def test_a_room_that_ends_is_taken_out_of_the_store(instances: Instances) -> None:
    """By its owner, by time, by hand: after its last event is stored and told; then it can be made anew at once."""
    one, two = instances.make("one", config=RoomConfig(closed_ttl=5.0)), instances.make("two")
    room = one.create_room("r")
    wire = Wire()
    room.join("amy", wire)
    with steady(one).holding() as held:
        removed = answers_of(lambda: one.remove_room("r"))
        assert held.wait(10)
        assert not removed
        assert not wire.closes
    assert wire.wait_closed() == 4510
    eventually(lambda: removed)
    eventually(lambda: "r" not in instances.store.rooms)
    two.create_room("r").close("bye")
    assert one.get_room("r").followed
    two.remove_room("r")
    again = two.create_room("r")  # waits for the one that goes
    assert again.get_state().seq == 0
    two.remove_room("r")
    instances.pass_time(STEP, one)
    eventually(lambda: "r" not in one._rooms)
    for rooms in (one, two):
        with pytest.raises(RoomNotFound):
            rooms.get_room("r")
    brief = one.create_room("brief", empty_ttl=3.0)
    assert brief.shared
    instances.pass_time(3.0, one, two)
    eventually(lambda: one.cleanup() is not None and "brief" not in instances.store.rooms)
    assert "brief" not in one


def test_many_writers_on_one_shared_room(instances: Instances) -> None:
    """Each change is confirmed once it is stored; everybody gets all of them once and in order."""
    rooms = instances.make("one", config=RoomConfig(max_players=8, queue_size=5000))
    room = rooms.create_room("r")
    wires = [Wire() for _ in range(8)]
    for n, wire in enumerate(wires):
        room.join(f"p{n}", wire)

    def write(n: int) -> None:
        for k in range(100):
            room.send_message(f"p{n}", {"n": k})
            assert instances.store.rooms["r"].position.seq >= k

    assert run_together([lambda n=n: write(n) for n in range(8)]) == [None] * 8  # type: ignore[misc]
    last = room.get_state().seq
    assert instances.store.rooms["r"].position.seq == last
    for wire in wires:
        wire.wait_for_seq(last)
        assert wire.seqs == [*range(wire.welcome["seq"] + 1, last + 1)]


def test_a_connection_that_was_replaced_is_dropped_without_a_change(instances: Instances) -> None:
    """Its loss is nobody's: nothing is stored for it."""
    rooms = instances.make("one")
    room = rooms.create_room("r")
    first, second = Wire(), Wire()
    token = room.join("amy", first).player.token
    room.join("amy", second, token=token)
    assert first.wait_closed() == 4509
    settled(rooms)
    count = steady(rooms).calls.count("commit")
    assert not room.remove_connection("amy", first)
    link = room._fanout._view[0]
    assert room.drop_link(link)
    assert not room.drop_link(link)
    settled(rooms)
    assert steady(rooms).calls.count("commit") == count + 1
