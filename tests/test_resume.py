"""Dropping and resuming, gaps and conflation: what a client ends with when not everything reached it live.

The goal (DESIGN 2.5): one that dropped and resumed has exactly the state and events of one that never dropped.
"""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roomkit import BadToken, Room, RoomConfig, RoomkitError
from roomkit.runtime import Runtime
from roomkit.testing import CopyOfState, InlineBroadcaster, ManualClock, RecordingConnection

WITNESS = "witness"  # is connected all the time
CLIENT = "client"  # drops and resumes
OTHERS = ["amy", "bob", "cat"]


def new_room(inline: InlineBroadcaster | None = None, **options: Any) -> Room:
    clock, tokens = ManualClock(), count(1)
    values = {"max_players": 5, "min_players": 2, "busy_timeout": 0, "history_size": 10_000, **options}
    return Room(
        "room-1",
        RoomConfig(**values),
        runtime=Runtime(clock, clock.wall, new_token=lambda: f"token-{next(tokens)}"),
        broadcaster=inline if inline is not None else InlineBroadcaster(),
    )


class Client:
    """What a client of the protocol does: keeps a copy, applies each event once, and resumes from where it was."""

    def __init__(self, room: Room, player_id: str) -> None:
        self.room = room
        self.player_id = player_id
        self.token: str | None = None
        self.connection: RecordingConnection | None = None
        self.seen = 0
        self.copy: CopyOfState | None = None
        self.events: list[dict[str, Any]] = []
        self.welcomes: list[dict[str, Any]] = []

    def connect(self, epoch: str | None = None, seq: int | None = None) -> None:
        """Join, resuming from the own copy unless told otherwise."""
        if epoch is None and self.copy is not None:
            epoch, seq = self.copy.state["epoch"], self.copy.seq
        connection = RecordingConnection()
        joined = self.room.join(self.player_id, connection, token=self.token, epoch=epoch, seq=seq)
        self.token = joined.player.token
        self.connection, self.seen = connection, 0
        self.read()

    def read(self) -> None:
        """Take in what was delivered since the last time."""
        assert self.connection is not None
        news = self.connection.messages[self.seen :]
        self.seen += len(news)
        for message in news:
            if message["type"] == "welcome":
                self.welcomes.append(message["data"])
                if self.copy is None or not message["data"]["recovered"]:
                    self.copy = CopyOfState(message["data"]["state"])
                continue
            assert self.copy is not None
            if message["type"] == "gap":
                self.fill(message["data"]["after"])
                continue
            if self.copy.apply(message):
                self.events.append(message)

    def fill(self, after: int) -> None:
        """Ask for what a gap left out, as the protocol's ``state`` with ``after`` does."""
        assert self.copy is not None
        events = self.room.get_events(after)
        assert events is not None
        for event in events:
            if self.copy.apply(event):
                self.events.append(
                    {"type": event.type, "seq": event.seq, "timestamp": event.timestamp, "data": event.data}
                )

    def drop(self) -> None:
        """Lose the connection; what it had delivered was read."""
        if self.connection is not None:
            self.read()
            self.room.remove_connection(self.player_id, self.connection)
            self.connection = None


def plain(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in event.items() if key != "conflated"} for event in events]


player = st.sampled_from([*OTHERS, CLIENT, WITNESS])
actions = st.one_of(
    st.tuples(st.just("add_player"), st.sampled_from(OTHERS)),
    st.tuples(st.just("remove_player"), st.sampled_from(OTHERS)),
    st.tuples(st.just("set_player_ready"), player, st.booleans()),
    st.tuples(st.just("select_song"), player, st.sampled_from(["song-1", "song-2"])),
    st.tuples(st.just("update_settings"), player, st.dictionaries(st.sampled_from("xyz"), st.none() | st.integers())),
    st.tuples(st.just("send_message"), player, st.fixed_dictionaries({"n": st.integers()})),
    st.tuples(st.just("everybody_ready")),
    st.tuples(st.just("start_game")),
    st.tuples(st.just("lock")),
    st.tuples(st.just("unlock")),
)
moments = st.lists(st.one_of(actions, st.just(("drop",)), st.just(("connect",))), max_size=40)


def act(room: Room, name: str, *arguments: Any) -> None:
    try:
        if name == "everybody_ready":
            for seat in room.get_players():
                room.set_player_ready(seat.id)
        else:
            getattr(room, name)(*arguments)
    except RoomkitError:
        pass


def play(room: Room, script: list[tuple[Any, ...]], client: Client, witness: Client) -> None:
    """Carry out the script; the client drops and comes back where it says so, and is back in the end."""
    for name, *arguments in script:
        if name == "drop":
            client.drop()
        elif name == "connect":
            if client.connection is None:
                client.connect()
        else:
            act(room, name, *arguments)
    if client.connection is None:
        client.connect()
    client.read()
    witness.read()


@settings(max_examples=200)
@given(script=moments)
def test_resume_equals_never_dropped(script: list[tuple[Any, ...]]) -> None:
    """After any drops and resumes the client has the same state and the same events, each once and in order, as one
    that was there all the time."""
    room = new_room()
    client, witness = Client(room, CLIENT), Client(room, WITNESS)
    client.connect()
    witness.connect()
    play(room, script, client, witness)
    assert client.copy is not None
    assert witness.copy is not None
    assert client.copy.to_dict() == witness.copy.to_dict() == room.get_state().to_dict()
    first = witness.welcomes[0]["seq"] + 1
    assert [event["seq"] for event in witness.events] == list(range(first, room.get_state().seq + 1))
    assert [event for event in client.events if event["seq"] >= first] == witness.events
    assert [welcome["recovered"] for welcome in client.welcomes[1:]] == [True] * (len(client.welcomes) - 1)


@settings(max_examples=100)
@given(script=moments, history_size=st.integers(0, 6))
def test_a_short_history_says_so(script: list[tuple[Any, ...]], history_size: int) -> None:
    """When the history does not reach back far enough, recovered is false, and the snapshot makes the copy equal again;
    never is a part of what was missed replayed as if it were all."""
    room = new_room(history_size=history_size)
    client, witness = Client(room, CLIENT), Client(room, WITNESS)
    client.connect()
    witness.connect()
    for name, *arguments in [*script, ("connect",)]:
        if name == "drop":
            client.drop()
        elif name == "connect" and client.connection is None:
            assert client.copy is not None
            before = client.copy.seq
            client.connect()
            welcome = client.welcomes[-1]
            assert welcome["recovered"] is (welcome["seq"] - before <= history_size)
            assert client.copy.to_dict() == room.get_state().to_dict() == welcome["state"]
        elif name != "connect":
            act(room, name, *arguments)
    client.read()
    witness.read()
    assert client.copy is not None
    assert witness.copy is not None
    assert client.copy.to_dict() == witness.copy.to_dict() == room.get_state().to_dict()


@pytest.mark.parametrize(
    ("epoch", "seq"),
    [("own", 10**9), ("own", 7), ("own", -1), ("own", -(10**9)), ("other", 0), ("other", 3), ("", 0), ("own ", 3)],
)
def test_a_forged_place_is_not_recovered(epoch: str, seq: int) -> None:
    """A seq from the future, a negative one, or another incarnation's epoch: recovered false, no replay, a snapshot."""
    room = new_room()
    client = Client(room, CLIENT)
    client.connect()
    for number in range(3):
        room.send_message(CLIENT, {"n": number})
    client.drop()
    own = room.get_state().epoch
    assert room.get_state().seq == 6
    client.connect(epoch=epoch.replace("own", own), seq=seq + (epoch == "own" and seq == 7))
    assert client.connection is not None
    assert client.connection.types == ["welcome"]
    assert client.connection.welcome["recovered"] is False
    assert client.connection.welcome["state"] == room.get_state().to_dict()


def test_nothing_to_recover() -> None:
    """A new seat, and a client that tells no seq, get recovered null."""
    room = new_room()
    client = Client(room, CLIENT)
    client.connect()
    assert client.welcomes[-1]["recovered"] is None
    client.drop()
    client.copy = None
    client.connect()
    assert client.welcomes[-1]["recovered"] is None


def test_resuming_where_nothing_was_missed() -> None:
    """Only the own drop and return are replayed to a client that missed nothing else."""
    room = new_room()
    client = Client(room, CLIENT)
    client.connect()
    client.drop()
    client.connect()
    assert client.connection is not None
    assert client.connection.types == ["welcome", "player_dropped", "player_resumed"]
    assert client.connection.welcome["recovered"] is True


def test_resume_needs_the_token() -> None:
    """A seat is not taken over by whoever knows its name: nothing changes, nothing is sent."""
    room = new_room()
    client = Client(room, CLIENT)
    client.connect()
    client.drop()
    before = room.get_state().to_dict()
    for token in (None, "", "forged"):
        thief = RecordingConnection()
        with pytest.raises(BadToken):
            room.join(CLIENT, thief, token=token, epoch=before["epoch"], seq=0)
        assert (thief.messages, thief.closes) == ([], [])
    assert room.get_state().to_dict() == before


def test_a_second_connection_replaces_the_first() -> None:
    """The first is closed with 4509 and hears nothing more; losing it afterwards does not drop the seat."""
    room = new_room()
    client = Client(room, CLIENT)
    client.connect()
    first = client.connection
    assert first is not None
    client.connect()
    assert first.closes == [(4509, "a newer connection took the seat")]
    heard = len(first.messages)
    room.send_message(CLIENT, {})
    assert room.remove_connection(CLIENT, first) is False
    assert len(first.messages) == heard
    assert first.late_messages == []
    seat = room.get_state().get_player(CLIENT)
    assert seat is not None
    assert seat.connected


# Full queues.

flood = st.lists(
    st.one_of(
        st.tuples(st.just("send_message"), st.just(WITNESS), st.fixed_dictionaries({"n": st.integers(0, 9)})),
        st.tuples(st.just("select_song"), st.just(WITNESS), st.sampled_from(["song-1", "song-2"])),
        st.tuples(st.just("set_player_ready"), st.sampled_from([WITNESS, CLIENT]), st.booleans()),
        st.tuples(st.just("add_player"), st.sampled_from(OTHERS)),
        st.tuples(st.just("remove_player"), st.sampled_from(OTHERS)),
        st.tuples(st.just("keyed"), st.sampled_from([WITNESS, CLIENT]), st.sampled_from("ab"), st.integers(0, 9)),
        st.tuples(st.just("reconnect")),
        st.tuples(st.just("drain")),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(script=flood, queue_size=st.integers(1, 8))
def test_nothing_is_lost_silently(script: list[tuple[Any, ...]], queue_size: int) -> None:
    """With a tiny queue that is seldom drained: every event is delivered, or announced by a gap before the next one, or
    replaced by a newer one of its key; drops are counted by type; and filling the gaps makes the copy equal."""
    inline = InlineBroadcaster()
    room = new_room(inline, queue_size=queue_size)
    client, witness = Client(room, CLIENT), Client(room, WITNESS)
    client.connect()
    witness.connect()
    inline.by_hand = True
    for name, *arguments in script:
        if name == "drain":
            inline.drain()
        elif name == "keyed":
            sender, key, value = arguments
            room.send_message(sender, {"v": value}, key=key)
        elif name == "reconnect":  # a control item among the events
            client.drop()
            client.connection = RecordingConnection()
            client.seen = 0
            assert client.copy is not None
            state = client.copy.state
            room.add_connection(CLIENT, client.connection, epoch=state["epoch"], seq=state["seq"])
        else:
            act(room, name, *arguments)
        assert room.queue_depth <= queue_size + 4 + 2 * len(script)  # control items take no place
    inline.drain()
    assert witness.connection is not None
    check_accounting(room, witness.connection.messages, witness.welcomes or [witness.connection.welcome])
    for each in (client, witness):
        each.read()
        assert each.copy is not None
        assert each.copy.to_dict() == room.get_state().to_dict()


def check_accounting(room: Room, messages: list[dict[str, Any]], welcomes: list[dict[str, Any]]) -> None:
    """Every seq after the welcome is delivered once, or lies in an announced gap, or was conflated."""
    history = {event.seq: event for event in room.get_events() or ()}
    live = [message["seq"] for message in messages if "seq" in message]
    assert live == sorted(set(live))
    missing = set(range(welcomes[0]["seq"] + 1, room.get_state().seq + 1)) - set(live)
    announced: Counter[str] = Counter()
    conflated = sum(message.get("conflated", 0) for message in messages)
    last = welcomes[0]["seq"]
    previous = "welcome"
    for message in messages[1:]:
        if message["type"] == "gap":
            assert previous != "gap", "two notices for one gap"
            assert message["data"]["after"] >= last, "a gap that begins before what was delivered"
            assert message["data"]["dropped"] == sum(message["data"]["types"].values()) > 0
            announced.update(message["data"]["types"])
        else:
            last = message["seq"]
        previous = message["type"]
    assert dict(announced) == room.dropped
    assert conflated == room.conflated
    assert len(missing) == sum(announced.values()) + conflated
    by_type = Counter(history[seq].type for seq in missing)
    by_type.subtract(announced)
    by_type.subtract({"message": conflated})
    assert not any(by_type.values())


def flooded(queue_size: int = 3) -> tuple[Room, InlineBroadcaster, RecordingConnection]:
    """A room with one connection, drained from now on only by hand."""
    inline = InlineBroadcaster()
    room = new_room(inline, queue_size=queue_size)
    connection = RecordingConnection()
    room.join("amy", connection)
    connection.messages.clear()
    inline.by_hand = True
    return room, inline, connection


def test_drops_are_announced_before_the_next_event() -> None:
    """What had no place is counted by type and announced by exactly one gap, right before the next event."""
    room, inline, connection = flooded()
    after = room.get_state().seq
    room.send_message("amy", {"n": 1})
    room.send_message("amy", {"n": 2})
    room.select_song("amy", "song-1")  # gets the place that was set aside for a room_status, which does not come
    for number in range(3, 5):
        room.send_message("amy", {"n": number})
    assert room.dropped == {"message": 2}
    inline.drain()
    room.send_message("amy", {"n": 5})
    inline.drain()
    for number in range(6, 10):
        room.send_message("amy", {"n": number})
    room.close()  # what must be told is told, place or not
    inline.drain()
    told = ["message", "message", "song_selected", "gap", "message"]
    assert connection.types == [*told, "message", "message", "message", "gap", "room_status", "room_closed"]
    first, second = connection.of_type("gap")
    assert first == {"type": "gap", "data": {"after": after + 3, "dropped": 2, "types": {"message": 2}}}
    assert second == {"type": "gap", "data": {"after": after + 9, "dropped": 1, "types": {"message": 1}}}


def test_drops_are_announced_when_nothing_follows() -> None:
    """The notice does not wait for an event that may never come."""
    room, inline, connection = flooded(1)
    room.send_message("amy", {"n": 1})
    room.send_message("amy", {"n": 2})
    inline.drain()
    assert connection.types == ["message", "gap"]
    inline.drain()
    assert connection.types == ["message", "gap"]


def test_critical_events_wait_or_refuse_but_are_not_dropped() -> None:
    """Where a status change has no place the operation is refused whole, and after draining it goes through."""
    room, inline, connection = flooded(2)
    room.send_message("amy", {"n": 1})
    before = (room.get_state().to_dict(), room.get_events(), room.dropped)
    with pytest.raises(RoomkitError, match="try again") as caught:
        room.add_player("bob")
    assert caught.value.code == "room_busy"
    assert (room.get_state().to_dict(), room.get_events(), room.dropped) == before
    inline.drain()
    room.add_player("bob")
    inline.drain()
    assert connection.types == ["message", "player_joined", "room_status"]


def test_closing_does_not_depend_on_the_queue() -> None:
    """A full queue does not keep a room from closing, and everybody is told."""
    room, inline, connection = flooded(1)
    room.send_message("amy", {})
    room.close("over")
    inline.drain()
    assert connection.types == ["message", "room_status", "room_closed"]
    assert connection.closes == [(4510, "over")]


def test_a_newer_event_of_a_key_replaces_the_older() -> None:
    """Only within one sender and key, only while it waits, and the newer one says how many it replaced."""
    room, inline, connection = flooded(20)
    room.join("bob", RecordingConnection())
    inline.drain()
    connection.messages.clear()
    for number in range(3):
        room.send_message("amy", {"n": number}, key="pos")
        room.send_message("bob", {"n": number}, key="pos")
        room.send_message("amy", {"n": number}, key="other")
    room.send_message("amy", {"n": 9})
    inline.drain()
    room.send_message("amy", {"n": 10}, key="pos")
    inline.drain()
    told = [(e["data"]["player_id"], e["data"]["data"]["n"], e.get("conflated", 0)) for e in connection.messages]
    assert told == [("amy", 2, 2), ("bob", 2, 2), ("amy", 2, 2), ("amy", 9, 0), ("amy", 10, 0)]
    assert room.conflated == 6
    assert room.dropped == {}
    assert len(room.get_recent_events(11)) == 11  # the history keeps them all


def test_a_key_finds_its_place_in_a_full_queue() -> None:
    """Replacing needs no place, so the newest position arrives even when the queue is full."""
    room, inline, connection = flooded(2)
    room.send_message("amy", {"n": 1}, key="pos")
    room.send_message("amy", {"text": "hi"})
    room.send_message("amy", {"n": 2}, key="pos")
    inline.drain()
    assert [event["data"]["data"] for event in connection.messages] == [{"text": "hi"}, {"n": 2}]
    assert room.dropped == {}


def test_a_gap_survives_the_event_that_it_hung_on() -> None:
    """When the event before which a gap is announced is replaced by a newer one, the announcement stays, even when a
    control item (somebody's welcome) is what stands in its place."""
    room, inline, connection = flooded(4)
    room.join("bob", RecordingConnection())
    inline.drain()
    connection.messages.clear()
    after = room.get_state().seq
    room.send_message("amy", {"n": 1}, key="pos")
    for number in range(2, 6):
        room.send_message("amy", {"n": number})  # 5 is dropped
    room.send_message("amy", {"n": 6}, key="pos")  # in the place of 1, behind the gap
    room.add_connection("bob", RecordingConnection())
    room.send_message("amy", {"n": 7}, key="pos")  # in the place of 6
    inline.drain()
    assert connection.types == ["message", "message", "message", "gap", "message"]
    assert connection.messages[-1]["conflated"] == 2
    assert connection.of_type("gap")[0]["data"] == {"after": after + 4, "dropped": 1, "types": {"message": 1}}


def test_who_leaves_has_heard_everything_up_to_it() -> None:
    """The connection of a player who is removed gets all events up to its own leaving, then its close."""
    room, inline, connection = flooded(20)
    room.add_player("bob")
    room.send_message("bob", {"text": "you are out"})
    room.kick(None, "amy")
    room.send_message("bob", {"text": "gone"})
    inline.drain()
    assert connection.types == ["player_joined", "room_status", "message", "player_left", "host_changed", "room_status"]
    assert connection.closes == [(4503, "kicked by the host")]
    assert connection.late_messages == []


def test_a_connection_that_fails_harms_only_itself() -> None:
    """An exception from deliver drops that player as a lost network would; the others get everything."""
    room = new_room()
    amy, bob = RecordingConnection(), RecordingConnection()
    room.join("amy", amy)
    room.join("bob", bob)
    amy.error = OSError("the network is gone")
    room.send_message("bob", {"text": "hi"})
    assert bob.types[-2:] == ["message", "player_dropped"]
    seat = room.get_state().get_player("amy")
    assert seat is not None
    assert not seat.connected


def test_a_connection_may_call_the_room() -> None:
    """What a connection does from within deliver is carried out, and delivered to all in the order of the changes."""
    room = new_room()

    class Echo(RecordingConnection):
        def deliver(self, batch: Any) -> None:
            super().deliver(batch)
            if self.types[-1] == "message" and self.messages[-1]["data"]["player_id"] == "bob":
                room.send_message("amy", {"text": "echo"})

    amy, bob = Echo(), RecordingConnection()
    room.join("amy", amy)
    room.join("bob", bob)
    for _ in range(3):
        room.send_message("bob", {"text": "hi"})
    for each in (amy, bob):
        seqs = [event["seq"] for event in each.events]
        assert seqs == list(range(seqs[0], room.get_state().seq + 1))


def test_a_connection_cannot_make_newer_events_overtake_older_ones() -> None:
    """An operation from within deliver that finds the queue full is refused; it does not drain within the drain."""
    inline = InlineBroadcaster()
    room = new_room(inline, queue_size=4)
    refused: list[str] = []

    class Eager(RecordingConnection):
        def deliver(self, batch: Any) -> None:
            super().deliver(batch)
            if self.messages[-1]["type"] == "message" and self.messages[-1]["data"]["player_id"] == "bob":
                for number in range(4):
                    room.send_message("amy", {"n": number})
                try:
                    room.add_player("cat")
                except RoomkitError as error:
                    refused.append(error.code)

    amy, bob = Eager(), RecordingConnection()
    room.join("amy", amy)
    room.join("bob", bob)
    room.send_message("bob", {"text": "go"})
    assert refused == ["room_busy"]
    for each in (amy, bob):
        seqs = [event["seq"] for event in each.events]
        assert seqs == list(range(seqs[0], room.get_state().seq + 1))
