"""``roomkit serve --workers N``: several processes on one port, as one server to everybody."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import re
import select
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from support.fakes import PATIENCE
from support.rest import Answer, ask, request
from support.serve import ServeProcess
from support.ws import WsClient, upgrade_request

from roomkit.errors import CLOSE, RoomBusy
from roomkit.server import peers as peers_module
from roomkit.server.peers import Letter, Peers, owner_of
from roomkit.server.reactor import Reactor
from roomkit.server.sharding import add_up
from roomkit.server.supervisor import share_of
from roomkit.settings import InvalidSetting, Settings

WORKERS = 2
#: A room of each worker.
ROOMS = [next(f"room-{n}" for n in itertools.count() if owner_of(f"room-{n}", WORKERS) == w) for w in range(WORKERS)]


@contextlib.contextmanager
def running(*flags: str) -> Iterator[ServeProcess]:
    server = ServeProcess("--workers", str(WORKERS), "--max-connections-per-address", "0", *flags)
    try:
        yield server
    finally:
        assert server.stop() == 0, server.output


@pytest.fixture(scope="module")
def shared() -> Iterator[ServeProcess]:
    with running() as server:
        yield server
        assert not re.search("ERROR|CRITICAL|Traceback", server.output), server.output


@pytest.fixture
def server(shared: ServeProcess) -> Iterator[ServeProcess]:
    """The module's server, and its rooms taken away after the test."""
    yield shared
    for number in range(1000):
        rooms = rest(shared, "GET", "/api/rooms?limit=200").json["rooms"]
        for room in rooms:
            rest(shared, "DELETE", f"/api/rooms/{room['id']}")
        if not rooms:
            return
        assert number < 10


def rest(server: ServeProcess, method: str, path: str, body: object = None, **headers: str) -> Answer:
    return request(("127.0.0.1", server.port), method, path, body, headers)


def create(server: ServeProcess, room_id: str | None = None, **more: object) -> str:
    answer = rest(server, "POST", "/api/rooms", {**({} if room_id is None else {"id": room_id}), **more})
    assert answer.status == 201, answer
    created: str = answer.json["id"]
    return created


@contextlib.contextmanager
def client(server: ServeProcess, room_id: str, player_id: str = "amy", **more: Any) -> Iterator[WsClient]:
    with WsClient(("127.0.0.1", server.port), room_id=room_id, player_id=player_id, **more) as opened:
        yield opened


def rooms_by_worker(server: ServeProcess) -> list[int]:
    return [stats["total_rooms"] for stats in rest(server, "GET", "/debug/rooms").json["workers"]]


def pids(server: ServeProcess) -> list[int]:
    """The process ids of the workers, by number, the newest of each."""
    found = re.findall(r"worker (\d+) runs as process (\d+)", server.output)
    return list(dict(sorted((int(number), int(pid)) for number, pid in found)).values())


def wait_gone(pid: int) -> None:
    """Wait for the end of a process that is not ours."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], PATIENCE)[0], f"process {pid} still runs"
    finally:
        os.close(fd)


# Rooms and players.


def test_each_room_lives_in_one_worker_and_is_reached_through_any(server: ServeProcess) -> None:
    """Ten connections to each room: the kernel spreads them over both workers, and all come to the same room."""
    for room_id in ROOMS:
        create(server, room_id, max_players=10)
    assert rooms_by_worker(server) == [1, 1]
    for room_id in ROOMS:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(client(server, room_id, f"p{n}")) for n in range(10)]
            seq = clients[3].do("message", {"text": "hello"})["seq"]
            for each in clients:
                each.until_seq(seq)
                assert each.events[-1]["data"] == {"player_id": "p3", "data": {"text": "hello"}}
            state = rest(server, "GET", f"/api/rooms/{room_id}").json
            assert [player["id"] for player in state["players"]] == [f"p{n}" for n in range(10)]


def test_both_workers_accept_and_hand_over(server: ServeProcess) -> None:
    """The counters of the handed over move, and no connection is counted for ever."""
    for room_id in ROOMS:
        create(server, room_id)
    for n, room_id in itertools.product(range(20), ROOMS):
        with client(server, room_id, f"p{n % 4}", token="x" * 22) as each:
            each.expect("welcome")
    deadline = time.monotonic() + PATIENCE
    while True:
        metrics = read_metrics(server)
        open_now = [metrics["roomkit_connections", worker] for worker in ("0", "1")]
        if sum(open_now) <= 1:  # the question itself
            break
        assert time.monotonic() < deadline, open_now
    handed = sum(metrics["roomkit_connections_handed_over_total", worker] for worker in ("0", "1"))
    opened = [metrics["roomkit_websockets_opened_total", worker] for worker in ("0", "1")]
    assert handed > 0
    assert min(opened) >= 20


def read_metrics(server: ServeProcess) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = Counter()
    for family in text_string_to_metric_families(rest(server, "GET", "/metrics").body.decode()):
        for sample in family.samples:
            found[sample.name, sample.labels["worker"]] += sample.value
    return found


def test_what_comes_right_behind_the_handshake_is_handed_over_too(server: ServeProcess) -> None:
    """One packet with a question, an upgrade and a first message: the answers come in order, from two processes."""
    for room_id in ROOMS:
        create(server, room_id)
    message = b'{"type":"message","data":{"text":"first"},"id":"1"}'
    masked = bytes([0x81, 0x80 | len(message), 0, 0, 0, 0]) + message
    for room_id in ROOMS * 4:
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
            sock.sendall(
                b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
                + upgrade_request(f"/ws?room_id={room_id}&player_id=amy&token={'x' * 22}")
                + masked
            )
            received = b""
            while b'"type":"ack"' not in received:
                data = sock.recv(65536)
                assert data, received
                received += data
        order = [received.index(part) for part in (b"200 OK", b"101 Switching", b'"welcome"', b'"first"', b'"ack"')]
        assert order == sorted(order)


def test_a_dropped_player_resumes(server: ServeProcess) -> None:
    for room_id in ROOMS:
        create(server, room_id)
        with client(server, room_id, "amy") as amy, client(server, room_id, "bob") as bob:
            welcome = amy.expect("welcome")["data"]
            amy.until_seq(2)
            amy.cut()
            bob.until("player_dropped")
            seq = bob.do("message", {"n": 1})["seq"]
            again = {"token": welcome["token"], "epoch": welcome["epoch"], "seq": "2"}
            with client(server, room_id, "amy", **again) as back:
                assert back.expect("welcome")["data"]["recovered"] is True
                back.until_seq(seq)
                assert back.seqs == list(range(3, seq + 1))


def test_a_rematch_stays_with_the_worker_of_its_room(server: ServeProcess) -> None:
    """The players come to the new room by its id, which hashes to where it is."""
    for room_id in ROOMS:
        create(server, room_id, max_players=1)
        with client(server, room_id) as amy:
            for operation in ("ready", "start_game", "finish_game"):
                amy.do(operation)
            new = amy.do("rematch")["room_id"]
        assert owner_of(new, WORKERS) == owner_of(room_id, WORKERS)
        assert rest(server, "GET", f"/api/rooms/{new}").json["players"][0]["id"] == "amy"


def test_refusals_are_those_of_one_server(server: ServeProcess) -> None:
    """An unknown room, a foreign page, a malformed upgrade, another path."""
    for room_id in ROOMS:
        with client(server, room_id) as stranger:
            assert stranger.wait_closed() == CLOSE["room_not_found"]
        head = upgrade_request(f"/ws?room_id={room_id}&player_id=amy", [("Origin", "https://evil.example")])
        assert raw_status(server, head) == 403
        assert raw_status(server, upgrade_request(f"/else?room_id={room_id}&player_id=amy")) == 404
        assert raw_status(server, upgrade_request(f"/ws?room_id={room_id}&room_id=b&player_id=amy")) == 400
    with client(server, "no room!") as stranger:
        assert stranger.wait_closed() == CLOSE["invalid_request"]


def raw_status(server: ServeProcess, head: bytes) -> int:
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
        sock.sendall(head)
        return int(sock.recv(65536).split(b" ")[1])


# REST.


def test_a_room_is_answered_for_by_its_owner(server: ServeProcess) -> None:
    """On one connection, hence through one worker: both workers' rooms."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    for room_id in ROOMS:
        assert ask(connection, "POST", "/api/rooms", {"id": room_id, "metadata": {"a": "ü"}}).status == 201
        again = ask(connection, "POST", "/api/rooms", {"id": room_id})
        assert (again.status, again.error) == (409, "room_exists")
        assert ask(connection, "GET", f"/api/rooms/{room_id}").json["metadata"] == {"a": "ü"}
        joined = ask(connection, "POST", f"/api/rooms/{room_id}/join", {"player_id": "amy", "name": "Amy"})
        assert joined.json["player_id"] == "amy"
        assert ask(connection, "DELETE", f"/api/rooms/{room_id}").status == 204
        gone = ask(connection, "GET", f"/api/rooms/{room_id}")
        assert (gone.status, gone.error) == (404, "room_not_found")
        assert ask(connection, "HEAD", f"/api/rooms/{room_id}").status == 404
    connection.close()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_message"),
        (b"[]", 400, "invalid_message"),
        ({"id": 7}, 400, "invalid_message"),
        ({"id": "no room!"}, 400, "invalid_id"),
        ({"max_players": "many"}, 400, "invalid_message"),
        ({"nonsense": 1}, 400, "invalid_message"),
    ],
)
@pytest.mark.parametrize("path", ["/api/rooms", "/api/rooms/join-or-create"])
def test_bad_bodies_are_told_what_is_wrong_with_them(
    server: ServeProcess, path: str, body: Any, status: int, code: str
) -> None:
    answer = rest(server, "POST", path, body)
    if path.endswith("create") and isinstance(body, dict) and "id" in body:
        code = "invalid_message"  # it takes no id
    assert (answer.status, answer.error) == (status, code)
    assert rooms_by_worker(server) == [0, 0]


def test_other_sites_and_types_are_refused_as_ever(server: ServeProcess) -> None:
    for path in ("/api/rooms", "/api/rooms/join-or-create", f"/api/rooms/{ROOMS[0]}/join"):
        assert rest(server, "POST", path, {}, Origin="https://evil.example").error == "foreign_origin"
        assert rest(server, "POST", path, b"{}", **{"Content-Type": "text/plain"}).status == 415
    for path in ("/debug/rooms", "/metrics", f"/api/rooms/{ROOMS[0]}"):
        method = "DELETE" if path.startswith("/api") else "GET"
        assert rest(server, method, path, **{"X-Forwarded-For": "10.0.0.1"}).error == "forbidden"


def test_an_empty_body_makes_a_room(server: ServeProcess) -> None:
    """As on one worker: no body, no content type."""
    for path in ("/api/rooms/join-or-create", "/api/rooms"):
        assert rest(server, "POST", path).status == 201


def test_new_rooms_are_shared_out(server: ServeProcess) -> None:
    for _ in range(40):
        create(server)
    assert min(rooms_by_worker(server)) >= 5


@pytest.mark.parametrize("sort", ["created_at", "-created_at", "players", "-players", "id", "-id"])
def test_listings_are_of_all_workers_in_one_order(server: ServeProcess, sort: str) -> None:
    """Pages of any size: every room once, in the order of a single page; filters hold."""
    hidden = create(server, private=True)
    for n in range(10):
        room = create(server, metadata={"kind": "even" if n % 2 == 0 else "odd"})
        for player in range(n % 3):
            rest(server, "POST", f"/api/rooms/{room}/join", {"player_id": f"p{player}"})
    whole = rest(server, "GET", f"/api/rooms?limit=200&sort={sort}").json
    assert (len(whole["rooms"]), whole["next_cursor"]) == (10, None)
    keys = [room[{"players": "player_count"}.get(sort.strip("-"), sort.strip("-"))] for room in whole["rooms"]]
    assert keys == sorted(keys, reverse=sort.startswith("-"))
    for limit in (1, 3, 10):
        ids, cursor = [], None
        while True:
            more = "" if cursor is None else f"&cursor={cursor}"
            page = rest(server, "GET", f"/api/rooms?limit={limit}&sort={sort}{more}").json
            assert set(page) == {"rooms", "next_cursor"}
            ids += [room["id"] for room in page["rooms"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert ids == [room["id"] for room in whole["rooms"]]
    odd = rest(server, "GET", "/api/rooms?metadata.kind=odd").json["rooms"]
    assert len(odd) == 5
    assert rest(server, "GET", "/api/rooms?limit=x").error == "invalid_message"
    assert rest(server, "GET", "/api/rooms?cursor=x").error == "invalid_message"
    rest(server, "DELETE", f"/api/rooms/{hidden}")


def test_join_or_create_sees_all_workers_rooms(server: ServeProcess) -> None:
    """The fullest first, wherever it is; a new one only where none fits."""
    for n, room_id in enumerate(ROOMS):
        create(server, room_id)
        for player in range(n + 1):
            rest(server, "POST", f"/api/rooms/{room_id}/join", {"player_id": f"p{player}"})
    where = []
    for n in range(6):
        answer = rest(server, "POST", "/api/rooms/join-or-create", {"player_id": f"q{n}"})
        where.append((answer.status, answer.json["room"]["id"]))
    assert where[:5] == [(200, ROOMS[1])] * 2 + [(200, ROOMS[0])] * 3
    assert where[5][0] == 201


def test_joiners_at_once_with_one_wish_meet(server: ServeProcess) -> None:
    """Twelve at the same moment through both workers: nobody waits alone in a room of another worker."""
    start = threading.Barrier(12)
    rooms: Counter[str] = Counter()

    def join(n: int) -> None:
        start.wait(PATIENCE)
        body = {"player_id": f"p{n}", "metadata": {"game": "chess"}}
        rooms[rest(server, "POST", "/api/rooms/join-or-create", body).json["room"]["id"]] += 1

    threads = [threading.Thread(target=join, args=(n,), name=f"joiner-{n}") for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sum(rooms.values()) == 12
    assert max(rooms.values()) <= 4
    assert len({owner_of(room, WORKERS) for room in rooms}) == 1, "the same wish, the same meeting point"


def test_figures_are_of_all_workers(server: ServeProcess) -> None:
    for room_id in ROOMS:
        create(server, room_id)
        rest(server, "POST", f"/api/rooms/{room_id}/join", {})
    stats = rest(server, "GET", "/debug/rooms").json
    assert (stats["total_rooms"], stats["players"], stats["by_status"]) == (2, 2, {"waiting": 2})
    assert [worker["worker"] for worker in stats["workers"]] == [0, 1]
    metrics = read_metrics(server)
    assert [metrics["roomkit_players", worker] for worker in ("0", "1")] == [1, 1]


def test_the_dashboard_sees_all_workers(server: ServeProcess) -> None:
    """One set of numbers, one list in pages, and each room by its id, wherever it is."""
    for room_id in ROOMS:
        create(server, room_id, private=True)
        rest(server, "POST", f"/api/rooms/{room_id}/join", {"player_id": "amy"})
    for _ in range(5):
        create(server)
    pages, cursor = [], None
    while True:
        more = "" if cursor is None else f"&cursor={cursor}"
        page = rest(server, "GET", f"/api/admin/rooms?sort=-players&limit=2{more}").json
        assert page["matches"] == 7
        pages.append([room["id"] for room in page["rooms"]])
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(pages[0]) == sorted(ROOMS)
    assert [len(page) for page in pages] == [2, 2, 2, 1]
    assert len({room for page in pages for room in page}) == 7
    assert rest(server, "GET", "/api/admin/rooms?search=nobody").json["rooms"] == []
    assert rest(server, "GET", "/api/admin/rooms?sort=x").error == "invalid_message"
    assert rest(server, "GET", "/api/admin/stats", **{"X-Forwarded-For": "10.0.0.1"}).error == "forbidden"
    for room_id in ROOMS:
        room = rest(server, "GET", f"/api/admin/rooms/{room_id}").json
        assert room["state"]["id"] == room_id
        kicked = rest(server, "POST", f"/api/admin/rooms/{room_id}/kick", {"player_id": "amy"})
        assert kicked.status == 200
        assert rest(server, "POST", f"/api/admin/rooms/{room_id}/close", {}).json["status"] == "closed"
    deadline = time.monotonic() + PATIENCE  # numbers may be half a second old
    while (stats := rest(server, "GET", "/api/admin/stats").json)["by_status"].get("closed") != 2:
        assert time.monotonic() < deadline, stats
    assert (stats["workers"], stats["total_rooms"]) == (2, 7)
    for room_id in ROOMS:
        rest(server, "DELETE", f"/api/rooms/{room_id}")


# Life and death.


def test_a_worker_that_dies_is_started_again_and_the_others_notice_nothing() -> None:
    """kill -9: the rooms of the other go on without a pause, and the dead one's clients find a server again."""
    with running() as server:
        for room_id in ROOMS:
            create(server, room_id)
        with client(server, ROOMS[0]) as amy, client(server, ROOMS[1]) as bob:
            for each in (amy, bob):
                each.do("message", {"n": 1})
            os.kill(pids(server)[1], signal.SIGKILL)
            assert bob.wait_closed() == 1006
            assert amy.do("message", {"n": 2})["seq"] == 4
            # Whoever comes before the new worker serves waits for it; the memory of the old one is gone.
            with client(server, ROOMS[1], "bob") as back:
                assert back.wait_closed() == CLOSE["room_not_found"]
            create(server, ROOMS[1])
            with client(server, ROOMS[1], "bob") as back:
                back.expect("welcome")
            assert amy.do("message", {"n": 3})["seq"] == 5
            assert amy.seqs == [3, 4, 5]
        assert "worker 1 ended with status -9; its rooms are gone" in server.output
        assert len(re.findall("worker 1 runs", server.output)) == 2
        assert len(re.findall("worker 0 runs", server.output)) == 1


def test_sigterm_drains_all_workers() -> None:
    """Clients of both are told to come back; nothing is left; also when every process is signalled, as systemd does."""
    with running() as server:
        workers = pids(server)
        for room_id in ROOMS:
            create(server, room_id)
        with client(server, ROOMS[0]) as amy, client(server, ROOMS[1]) as bob:
            for each in (amy, bob):
                each.expect("welcome")
            stopping = threading.Thread(target=server.stop, name="stopping")
            stopping.start()
            for pid in workers:
                os.kill(pid, signal.SIGTERM)
            reasons = [(each.wait_closed(), each.close_reason) for each in (amy, bob)]
            stopping.join(PATIENCE)
        for code, reason in reasons:
            assert code == 1012
            assert re.fullmatch(r"restarting; come back in \d\.\d s", reason)
        assert server.stop() == 0, server.output
        for pid in workers:
            wait_gone(pid)
        assert "ERROR" not in server.output


def test_workers_end_with_their_supervisor() -> None:
    """kill -9 of the one that started them leaves no process behind."""
    server = ServeProcess("--workers", str(WORKERS))
    workers = pids(server)
    os.kill(server.pid, signal.SIGKILL)
    for pid in workers:
        wait_gone(pid)
    assert server.stop() == -signal.SIGKILL


def test_limits_are_shared_out() -> None:
    """The bounds on all rooms and connections; where one worker has no place left another makes the room."""
    with running("--max-rooms", "6") as server:
        for _ in range(6):
            create(server)
        assert rooms_by_worker(server) == [3, 3]
        assert rest(server, "POST", "/api/rooms", {}).error == "limit_exceeded"
    shared = share_of(Settings(workers=3, max_rooms=10, max_connections=0, max_connections_per_address=7))
    assert (shared.max_rooms, shared.max_connections, shared.max_connections_per_address) == (4, 0, 7)


def test_tls_is_refused_with_workers(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="put a proxy that speaks TLS in front"):
        Settings(workers=2, tls_cert=str(tmp_path / "c"), tls_key=str(tmp_path / "k"))


# The parts.


@given(st.text(max_size=40), st.integers(1, 9))
def test_an_owner_is_a_worker(room_id: str, workers: int) -> None:
    assert 0 <= owner_of(room_id, workers) < workers


def test_rooms_are_spread_evenly_over_workers_and_over_their_io_threads() -> None:
    """One hash for both would leave I/O threads without rooms."""
    import zlib

    places = Counter((owner_of(f"r{n}", 4), zlib.crc32(f"r{n}".encode()) % 4) for n in range(4000))
    assert len(places) == 16
    assert min(places.values()) > 150


class Office:
    """Two workers' ends in one process, and a reactor for the second."""

    def __init__(self) -> None:
        self.pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        self.workers = [Peers(n, pair[0].dup(), [p[1].dup() for p in self.pairs]) for n, pair in enumerate(self.pairs)]
        self.reactors = [Reactor(f"roomkit-io-{n}") for n in range(2)]
        self.got: list[tuple[Letter, socket.socket]] = []
        self.arrived = threading.Semaphore(0)
        for reactor in self.reactors:
            reactor.start()

    def open(self, number: int) -> None:
        reactor = self.reactors[number]

        def deliver(letter: Letter, sock: socket.socket) -> None:
            self.got.append((letter, sock))
            self.arrived.release()

        assert reactor.run_and_wait(lambda: self.workers[number].open(reactor, deliver), PATIENCE)

    def close(self) -> None:
        for reactor in self.reactors:
            assert reactor.stop(PATIENCE)
        for _, sock in self.got:
            sock.close()
        for worker in self.workers:
            worker.close()
        for pair in self.pairs:
            for sock in pair:
                sock.close()


@pytest.fixture
def office() -> Iterator[Office]:
    made = Office()
    yield made
    made.close()


def test_letters_wait_while_an_inbox_is_full(office: Office) -> None:
    """More than the system takes are sent before anybody reads: all arrive, once, in order, with their sockets."""
    office.open(0)
    ends = [socket.socketpair() for _ in range(600)]

    def send_all() -> None:
        for n, (near, _) in enumerate(ends):
            office.workers[0].send_connection(1, Letter("127.0.0.1", f"{n} ".encode() * 200), near)

    assert office.reactors[0].run_and_wait(send_all, PATIENCE)
    office.open(1)
    for _ in ends:
        assert office.arrived.acquire(timeout=PATIENCE)
    assert [int(letter.received.split()[0]) for letter, _ in office.got] == list(range(600))
    for (_, far), (_, sock) in zip(ends, office.got, strict=True):
        sock.send(b"!")
        assert far.recv(1) == b"!"
        far.close()


def test_too_many_that_wait_are_closed(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound holds: who is over it sees an end at once."""
    monkeypatch.setattr(peers_module, "_MAX_WAITING", 5)
    office.open(0)
    ends = [socket.socketpair() for _ in range(600)]

    def send_all() -> None:
        for near, _ in ends:
            office.workers[0].send_connection(1, Letter("127.0.0.1", b"x" * 2000), near)

    assert office.reactors[0].run_and_wait(send_all, PATIENCE)
    ends[-1][1].settimeout(PATIENCE)
    assert ends[-1][1].recv(1) == b""
    office.open(1)
    ends[0][1].settimeout(PATIENCE)
    assert office.arrived.acquire(timeout=PATIENCE)
    for _, far in ends:
        far.close()


def test_a_worker_that_does_not_answer_is_busy(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time that it has; and what it reads too late it does not do."""
    monkeypatch.setattr(peers_module, "ANSWER_TIMEOUT", 0.05)
    with pytest.raises(RoomBusy, match="did not answer"):
        office.workers[0].ask(1, "POST", "/api/rooms", {}, b"{}", "127.0.0.1")


def test_figures_add_up() -> None:
    each: list[dict[str, Any]] = [
        {"rooms": 1, "by": {"a": 1}, "deepest_queue": 3, "time": "b", "at": None, "list": [1]},
        {"rooms": 2, "by": {"a": 2, "b": 5}, "deepest_queue": 2, "time": "a", "at": 7.0, "list": [2]},
    ]
    assert add_up(each) == {
        "rooms": 3,
        "by": {"a": 3, "b": 5},
        "deepest_queue": 3,
        "time": "b",
        "at": 7.0,
        "list": [1, 2],
    }
