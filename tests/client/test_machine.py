"""The client's machine against a scripted server and manual time: what roomkit.js is held to in roomkit.test.mjs."""

from __future__ import annotations

import random
from concurrent.futures import Future
from typing import Any

import pytest
from support.scripted import WALL, Scripted, chat, event, gap, player, room_state, welcome

from roomkit import (
    BadToken,
    InvalidMessage,
    InvalidTransition,
    LimitExceeded,
    NotHost,
    PlayerBanned,
    RoomFull,
    RoomkitError,
    RoomState,
)
from roomkit.client import BufferFull, Closed, ConnectionClosed, Timeout
from roomkit.core.events import rfc3339

TRANSFERRED = event(11, "room_transferred", {"room_id": "room-2"})
GONE = room_state(seq=40, status="closed", transferred_to="room-2")


def error_of(future: Future[Any], kind: type[Exception]) -> Any:
    """The future must have failed, with this kind of error."""
    assert future.done()
    error = future.exception()
    assert type(error) is kind, error
    return error


# Connecting.


def test_the_first_welcome_connects() -> None:
    """It says who it is, with a token of its own; then the state is there, and the server's token counts."""
    t = Scripted()
    t.start()
    assert t.dialled == [{"room_id": "room-1", "player_id": "amy", "token": "mine"}]
    assert not t.machine.connected.done()
    t.tell(welcome())
    assert t.machine.connected.result(0).seq == 10
    assert (t.machine.connection, t.machine.token) == ("open", "secret")
    assert t.machine.state is not None
    assert t.machine.state.to_dict() == room_state()
    assert [kind for kind, _ in t.told] == ["connection", "connection", "welcome", "state"]
    t.start()
    assert len(t.dialled) == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [(4505, RoomFull), (4501, BadToken), (4503, PlayerBanned), (4500, InvalidTransition), (4529, LimitExceeded)],
)
def test_a_code_that_says_stay_away_ends_it_with_the_error_that_it_stands_for(code: int, kind: type[Exception]) -> None:
    """connect() raises what joining the room in the same process would."""
    t = Scripted()
    t.start()
    t.drop(code, "why")
    assert str(error_of(t.machine.connected, kind)) == "why"
    assert t.machine.closed is not None
    assert t.machine.closed.code == code
    t.advance(1000)
    assert len(t.dialled) == 1


def test_closing_while_connecting_ends_everything() -> None:
    """connect() fails, what waits fails, no deadline is left, and a welcome that comes too late changes nothing."""
    t = Scripted()
    t.start()
    waiting = t.submit.ready()
    t.close()
    assert isinstance(error_of(t.machine.connected, ConnectionClosed), ConnectionError)
    assert not error_of(waiting, ConnectionClosed).maybe_done
    assert t.machine.closed == Closed(1000, "normal", "closed by this client")
    assert t.machine.next_deadline() is None
    t.close()
    assert [change.state for change in t.changes] == ["connecting", "closed"]
    assert (t.machine.socket, t.machine.state) == (None, None)


def test_an_attempt_that_brings_no_welcome_is_given_up() -> None:
    """After ack_timeout, not earlier."""
    t = Scripted(ack_timeout=4)
    t.start()
    t.advance(3.999)
    assert t.machine.connection == "connecting"
    t.advance(0.001)
    assert (t.machine.connection, t.machine.socket) == ("waiting", None)
    assert t.changes[-1].reason == "no welcome came in time"
    assert "no welcome came in time" in t.machine.why_not_connected()


# Coming back.


@pytest.mark.parametrize("chance", [0, 0.37, 0.999])
def test_delays_are_full_jitter_of_an_exponential_back_off_with_a_ceiling(chance: float) -> None:
    """However often it fails (2,000 times, past what 2 ** n can be), and each attempt starts when its delay is over."""
    t = Scripted()
    t.chance = chance
    t.open()
    delays = []
    for n in range(2000):
        t.drop()
        delays.append(t.changes[-1].delay)
        t.advance(delays[-1])
        assert t.machine.connection == "connecting", n
    assert delays == [chance * min(10, 0.5 * 2 ** min(n, 100)) for n in range(2000)]


def test_a_welcome_starts_the_back_off_anew() -> None:
    """The count is of failures in a row."""
    t = Scripted()
    t.open()
    for _ in range(3):
        t.drop()
        t.advance(10)
    t.tell(welcome(recovered=True))
    t.drop()
    assert (t.changes[-1].delay, t.changes[-1].attempt) == (0.25, 1)


def test_max_attempts_in_a_row_end_it() -> None:
    """With why the last one failed."""
    t = Scripted(max_attempts=3)
    t.start()
    for _ in range(3):
        t.drop(1006, "refused")
        t.advance(10)
    assert len(t.dialled) == 3
    assert "connection_lost, refused" in str(error_of(t.machine.connected, ConnectionClosed))
    assert t.machine.closed == Closed(1006, "connection_lost", "refused")


def test_on_1012_the_server_says_when_to_come_back() -> None:
    """To the moment; without a number the back-off counts, and a number without end is bounded."""
    t = Scripted()
    t.open()
    t.drop(1012, "worker 7 restarts, come back in 3.25 s")
    assert t.changes[-1].delay == 3.25
    t.advance(3)
    assert len(t.dialled) == 1
    t.advance(0.25)
    assert len(t.dialled) == 2
    t.drop(1012, "no number here")
    assert t.changes[-1].delay == 0.5
    t.advance(1)
    t.drop(1012, "come back in 99999999999 s")
    assert t.changes[-1].delay == 600


def test_it_resumes_with_token_epoch_and_the_last_seq_that_it_applied() -> None:
    """And says so in the address of the next connection."""
    t = Scripted().open().tell(chat(11))
    t.drop()
    t.advance(1)
    assert t.dialled[-1] == {"room_id": "room-1", "player_id": "amy", "token": "secret", "epoch": "e1", "seq": "11"}


def test_a_replay_is_applied_once_to_the_own_copy() -> None:
    """The copy is what the replay goes on from; overlap with live events and repetitions count once."""
    t = Scripted().open().tell(chat(11))
    t.drop()
    t.advance(1)
    t.told.clear()
    t.tell(welcome(room_state(seq=13), recovered=True))
    assert t.machine.state is not None
    assert t.machine.state.seq == 11
    t.tell(event(12, "player_ready", {"player_id": "bob", "ready": True}), chat(13))
    t.tell(event(12, "player_ready", {"player_id": "bob", "ready": False}), chat(13), chat(14))
    assert t.seqs == [12, 13, 14]
    assert t.machine.state.players[1].ready
    assert len(t.of("state")) == 1


@pytest.mark.parametrize(
    ("state", "recovered"),
    [
        (room_state(seq=20, status="playing"), False),
        (room_state(seq=20, status="playing"), None),
        (room_state(seq=20, epoch="e2", status="playing"), True),
        (room_state(seq=3, status="playing"), True),
    ],
    ids=["not recovered", "a new seat", "another epoch", "seq went backwards"],
)
def test_where_a_replay_cannot_be_the_snapshot_is_taken(state: dict[str, Any], recovered: bool | None) -> None:
    """'state' is told, and events that the snapshot has are ignored."""
    t = Scripted().open().tell(chat(11))
    t.drop()
    t.advance(1)
    t.told.clear()
    t.tell(welcome(state, recovered=recovered))
    assert t.of("state") == [RoomState.from_dict(state)] == [t.machine.state]
    t.tell(chat(state["seq"]), chat(state["seq"] + 1))
    assert t.seqs == [state["seq"] + 1]


def test_replaced_by_a_newer_connection_it_stays_away() -> None:
    """What is unanswered may have been done; what is asked afterwards was not."""
    t = Scripted().open()
    unanswered = t.submit.ready()
    t.drop(4509, "replaced")
    assert error_of(unanswered, ConnectionClosed).maybe_done
    assert not error_of(t.submit.ready(), ConnectionClosed).maybe_done
    assert t.machine.closed == Closed(4509, "replaced", "replaced")
    assert t.machine.next_deadline() is None


def test_retry_now_makes_a_waiting_client_try_at_once_and_no_other() -> None:
    """Even when a server asked for patience; it counts like any other attempt."""
    t = Scripted()
    t.retry_now()
    assert t.dialled == []
    t.start()
    t.retry_now()
    t.tell(welcome())
    t.retry_now()
    assert len(t.dialled) == 1
    t.drop(1012, "come back in 60 s")
    t.retry_now()
    assert (len(t.dialled), t.machine.connection) == (2, "connecting")
    t.drop()
    assert t.changes[-1].attempt == 2
    t.retry_now()
    t.tell(welcome(recovered=True))
    t.advance(120)
    assert len(t.dialled) == 3
    t.close()
    t.retry_now()
    assert len(t.dialled) == 3


def test_a_silent_network_is_noticed_by_ping_and_any_bytes_are_a_sign_of_life() -> None:
    """Silence counts from the last byte, also of a frame that is no message; without an answer the connection goes."""
    t = Scripted(ping_interval=15, ping_timeout=10).open()
    t.advance(10)
    t.tell(chat(11))
    t.advance(14.5)
    assert t.sent == []
    t.advance(0.5)
    assert t.types_sent == ["ping"]
    t.advance(9)
    t.machine.heard(t.time)
    t.advance(2)
    assert t.machine.connection == "open"
    t.advance(22.5)
    assert t.machine.connection == "open"
    t.advance(0.5)
    assert t.changes[-1].reason == "no answer to a ping"


# The copy of the state.


def test_a_hole_in_seq_is_no_gap() -> None:
    """A conflated event leaves one."""
    t = Scripted().open().tell(chat(14) | {"conflated": 3}, chat(15))
    assert (t.seqs, t.sent, t.of("event")[0].conflated) == ([14, 15], [], 3)


def test_refresh_repairs_the_copy_unless_events_are_on_their_way() -> None:
    """An event below the seq of a newer state is not lost."""
    t = Scripted().open()
    same = t.submit.refresh()
    t.ack("state", state=room_state(status="playing"))
    assert same.result(0).status == "playing"
    assert t.machine.state == same.result(0)
    newer = t.submit.refresh()
    t.ack("state", state=room_state(seq=12, status="finished"))
    assert newer.result(0).status == "finished"
    t.tell(chat(11))
    assert t.seqs == [11]


def test_clock_offset_is_the_servers_clock_minus_the_local_one() -> None:
    """From the welcome, and from a ping, half of whose round trip is taken off."""
    t = Scripted().open(welcome(time=rfc3339(WALL + 5)))
    assert t.machine.clock_offset == 5
    ping = t.submit.ping()
    t.advance(0.08)
    t.ack("ping", time=rfc3339(WALL + 7.04))
    assert ping.result(0) == pytest.approx(0.08)
    assert t.machine.clock_offset == pytest.approx(7)


@pytest.mark.parametrize(
    "nonsense",
    ["not json", "[]", '"text"', '{"seq":1}', '{"type":"player_joined","seq":11,"data":{}}', "[" * 100_000],
)
def test_what_is_not_of_the_protocol_costs_the_connection_and_the_copy(nonsense: str) -> None:
    """It connects anew and takes a whole state: the copy may have missed something."""
    t = Scripted().open().tell(nonsense)
    assert t.machine.connection == "waiting"
    t.advance(1)
    assert "epoch" not in t.dialled[-1]
    t.tell(welcome(room_state(seq=12, status="playing")))
    assert t.machine.state is not None
    assert (t.machine.connection, t.machine.state.status) == ("open", "playing")


def test_a_welcome_that_is_none_is_backed_off_from() -> None:
    """So that a server which speaks something else is not stormed."""
    t = Scripted()
    t.start()
    for _ in range(5):
        t.tell({"type": "welcome", "data": {"hello": "there"}})
        t.advance(10)
    assert [change.delay for change in t.changes if change.state == "waiting"] == [0.5, 1, 2, 4, 5]


# Gaps.


def test_what_comes_meanwhile_waits_for_the_missing_events() -> None:
    """They come first; overlap counts once; afterwards life goes on."""
    t = Scripted().open().tell(chat(11), gap(11, 2))
    assert t.asked("state")["data"] == {"after": 11}
    t.tell(chat(14), chat(15))
    assert t.seqs == [11]
    t.ack("state", events=[chat(12), event(13, "player_ready", {"player_id": "bob", "ready": True}), chat(14)])
    assert t.seqs == [11, 12, 13, 14, 15]
    t.tell(chat(16))
    assert t.seqs[-1] == 16
    assert [notice.data["dropped"] for notice in t.of("gap")] == [2]


def test_when_the_history_has_no_more_the_snapshot_is_taken() -> None:
    """And what was held and is above it follows."""
    t = Scripted().open().tell(gap(10, 300), chat(311), chat(312), chat(313))
    t.told.clear()
    t.ack("state", state=room_state(seq=312, status="playing"))
    assert t.seqs == [313]
    assert [state.status for state in t.of("state")] == ["playing"]


def test_a_second_gap_while_the_first_is_being_filled_is_filled_too() -> None:
    """In order."""
    t = Scripted().open().tell(gap(10), chat(12), gap(12), chat(14))
    assert len(t.sent) == 1
    t.ack("state", events=[chat(11), chat(12)])
    assert t.seqs == [11, 12]
    assert t.asked("state")["data"] == {"after": 12}
    t.tell(chat(15))
    t.ack("state", events=[chat(13), chat(14)])
    assert t.seqs == [11, 12, 13, 14, 15]


def test_an_answer_waits_behind_the_gap_and_a_pings_does_not() -> None:
    """So that an operation's effect is in the state when it ends."""
    t = Scripted().open()
    done, ping = t.submit.ready(), t.submit.ping()
    t.tell(gap(10))
    t.ack("ready", seq=11)
    t.ack("ping", time=rfc3339(WALL))
    assert (done.done(), ping.done()) == (False, True)
    t.ack("state", events=[event(11, "player_ready", {"player_id": "amy", "ready": True})])
    assert done.result(0) == 11
    assert t.machine.state is not None
    assert t.machine.state.players[0].ready


@pytest.mark.parametrize("what", ["is refused", "gets no answer", "is cut off"])
def test_when_a_gap_cannot_be_filled_a_new_connection_resumes(what: str) -> None:
    """From the last applied event. An answer that did arrive, behind the gap, counts."""
    t = Scripted().open()
    held = t.submit.ready()
    t.tell(gap(10), chat(12))
    t.ack("ready", seq=12)
    if what == "is refused":
        refusal = {"code": "limit_exceeded", "message": ""}
        t.tell({"type": "error", "id": t.asked("state")["id"], "data": refusal})
    elif what == "gets no answer":
        t.advance(15)
    else:
        t.drop()
    assert t.machine.connection == "waiting"
    if what == "gets no answer":
        error_of(held, Timeout)
    else:
        assert held.result(0) == 12
    t.advance(0.5)
    assert t.dialled[-1]["seq"] == "10"
    t.tell(welcome(room_state(seq=12), recovered=True), chat(11), chat(12))
    assert t.seqs == [11, 12]


# Operations.


def test_each_is_the_message_of_the_page() -> None:
    """Types and data as docs/protocol.md has them, no id twice."""
    t = Scripted().open()
    s = t.submit
    calls: list[tuple[Future[Any], str, dict[str, Any] | None]] = [
        (s.ready(), "ready", {"ready": True}),
        (s.ready(False), "ready", {"ready": False}),
        (s.select_song("s1"), "select_song", {"song_id": "s1"}),
        (s.update_settings({"speed": 2}), "update_settings", {"settings": {"speed": 2}}),
        (s.start_game(), "start_game", None),
        (s.finish_game(), "finish_game", None),
        (s.finish_game({"amy": 1}), "finish_game", {"results": {"amy": 1}}),
        (s.rematch(), "rematch", None),
        (s.send_message({"text": "hi"}), "message", {"text": "hi"}),
        (s.perform("bid", {"price": 5}), "perform", {"operation": "bid", "data": {"price": 5}}),
        (s.perform("wave"), "perform", {"operation": "wave", "data": {}}),
        (s.kick("bob"), "kick", {"player_id": "bob", "ban": False}),
        (s.kick("bob", ban=True), "kick", {"player_id": "bob", "ban": True}),
        (s.lock(), "lock", {"locked": True}),
        (s.lock(False), "lock", {"locked": False}),
        (s.close_room(), "close", None),
        (s.close_room("over"), "close", {"reason": "over"}),
        (s.refresh(), "state", None),
        (s.events_after(3), "state", {"after": 3}),
        (s.ping(), "ping", None),
    ]
    assert [(m["type"], m.get("data")) for m in t.sent] == [(kind, data) for _, kind, data in calls]
    assert len({message["id"] for message in t.sent}) == len(calls)
    s.send_message({"x": 1}, key="pos")
    assert (t.sent[-1]["data"], t.sent[-1]["key"]) == ({"x": 1}, "pos")


def test_an_ack_and_an_error_each_end_the_right_one() -> None:
    """The error is of the class that the server raised; an unknown code makes a plain one that has it."""
    t = Scripted().open()
    a, b, c = t.submit.ready(), t.submit.start_game(), t.submit.perform("bid")
    t.tell({"type": "error", "id": t.asked("start_game")["id"], "data": {"code": "not_host", "message": "the host"}})
    t.tell({"type": "error", "id": t.asked("perform")["id"], "data": {"code": "too_low", "message": "more"}})
    t.ack("ready", seq=11)
    assert a.result(0) == 11
    assert str(error_of(b, NotHost)) == "the host"
    assert error_of(c, RoomkitError).code == "too_low"
    assert t.machine.next_deadline() is None


@pytest.mark.parametrize("data", [None, [], {}, {"seq": "eleven"}])
def test_an_answer_that_is_none_ends_the_operation_all_the_same(data: Any) -> None:
    """Nobody waits for ever since a server sends nonsense."""
    t = Scripted().open()
    ready, refused = t.submit.rematch(), t.submit.ready()
    t.tell({"type": "ack", "id": t.asked("rematch")["id"], "data": data})
    t.tell({"type": "error", "id": t.asked("ready")["id"], "data": data})
    error_of(ready, InvalidMessage)
    error_of(refused, RoomkitError)


def test_an_error_without_an_id_is_told_and_an_answer_nobody_waits_for_is_nothing() -> None:
    """The connection stays."""
    t = Scripted().open()
    t.tell({"type": "error", "data": {"code": "invalid_message", "message": "what?"}})
    t.tell({"type": "error", "id": "c99", "data": {"code": "not_host", "message": ""}})
    t.tell({"type": "ack", "id": "c99", "data": {}}, {"type": "from_the_future", "data": {}})
    assert [(type(error), str(error)) for error in t.of("error")] == [(InvalidMessage, "what?")]
    assert t.machine.connection == "open"


def test_an_unanswered_one_fails_after_ack_timeout() -> None:
    """It may have been done; a late answer is nothing."""
    t = Scripted(ack_timeout=5).open()
    late = t.submit.ready()
    t.advance(5)
    error = error_of(late, Timeout)
    assert (error.code, error.maybe_done, isinstance(error, TimeoutError)) == ("timeout", True, True)
    t.ack("ready")
    assert t.machine.connection == "open"


def test_what_is_asked_while_away_is_sent_after_the_welcome_in_order() -> None:
    """Up to the bound of the buffer; what is over it, or waits too long, fails and is never sent."""
    t = Scripted(max_buffer=3, base_delay=100, max_delay=100).open()
    t.drop()
    stale = t.submit.send_message({"n": 0})
    t.advance(10)
    calls = [t.submit.send_message({"n": n}) for n in (1, 2, 3)]
    full = error_of(calls[2], BufferFull)
    assert (full.code, full.maybe_done) == ("buffer_full", False)
    t.advance(5)
    assert not error_of(stale, Timeout).maybe_done
    t.retry_now()
    t.tell(welcome(recovered=True))
    assert [message["data"]["n"] for message in t.sent] == [1, 2]


def test_what_the_network_does_not_take_is_bounded_too() -> None:
    """While open, max_buffer is of what still waits to be handed to the network."""
    t = Scripted(max_buffer=2).open()
    t.machine.outgoing.extend(["{}", "{}"])
    full = t.submit.ready()
    assert not error_of(full, BufferFull).maybe_done


def test_one_whose_answer_was_lost_is_not_sent_again() -> None:
    """The server may have done it: the caller decides."""
    t = Scripted().open()
    lost = t.submit.send_message({"text": "once"})
    then = []
    lost.add_done_callback(lambda done: then.append((t.machine.connection, t.changes[-1].state)))
    t.drop()
    assert then == [("waiting", "waiting")], "whoever waited found the client in the middle of something"
    error = error_of(lost, ConnectionClosed)
    assert (error.code, error.maybe_done) == ("connection_closed", True)
    t.advance(0.5)
    t.tell(welcome(recovered=True))
    assert t.sent == []


def test_data_is_taken_as_it_is_at_the_call() -> None:
    """The caller may go on changing it; what has no JSON form is refused, and nothing is sent."""
    t = Scripted().open()
    t.drop()
    data = {"text": "before"}
    t.submit.send_message(data)
    data["text"] = "after"
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    for bad in ({"x": object()}, loop, {"x": "\ud800"}):
        with pytest.raises(InvalidMessage, match="JSON"):
            t.submit.send_message(bad)
    assert t.machine.state is not None
    t.submit.update_settings(t.machine.state.settings)
    t.advance(0.5)
    t.tell(welcome(recovered=True))
    assert [message["data"] for message in t.sent] == [{"text": "before"}, {"settings": {}}]


@pytest.mark.parametrize("how", ["ack", "closed with 1000", "lost", "timeout"])
def test_leave_ends_the_client_whatever_happens(how: str) -> None:
    """The 1000 that follows a leave is as good as its ack; and when it fails the seat must not be taken again."""
    t = Scripted().open()
    left = t.leave()
    if how == "ack":
        t.ack("leave")
    elif how == "timeout":
        t.advance(15)
    else:
        t.drop(1000 if how == "closed with 1000" else 1006)
    if how in ("ack", "closed with 1000"):
        assert left.result(0) is None
    else:
        assert left.exception(0).maybe_done
    assert t.machine.closed is not None
    assert (t.machine.closed.name, t.machine.next_deadline()) == ("normal", None)
    t.advance(1000)
    assert len(t.dialled) == 1


# Moving to another room.


def test_it_connects_there_with_the_same_token_and_takes_the_new_snapshot() -> None:
    """rematch is answered by the event, since its ack comes on the connection that is let go of."""
    t = Scripted().open()
    rematch, other = t.submit.rematch(), t.submit.send_message({"text": "in flight"})
    t.tell(TRANSFERRED)
    assert rematch.result(0) == "room-2"
    assert error_of(other, ConnectionClosed).maybe_done
    assert t.dialled[-1] == {"room_id": "room-2", "player_id": "amy", "token": "secret"}
    assert (t.machine.room_id, t.machine.connection, t.machine.close_with) == ("room-2", "connecting", 1000)
    t.submit.ready()
    fresh = room_state(id="room-2", epoch="e9", seq=2)
    t.tell(welcome(fresh))
    assert t.machine.state == RoomState.from_dict(fresh)
    assert t.types_sent == ["ready"]
    t.tell(chat(3))
    assert t.seqs == [11, 3]
    assert [change.state for change in t.changes] == ["connecting", "open", "connecting", "open"]


@pytest.mark.parametrize("way", ["replay", "gap", "snapshot", "first welcome", "gap and snapshot", "refresh"])
def test_it_follows_however_it_learns_of_the_transfer(way: str) -> None:
    """Live is one way; and what was asked for while away is asked there."""
    t = Scripted()
    asked = None
    if way == "first welcome":
        t.start()
        asked = t.submit.send_message({"text": "on my way"})
        t.tell(welcome(GONE))
    elif way in ("replay", "snapshot"):
        t.open().drop()
        asked = t.submit.send_message({"text": "on my way"})
        t.advance(0.5)
        t.tell(welcome(GONE, recovered=way == "replay"))
        if way == "replay":
            assert t.sent == []
            t.tell(TRANSFERRED)
    elif way == "gap":
        t.open().tell(gap(10), event(12, "room_closed", {"reason": ""}))
        t.ack("state", events=[TRANSFERRED])
        assert t.seqs == [11]
    else:
        t.open()
        _ = t.tell(gap(10)) if way == "gap and snapshot" else t.submit.refresh()
        t.ack("state", seq=10, state=GONE | {"seq": 10})
    assert t.dialled[-1] == {"room_id": "room-2", "player_id": "amy", "token": "secret"}
    t.tell(welcome(room_state(id="room-2", epoch="e9", seq=2)))
    assert t.machine.room_id == "room-2"
    if asked is not None:
        t.ack("message", seq=3)
        assert asked.result(0) == 3


def test_a_transfer_before_the_room_has_closed_or_a_closed_room_without_one_moves_nobody() -> None:
    """Only a closed room that says where to."""
    for state in (GONE | {"status": "finished"}, GONE | {"transferred_to": None}):
        t = Scripted().open(welcome(state))
        assert (len(t.dialled), t.machine.connection) == (1, "open")


def test_a_new_room_that_refuses_ends_it() -> None:
    """As a first one would."""
    t = Scripted().open().tell(TRANSFERRED)
    t.drop(4504, "gone")
    assert t.machine.closed == Closed(4504, "room_not_found", "gone")


# All of it together.


@pytest.mark.parametrize("block", range(6))
def test_who_drops_misses_and_resumes_sees_what_one_that_never_dropped_sees(block: int) -> None:
    """Random histories, with lost connections, gaps, replays that overlap: the same events in the same order, the same
    state."""
    for seed in range(block * 50, block * 50 + 50):
        _Story(random.Random(seed)).run()


class _Story:
    def __init__(self, chance: random.Random) -> None:
        self.pick = chance.randrange
        self.steady, self.shaky = Scripted().open(), Scripted().open()
        self.history: list[dict[str, Any]] = []
        self.missed: int | None = None  # the seq after which live events are being dropped
        self.answered: set[str] = set()

    def run(self) -> None:
        for _ in range(60):
            step = self.pick(6)
            if step < 3:
                self.happen()
            elif step == 3:
                self.answer()
            elif step == 4 and self.shaky.machine.connection == "open":
                self.shaky.drop()
                self.missed = None
            else:
                self.come_back()
        self.come_back()
        self.announce()
        for _ in range(20):
            self.answer()
        assert self.shaky.seqs == [message["seq"] for message in self.history]
        assert self.shaky.of("event") == self.steady.of("event")
        assert self.shaky.machine.state == self.steady.machine.state

    def happen(self) -> None:
        seq = 11 + len(self.history)
        kind, data = [
            ("message", {"player_id": "bob", "data": {"n": seq}}),
            ("player_ready", {"player_id": ["amy", "bob"][self.pick(2)], "ready": bool(self.pick(2))}),
            (
                "settings_changed",
                {"settings": {f"k{self.pick(3)}": self.pick(2) or None}, "ready_cleared": bool(seq % 2)},
            ),
            ("player_joined", {"player": player(f"p{seq}"), "count": 3}),
        ][self.pick(4)]
        message = event(seq, kind, data)
        self.history.append(message)
        self.steady.tell(message)
        if self.shaky.machine.connection != "open":
            return
        if self.pick(4) == 0:
            self.missed = seq - 1 if self.missed is None else self.missed
        else:
            self.announce()
            self.shaky.tell(message)

    def announce(self) -> None:
        if self.missed is not None:
            self.shaky.tell(gap(self.missed))
        self.missed = None

    def after(self, seq: int) -> list[dict[str, Any]]:
        return [message for message in self.history if message["seq"] > seq]

    def answer(self) -> None:
        questions = [m for m in self.shaky.sent if m["type"] == "state" and m["id"] not in self.answered]
        for question in questions[-1:]:
            self.answered.add(question["id"])
            events = self.after(question["data"]["after"])
            self.shaky.tell({"type": "ack", "id": question["id"], "data": {"events": events}})

    def come_back(self) -> None:
        if self.shaky.machine.connection == "open":
            return
        self.shaky.advance(10)
        overlap = int(self.shaky.dialled[-1]["seq"]) - self.pick(2)
        assert self.steady.machine.state is not None
        self.shaky.tell(welcome(self.steady.machine.state.to_dict(), recovered=True), *self.after(overlap))
