"""RoomClient against the real server, over real sockets: operations, errors, callbacks, iterators, its end."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from support.bench import Bench, open_sockets
from support.fakes import PATIENCE, eventually
from support.rest import request
from support.tls import make_certificate

import roomkit
from roomkit import (
    BadPassword,
    BadToken,
    Event,
    InvalidConfig,
    InvalidId,
    InvalidMessage,
    InvalidTransition,
    Lifecycle,
    LimitExceeded,
    NotHost,
    Operation,
    OperationRefused,
    PlayerBanned,
    PlayerNotFound,
    RoomFull,
    RoomkitError,
    RoomLocked,
    RoomNotFound,
    RoomState,
    Unauthorized,
)
from roomkit.client import BufferFull, Closed, ConnectionClosed, Notice, RoomClient, Timeout, WouldDeadlock
from roomkit.server import Server

Join = Callable[..., RoomClient]


class BidTooLow(OperationRefused):
    """A lifecycle's own error, which the client's process knows as well."""


def _check_bid(state: RoomState, player_id: str | None, data: dict[str, Any]) -> dict[str, Any]:
    if data["price"] <= state.settings.get("price", 0):
        raise BidTooLow(f"more than {state.settings['price']}")
    if data["price"] > 100:
        raise OperationRefused("nobody has that much")
    return {"price": data["price"]}


AUCTION = Lifecycle(
    "auction",
    {"open": {"add_player": "open", "remove_player": "open", "bid": "open", "close": "closed"}},
    operations={"bid": Operation(check=_check_bid)},
)


def in_step(*clients: RoomClient) -> RoomState:
    """Wait until all have the newest state of them; it is one and the same."""
    newest = max(client.state.seq for client in clients if client.state is not None)
    states = [client.wait_for(lambda state: state.seq >= newest, PATIENCE) for client in clients]
    assert all(state == states[0] for state in states)
    return states[0]


@pytest.fixture
def silent() -> Any:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


# Operations.


def test_a_whole_game_by_every_operation(server: Server, join: Join) -> None:
    """Each returns when its effect is in the caller's state, with the seq of the last event that it caused; all copies
    are the room's state, as REST has it too."""
    room = server.rooms.get_room("room")
    amy = join(server.url, "amy", name="Amy A.")
    assert (amy.connection, amy.is_host, amy.room_id, amy.closed) == ("open", True, "room", None)
    assert amy.me.to_dict() == room.get_players()[0].to_dict()
    bob, _ = join(server.url, "bob"), join(server.url, "cat")
    assert not bob.is_host
    assert bob.select_song("song-7") == bob.state.seq
    assert bob.state.song_id == "song-7"
    bob.update_settings({"speed": 2, "mode": "duel"})
    assert bob.update_settings({"mode": None}) == bob.state.seq
    assert bob.state.settings == {"song_id": "song-7", "speed": 2}
    amy.lock()
    assert amy.state.locked
    amy.lock(False)
    assert not amy.state.locked
    amy.kick("cat")
    assert amy.state.get_player("cat") is None
    for player in (amy, bob):
        player.wait_for(lambda state: len(state.players) == 2, PATIENCE)
        assert player.ready() == player.state.seq
        assert player.me.ready
    bob.ready(False)
    assert (bob.me.ready, bob.state.status) == (False, "preparing")
    bob.ready()
    amy.start_game()
    assert amy.state.status == "playing"
    assert amy.state.to_dict() == room.get_state().to_dict()
    said = amy.send_message({"text": "hi"}, key="pos")
    assert room.get_events(said - 1)[0].data == {"player_id": "amy", "data": {"text": "hi"}}
    assert 0 <= bob.ping() < PATIENCE
    assert abs(bob.clock_offset) < 5
    amy.finish_game({"winner": "bob"})
    assert (amy.state.status, amy.state.results) == ("finished", {"winner": "bob"})
    assert in_step(amy, bob) == amy.refresh() == RoomState.from_dict(room.get_state().to_dict())
    assert amy.state.to_dict() == request(server.listener.address, "GET", "/api/rooms/room").json
    new = amy.rematch()
    assert (amy.room_id, new) == (new, new)
    amy.wait_for(lambda state: state.id == new and all(player.connected for player in state.players), PATIENCE)
    assert bob.wait_for(lambda state: state.id == new, PATIENCE).players
    assert in_step(amy, bob).to_dict() == server.rooms.get_room(new).get_state().to_dict()
    assert bob.room_id == new
    amy.close_room("good night")
    for player in (amy, bob):
        eventually(lambda player=player: player.connection == "closed")
        assert player.closed == Closed(4510, "room_closed", "good night")
        assert player.state.status == "closed"


def test_perform_is_an_operation_of_the_rooms_own_lifecycle(bench: Bench, join: Join) -> None:
    """What its check says is raised here as there: with a class of one's own where this process has it."""
    server = bench.serve()
    server.rooms.create_room("lot", lifecycle=AUCTION)
    amy = join(server.url, "amy", "lot")
    assert amy.perform("bid", {"price": 5}) == amy.state.seq
    assert amy.state.settings == {"price": 5}
    with pytest.raises(BidTooLow, match="more than 5"):
        amy.perform("bid", {"price": 5})
    with pytest.raises(OperationRefused, match="nobody") as refused:
        amy.perform("bid", {"price": 500})
    assert type(refused.value) is OperationRefused
    with pytest.raises(InvalidTransition, match="is open: hammer is not allowed") as unknown:
        amy.perform("hammer")
    assert unknown.value.room_id == ""  # a sentence came over the wire, no fields
    assert amy.state.settings == {"price": 5}


def test_events_after_gives_what_was_before(bench: Bench, join: Join) -> None:
    """As the room's history has it; None when it no longer reaches back. It changes no state and is told to nobody."""
    server = bench.serve()
    room = server.rooms.create_room("room", history_size=4)
    for n in range(3):
        room.send_message(None, {"n": n})
    amy = join(server.url, "amy")
    events = amy.events(0)
    seq, before = amy.state.seq, amy.state
    assert amy.events_after(seq - 3) == list(room.get_events(seq - 3))
    assert amy.events_after(seq) == []
    assert amy.events_after(0) is None
    assert (amy.state, list(events)) == (before, [])


def test_what_the_server_refuses_is_raised_as_in_the_same_process(server: Server, join: Join) -> None:
    """Each with the text that the room's own exception has, and nothing is changed."""
    amy, bob = join(server.url, "amy"), join(server.url, "bob")
    room = server.rooms.get_room("room")
    before = in_step(amy, bob)
    for kind, remote, local in (
        (NotHost, lambda: bob.kick("amy"), lambda: room.kick("bob", "amy")),
        (NotHost, lambda: bob.lock(), lambda: room.lock("bob")),
        (NotHost, lambda: bob.close_room(), lambda: room.close(player_id="bob")),
        (InvalidTransition, lambda: amy.start_game(), lambda: room.start_game("amy")),
        (InvalidTransition, lambda: amy.finish_game(), lambda: room.finish_game("amy")),
        (PlayerNotFound, lambda: amy.kick("nobody"), lambda: room.kick("amy", "nobody")),
    ):
        with pytest.raises(kind) as theirs:
            remote()
        with pytest.raises(kind) as ours:
            local()
        assert str(theirs.value) == str(ours.value)
        assert theirs.value.code == ours.value.code
    with pytest.raises(InvalidTransition, match="rematch"):
        amy.rematch()
    with pytest.raises(InvalidMessage):
        amy.select_song("")
    with pytest.raises(InvalidMessage):
        amy.send_message([1])  # type: ignore[arg-type]
    assert in_step(amy, bob) == before == RoomState.from_dict(room.get_state().to_dict())


def test_a_rate_that_is_too_high_is_refused(bench: Bench, join: Join) -> None:
    """And the connection stays."""
    server = bench.serve(message_rate=1, message_burst=2)
    server.rooms.create_room("room")
    amy = join(server.url, "amy")
    futures = [amy.submit.send_message({"n": n}) for n in range(3)]
    errors = [future.exception(PATIENCE) for future in futures]
    assert [type(error) for error in errors] == [type(None), type(None), LimitExceeded]
    assert amy.connection == "open"


def _authenticate(request: Any) -> None:
    raise Unauthorized("who are you?")


@pytest.mark.parametrize("why", ["full", "locked", "password", "token", "banned", "unknown", "playing", "hook"])
def test_connect_raises_why_the_server_said_stay_away(
    why: str, bench: Bench, server: Server, join: Join, client: Join
) -> None:
    """As joining in the same process does; the client has ended, and so has its thread."""
    rooms, url, options, room_id = server.rooms, server.url, {}, "room"
    expected: type[Exception] = RoomkitError
    if why == "full":
        rooms.create_room("small", max_players=1).add_player("amy")
        room_id, expected = "small", RoomFull
    elif why == "locked":
        rooms.get_room("room").lock()
        expected = RoomLocked
    elif why == "password":
        rooms.create_room("secret", password="sesame")
        room_id, expected, options = "secret", BadPassword, {"password": "guess"}
    elif why == "token":
        rooms.get_room("room").add_player("cat")
        expected = BadToken
    elif why == "banned":
        rooms.get_room("room").add_player("cat")
        rooms.get_room("room").kick(None, "cat", ban=True)
        expected = PlayerBanned
    elif why == "unknown":
        room_id, expected = "elsewhere", RoomNotFound
    elif why == "playing":
        room = rooms.get_room("room")
        for each in ("amy", "bob"):
            room.add_player(each)
        for each in ("amy", "bob"):
            room.set_player_ready(each)
        room.start_game()
        expected = InvalidTransition
    else:
        url, expected = bench.serve(hooks={"authenticate": _authenticate}).url, Unauthorized
    cat = client(url, "cat", room_id, **options)
    with pytest.raises(expected) as refused:
        cat.connect(PATIENCE)
    assert type(refused.value) is expected
    assert str(refused.value) == cat.closed.reason != ""
    assert cat.connection == "closed"
    with pytest.raises(expected):
        cat.connect()
    with pytest.raises(ConnectionClosed):
        cat.ready()
    eventually(lambda: "roomkit-client-cat" not in [thread.name for thread in threading.enumerate()])
    if why == "password":
        assert join(url, "cat", "secret", password="sesame").state.has_password


def test_what_cannot_be_is_refused_by_the_constructor() -> None:
    """By the same errors as in the library, and nothing is started."""
    good: dict[str, Any] = {"url": "http://h", "room_id": "r", "player_id": "p"}
    for bad, kind in (
        ({"room_id": "not an id!"}, InvalidId),
        ({"player_id": ""}, InvalidId),
        ({"name": "x" * 65}, InvalidMessage),
        ({"url": "nonsense"}, InvalidConfig),
        ({"url": "ftp://h"}, InvalidConfig),
        ({"url": "http://h:port"}, InvalidConfig),
        ({"base_delay": -1}, InvalidConfig),
        ({"max_attempts": 0}, InvalidConfig),
        ({"ack_timeout": 0}, InvalidConfig),
        ({"max_delay": float("nan")}, InvalidConfig),
    ):
        with pytest.raises(kind):
            RoomClient(**(good | bad))


# Seats.


def test_the_seat_is_retaken_with_the_token_and_the_older_client_stays_away(server: Server, join: Join) -> None:
    """A second client with the token of the first replaces it."""
    first = join(server.url, "amy")
    second = join(server.url, "amy", token=first.token)
    eventually(lambda: first.connection == "closed")
    assert first.closed[:2] == (4509, "replaced")
    assert second.send_message({"text": "mine"})
    assert len(second.state.players) == 1


def test_close_keeps_the_seat_and_leave_gives_it_up(server: Server, join: Join, client: Join) -> None:
    """Neither takes long, and no thread is left; leaving what was never joined is nothing."""
    amy, bob = join(server.url, "amy"), join(server.url, "bob")
    in_step(amy, bob)
    began = time.monotonic()
    assert bob.close()
    assert time.monotonic() - began < PATIENCE / 4
    assert amy.wait_for(lambda state: not state.get_player("bob").connected, PATIENCE)
    assert bob.close()
    again = join(server.url, "bob", token=bob.token)
    again.leave()
    assert again.closed == Closed(1000, "normal", "left by this client")
    assert amy.wait_for(lambda state: state.get_player("bob") is None, PATIENCE)
    never = client(server.url, "cat")
    never.leave()
    assert never.closed.code == 1000
    for late in (again.ready, again.leave, never.connect, never.start):
        with pytest.raises(ConnectionClosed, match="has ended"):
            late()


# Callbacks.


def test_callbacks_are_made_in_order_on_a_thread_of_their_own(server: Server, join: Join) -> None:
    """on_EVENT, 'event', the type, '*': each gets it, in this order, and can be stopped; no callback, no thread."""
    amy = join(server.url, "amy")
    bob = join(server.url, "bob")
    in_step(amy, bob)
    assert "roomkit-client-amy-callbacks" not in [thread.name for thread in threading.enumerate()]
    got: list[Any] = []
    threads = set()
    amy.on_player_ready = lambda data, event: got.append(("attribute", data["ready"], event.seq))
    amy.on("event", lambda event: (got.append(("event", event.type)), threads.add(threading.current_thread().name)))
    stop = amy.on("player_ready", lambda event: got.append(("player_ready", event.seq)))
    seen: list[Event | Notice] = []
    amy.on("*", seen.append)
    seq = bob.ready()
    amy.wait_for(lambda state: state.seq >= seq, PATIENCE)
    eventually(lambda: len(seen) == 2)
    assert got == [("attribute", True, seq), ("event", "player_ready"), ("player_ready", seq)]
    assert [type(each) for each in seen] == [Event, Notice]
    assert seen[1] == Notice("state", amy.state)
    assert threads == {"roomkit-client-amy-callbacks"}
    stop()
    stop()
    amy.on_player_ready = None
    bob.ready(False)
    eventually(lambda: len(seen) == 4)
    assert got[3:] == [("event", "player_ready")]


class Bot(RoomClient):
    """Callbacks as methods."""

    heard: list[str]

    def on_message(self, data: dict[str, Any], event: Event) -> None:
        self.heard.append(data["data"]["text"])


def test_a_subclass_may_have_its_callbacks_as_methods(server: Server) -> None:
    """They are found like attributes; what is due when the client closes is still made."""
    with Bot(server.url, "room", "amy") as bot:
        bot.heard = []
        for n in range(20):
            bot.send_message({"text": f"{n}"})
    assert bot.heard == [f"{n}" for n in range(20)]


def test_connection_and_welcome_are_told(server: Server, client: Join) -> None:
    """From the first attempt to the end."""
    amy = client(server.url, "amy")
    told: list[Any] = []
    amy.on("connection", lambda change: told.append(change.state))
    amy.on("welcome", lambda welcome: told.append(welcome.player_id))
    amy.connect()
    assert amy.connect() == amy.connect()
    amy.close()
    assert told == ["connecting", "open", "amy", "closed"]
    assert amy.token not in repr(amy.connect()) + repr(amy)


def test_an_operation_in_a_callback_does_not_deadlock(server: Server, join: Join) -> None:
    """The thread that makes the callbacks is not the one that reads the answers."""
    amy, bob = join(server.url, "amy"), join(server.url, "bob")
    answers: list[Any] = []

    def answer(data: dict[str, Any], event: Event) -> None:
        if data["player_id"] == "bob":
            answers.append((amy.send_message({"text": f"you said {data['data']['text']}"}), amy.state.seq))

    amy.on_message = answer
    replies = bob.events(PATIENCE)
    for n in range(5):
        bob.send_message({"text": n})
    texts = []
    for event in replies:
        if event.type == "message" and event.data["player_id"] == "amy":
            texts.append(event.data["data"]["text"])
        if len(texts) == 5:
            break
    assert texts == [f"you said {n}" for n in range(5)]
    eventually(lambda: len(answers) == 5)
    assert all(seq <= known for seq, known in answers)


def test_close_in_a_callback_ends_the_client(server: Server, join: Join) -> None:
    """It waits for no thread that would wait for it."""
    amy = join(server.url, "amy")
    result: Future[bool] = Future()
    amy.on_message = lambda data, event: result.set_result(amy.close())
    amy.submit.send_message({})
    assert result.result(PATIENCE) is True
    assert amy.closed.code == 1000


def test_a_callback_that_raises_is_logged_and_counted_and_stops_nothing(
    server: Server, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    """Those after it are called, SystemExit or not."""
    amy = join(server.url, "amy")
    got: list[int] = []

    def fail(event: Event) -> None:
        raise SystemExit("not by this")

    amy.on("message", fail)
    amy.on("message", lambda event: got.append(event.seq))
    with caplog.at_level(logging.ERROR, "roomkit.client"):
        seqs = [amy.send_message({"n": n}) for n in range(3)]
        eventually(lambda: got == seqs)
    assert amy.callback_errors == 3
    assert "not by this" in caplog.text


def test_a_slow_callback_stops_neither_answers_nor_heartbeat_and_what_has_no_place_is_told(
    bench: Bench, join: Join
) -> None:
    """It stands in its callback for longer than the server waits for a sign of life; meanwhile operations go on. What
    had no place is counted by type and told of in its place; the end of the connection always has one."""
    server = bench.serve(ping_interval=0.1, pong_timeout=0.3)
    server.rooms.create_room("room")
    amy = join(server.url, "amy", max_events=10)
    entered, gate = threading.Event(), threading.Event()
    got: list[Event] = []
    told: list[Event] = []

    def slow(data: dict[str, Any], event: Event) -> None:
        entered.set()
        assert gate.wait(PATIENCE)
        got.append(event)

    amy.on_message = slow
    amy.on("dropped", told.append)
    first = amy.send_message({"n": 0})
    assert entered.wait(PATIENCE)
    quiet = threading.Event()
    quiet.wait(0.5)  # past pong_timeout: it is about time, by the clock
    seqs = [amy.send_message({"n": n}) for n in range(1, 26)]
    assert amy.connection == "open"
    gate.set()
    last = amy.send_message({"n": "last"})
    assert amy.close()
    assert [event.seq for event in got[:11]] == [first, *seqs[:10]]
    counted = sum(event.data["dropped"] for event in told)
    assert counted == amy.dropped == 27 - len(got)
    assert told[0].data == {"after": seqs[9], "dropped": told[0].data["dropped"], "types": {"message": counted}}
    assert last in [event.seq for event in got] or counted == 16
    assert amy.closed.name == "normal"


# Iterators and waiting.


def test_events_are_the_rooms_events_in_order_until_the_end(server: Server, client: Join) -> None:
    """Asked for before connect() it misses nothing; each iterator has all; it ends with the client."""
    amy = client(server.url, "amy")
    one, two = amy.events(), amy.events(timeout=0)
    amy.connect()
    sent = [amy.send_message({"n": n}) for n in range(5)]
    assert [event.seq for event in two] == sent
    assert list(two) == []
    amy.close_room("done")
    everything = list(one)
    assert [event.type for event in everything] == ["message"] * 5 + ["room_status", "room_closed"]
    room = server.rooms.get_room("room")
    assert everything == list(room.get_events(sent[0] - 1))
    assert list(two) == everything[5:]
    assert list(amy.events()) == []


def test_a_reader_that_is_too_slow_is_told_what_it_missed(server: Server, join: Join) -> None:
    """In its place, by type; another reader misses nothing, and one that was let go of collects nothing."""
    amy = join(server.url, "amy", max_events=3)
    slow, gone = amy.events(0), amy.events(0)
    seqs = [amy.send_message({"n": n}) for n in range(3)]
    gone.close()
    amy.select_song("s1")
    amy.send_message({})
    events = list(slow)
    assert [event.seq for event in events] == [*seqs, 0]
    assert (events[3].type, slow.dropped) == ("dropped", 2)
    assert events[3].data == {"after": seqs[2], "dropped": 2, "types": {"song_selected": 1, "message": 1}}
    assert [event.seq for event in gone] == seqs
    last = amy.send_message({})
    assert [event.seq for event in slow] == [last]


def test_an_iterator_waits_for_the_next_event_for_a_time(server: Server, join: Join) -> None:
    """Then it ends, and can be asked again."""
    amy = join(server.url, "amy")
    events = amy.events(timeout=0.05)
    assert list(events) == []
    seq = amy.send_message({})
    assert next(events).seq == seq


def test_wait_for_sees_each_state(server: Server, join: Join) -> None:
    """Also one that was there for a moment only; it is asked of the state now first."""
    amy, bob = join(server.url, "amy"), join(server.url, "bob")
    in_step(amy, bob)
    assert amy.wait_for(lambda state: True, 0) is amy.state
    found: Future[RoomState] = Future()
    began, gate = threading.Event(), threading.Event()

    def wait() -> None:
        def brief(state: RoomState) -> bool:
            began.set()
            assert gate.wait(PATIENCE)  # when it looks again, the room has gone on
            return state.song_id == "brief"

        found.set_result(amy.wait_for(brief, PATIENCE))

    waiter = threading.Thread(target=wait, name="waiter", daemon=True)
    waiter.start()
    assert began.wait(PATIENCE)
    seq = bob.select_song("brief")
    last = bob.select_song("other")
    eventually(lambda: amy.state.seq == last)
    gate.set()
    assert found.result(PATIENCE).seq == seq
    waiter.join(PATIENCE)
    with pytest.raises(Timeout, match=r"within 0\.01 s"):
        amy.wait_for(lambda state: False, 0.01)
    with pytest.raises(ZeroDivisionError):
        amy.wait_for(lambda state: 1 // 0, 1)


def test_wait_for_ends_with_the_client(server: Server, join: Join) -> None:
    """Whoever waits for what can no longer come is told."""
    amy = join(server.url, "amy")
    threading.Timer(0.05, amy.close).start()
    with pytest.raises(ConnectionClosed, match="closed by this client"):
        amy.wait_for(lambda state: False, PATIENCE)


# Without blocking.


def test_submit_gives_futures(server: Server, join: Join) -> None:
    """With the same results and errors; they are carried out in the order of the calls."""
    amy = join(server.url, "amy")
    futures = [amy.submit.send_message({"n": n}) for n in range(100)]
    bad = amy.submit.start_game()
    seqs = [future.result(PATIENCE) for future in futures]
    assert seqs == list(range(seqs[0], seqs[0] + 100))
    with pytest.raises(InvalidTransition):
        bad.result(PATIENCE)
    assert not futures[0].cancel()


def test_a_blocking_call_on_the_clients_own_thread_is_refused_at_once(silent: str, client: Join) -> None:
    """In a future's done-callback it would wait for itself; submit works there."""
    amy = client(silent, "amy", ack_timeout=0.4)
    amy.start()
    errors: list[type[BaseException]] = []
    chained: Future[Future[int]] = Future()

    def then(done: Future[int]) -> None:
        for call in (amy.ready, amy.leave, amy.connect, lambda: amy.wait_for(bool), lambda: next(amy.events())):
            try:
                call()
            except WouldDeadlock as error:
                errors.append(type(error))
        chained.set_result(amy.submit.send_message({"chained": True}))

    amy.submit.ready().add_done_callback(then)  # called when it expires
    with pytest.raises(Timeout):
        chained.result(PATIENCE).result(PATIENCE)
    assert errors == [WouldDeadlock] * 5


def test_what_waits_for_the_clients_thread_is_bounded(
    silent: str, client: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While something (a name server, a done-callback) holds it up."""
    monkeypatch.setattr("roomkit.client._runner._MAX_CALLS", 5)
    amy = client(silent, "amy", ack_timeout=0.4)
    amy.start()
    standing, gate = threading.Event(), threading.Event()
    amy.submit.ready().add_done_callback(lambda done: (standing.set(), gate.wait(PATIENCE)))
    assert standing.wait(PATIENCE)
    futures = [amy.submit.ready() for _ in range(6)]
    assert isinstance(futures[5].exception(0), BufferFull)
    assert not futures[0].done()
    gate.set()
    with pytest.raises(Timeout):
        futures[0].result(PATIENCE)


def test_close_in_a_done_callback_ends_the_client(silent: str, client: Join) -> None:
    """The thread does not wait for itself."""
    amy = client(silent, "amy", ack_timeout=0.4)
    amy.start()
    closed: Future[bool] = Future()
    amy.submit.ready().add_done_callback(lambda done: closed.set_result(amy.close()))
    assert closed.result(PATIENCE)
    eventually(lambda: amy.connection == "closed")


def test_many_threads_use_one_client(server: Server, join: Join) -> None:
    """Each gets its own answers."""
    amy = join(server.url, "amy")
    seqs: list[list[int]] = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda mine=mine: mine.extend(amy.send_message({}) for _ in range(25)), daemon=True)
        for mine in seqs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    everything = sorted(seq for mine in seqs for seq in mine)
    assert everything == list(range(everything[0], everything[0] + 100))
    assert all(mine == sorted(mine) for mine in seqs)


# Beginning and ending.


def test_before_it_is_started_nothing_can_be_asked_of_it(client: Join) -> None:
    """It says what to do, instead of waiting for what nobody has begun."""
    amy = client("http://127.0.0.1:9", "amy")
    assert (amy.connection, amy.state, amy.me, amy.is_host) == ("idle", None, None, False)
    with pytest.raises(ConnectionClosed, match=r"connect\(\) first"):
        amy.ready()
    amy.retry_now()
    assert amy.close()
    assert amy.closed == Closed(1000, "normal", "closed by this client")


def test_connect_gives_up_waiting_and_the_client_goes_on(silent: str, client: Join) -> None:
    """With a name for what it waits for; operations asked meanwhile wait, within bounds, and end."""
    amy = client(silent, "amy", ack_timeout=0.2, max_buffer=1)
    with pytest.raises(Timeout, match=r"no welcome within 0\.01 s"):
        amy.connect(0.01)
    assert amy.connection == "connecting"
    kept, over = amy.submit.ready(), amy.submit.ready()
    with pytest.raises(RoomkitError) as full:
        over.result(PATIENCE)
    assert full.value.code == "buffer_full"
    with pytest.raises(Timeout):
        kept.result(PATIENCE)
    eventually(lambda: amy._machine._attempts > 1)  # it tries again
    assert amy.close()


def test_close_while_connecting_is_quick(silent: str, client: Join) -> None:
    """In the middle of a handshake that is never answered; who waits in connect() is told."""
    amy = client(silent, "amy")
    failed: Future[BaseException] = Future()

    def connect() -> None:
        try:
            amy.connect(PATIENCE)
        except ConnectionClosed as error:
            failed.set_result(error)

    thread = threading.Thread(target=connect, name="connecting", daemon=True)
    thread.start()
    eventually(lambda: amy.connection == "connecting")
    began = time.monotonic()
    assert amy.close()
    assert time.monotonic() - began < 3
    assert "closed by this client" in str(failed.result(PATIENCE))
    thread.join(PATIENCE)


def test_with_connects_and_closes_also_when_it_cannot(server: Server) -> None:
    """Neither a thread nor a socket is left in either case, although the client is still there to be asked."""
    sockets = open_sockets()
    with RoomClient(server.url, "room", "amy") as amy:
        assert amy.connection == "open"
        assert [t.name for t in threading.enumerate() if "client-amy" in t.name] == ["roomkit-client-amy"]
    assert amy.connection == "closed"
    eventually(lambda: not open_sockets() - sockets)
    with pytest.raises(RoomNotFound), RoomClient(server.url, "elsewhere", "amy"):
        pytest.fail("it cannot be entered")
    with (
        pytest.raises(ConnectionClosed, match="refused"),
        RoomClient("http://127.0.0.1:9", "room", "amy", max_attempts=1),
    ):
        pytest.fail("it cannot be entered")


def test_an_address_may_have_a_path_and_a_name_of_several_addresses(
    server: Server, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each address is tried (localhost is often two), and what stands before /ws in the address is kept."""
    host, port = server.listener.address
    real = socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)
    dead = [(*entry[:4], ("127.0.0.1", 9)) for entry in real]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: dead + real)
    assert join(f"ws://{host}:{port}/", "amy").connection == "open"
    bob = RoomClient("https://example.org/games/", "room", "bob", password="a&b")
    assert bob._url().startswith("wss://example.org/games/ws?room_id=room&player_id=bob&token=")
    assert bob._url().endswith("&password=a%26b")


def test_an_address_that_never_answers_has_its_share_of_the_time_only(
    server: Server, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is tried within the same attempt."""
    real = socket.getaddrinfo(*server.listener.address, type=socket.SOCK_STREAM)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:  # more than its queue holds: what comes now is not answered at all
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        never = [(*entry[:4], full.getsockname()) for entry in real]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: never + real)
        assert join(server.url, "amy", ack_timeout=0.8, max_attempts=1).connection == "open"
        for filler in fillers:
            filler.close()


def test_over_tls(bench: Bench, join: Join, client: Join, tmp_path: Path) -> None:
    """Large messages both ways; a certificate that is not trusted is no connection."""
    cert, key = make_certificate(tmp_path)
    server = bench.serve(tls_cert=cert, tls_key=key)
    server.rooms.create_room("room")
    url = f"https://localhost:{server.listener.address[1]}"
    amy = join(url, "amy", ssl_context=ssl.create_default_context(cafile=cert))
    events = amy.events(0)
    futures = [amy.submit.send_message({"n": n, "pad": "x" * 60_000}) for n in range(20)]
    assert [future.result(PATIENCE) for future in futures]
    assert [event.data["data"]["n"] for event in events] == list(range(20))
    assert amy.ping() >= 0
    with pytest.raises(ConnectionClosed, match="certificate verify failed"):
        client(url, "bob", max_attempts=1).connect(PATIENCE)


def test_the_library_loads_no_websocket_and_the_client_no_server() -> None:
    """Who uses rooms without sockets need not have loaded the client, nor the client's process the server."""
    code = "import sys, roomkit; a = 'simple_websocket' in sys.modules; import roomkit.client; "
    code += "print(a, [name for name in sys.modules if name.startswith('roomkit.server')])"
    root = Path(roomkit.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False []\n", "")
