"""RoomClient on a network that fails: cut, frozen, restarted, stalled; and servers that do not behave."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.bench import Bench
from support.fakes import PATIENCE, eventually
from support.proxy import Proxy
from support.scripted import chat, room_state, welcome
from support.ws import BINARY, CLOSE, PING, PONG, TEXT, frame

from roomkit import Event, RoomManager, RoomState
from roomkit.client import ClientError, Closed, ConnectionChange, ConnectionClosed, RoomClient, Timeout
from roomkit.server import Server

Join = Callable[..., RoomClient]


class Record:
    """What a client told, in order."""

    def __init__(self, client: RoomClient) -> None:
        self.events: list[Event] = []
        self.changes: list[ConnectionChange] = []
        self.welcomes: list[Any] = []
        self.gaps: list[Event] = []
        client.on("event", self.events.append)
        client.on("connection", self.changes.append)
        client.on("welcome", self.welcomes.append)
        client.on("gap", self.gaps.append)

    def until_lost(self) -> ConnectionChange:
        eventually(lambda: any(change.state == "waiting" for change in self.changes))
        return next(change for change in self.changes if change.state == "waiting")

    def until_back(self, count: int = 2) -> Any:
        eventually(lambda: len(self.welcomes) >= count)
        return self.welcomes[-1]


def saw_the_same(shaky: RoomClient, seen: Record, steady: RoomClient, theirs: Record, server: Server) -> None:
    """Both have the room's state; from its first event on, one has exactly the other's events, in order."""
    state = server.rooms.get_room(steady.room_id).get_state().to_dict()
    for client in (shaky, steady):
        assert client.wait_for(lambda now: now.seq >= state["seq"], PATIENCE).to_dict() == state
    for record in (seen, theirs):
        eventually(lambda record=record: record.events[-1].seq == state["seq"])
    first = seen.events[0].seq
    assert [event.seq for event in seen.events] == list(range(first, state["seq"] + 1))
    assert seen.events == [event for event in theirs.events if event.seq >= first]


# The network.


@pytest.mark.parametrize("seed", range(4))
def test_cut_off_at_random_moments_it_ends_with_the_events_and_state_of_one_that_never_dropped(
    seed: int, server: Server, network: Proxy, join: Join, client: Join
) -> None:
    """While others talk, change settings and songs, come and go, and while it asks for things itself: what was answered
    was done once, what failed was done at most once."""
    chance = random.Random(seed)
    amy = client(server.url, "amy")
    theirs = Record(amy)
    amy.connect(PATIENCE)
    bob = client(network.url, "bob", ack_timeout=PATIENCE)
    seen = Record(bob)
    bob.connect(PATIENCE)
    asked: list[tuple[int, Any]] = []
    for n in range(60):
        step = chance.randrange(8)
        if step == 0:
            network.cut()
            bob.retry_now()
        elif step <= 2:
            network.restore()
        elif step == 3:
            amy.select_song(f"song-{n}")
        elif step == 4:
            amy.update_settings({f"k{chance.randrange(3)}": chance.choice([None, n, {"deep": [n]}])})
        elif step == 5:
            asked.append((n, bob.submit.send_message({"bob": n})))
        elif step == 6 and chance.random() < 0.3:
            join(server.url, "cat").leave()
        else:
            amy.send_message({"n": n, "pad": "x" * chance.randrange(2000)})
    network.restore()
    bob.retry_now()
    answers = {n: future.exception(PATIENCE) for n, future in asked}
    eventually(lambda: bob.connection == "open")
    bob.ping()  # behind everything that was replayed
    saw_the_same(bob, seen, amy, theirs, server)
    said = [event.data["data"]["bob"] for event in seen.events if "bob" in event.data.get("data", {})]
    assert len(said) == len(set(said)), "something was done twice"
    for n, error in answers.items():
        if error is None:
            assert n in said
        else:
            assert isinstance(error, ClientError)
            assert error.maybe_done or n not in said


def test_what_was_asked_while_away_is_done_when_it_is_back(server: Server, network: Proxy, join: Join) -> None:
    """In order, once; a blocking call waits for it."""
    bob = join(network.url, "bob", base_delay=60, max_delay=60)
    seen = Record(bob)
    network.cut()
    seen.until_lost()
    futures = [bob.submit.send_message({"n": n}) for n in range(3)]
    network.restore()
    bob.retry_now()
    seqs = [future.result(PATIENCE) for future in futures]
    assert seqs == sorted(seqs)
    assert bob.close()  # after the callbacks
    assert [event.data["data"]["n"] for event in seen.events if event.type == "message"] == [0, 1, 2]
    assert seen.until_back(1).recovered is True


def test_a_network_that_died_without_a_word_is_noticed_by_ping(server: Server, network: Proxy, client: Join) -> None:
    """Nothing is lost by it; the old connection is replaced by the new one."""
    amy = client(server.url, "amy")
    theirs = Record(amy)
    amy.connect(PATIENCE)
    bob = client(network.url, "bob", ping_interval=0.1, ping_timeout=0.2)
    seen = Record(bob)
    bob.connect(PATIENCE)
    network.freeze()
    lost = bob.submit.send_message({"into": "the void"})
    amy.send_message({"into": "the void"})
    assert seen.until_lost().reason == "no answer to a ping"
    with pytest.raises(ConnectionClosed) as void:
        lost.result(PATIENCE)
    assert void.value.maybe_done
    assert seen.until_back().recovered is True
    amy.send_message({"after": True})
    saw_the_same(bob, seen, amy, theirs, server)


def test_gaps_are_filled_in_order(bench: Bench, client: Join) -> None:
    """While the server's I/O thread stands still the room's queue runs over, several times; every event is told, once,
    in order, and an operation that was answered behind a gap ends when its effect is there."""
    server = bench.serve(message_rate=0)
    room = server.rooms.create_room("room", queue_size=4, history_size=2000)
    amy, bob = client(server.url, "amy"), client(server.url, "bob")
    theirs, seen = Record(amy), Record(bob)
    amy.connect(PATIENCE)
    bob.connect(PATIENCE)
    for turn in range(5):
        standing, gate = threading.Event(), threading.Event()
        server.listener.reactors[0].call(lambda standing=standing, gate=gate: (standing.set(), gate.wait(PATIENCE)))
        assert standing.wait(PATIENCE)
        answer = bob.submit.update_settings({"turn": turn})
        for n in range(20):
            room.send_message(None, {"turn": turn, "n": n})
        gate.set()
        seq = answer.result(PATIENCE)
        assert bob.state.seq >= seq
        assert bob.state.settings["turn"] == turn
    saw_the_same(bob, seen, amy, theirs, server)
    said = [event.data["data"] for event in seen.events if event.type == "message"]
    assert said == [{"turn": turn, "n": n} for turn in range(5) for n in range(20)]
    assert sum(gap.data["dropped"] for gap in seen.gaps) >= 5 * 16


def test_away_for_longer_than_the_history_reaches_it_takes_the_state(bench: Bench, client: Join) -> None:
    """recovered is false, and the state is the room's."""
    server = bench.serve()
    room = server.rooms.create_room("room", history_size=4)
    with Proxy(server.listener.address[1]) as network:
        bob = client(network.url, "bob")
        seen = Record(bob)
        bob.connect(PATIENCE)
        network.cut()
        seen.until_lost()
        for n in range(10):
            room.send_message(None, {"n": n})
        room.set_metadata({"late": True})
        network.restore()
        assert seen.until_back().recovered is False
        assert bob.wait_for(lambda state: state.metadata, PATIENCE).metadata == {"late": True}
        assert bob.close()


def test_a_server_that_restarts_says_when_to_come_back(bench: Bench, client: Join) -> None:
    """The client does, and takes the new room as it is, with the same seat's token."""
    old = bench.serve()
    old.rooms.create_room("room")
    with Proxy(old.listener.address[1]) as network:
        amy = client(network.url, "amy")
        seen = Record(amy)
        first = amy.connect(PATIENCE)
        assert old.stop()
        lost = seen.until_lost()
        assert lost.code == 1012
        told = re.search(r"([\d.]+) s", lost.reason)
        assert told is not None
        assert lost.delay == float(told[1])
        new = bench.serve()
        room = new.rooms.create_room("room")
        network.redirect(new.listener.address[1])
        amy.retry_now()
        again = seen.until_back()
        assert again.epoch != first.epoch
        assert (again.recovered, again.token) == (None, first.token)
        assert amy.send_message({"text": "here again"}) == room.get_state().seq
        assert amy.close()


def test_rematch_takes_everybody_along_also_who_was_away(server: Server, network: Proxy, client: Join) -> None:
    """By the replay; and what was asked for while away is done in the new room."""
    amy, bob = client(server.url, "amy"), client(network.url, "bob")
    seen = Record(bob)
    for player in (amy, bob):
        player.connect(PATIENCE)
    for player in (amy, bob):
        player.wait_for(lambda state: state.status == "preparing", PATIENCE)
        player.ready()
    amy.wait_for(lambda state: state.status == "ready", PATIENCE)
    amy.start_game()
    amy.finish_game()
    network.cut()
    seen.until_lost()
    asked = bob.submit.send_message({"text": "on my way"})
    new = amy.rematch()
    network.restore()
    assert asked.result(PATIENCE)
    assert (bob.room_id, bob.state.id) == (new, new)
    assert amy.wait_for(lambda state: len(state.players) == 2 and state.id == new, PATIENCE)
    assert bob.close()
    types = [event.type for event in seen.events]
    assert types.count("room_transferred") == 1
    assert [event.data["data"] for event in seen.events if event.type == "message"] == [{"text": "on my way"}]
    assert [change.state for change in seen.changes if change.state == "closed"] == ["closed"]


def test_a_room_that_closed_while_it_was_away_ends_it(server: Server, network: Proxy, client: Join) -> None:
    """After it was told of the end: the replay comes first."""
    bob = client(network.url, "bob")
    seen = Record(bob)
    bob.connect(PATIENCE)
    network.cut()
    seen.until_lost()
    server.rooms.get_room("room").close("closing time")
    network.restore()
    eventually(lambda: bob.connection == "closed")
    assert bob.close()
    assert [event.type for event in seen.events][-2:] == ["room_status", "room_closed"]
    assert bob.closed == Closed(4510, "room_closed", "the room is closed")
    assert seen.events[-1].data == {"reason": "closing time"}


# Servers that do not behave.


class Peer:
    """The server's end of one connection, by hand."""

    def __init__(self, sock: socket.socket, *behind: bytes) -> None:
        self.sock = sock
        sock.settimeout(PATIENCE)
        self.file = sock.makefile("rb")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.file.readline()
            assert line, "it ended within its head"
            head += line
        self.head = head.decode()
        key = re.search(r"Sec-WebSocket-Key: (\S+)", self.head, re.IGNORECASE)
        assert key is not None
        digest = hashlib.sha1(key[1].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        accept = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: "
        sock.sendall(accept + base64.b64encode(digest) + b"\r\n\r\n" + b"".join(behind))

    def send(self, message: object, opcode: int = TEXT, **more: Any) -> None:
        payload = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.sock.sendall(frame(opcode, payload, mask=None, **more))

    def close_with(self, code: int, reason: str) -> None:
        self.send(code.to_bytes(2, "big") + reason.encode(), CLOSE)

    def read(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame; opcode -1: the end."""
        start = self.file.read(2)
        if len(start) < 2:
            return -1, b""
        assert start[1] & 128, "a client masks"
        length = start[1] & 127
        if length == 126:
            length = int.from_bytes(self.file.read(2), "big")
        mask = self.file.read(4)
        return start[0] & 15, bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.file.read(length)))

    def read_json(self) -> Any:
        opcode, payload = self.read()
        assert opcode == TEXT, (opcode, payload)
        return json.loads(payload)

    def end(self) -> None:
        self.file.close()
        self.sock.close()


HELLO = frame(TEXT, json.dumps(welcome()).encode(), mask=None)


class Listener:
    """A server by hand."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.peers: list[Any] = []

    def accept_raw(self, receive_buffer: int = 0) -> socket.socket:
        if receive_buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock, _ = self._listener.accept()
        sock.settimeout(PATIENCE)
        self.peers.append(sock)
        return sock

    def accept(self, *behind: bytes, **more: Any) -> Peer:
        """The next connection, after the handshake; ``behind``: bytes that come together with the 101."""
        peer = Peer(self.accept_raw(**more), *behind)
        self.peers[-1] = peer
        return peer

    def close(self) -> None:
        for peer in self.peers:
            peer.end() if isinstance(peer, Peer) else peer.close()
        self._listener.close()


@pytest.fixture
def listener(client: Join) -> Iterator[Listener]:
    """Closed before the clients are, so that none waits for its answer."""
    made = Listener()
    yield made
    made.close()


def test_a_welcome_that_comes_with_the_101_is_read_at_once(listener: Listener, client: Join) -> None:
    """Without a further byte from the server; so are several messages, and a message in many pieces."""
    amy = client(listener.url, "amy")
    amy.start()
    peer = listener.accept(HELLO, frame(TEXT, json.dumps(chat(11)).encode(), mask=None))
    assert amy.connect(PATIENCE).seq == 10
    assert amy.wait_for(lambda state: state.seq == 11, PATIENCE)
    text = json.dumps(
        chat(12) | {"data": {"player_id": "bob", "data": {"text": "ä" * 5000}}}, ensure_ascii=False
    ).encode()
    for at in range(0, len(text), 999):
        last = at + 999 >= len(text)
        peer.send(text[at : at + 999], 0 if at else TEXT, fin=last)
        peer.send(b"in between", PING)
    assert amy.wait_for(lambda state: state.seq == 12, PATIENCE)
    assert peer.read() == (PONG, b"in between")
    assert re.search(r"Host: 127\.0\.0\.1:\d+\r", peer.head, re.IGNORECASE)


def test_the_closing_handshake_is_done_by_the_book(listener: Listener, client: Join) -> None:
    """It says 1000 when it closes and reads on to the end, so that nothing is reset; it answers the server's close."""
    amy = client(listener.url, "amy")
    amy.start()
    peer = listener.accept(HELLO)
    amy.connect(PATIENCE)
    closing = threading.Thread(target=amy.close, name="closing", daemon=True)
    closing.start()
    assert peer.read() == (CLOSE, (1000).to_bytes(2, "big"))
    assert peer.read() == (-1, b"")
    peer.close_with(1000, "")
    peer.sock.shutdown(socket.SHUT_WR)
    closing.join(PATIENCE)
    assert not closing.is_alive()

    bob = client(listener.url, "bob")
    bob.start()
    peer = listener.accept(HELLO)
    bob.connect(PATIENCE)
    peer.close_with(4509, "another one")
    assert peer.read() == (CLOSE, (4509).to_bytes(2, "big"))
    assert peer.read() == (-1, b"")
    eventually(lambda: bob.connection == "closed")
    assert bob.closed == Closed(4509, "replaced", "another one")


def test_close_is_bounded_when_the_server_does_not_answer_it(listener: Listener, client: Join) -> None:
    """About a second, not for ever."""
    amy = client(listener.url, "amy")
    amy.start()
    listener.accept(HELLO)
    amy.connect(PATIENCE)
    began = time.monotonic()
    assert amy.close()
    assert time.monotonic() - began < 4


def test_messages_before_the_close_count(listener: Listener, client: Join) -> None:
    """Also those that come in one go with it, and a leave is answered by the 1000 that follows it."""
    amy = client(listener.url, "amy")
    events = amy.events()
    amy.start()
    peer = listener.accept(HELLO)
    amy.connect(PATIENCE)
    leaving = threading.Thread(target=amy.leave, name="leaving", daemon=True)
    leaving.start()
    assert peer.read_json()["type"] == "leave"
    code = (1000).to_bytes(2, "big") + b"left"
    both = [frame(TEXT, json.dumps(chat(11)).encode(), mask=None), frame(CLOSE, code, mask=None)]
    peer.sock.sendall(b"".join(both))
    assert [event.seq for event in events] == [11]
    leaving.join(PATIENCE)
    assert not leaving.is_alive()
    assert amy.closed.code == 1000


def test_what_the_server_said_last_is_read_also_when_sending_fails(listener: Listener, client: Join) -> None:
    """The close code of a connection that is reset behind it decides: who was replaced must not come back and replace
    in turn."""
    amy = client(listener.url, "amy", ack_timeout=0.3)
    amy.start()
    peer = listener.accept(HELLO)
    amy.connect(PATIENCE)
    standing, gate = threading.Event(), threading.Event()
    stand = amy.submit.ready()  # is never answered, and expires on the client's thread
    stand.add_done_callback(lambda done: (standing.set(), gate.wait(PATIENCE)))
    assert standing.wait(PATIENCE)
    peer.close_with(4509, "another one")
    peer.end()  # with an unread message in it: a reset
    futures = [amy.submit.send_message({"n": n}) for n in range(5)]
    gate.set()
    for future in futures:
        with pytest.raises(ConnectionClosed):
            future.result(PATIENCE)
    eventually(lambda: amy.connection == "closed")
    assert amy.closed == Closed(4509, "replaced", "another one")


@pytest.mark.parametrize(
    "violation",
    [
        frame(TEXT, b"masked"),
        frame(TEXT, b"\xff\xfe", mask=None),
        frame(3, b"no such opcode", mask=None),
        frame(TEXT, b"rsv", rsv=4, mask=None),
        frame(BINARY, b"binary", mask=None),
        frame(TEXT, b"no json", mask=None),
    ],
    ids=["masked", "not UTF-8", "opcode", "rsv", "binary", "not JSON"],
)
def test_a_server_that_violates_the_protocol_costs_the_connection_not_the_client(
    violation: bytes, listener: Listener, client: Join
) -> None:
    """It comes back, as after any failure of the network."""
    amy = client(listener.url, "amy")
    amy.start()
    peer = listener.accept(HELLO)
    amy.connect(PATIENCE)
    peer.sock.sendall(violation)
    listener.accept(HELLO)
    eventually(lambda: amy.connection == "open")


def test_a_message_over_the_limit_ends_it(listener: Listener, client: Join) -> None:
    """Coming back would bring the same again; no more than the limit is kept of it, and the server is told 1009."""
    amy = client(listener.url, "amy", max_message_size=10_000)
    amy.start()
    peer = listener.accept(HELLO)
    amy.connect(PATIENCE)
    for opcode in (TEXT, 0, 0):
        peer.send(b"x" * 4000, opcode, fin=False)
    eventually(lambda: amy.connection == "closed")
    assert amy.closed.name == "too_big"
    opcode, payload = peer.read()
    assert (opcode, int.from_bytes(payload[:2], "big")) == (CLOSE, 1009)


def test_a_network_that_takes_nothing_is_given_up_after_send_timeout(listener: Listener, client: Join) -> None:
    """Meanwhile what comes is read, what cannot be sent is bounded, and callers are not held for longer."""
    amy = client(listener.url, "amy", send_timeout=0.5, max_buffer=20)
    seen = Record(amy)
    amy.start()
    peer = listener.accept(HELLO, receive_buffer=4096)
    amy.connect(PATIENCE)
    futures = [amy.submit.send_message({"pad": "x" * 60_000}) for _ in range(200)]
    peer.send(chat(11))
    assert amy.wait_for(lambda state: state.seq == 11, PATIENCE)
    codes = {future.exception(PATIENCE).code for future in futures}  # type: ignore[union-attr]
    assert codes == {"connection_closed", "buffer_full"}
    assert seen.until_lost().reason == "the network takes nothing"
    listener.accept(HELLO)
    eventually(lambda: amy.connection == "open")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "refused the WebSocket with 403"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "refused the WebSocket with 200"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "HTTP"),
        (b"", "closed during the handshake"),
        (b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n", "accept"),
        (b"HTTP/1.1 101 " + b"x" * 100_000, "HTTP"),
    ],
    ids=["403", "200", "another protocol", "end", "wrong accept", "endless head"],
)
def test_what_is_no_room_server_is_a_failed_attempt_with_a_reason(
    answer: bytes, reason: str, listener: Listener, client: Join
) -> None:
    """The client goes on trying, or ends after max_attempts and says why; no socket is left."""
    amy = client(listener.url, "amy", max_attempts=1)
    amy.start()
    sock = listener.accept_raw()
    sock.recv(4096)
    with contextlib.suppress(OSError):  # it may have had enough already
        sock.sendall(answer)
        sock.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionClosed, match=reason) as failed:
        amy.connect(PATIENCE)
    assert not isinstance(failed.value, Timeout)
    assert amy.closed.name == "connection_lost"
    assert amy.closed.reason


def test_the_state_of_a_server_that_knows_more_is_followed(listener: Listener, client: Join) -> None:
    """Fields, events and messages that are not known change nothing else."""
    amy = client(listener.url, "amy")
    amy.start()
    state = room_state() | {"colour": "blue"}
    peer = listener.accept(frame(TEXT, json.dumps(welcome(state, weather="fine")).encode(), mask=None))
    assert amy.connect(PATIENCE).state == RoomState.from_dict(room_state())
    peer.send({"type": "hint", "data": None})
    peer.send({"type": "room_painted", "seq": 11, "data": {}})
    assert amy.wait_for(lambda state: state.seq == 11, PATIENCE).status == "preparing"


def test_hundreds_of_clients_are_one_thread_each(bench: Bench, client: Join) -> None:
    """And all of them end."""
    rooms = RoomManager()
    server = bench.serve(rooms, max_connections_per_address=0)
    rooms.create_room("room", max_players=100)
    before = threading.active_count()
    clients = [client(server.url, f"p{n}") for n in range(100)]
    for each in clients:
        each.start()
    for each in clients:
        each.connect(PATIENCE)
    assert threading.active_count() - before == 100
    last = clients[-1].send_message({"to": "all"})
    for each in clients:
        assert each.wait_for(lambda state: state.seq >= last, PATIENCE)
