"""Limits: each holds, 0 turns it off, and what the system runs out of does not end the server."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.bench import Bench
from support.fakes import eventually
from support.rest import request
from support.ws import CONTINUATION, TEXT, dial, frame, upgrade_request

from roomkit.server import Limits, Server, listener
from roomkit.server.app import limits_from
from roomkit.settings import SETTINGS, Settings

ROOT = Path(__file__).resolve().parents[2]


def test_every_limit_is_a_setting_with_the_same_default() -> None:
    """What ``roomkit serve`` can be told is what the connection layer goes by."""
    by_name = {setting.name: setting for setting in SETTINGS}
    for name in Limits.__struct_fields__:
        assert getattr(Limits(), name) == by_name[name].default, name
    changed = limits_from(Settings(max_fragments=7, outbox_bytes=0, message_rate=1.5))
    assert (changed.max_fragments, changed.outbox_bytes, changed.message_rate) == (7, 0, 1.5)


def test_the_rate_and_its_recovery(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The burst passes at once, the rest is refused with an error that has the id and changes nothing; time gives the
    right back."""
    ahead = [0.0]
    monkeypatch.setattr("roomkit.server.reactor.monotonic", lambda: time.monotonic() + ahead[0])
    server = bench.serve(message_rate=0.5, message_burst=10)
    server.rooms.create_room("room")
    amy = bench.join(server)
    amy.send_raw(b"".join(frame(TEXT, b'{"type":"message","data":{},"id":"%d"}' % n) for n in range(15)))
    answers = []
    while len(answers) < 15:
        message = amy.recv_json()
        if message["type"] in ("ack", "error"):
            answers.append(message)
    kinds = [answer["type"] for answer in answers]
    assert kinds == ["ack"] * 10 + ["error"] * 5
    assert [answer["id"] for answer in answers] == [str(n) for n in range(15)]
    assert server.tally.by_label("limited") == {"message_rate": 5}
    assert amy.types.count("message") == 10
    ahead[0] += 2 * 6 + 1  # what was refused counts as well: six more than the burst have been sent by the next one
    assert amy.ask("ping")["type"] == "ack"
    assert amy.ask("ping")["type"] == "error"
    ahead[0] += 1000
    assert [amy.ask("ping")["type"] for _ in range(11)] == ["ack"] * 10 + ["error"]


def test_zero_turns_a_limit_off(bench: Bench) -> None:
    """With every limit of the connection layer at 0: a flood, a large message, many fragments, many connections."""
    off = {setting.name: 0 for setting in SETTINGS if setting.zero_is_off and hasattr(Limits, setting.name)}
    assert len(off) == 11
    server = bench.serve(**off)
    server.rooms.create_room("room", max_players=100)
    amy = bench.join(server)
    amy.send_raw(frame(TEXT, b'{"type":"message","data":{}}') * 1000)
    big = json.dumps({"type": "message", "data": {"pad": "x" * 2_000_000}}).encode()
    amy.send_raw(
        frame(TEXT, big[:1], fin=False) + frame(CONTINUATION, b"", fin=False) * 3000 + frame(CONTINUATION, big[1:])
    )
    last = amy.do("message", {"last": True})["seq"]
    amy.until_seq(last)
    assert amy.types.count("message") == 1002
    others = [bench.join(server, player_id=f"p{n}") for n in range(80)]
    assert all(other.do("ping") for other in others)
    silent = dial(server.listener.address)
    silent.sendall(upgrade_request("/ws")[:-2])
    assert amy.do("ping")
    silent.close()
    assert server.tally.by_label("limited") == {}


def test_outbox_of_zero_has_no_bound(bench: Bench) -> None:
    """A client that reads nothing for a while finds everything in the end."""
    server = bench.serve(outbox_messages=0, outbox_bytes=0, write_timeout=0, message_rate=0, max_message_size=0)
    server.rooms.create_room("room")
    amy, late = bench.join(server, player_id="amy"), bench.join(server, player_id="late", receive_buffer=4096)
    for n in range(40):
        last = amy.do("message", {"n": n, "pad": "x" * 200_000})["seq"]
    late.until_seq(last)
    first = late.welcome["seq"]
    assert late.seqs == list(range(first + 1, last + 1))
    assert server.tally.get("slow_connections") == 0


def test_connections_in_all(bench: Bench) -> None:
    """Over max_connections one is told so (4529, or 429 for HTTP); far over it, it is closed without a word; and when
    one goes there is a place again."""
    server = bench.serve(max_connections=3, max_connections_per_address=0)
    server.rooms.create_room("room")
    clients = [bench.join(server, player_id=f"p{n}") for n in range(3)]
    extra = bench.connect(server, player_id="p3")
    assert extra.wait_closed() == 4529
    extra.close()
    assert request(server.listener.address, "GET", "/healthz").status == 429
    clients[0].close()
    eventually(lambda: server.listener.connection_count == 2)
    bench.join(server, player_id="p3")
    assert server.tally.by_label("limited") == {"connections": 2}


def test_a_crowd_at_the_door_is_turned_away_cheaply(bench: Bench) -> None:
    """Some over the limit are let in to be told; past those a connection is closed as it comes, and none is forgotten
    in the count."""
    server = bench.serve(max_connections_per_address=5)
    crowd = [dial(server.listener.address) for _ in range(5 + 64 + 10)]
    eventually(lambda: server.tally.get("limited", "connections_closed") == 10)
    assert server.listener.connection_count == 5 + 64
    assert sum(sock.recv(1) == b"" for sock in crowd[-10:]) == 10
    for sock in crowd:
        sock.close()
    eventually(lambda: server.listener.connection_count == 0)
    assert request(server.listener.address, "GET", "/healthz").status == 200


def test_an_ipv6_network_counts_as_one_address(bench: Bench) -> None:
    """Whoever has one address of it has all of them; IPv4 within IPv6 is itself, and what is no address too."""
    server = bench.serve(max_connections_per_address=2)
    listening = server.listener
    limit = 2 + 64
    admitted = [f"2001:db8:1:2::{n:x}" for n in range(limit)]
    assert all(listening.admit(address) for address in admitted)
    assert not listening.admit("2001:db8:1:2:ffff:ffff:ffff:ffff")
    others = ["2001:db8:1:3::1", "::ffff:192.0.2.1", "192.0.2.1", "fe80::1%eth0", "::1", "what:ever"]
    assert all(listening.admit(address) for address in others)
    assert listening._per_address == {
        "2001:db8:1:2::/64": limit,
        "2001:db8:1:3::/64": 1,
        "192.0.2.1": 2,
        "fe80::/64": 1,
        "::/64": 1,
        "what:ever": 1,
    }
    for address in (*admitted, *others):
        listening.release(address)
    assert listening._per_address == {}
    assert listening.connection_count == 0


def test_a_connection_that_fails_while_it_is_accepted_is_not_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong between accept and the first byte: the place is given back, and the port goes on."""
    server = bench.serve(max_connections_per_address=2)
    real = listener.HttpConnection
    failures: list[BaseException] = [OSError("reset"), ValueError("odd"), RuntimeError("can't start new thread")]

    def fail(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*arguments)

    monkeypatch.setattr(listener, "HttpConnection", fail)
    for _ in range(3):
        with dial(server.listener.address) as sock:
            try:
                assert sock.recv(1) == b""
            except ConnectionError:
                pass
    assert not failures
    eventually(lambda: server.listener.connection_count == 0)
    assert request(server.listener.address, "GET", "/healthz").status == 200


@pytest.mark.parametrize("number", ["ECONNABORTED", "EPROTO", "ENETDOWN", "EPERM"])
def test_errors_of_one_connection_do_not_end_the_port(bench: Bench, number: str) -> None:
    """accept(2) also tells of errors of the connection that it would return; the next one is taken all the same."""
    server = bench.serve()
    acceptor = server.listener._acceptor
    assert acceptor is not None
    real = acceptor.sock
    failed = threading.Event()

    class Failing:
        """The listening socket, whose first accept fails."""

        def accept(self) -> Any:
            if not failed.is_set():
                failed.set()
                real.accept()[0].close()
                raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))
            return real.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    acceptor.sock = Failing()  # type: ignore[assignment]
    with dial(server.listener.address) as sock:
        try:
            sock.recv(1)
        except ConnectionError:
            pass
    assert failed.wait(10)
    assert request(server.listener.address, "GET", "/healthz").status == 200


_EMFILE = """
import resource, socket, sys, time
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from roomkit.server import Server
from roomkit.settings import Settings
from support.ws import WsClient, dial
from support.rest import request

server = Server(settings=Settings(port=0, max_connections_per_address=0, close_timeout=0.2)).start()
server.rooms.create_room("room")
address = server.listener.address
amy = WsClient(address, room_id="room", player_id="amy")
amy.expect("welcome")
assert request(address, "GET", "/healthz").status == 200  # its thread is there
waiting = [socket.socket() for _ in range(20)]
low = socket.socket()
resource.setrlimit(resource.RLIMIT_NOFILE, (low.fileno() + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
for sock in waiting:
    sock.connect(address)
deadline = time.monotonic() + 10
while not server.tally.get("accept_pauses"):
    assert time.monotonic() < deadline, "it never ran out"
    assert amy.do("ping")
assert amy.do("message", {{"still": "alive"}})
pauses = server.tally.get("accept_pauses")
assert pauses < 5, "it does not try again and again"
for sock in waiting:
    sock.close()
low.close()
bob = WsClient(address, room_id="room", player_id="bob")  # accepted after the pause
bob.expect("welcome")
assert request(address, "GET", "/healthz").status == 200
bob.close()
amy.close()
assert server.stop()
print("lived", flush=True)
"""


def test_a_lack_of_file_descriptors_is_survived() -> None:
    """With none left the server stops accepting for a while, serves those who are there, and then accepts again. In a
    process of its own, whose limit is lowered."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _EMFILE.format(root=str(ROOT))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "lived\n", done.stderr
    assert "cannot accept connections: Too many open files" in done.stderr


def test_two_hundred_clients_cost_no_thread(bench: Bench) -> None:
    """Connections, rooms, messages and resumes: the number of threads stays."""
    server = bench.serve(max_connections_per_address=0, message_rate=0)
    for n in range(50):
        server.rooms.create_room(f"room-{n}")
    before = threading.active_count()
    clients = [bench.join(server, f"room-{n % 50}", f"p{n}") for n in range(200)]
    assert threading.active_count() == before
    for client in clients:
        client.send("message", {"n": 1}, id="m")
    for client in clients:
        client.until("ack")
    for client in clients[:50]:
        client.cut()
    again = [
        bench.join(
            server,
            f"room-{n}",
            f"p{n}",
            token=clients[n].welcome["token"],
            epoch=clients[n].welcome["epoch"],
            seq=clients[n].events[-1]["seq"],
        )
        for n in range(50)
    ]
    assert all(client.welcome["recovered"] for client in again)
    assert threading.active_count() == before
    assert sum(thread.name.startswith("roomkit-io") for thread in threading.enumerate()) == 1
    assert server.listener.websocket_count >= 200


def test_nothing_is_left_of_connections_that_are_gone(bench: Bench) -> None:
    """After many came and went in every way, the reactor knows none of them: no handler, no deadline, no count."""
    server: Server = bench.serve(max_connections_per_address=0)
    server.rooms.create_room("room")
    reactor = server.listener.reactors[0]
    address = server.listener.address
    for n in range(10):
        polite = bench.join(server, player_id="amy", token=None)
        polite.do("leave")
        polite.wait_closed()
        polite.close()
        rude = bench.join(server, player_id=f"rude{n % 2}", token=None)
        rude.send_raw(frame(3))
        rude.wait_closed()
        rude.close()
        server.rooms.get_room("room").remove_player(f"rude{n % 2}")
        for begun in (b"", b"GET", upgrade_request("/ws?room_id=room&player_id=zoe")):
            with dial(address) as sock:
                sock.sendall(begun)
        server.rooms.find_room("room")
        request(address, "GET", "/healthz")
    eventually(lambda: server.listener.connection_count == 0)
    eventually(lambda: len(reactor.handlers()) == 1)
    assert len(reactor._deadlines) == 0
    assert server.listener.websocket_count == 0
    assert not server.listener._per_address
