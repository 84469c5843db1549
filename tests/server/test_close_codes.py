"""Every close code that the server sends, with its reason, and that nobody else is closed with it."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from support.bench import Bench, small_send_buffers
from support.fakes import eventually
from support.ws import BINARY, CLOSE, CONTINUATION, PING, TEXT, Closed, WsClient, frame

from roomkit import RoomManager, Unauthorized
from roomkit.errors import CLOSE_CODES
from roomkit.server import Server, UpgradeRequest


def closed(client: WsClient) -> tuple[int, str]:
    """The code, which is in the table, and the reason, after which the server ends TCP as well."""
    code = client.wait_closed()
    assert code in CLOSE_CODES
    client.wait_eof()
    return code, client.close_reason


# Codes that tell who could not come in.


def test_4500_the_status_lets_nobody_in(server: Server, bench: Bench) -> None:
    """A game that has begun takes no new player."""
    server.rooms.create_room("one", max_players=1)
    amy = bench.join(server, "one")
    amy.do("ready")
    amy.do("start_game")
    code, reason = closed(bench.connect(server, "one", "bob"))
    assert (code, reason) == (4500, "room 'one' is playing: add_player is not allowed")


def test_4501_bad_token(server: Server, bench: Bench) -> None:
    """The seat is held by somebody else."""
    bench.join(server)
    code, reason = closed(bench.connect(server))
    assert code == 4501
    assert "'amy'" in reason


@pytest.mark.parametrize("password", [None, "", "wrong", "x" * 256])
def test_4502_bad_password(server: Server, bench: Bench, password: str | None) -> None:
    """A room with a password asks for it; whoever is seated comes back without."""
    server.rooms.create_room("vault", password="sesame")
    assert closed(bench.connect(server, "vault", password=password))[0] == 4502
    amy = bench.join(server, "vault", password="sesame")
    amy.cut()
    bench.join(server, "vault", token=amy.welcome["token"])


def test_4503_banned(server: Server, bench: Bench) -> None:
    """One who is banned is told so (kicked: see test_story)."""
    server.rooms.get_room("room").kick(None, "bob", ban=True)
    code, reason = closed(bench.connect(server, player_id="bob"))
    assert code == 4503
    assert "banned" in reason


def test_4504_no_such_room(server: Server, bench: Bench) -> None:
    """A room that is not there, and one that has been removed under its players' feet: 4510 for them."""
    assert closed(bench.connect(server, "nowhere")) == (4504, "there is no room 'nowhere'")
    amy = bench.join(server)
    server.rooms.remove_room("room", "cleared")
    assert closed(amy) == (4510, "cleared")
    assert closed(bench.connect(server, token=amy.welcome["token"]))[0] == 4504


def test_4505_room_full(server: Server, bench: Bench) -> None:
    """The fifth player of four."""
    server.rooms.create_room("big", max_players=2, min_players=1)
    for name in ("amy", "bob"):
        bench.join(server, "big", name)
    assert closed(bench.connect(server, "big", "cat")) == (4505, "room 'big' is full (2 players)")


def test_4506_room_locked(server: Server, bench: Bench) -> None:
    """The host closed the door."""
    server.rooms.get_room("room").lock()
    assert closed(bench.connect(server)) == (4506, "room 'room' is locked")


@pytest.mark.parametrize(
    "query",
    [
        {"room_id": "no spaces"},
        {"room_id": ""},
        {"room_id": None},
        {"room_id": "x" * 65},
        {"room_id": "room\n"},
        {"player_id": ""},
        {"player_id": None},
        {"player_id": "ämy"},
        {"player_id": "../amy"},
        {"name": "x" * 65},
        {"name": "a\u202eb"},
        {"name": "a\nb"},
        {"seq": "-1", "epoch": "e"},
        {"seq": "1e3", "epoch": "e"},
        {"seq": "9" * 19, "epoch": "e"},
        {"seq": "\u0663", "epoch": "e"},
        {"token": "x" * 257},
        {"epoch": "x" * 257},
        {"password": "x" * 257},
        {"colour": "red"},
    ],
)
def test_4507_malformed_parameters(server: Server, bench: Bench, query: dict[str, Any]) -> None:
    """A room id, player id, name, number or secret of the wrong form, or a parameter that does not exist."""
    room_id, player_id = query.pop("room_id", "room"), query.pop("player_id", "amy")
    code, reason = closed(bench.connect(server, room_id, player_id, **query))
    assert code == 4507
    assert reason
    assert not server.rooms.get_room("room").get_players()


def test_4508_unauthorized(bench: Bench) -> None:
    """The server's hook says no, and the client reads its sentence."""

    def refuse(request: UpgradeRequest) -> None:
        raise Unauthorized("members only")

    server = bench.serve(hooks={"authenticate": refuse})
    server.rooms.create_room("room")
    assert closed(bench.connect(server)) == (4508, "members only")


def test_4509_replaced(server: Server, bench: Bench) -> None:
    """A newer connection took the seat."""
    amy = bench.join(server)
    bench.join(server, token=amy.welcome["token"])
    assert closed(amy) == (4509, "a newer connection took the seat")


def test_4510_room_closed(server: Server, bench: Bench) -> None:
    """The room is closed, by whomever; the reason is the room's, cut to what a close frame holds."""
    amy = bench.join(server)
    server.rooms.get_room("room").close("because " * 40)
    code, reason = closed(amy)
    assert code == 4510
    assert reason.startswith("because because")
    assert amy.types[-2:] == ["room_status", "room_closed"]


def test_a_reason_is_cut_between_characters(server: Server, bench: Bench) -> None:
    """A close frame holds 123 bytes of reason; a longer one of three-byte characters is cut, and stays UTF-8."""
    amy = bench.join(server)
    amy.do("close", {"reason": "終" * 80})
    code, reason = closed(amy)
    assert (code, reason) == (4510, "終" * 41)


# Limits.


def test_4529_too_many_connections_from_one_address(bench: Bench) -> None:
    """The one over the limit is told so; when one of the others has gone there is a place again."""
    server = bench.serve(max_connections_per_address=2)
    server.rooms.create_room("room")
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    assert closed(bench.connect(server, player_id="cat")) == (4529, "too many connections")
    assert amy.do("ping")
    bob.close()
    eventually(lambda: server.listener.connection_count == 1)
    bench.join(server, player_id="cat")
    assert server.tally.by_label("limited") == {"connections_per_address": 1}


def test_4529_a_flood_of_messages(bench: Bench) -> None:
    """Past the rate each message gets an error; past twice the burst the connection is closed. The others go on."""
    server = bench.serve(message_rate=0.001, message_burst=5)
    server.rooms.create_room("room")
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    bob.send_raw(b"".join(frame(TEXT, b'{"type":"message","data":{},"id":"%d"}' % n) for n in range(20)))
    answers: list[dict[str, Any]] = []
    with pytest.raises(Closed) as gone:
        answers.extend(iter(bob.recv_json, None))
    assert (gone.value.code, gone.value.reason) == (4529, "more than 0.001 messages a second")
    kinds = [answer["type"] for answer in answers if answer["type"] in ("ack", "error")]
    assert kinds == ["ack"] * 5 + ["error"] * 7
    assert {a["data"]["code"] for a in answers if a["type"] == "error"} == {"limit_exceeded"}
    last = amy.do("message", {"n": "amy goes on"})["seq"]
    amy.until_seq(last)
    assert [event["data"]["player_id"] for event in amy.events if event["type"] == "message"] == ["bob"] * 5 + ["amy"]
    assert server.tally.by_label("limited") == {"message_rate": 7}


def test_4529_a_flood_of_pings(bench: Bench) -> None:
    """Control frames count as well: neither pings nor pongs come for free."""
    server = bench.serve(message_rate=0.001, message_burst=5)
    server.rooms.create_room("room")
    for opcode in (9, 10):
        amy = bench.join(server, player_id=f"amy{opcode}")
        amy.send_raw(frame(opcode, b"x") * 20)
        assert closed(amy)[0] == 4529
        assert len(amy.pongs) == (5 if opcode == PING else 0)


# Those who are slow or silent.


def test_4001_a_client_that_does_not_answer_pings(bench: Bench) -> None:
    """It is pinged, and closed when nothing was heard for pong_timeout, though much was sent to it in the meantime:
    what the server sends is no sign of the client's life. One that answers stays."""
    server = bench.serve(ping_interval=0.2, pong_timeout=0.7, message_rate=0)
    server.rooms.create_room("room")
    amy = bench.join(server, player_id="amy")
    mute = bench.join(server, player_id="mute", answer_pings=False)
    room = server.rooms.get_room("room")
    stop = room.subscribe(lambda event: room.send_message(None, {}) if event.type == "message" else None)
    room.send_message(None, {})  # from now on without end
    reader = threading.Thread(target=lambda: amy.until("player_dropped"))
    reader.start()
    assert closed(mute) == (4001, "nothing was heard for 0.7 s")
    reader.join()
    stop()
    assert mute.pings >= 2
    assert amy.do("ping")
    assert server.tally.get("heartbeats_lost") == 1


def slow_client(bench: Bench, server: Server, **more: Any) -> WsClient:
    """A client that reads nothing after its welcome, with little space in its kernel."""
    return bench.join(server, player_id="slow", receive_buffer=4096, **more)


@pytest.mark.parametrize(
    "limits", [{"outbox_messages": 20, "outbox_bytes": 0}, {"outbox_messages": 0, "outbox_bytes": 30_000}]
)
def test_4008_a_client_that_never_reads(bench: Bench, limits: dict[str, int]) -> None:
    """Its outbox runs full, by messages or by bytes, and it is disconnected; amy gets every message, and the slow one
    later finds whole frames, then 4008, and can resume without a loss."""
    server = bench.serve(write_timeout=0, message_rate=0, close_timeout=5, history_size=1000, **limits)
    small_send_buffers(server)
    server.rooms.create_room("room")
    amy, slow = bench.join(server, player_id="amy"), slow_client(bench, server)
    first = slow.welcome["seq"]
    sent = 0
    while not server.tally.get("slow_connections"):
        amy.do("message", {"n": sent, "pad": "x" * 1000})
        sent += 1
        assert sent < 900
    code = slow.wait_closed()
    assert (code, slow.close_reason) == (4008, "the outbox is full: read faster, come back and resume")
    got = slow.seqs
    assert got == list(range(first + 1, first + 1 + len(got))), "whole events in order, up to where it was cut off"
    again = bench.join(
        server,
        player_id="slow",
        token=slow.welcome["token"],
        epoch=slow.welcome["epoch"],
        seq=got[-1] if got else first,
    )
    last = amy.do("message", {"n": "end"})["seq"]
    again.until_seq(last)
    assert got + again.seqs == list(range(first + 1, last + 1))
    assert [e["data"]["data"]["n"] for e in amy.events if e["type"] == "message"] == [*range(sent), "end"]
    assert "player_dropped" in amy.types


def test_4008_a_write_that_stalls(bench: Bench) -> None:
    """With little in the outbox, but no progress for write_timeout."""
    server = bench.serve(write_timeout=0.3, close_timeout=5, message_rate=0)
    small_send_buffers(server)
    server.rooms.create_room("room")
    amy, slow = bench.join(server, player_id="amy"), slow_client(bench, server)
    for n in range(30):
        amy.do("message", {"n": n, "pad": "x" * 1000})
    eventually(lambda: server.tally.get("slow_connections"))
    code = slow.wait_closed()
    assert (code, slow.close_reason) == (4008, "a write stalled for 0.3 s: read faster, come back and resume")
    assert amy.do("ping")
    assert "player_dropped" in amy.types


def test_4008_is_for_those_who_read_nothing_not_for_those_who_read_slowly(bench: Bench) -> None:
    """A client that reads a little now and then makes progress: it is not disconnected, however long it takes. And
    after several stalls the stream that it reads is still whole."""
    server = bench.serve(write_timeout=0.5, message_rate=0)
    small_send_buffers(server)
    server.rooms.create_room("room")
    amy, slow = bench.join(server, player_id="amy"), slow_client(bench, server)
    for burst in range(4):
        for n in range(20):
            last = amy.do("message", {"n": n, "burst": burst, "pad": "x" * 997})["seq"]
        slow.until_seq(last)
    first = slow.welcome["seq"]
    assert slow.seqs == list(range(first + 1, last + 1))


def test_a_client_that_is_cut_off_after_several_stalls_gets_a_clean_end(bench: Bench) -> None:
    """It stalled before, read everything, and stalls for good: what it finds then is whole frames and 4008."""
    server = bench.serve(write_timeout=0, outbox_messages=40, message_rate=0, close_timeout=5)
    small_send_buffers(server)
    server.rooms.create_room("room")
    amy, slow = bench.join(server, player_id="amy"), slow_client(bench, server)
    for burst in range(3):
        for n in range(25):
            last = amy.do("message", {"n": n, "burst": burst, "pad": "y" * (900 + 37 * n)})["seq"]
        slow.until_seq(last)
    while not server.tally.get("slow_connections"):
        amy.do("message", {"pad": "z" * 1111})
    assert slow.wait_closed() == 4008


def test_4008_in_the_middle_of_the_very_first_bytes(bench: Bench) -> None:
    """One who comes back to a long replay and does not read it: what it finds later is the handshake, whole events, and
    4008."""
    server = bench.serve(write_timeout=0.3, close_timeout=5)
    small_send_buffers(server)
    room = server.rooms.create_room("room")
    amy = bench.join(server)
    amy.cut()
    for n in range(100):
        room.send_message(None, {"n": n, "pad": "x" * (5000 + 13 * n)})
    known = {"token": amy.welcome["token"], "epoch": amy.welcome["epoch"], "seq": amy.welcome["seq"]}
    slow = bench.connect(server, receive_buffer=4096, **known)
    eventually(lambda: server.tally.get("slow_connections"))
    assert slow.wait_closed() == 4008
    first = amy.welcome["seq"]
    assert slow.seqs == list(range(first + 1, first + 1 + len(slow.seqs)))
    assert len(slow.seqs) < 100


def test_a_slow_client_that_never_reads_again_is_let_go(bench: Bench) -> None:
    """Not even the close frame can be written: after close_timeout its socket is closed all the same."""
    server = bench.serve(write_timeout=0.2, message_rate=0, close_timeout=0.2)
    small_send_buffers(server)
    server.rooms.create_room("room")
    amy, _slow = bench.join(server, player_id="amy"), slow_client(bench, server)
    for n in range(40):
        amy.do("message", {"n": n, "pad": "x" * 1000})
    eventually(lambda: server.listener.websocket_count == 1)
    assert server.tally.get("slow_connections") == 1
    amy.until("player_dropped")


# Violations of RFC 6455.

HALF = frame(TEXT, b'{"type":', fin=False)


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (1002, frame(TEXT, b"{}", mask=None)),
        (1002, frame(TEXT, b"{}", rsv=4)),
        (1002, frame(3, b"")),
        (1002, frame(11, b"")),
        (1002, frame(PING, b"x" * 126)),
        (1002, frame(PING, b"", fin=False)),
        (1002, frame(CONTINUATION, b"no beginning")),
        (1002, HALF + frame(TEXT, b"another begins")),
        (1002, frame(CLOSE, b"\x03")),
        (1002, frame(CLOSE, (999).to_bytes(2, "big"))),
        (1002, frame(CLOSE, (1005).to_bytes(2, "big"))),
        (1002, b"\x81\xff" + b"\xff" * 8 + b"\0\0\0\0"),
        (1007, frame(TEXT, b'"\xff"')),
        (1007, frame(TEXT, b"\xed\xa0\x80")),
        (1007, frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION, b"x")),
        (1007, frame(CLOSE, b"\x03\xe8\xff")),
        (1003, frame(BINARY, b"{}")),
        (1003, frame(BINARY, b"", fin=False) + frame(CONTINUATION, b"")),
    ],
)
@pytest.mark.parametrize("pace", ["at once", "byte by byte"])
def test_violations_close_with_the_rfc_s_code(server: Server, bench: Bench, code: int, data: bytes, pace: str) -> None:
    """However it arrives. The others in the room go on, and TCP is ended by the server, without a reset."""
    amy, bad = bench.join(server, player_id="amy"), bench.join(server, player_id="bad")
    if pace == "at once":
        bad.send_raw(data)
    else:
        for at in range(len(data)):
            bad.send_raw(data[at : at + 1])
    assert closed(bad)[0] == code
    amy.until("player_dropped")
    assert amy.do("ping")


@pytest.mark.parametrize("data", [frame(3, b""), frame(TEXT, b"{}", mask=None), frame(TEXT, b"\xff")])
def test_after_a_violation_the_server_ends_tcp_at_once(bench: Bench, data: bytes) -> None:
    """It waits for no answer that it could not read any more: not for close_timeout, which is longer than this test's
    patience."""
    server = bench.serve(close_timeout=60)
    server.rooms.create_room("room")
    bad = bench.join(server)
    bad.send_raw(data)
    closed(bad)
    bad.close()
    eventually(lambda: not server.listener.connection_count)


def test_nothing_after_a_violation_is_carried_out(server: Server, bench: Bench) -> None:
    """Messages behind the violation, in the same bytes or later, are thrown away."""
    bad = bench.join(server)
    good = frame(TEXT, b'{"type":"close"}')
    bad.send_raw(frame(3, b"") + good * 3)
    code = bad.wait_closed()
    assert code == 1002
    try:
        bad.send_raw(good * 1000)
    except OSError:
        pass
    eventually(lambda: not server.listener.websocket_count)
    assert server.rooms.get_room("room").status == "waiting"
    assert server.tally.get("protocol_errors") == 1


def test_nothing_after_a_close_frame_is_carried_out(server: Server, bench: Bench) -> None:
    """A client that closes has said its last word."""
    amy = bench.join(server)
    amy.send_raw(frame(CLOSE, b"\x03\xe8") + frame(TEXT, b'{"type":"close"}'))
    assert closed(amy) == (1000, "")
    assert server.rooms.get_room("room").status == "waiting"


@pytest.mark.parametrize("payload", [b"", b"\x03\xe8bye", b"\x0f\xa0", b"\x13\x87"])
def test_a_close_frame_is_answered_and_the_seat_is_kept(server: Server, bench: Bench, payload: bytes) -> None:
    """With its own code (1000 where it had none); a client that closes has dropped, not left."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    amy.send_raw(frame(CLOSE, payload))
    amy.wait_closed()
    assert amy.close_code in (int.from_bytes(payload[:2] or b"\x03\xe8", "big"), 1005)
    amy.wait_eof()
    assert bob.until("player_dropped")["data"] == {"player_id": "amy"}


def test_1008_too_many_bad_messages(server: Server, bench: Bench) -> None:
    """Twenty bad messages get errors; the twenty-first ends it."""
    amy = bench.join(server)
    for _ in range(20):
        amy.send_text("nonsense")
        assert amy.until("error")["data"]["code"] == "invalid_message"
    assert amy.do("ping")
    amy.send_text("nonsense")
    assert closed(amy) == (1008, "too many messages that are not of the protocol")


def big(size: int) -> list[bytes]:
    """A JSON message of ``size`` bytes as frames, in different cuts."""
    text = json.dumps({"type": "message", "data": {"pad": ""}}).encode()
    text = text[:-3] + b"x" * (size - len(text)) + text[-3:]
    assert len(text) == size
    third = size // 3
    pieces = [text[:third], text[third : 2 * third], text[2 * third :]]
    return [
        frame(TEXT, text),
        frame(TEXT, pieces[0], fin=False) + frame(CONTINUATION, pieces[1], fin=False) + frame(CONTINUATION, pieces[2]),
    ]


@pytest.mark.parametrize("limit", [64, 125, 126, 1000, 65_536])
@pytest.mark.parametrize("cut", [0, 1])
def test_1009_a_message_over_the_size_limit(bench: Bench, limit: int, cut: int) -> None:
    """Exactly the limit passes, one byte more is too big, in one frame or in several."""
    server = bench.serve(max_message_size=limit)
    server.rooms.create_room("room")
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    amy.send_raw(big(limit)[cut])
    amy.until("message")
    amy.send_raw(big(limit + 1)[cut])
    assert closed(amy) == (1009, f"a message has at most {limit} bytes")
    assert bob.until("player_dropped")
    assert "message" in bob.types
    assert bob.types.count("message") == 1


def test_1009_counts_bytes_not_characters(bench: Bench) -> None:
    """Three bytes of UTF-8 are three."""
    server = bench.serve(max_message_size=200)
    server.rooms.create_room("room")
    amy = bench.join(server)
    text = json.dumps({"type": "message", "data": {"pad": "終" * 60}}, ensure_ascii=False)
    assert len(text) < 200 < len(text.encode())
    amy.send_text(text)
    assert closed(amy)[0] == 1009


def test_1009_is_said_before_the_rest_has_come(server: Server, bench: Bench) -> None:
    """A frame that announces a gigabyte is refused when the limit is passed, not when it is whole; and so is one whose
    sender never reads."""
    amy = bench.join(server)
    amy.send_raw(b"\x81\xff" + (1 << 30).to_bytes(8, "big") + b"\0\0\0\0" + b"x" * 70_000)
    assert amy.wait_closed() == 1009
    amy.wait_eof()


@pytest.mark.parametrize("piece", [b"", b"x"])
def test_1009_too_many_fragments(bench: Bench, piece: bytes) -> None:
    """Empty ones count too."""
    server = bench.serve(max_fragments=10)
    server.rooms.create_room("room")
    amy = bench.join(server)
    start = frame(TEXT, b'{"type":"message","data":{}', fin=False)
    amy.send_raw(start + frame(CONTINUATION, b" ", fin=False) * 8 + frame(CONTINUATION, b"}"))
    amy.until("message")
    amy.send_raw(start + frame(CONTINUATION, piece, fin=False) * 10)
    assert closed(amy) == (1009, "a message has at most 10 fragments")


# The server's own ends.


def test_1011_the_server_failed(server: Server, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """An exception that nobody expected closes this connection and no other, and is logged and counted."""
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    room = server.rooms.get_room("room")
    real = type(room).execute

    def fail(self: Any, command: Any, *rest: Any, **options: Any) -> Any:
        if type(command).__name__ == "SetPlayerReady":
            raise ZeroDivisionError("a bug")
        return real(self, command, *rest, **options)

    monkeypatch.setattr(type(room), "execute", fail)
    bob.send("ready")
    assert closed(bob) == (1011, "the server failed on this message")
    amy.until("player_dropped")
    assert amy.do("ping")
    assert server.tally.get("session_errors") == 1
    assert "a bug" in caplog.text


def test_1012_the_server_stops(bench: Bench) -> None:
    """Everybody is told when to come back, each at another time, and gets no room_closed."""
    server = bench.serve()
    server.rooms.create_room("room")
    clients = [bench.join(server, player_id=f"p{n}") for n in range(3)]
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    reasons = set()
    for client in clients:
        code, reason = closed(client)
        assert code == 1012
        assert reason.startswith("restarting; come back in ")
        assert 0 <= float(reason.split()[-2]) <= 5
        assert "room_closed" not in client.types
        reasons.add(reason)
    stopping.join(10)
    assert not stopping.is_alive()
    assert len(reasons) > 1


def test_1012_who_comes_while_the_server_drains(bench: Bench) -> None:
    """A connection that was accepted before, and upgrades now, is told to come back."""
    server = bench.serve()
    server.rooms.create_room("room")
    server.draining = True
    code, reason = closed(bench.connect(server))
    assert (code, reason) == (1012, "the server is restarting; come back in 2.0 s")


def test_4013_a_busy_room(bench: Bench) -> None:
    """A room whose lock is held for longer than busy_timeout cannot take a connection just now."""
    rooms = RoomManager()
    server = bench.serve(rooms)
    room = rooms.create_room("room", busy_timeout=0.05)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with room.reading():
            entered.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert entered.wait(10)
        assert closed(bench.connect(server))[0] == 4013
    finally:
        leave.set()
        holder.join()
    bench.join(server)


def test_4013_nobody_is_there_to_authenticate(bench: Bench) -> None:
    """When as many wait for the hook as may, the next one is told to come back."""
    leave = threading.Event()

    def block(request: UpgradeRequest) -> None:
        leave.wait(10)

    server = bench.serve(hooks={"authenticate": block}, http_threads=1)
    server.rooms.create_room("room", max_players=20)
    codes: list[int] = []

    def come(n: int) -> None:
        with WsClient(server.listener.address, room_id="room", player_id=f"p{n}") as client:
            try:
                client.expect("welcome")
            except Closed as gone:
                codes.append(gone.code)

    comers = [threading.Thread(target=come, args=[n]) for n in range(20)]
    try:
        for comer in comers:
            comer.start()
        eventually(lambda: codes)
    finally:
        leave.set()
        for comer in comers:
            comer.join()
    assert set(codes) == {4013}
    assert 1 <= len(codes) <= 4, "one is being asked, sixteen wait"


def test_the_table_is_complete(server: Server) -> None:
    """Every code of roomkit's own has a test above."""
    with open(__file__) as file:
        text = file.read()
    for code in CLOSE_CODES:
        assert code in (1000, 1001) or f"_{code}_" in text or f"({code}," in text, code
