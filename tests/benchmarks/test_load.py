"""The load test's own tests: what it counts is what happened. Both servers for real, a tiny load, nothing timed.

What it is for, figures of a machine that does nothing else, is made by hand: ``python -m benchmarks.load``.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fakes import PATIENCE, eventually
from support.needs import absent
from support.ws import TEXT, Closed, WsClient
from support.ws import frame as masked_frame
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage

from benchmarks import load as command
from benchmarks import load_report as report
from benchmarks import processes
from benchmarks.generator import SEATS, Crowd, Tally, frame, operation
from benchmarks.load import SERVERS, Bench, Load
from benchmarks.processes import LoadFailed, Server, share_out
from benchmarks.relay import Relay

TINY = Load(40, 200)
_SECONDS, _WARM_UP = 1.0, 0.25
OPERATIONS, TIMED = 250, 200  # in the window and before it; in the window


@pytest.fixture(scope="module", autouse=True)
def linux() -> None:
    """It looks at servers through /proc, and plays clients with epoll."""
    if not hasattr(select, "epoll") or not Path("/proc/self/stat").exists():
        absent("Linux")


def bench(settle: float = PATIENCE) -> Bench:
    """A second for each load."""
    return Bench(_SECONDS, _WARM_UP, settle)


# Counting.


def event(number: int) -> bytes:
    """As roomkit sends it."""
    text = (
        b'{"type":"song_selected","seq":7,"data":{"player_id":"p1","song_id":"op-%08d","ready_cleared":false}}' % number
    )
    return b"\x81\x7e" + len(text).to_bytes(2, "big") + text if len(text) > 125 else bytes((0x81, len(text))) + text


JOINED = b'\x81\x2f{"type":"player_dropped","data":{"song":"op 1"}}'
STREAM = event(0) + event(1) + JOINED + b"\x89\x00" + event(2) + event(2) + event(1) + JOINED
COUNTS = [1, 2, 2]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 11, 12, 13, 100])
def test_what_arrives_in_pieces_is_counted_once(size: int) -> None:
    """A stream in pieces of every kind of size, down to single bytes."""
    tally = Tally(3)
    for at in range(0, len(STREAM), size):
        tally.feed(4, STREAM[at : at + size], 0.0)
    assert [list(tally.arrived), tally.count, len(tally.latencies)] == [COUNTS, 5, 5]


def test_what_is_cut_anywhere_is_counted_once() -> None:
    """Two cuts, at all pairs of places around an event."""
    stream = event(0) + event(1)
    for first in range(1, len(stream) - 1):
        for second in range(first + 1, len(stream), 3):
            tally = Tally(2)
            for piece in (stream[:first], stream[first:second], stream[second:]):
                tally.feed(4, piece, 0.0)
            assert list(tally.arrived) == [1, 1], (first, second)


def test_pieces_of_two_connections_are_not_mixed_up() -> None:
    """Each one's beginning waits for its own end."""
    tally = Tally(2)
    one, other = event(0), event(1)
    cut = one.index(b"op-") + 5
    tally.feed(4, one[:cut], 0.0)
    tally.feed(5, other[:cut], 0.0)
    assert tally.count == 0
    tally.feed(5, other[cut:], 0.0)
    assert list(tally.arrived) == [0, 1]
    tally.feed(4, one[cut:], 0.0)
    assert list(tally.arrived) == [1, 1]


def test_latency_counts_from_when_an_operation_was_due() -> None:
    """Not from when it was sent; and those of the warm-up are counted, not timed."""
    tally = Tally(3, first=1, begin=100.0, interval=0.5)
    tally.feed(4, event(0) + event(1), 100.75)
    tally.feed(5, event(2), 101.5)
    assert list(tally.latencies) == [0.25, 0.5]
    assert tally.count == 3


# Clients and their frames.


def test_frames_are_those_of_a_client() -> None:
    """By the word of a WebSocket library: masked, whole, of both lengths."""
    texts = ['{"type":"select_song","data":{"song_id":"op-00001234"}}', "x" * 125, "x" * 126, "x" * 65_535]
    sent = operation(1234) + b"".join(frame(text.encode()) for text in texts[1:])
    server = Connection(ConnectionType.SERVER)
    server.receive_data(sent)
    got = [found for found in server.events() if isinstance(found, TextMessage)]
    whole = "".join(part.data for part in got)
    assert whole == "".join(texts)
    assert [part.message_finished for part in got].count(True) == 4


@pytest.fixture
def pair() -> Iterator[tuple[Crowd, socket.socket]]:
    """A crowd of one, and the server's end of its connection."""
    crowd = Crowd()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        crowd.add_room([crowd.dial(listening.getsockname()[1])])
        far = listening.accept()[0]
    try:
        far.settimeout(PATIENCE)
        yield crowd, far
    finally:
        far.close()
        crowd.close()


def test_a_ping_is_answered(pair: tuple[Crowd, socket.socket]) -> None:
    """Between two events as well, which are both counted; else an idle server would close everybody."""
    crowd, far = pair
    crowd.tally = Tally(2)
    far.sendall(event(0) + b"\x89\x00" + event(1))
    eventually(lambda: crowd.turn(0.01) or crowd.tally.count == 2)
    assert crowd.pings == 1
    assert far.recv(100) == masked_frame(10, b"", mask=bytes(4))


def test_what_a_socket_does_not_take_is_sent_later_and_in_order(pair: tuple[Crowd, socket.socket]) -> None:
    """More than the kernel holds, to one who does not read at first."""
    crowd, far = pair
    (member,) = crowd.rooms[0]
    whole = b"".join(operation(n) for n in range(150_000))
    for start in range(0, len(whole), 100_000):
        crowd.send(member, whole[start : start + 100_000])
    assert member.unsent
    far.setblocking(False)
    got = bytearray()

    def read() -> bool:
        crowd.turn()
        try:
            got.extend(far.recv(1 << 20))
        except BlockingIOError:
            pass
        return len(got) >= len(whole)

    eventually(read)
    assert bytes(got) == whole
    assert not member.unsent


def test_a_connection_that_the_server_closes_is_noticed(pair: tuple[Crowd, socket.socket]) -> None:
    """And is left out from then on, also when something is to be sent."""
    crowd, far = pair
    far.close()
    eventually(lambda: crowd.turn(0.01) or crowd.closed == 1)
    for n in range(3):
        crowd.send(crowd.rooms[0][0], operation(n))
        crowd.turn()
    assert crowd.closed == 1


def test_everybody_takes_turns() -> None:
    """One member of each room after the other; where one stalls, the others send instead."""
    crowd = Crowd()
    ends = [socket.socketpair() for _ in range(7)]
    near = [sock for sock, _ in ends]
    try:
        crowd.add_room(near[:4])
        crowd.add_room(near[4:])
        order = [near.index(member.sock) for member in crowd.senders()]
        assert order == [0, 4, 1, 5, 2, 6, 3, 4]
    finally:
        crowd.close()
        for one in ends:
            for sock in one:
                sock.close()


# The relay.


@pytest.fixture
def relay() -> Iterator[tuple[str, int]]:
    """A relay's address."""
    with Server(*SERVERS[report.RELAY], cores=share_out().all) as server:
        yield "127.0.0.1", server.port


def heard(client: WsClient) -> Any:
    """The next text, decoded."""
    return json.loads(client.recv())


def enter(relay: tuple[str, int], room: str, player: str, **more: Any) -> WsClient:
    """A client of the relay's that is in."""
    client = WsClient(relay, room_id=room, player_id=player, **more)
    try:
        assert heard(client) == {"type": "welcome", "data": {}}
    except BaseException:
        client.sock.close()
        raise
    return client


def test_the_relay_forwards_to_the_room_and_to_nobody_else(relay: tuple[str, int]) -> None:
    """Payloads of several lengths, masked by any key, in one piece and in many."""
    chance = random.Random(1)
    with enter(relay, "one", "a") as a, enter(relay, "one", "b") as b, enter(relay, "two", "c") as c:
        for length in (0, 1, 125, 126, 60_000):
            text = json.dumps({"n": length, "fill": "é" * (length // 2)}, ensure_ascii=False).encode()
            sent = masked_frame(TEXT, text, mask=chance.randbytes(4))
            for at in range(0, len(sent), 7_000):
                a.send_raw(sent[at : at + 7_000])
            assert heard(a) == heard(b) == json.loads(text)
        for part in [
            masked_frame(TEXT, b'{"n":1}')[:9],
            masked_frame(TEXT, b'{"n":1}')[9:] + masked_frame(TEXT, b'{"n":2}'),
        ]:
            b.send_raw(part)
        assert [heard(a), heard(a)] == [{"n": 1}, {"n": 2}]
        c.send_text(b'{"n":3}')
        assert heard(c) == {"n": 3}  # and nothing before it


def test_the_relay_goes_on_without_those_who_left(relay: tuple[str, int]) -> None:
    """By a close frame, or by closing the connection; and who sends no handshake never was there."""
    with enter(relay, "one", "a") as a:
        with enter(relay, "one", "b"), enter(relay, "one", "c") as c:
            c.send_raw(masked_frame(8, b"\x03\xe8"))
            with pytest.raises(Closed):
                heard(c)
        with socket.create_connection(relay, PATIENCE) as nobody:
            nobody.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert nobody.recv(10) == b""
        a.send_text(b'{"n":1}')
        assert heard(a) == {"n": 1}


def test_the_relay_keeps_what_a_socket_does_not_take(relay: tuple[str, int]) -> None:
    """For one who reads late: everything, in order, up to a bound past which it is dropped, and the others go on."""
    with enter(relay, "one", "a") as a, enter(relay, "one", "slow", receive_buffer=4096) as slow:
        fill = "x" * 50_000

        def say(n: int) -> None:
            a.send_text(json.dumps({"n": n, "fill": fill}))
            assert heard(a)["n"] == n

        for n in range(10):
            say(n)
        assert [heard(slow)["n"] for _ in range(10)] == list(range(10))
        for n in range(200):  # ten megabytes
            say(n)
        got: list[int] = []

        def read_all() -> None:
            while True:
                got.append(heard(slow)["n"])

        with pytest.raises(Closed):
            read_all()
        assert got == list(range(len(got)))
        assert len(got) < 200


def test_the_relay_ends_with_who_started_it() -> None:
    """When its standard input is at its end."""
    relay = Relay()
    reading, writing = os.pipe()
    try:
        os.close(writing)
        relay.run(reading)
    finally:
        os.close(reading)
        relay.close()


# Both servers for real.


@pytest.mark.parametrize("server", SERVERS)
def test_every_operation_is_delivered_to_all_four(server: str) -> None:
    """Nothing lost, nothing twice, a latency for each delivery of the window; and the server was looked at."""
    running = bench()
    outcome = running.run(server, TINY)
    assert (outcome["offered"], outcome["sent"]) == (OPERATIONS, OPERATIONS)
    assert (outcome["expected"], outcome["arrived"]) == (SEATS * OPERATIONS, SEATS * OPERATIONS)
    assert (outcome["missing"], outcome["duplicates"], outcome["closed"], outcome["stalled"]) == (0, 0, 0, 0)
    assert outcome["timed"] == SEATS * TIMED
    assert 0 < outcome["latency_p50"] <= outcome["latency_p99"]
    assert 0 < outcome["window_arrived"] <= SEATS * OPERATIONS
    assert outcome["threads"] >= {"relay": 1, "roomkit": 3, "roomkit, 2 workers": 7}[server]
    assert outcome["memory"] > 5e6
    figures = report.figures_of(outcome)
    assert set(figures) == set(report.KINDS)
    assert figures["delivered"] == 100
    assert not [note for note in running.notes if "machine was busy" not in note and "generator was late" not in note]


@pytest.mark.parametrize("server", ["roomkit", report.RELAY])
def test_members_who_do_not_read_cost_the_others_nothing(server: str) -> None:
    """Their sockets are full from the beginning, and take not one event; the others get every one."""
    outcome = bench().run(server, TINY._replace(stall_every=5))
    readers = [3, 4, 4, 4, 4] * 2
    expected = sum(readers[n % 10] for n in range(OPERATIONS))
    assert (outcome["sent"], outcome["expected"], outcome["arrived"]) == (OPERATIONS, expected, expected)
    assert (outcome["missing"], outcome["duplicates"], outcome["closed"]) == (0, 0, 0)
    assert (outcome["stalled"], outcome["stalled_arrived"]) == (2, 0)
    assert outcome["timed"] == sum(readers[n % 10] for n in range(OPERATIONS - TIMED, OPERATIONS))


def test_nobody_does_anything() -> None:
    """A load without operations, and one without anybody: the server is looked at, and nothing else is there."""
    for connections in (0, 12):
        outcome = bench().run("roomkit", Load(connections, 0, seconds=0.2))
        assert (outcome["connections"], outcome["expected"], outcome["arrived"]) == (connections, 0, 0)
        assert report.figures_of(outcome)["p99"] is None
        assert outcome["threads"] >= 3


_WRONG = """
import benchmarks.relay as relay
honest, count = relay.Relay._send, 0
def send(self, member, frame):
    global count
    count += b"op-" in frame
    times = {100: 0, 200: 2, 300: 2}.get(count, 1) if b"op-" in frame else 1
    for _ in range(times):
        honest(self, member, frame)
    if count == 400:
        count += 1
        member.sock.shutdown(2)
relay.Relay._send = send
relay.main()
"""


def test_what_a_server_loses_or_doubles_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that leaves out a delivery, makes two of two others, and closes somebody: counted, and said in a note."""
    monkeypatch.setitem(SERVERS, "wrong", ("-c", _WRONG))
    running = bench(settle=0.5)
    outcome = running.run("wrong", TINY)
    assert outcome["closed"] == 1
    assert outcome["duplicates"] == 2
    assert outcome["missing"] >= 1  # and all that the closed one did not get any more
    assert outcome["arrived"] == outcome["expected"] - outcome["missing"] + outcome["duplicates"]
    name = f"wrong, {TINY.title}"
    told = {
        f"{name}: {outcome['missing']:,} of {SEATS * OPERATIONS:,} deliveries never came.",
        f"{name}: 2 deliveries came twice.",
        f"{name}: the server closed 1 connections of members who read.",
    }
    assert told <= set(running.notes)


def test_a_server_that_cannot_be_measured_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not start, and one that lets nobody in: a sentence with what it said."""
    monkeypatch.setitem(SERVERS, "dead", ("-c", "raise SystemExit('no port for me')"))
    with pytest.raises(LoadFailed, match="no port for me"):
        bench().run("dead", TINY)
    monkeypatch.setitem(SERVERS, "full", (*SERVERS["roomkit"], "--max-rooms", "3"))
    with pytest.raises(LoadFailed, match="the server made no room: 429"):
        bench().run("full", TINY)
    monkeypatch.setitem(SERVERS, "closed", (*SERVERS["roomkit"], "--max-connections", "10"))
    with pytest.raises(LoadFailed, match="let somebody not in"):
        bench().run("closed", TINY)


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_ended_leaves_no_process(number: signal.Signals, status: int) -> None:
    """In the middle of a load: server, its workers and the generator end with it."""
    words = [sys.executable, "-m", "benchmarks.load", "--quick", "--only", "workers"]
    with subprocess.Popen(
        words, cwd=processes.ROOT, env=processes.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        try:
            assert run.stderr is not None
            run.stderr.readline()  # the server with one worker is done; now the one with two
            eventually(lambda: len(processes.family(run.pid)) >= 5)
            started = processes.family(run.pid)[1:]
            run.send_signal(number)
            run.communicate(timeout=30)
        finally:
            run.kill()
    assert run.returncode == status
    eventually(lambda: not any(alive(pid) for pid in started))


def test_fewer_connections_where_the_limit_is_low() -> None:
    """A process that may not have more open files is told how many there can be; the soft limit is raised."""
    program = (
        "import resource as r; from benchmarks.processes import allow_connections as allow; "
        "r.setrlimit(r.RLIMIT_NOFILE, (100, 300)); print(allow(8000), allow(20), r.getrlimit(r.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=processes.ROOT,
        env=processes.environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert done.stdout.split() == ["100", "20", "300"]


def test_what_others_take_of_a_core_is_seen() -> None:
    """Two that compute on one core: each has waited for the other, and used about half of the time."""
    core = share_out().server
    with processes.running_on(core):
        assert os.sched_getaffinity(0) == core
        pair = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        assert os.sched_getaffinity(0) == share_out().all
        began = time.monotonic()

        def contended() -> bool:
            seen = processes.usage([one.pid for one in pair])
            assert seen.threads == 2
            return seen.cpu >= 0.2 and (seen.waited >= 0.1 or not Path("/proc/self/schedstat").exists())

        eventually(contended)
        assert processes.usage([one.pid for one in pair]).cpu <= time.monotonic() - began + 0.5
    finally:
        for one in pair:
            one.kill()
            one.wait()


# The report.


def rounds(*figures: dict[str, float | None]) -> list[report.Figures]:
    """Of one server."""
    return list(figures)


RESULTS: dict[str, dict[str, dict[str, list[report.Figures]]]] = {
    "cost": {
        "1,000 connections, 8,000 operations/s": {
            "roomkit": rounds({"cpu": 20.0, "p99": 4.0}, {"cpu": 30.0, "p99": None}, {"cpu": 50.0, "p99": 9.0}),
            "relay": rounds({"cpu": 10.0, "p99": 2.0}, {"cpu": 10.0, "p99": 2.0}, {"cpu": 50.0, "p99": 3.0}),
        }
    },
    "capacity": {"many": {"roomkit": rounds({"deliveries": 80_000.0}), "relay": rounds({"deliveries": 100_000.0})}},
}


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    """Not the ratio of the medians: a bad minute disturbs both servers in its round. A missing figure is left out."""
    servers = RESULTS["cost"]["1,000 connections, 8,000 operations/s"]
    assert report.median(servers["roomkit"], "cpu") == 30
    assert report.ratio(servers["roomkit"], servers["relay"], "cpu") == 2
    assert report.ratio(servers["roomkit"], servers["relay"], "p99") == 2.5
    assert report.ratio(servers["roomkit"], servers["relay"], "memory") is None
    text = report.tables(RESULTS)
    assert "| CPU per delivery, µs | 30 | 10 | 2 |" in text
    assert "| P99, ms | 6.5 | 2 | 2.5 |" in text
    assert "| memory, MB | - | - | - |" in text
    assert "| deliveries/s | 80,000 | 100,000 | 0.8 |" in text


@pytest.mark.parametrize(
    ("what", "kind", "passes", "fails"),
    [
        ("cost, 1,000 connections, 8,000 operations/s, roomkit", "cpu", 2.49, 2.51),
        ("capacity, many, roomkit", "deliveries", 0.65, 0.63),
    ],
)
def test_the_check_knows_what_is_worse(what: str, kind: str, passes: float, fails: float) -> None:
    """A quarter more CPU, or a quarter less capacity, than stored; a P99 is only told."""
    stored = report.ratios(RESULTS)
    now = report.ratios(RESULTS)
    assert not any(change.worse for change in report.compare(now, stored))
    now[what][kind] = passes
    assert not any(change.worse for change in report.compare(now, stored))
    now[what][kind] = fails
    assert [change.what for change in report.compare(now, stored) if change.worse] == [what]
    assert "| worse |" in report.comparison(report.compare(now, stored))
    now = report.ratios(RESULTS)
    now["cost, 1,000 connections, 8,000 operations/s, roomkit"]["p99"] = 1000.0
    assert not any(change.worse for change in report.compare(now, stored))


def test_every_load_has_its_stored_ratios() -> None:
    """What is stored is of the loads that are measured today."""
    stored = json.loads(command.BASELINE.read_text(encoding="utf-8"))
    assert {"python", "system", "processor", "cores"} <= set(stored["machine"])
    wanted = {
        f"{name}, {load.title}, {server}": {kind for kind in report.ROWS[name] if report.KINDS[kind].stored}
        for name, part in command.PARTS.items()
        for load in part.loads
        for server in part.servers
        if server != report.RELAY
    }
    # An idle load has no latency and a load without operations no CPU per delivery: those kinds are not in its rows.
    assert {name: set(kinds) for name, kinds in stored["ratios"].items()} == {n: k for n, k in wanted.items() if k}


def test_a_quick_run_fills_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way, one part of it being measured: the file has all figures, and of a page only what is between the
    marks.
    """
    page, figures = tmp_path / "page.md", tmp_path / "load.json"
    before = "above\n\n<!-- measured: load -->\n\nold\n\n<!-- end -->\n\nbelow\n"
    page.write_text(before, encoding="utf-8")
    assert command.main(["--quick", "--only", "cost", "--json", str(figures)]) == 0
    told = json.loads(figures.read_text(encoding="utf-8"))
    (load,) = told["results"]["cost"]
    assert load == "100 connections, 800 operations/s"
    assert [len(found) for found in told["results"]["cost"][load].values()] == [1, 1]
    assert set(told["results"]["cost"][load]) == {"roomkit", "relay"}
    assert set(told["generator"]) == {"alone", "in fours"}
    text = command.on_page(told)
    assert capsys.readouterr().out == f"{text}\n"
    assert "| delivered, % | 100 | 100 | 1 |" in text
    command.write_page(page, told)
    once = page.read_text(encoding="utf-8")
    command.write_page(page, told)
    assert page.read_text(encoding="utf-8") == once
    assert once == f"above\n\n<!-- measured: load -->\n\n{text}\n<!-- end -->\n\nbelow\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--quick", "--check"],
        ["--quick", "--write"],
        ["--only", "cost", "--page", "x.md"],
        ["--page", "nowhere.md"],
        ["--rounds", "0"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is started."""
    with pytest.raises(SystemExit) as refused:
        command.main(words)
    assert refused.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.3, 1)])
def test_the_command_says_by_its_status_what_is_worse(
    factor: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 as stored, 1 and a table when one is worse or nothing is stored."""
    ratios = report.ratios(RESULTS)
    told = {
        "machine": {"python": "3", "system": "s", "processor": "p", "cores": 2},
        "rounds": 3,
        "seconds": 5.0,
        "generator": {"alone": 1.0, "in fours": 2.0},
        "notes": [],
        "results": RESULTS,
        "ratios": ratios,
    }
    monkeypatch.setattr(command, "_measure", lambda options: told)
    path = tmp_path / "stored.json"
    check = ["--check", "--baseline", str(path)]
    assert command.main(check) == 1
    assert "--write" in capsys.readouterr().err
    assert command.main(["--write", "--baseline", str(path)]) == 0
    worse = {name: {kind: value * factor for kind, value in of.items()} for name, of in ratios.items()}
    monkeypatch.setattr(command, "_measure", lambda options: {**told, "ratios": worse})
    assert command.main(check) == status
    assert ("| worse |" in capsys.readouterr().out) == bool(status)
