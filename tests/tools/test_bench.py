"""``roomkit bench`` against real servers: the numbers are what happened, limits are explained, nothing is left over."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bench import Bench
from support.fakes import eventually
from support.needs import need_package
from support.program import Running, environment, roomkit, sentence

from roomkit.server import Server
from roomkit.tools.bench.engine import Engine
from roomkit.tools.bench.latencies import Latencies
from roomkit.tools.bench.plan import Plan
from roomkit.tools.bench.plot import to_svg
from roomkit.tools.bench.report import summary
from roomkit.tools.bench.result import Result
from roomkit.tools.console import CommandFailed
from roomkit.tools.remote import Remote

OPEN: dict[str, Any] = {"max_connections_per_address": 0}
QUICK = ("--rooms", "3", "--players", "3", "--rate", "10", "--seconds", "1")


@pytest.mark.parametrize("operation", ["message", "select_song"])
def test_a_bench_measures_what_the_server_did(bench: Bench, tmp_path: Path, operation: str) -> None:
    """30 messages to 3 members each: the server counts the same operations, everything came once, the summary, JSON
    and plot agree, and afterwards every room is closed and nobody is connected."""
    server = bench.serve()
    figures, plot = tmp_path / "bench.json", tmp_path / "bench.svg"
    done = roomkit("bench", server.url, *QUICK, "--operation", operation, "--json", str(figures), "--plot", str(plot))
    assert done.returncode == 0, done
    found = json.loads(figures.read_text())
    assert (found["sent"], found["answered"], found["expected"], found["delivered"]) == (30, 30, 90, 90)
    assert (found["missing"], found["duplicates"], found["refused"], found["lost_connections"]) == (0, 0, {}, {})
    assert found["connect_ms"]["count"] == 9
    times = found["delivery_ms"]
    assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["p99.9"] <= times["max"]
    assert sum(found["per_second"]["delivered"]) == sum(found["per_second"]["expected"]) == 90
    assert found["rooms_left"] == 0
    assert "delivered          90" in done.stdout
    assert "every message was carried out and delivered once to every member" in done.stdout
    operations = server.tally.by_label("operations")
    assert operations["SendMessage" if operation == "message" else "UpdateSettings"] == 30
    assert operations["Join"] == 9
    assert server.rooms.stats()["by_status"] == {"closed": 3}
    eventually(lambda: server.listener.connection_count == 0)
    assert not any(room.get_state().has_space for room in server.rooms.rooms()), "full rooms, as asked"
    texts = {element.text for element in ET.fromstring(plot.read_text()).iter() if element.text}
    assert {"latency, ms", "deliveries in each second", "90 %", "delivered"} <= texts


def test_the_progress_is_plain_lines_in_a_pipe_and_one_line_on_a_terminal(bench: Bench) -> None:
    """Standard error: without a terminal whole lines; on one, a line drawn again and again and taken away."""
    url = bench.serve().url
    done = roomkit("bench", url, *QUICK)
    assert "\r" not in done.stderr
    assert done.stderr.splitlines()[0] == "making 3 rooms"
    assert any(line.startswith("load [") for line in done.stderr.splitlines())
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "roomkit", "bench", url, *QUICK],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=slave,
    )
    os.close(slave)
    drawn = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        drawn += piece
    os.close(master)
    assert process.wait(60) == 0
    assert drawn.count(b"\r") > 5
    assert b"\n" not in drawn
    assert re.search(rb"\rload \[#*\.*\] +\d+ %  sent \d+  delivered \d+ of \d+  P50 \S+ ms  P99 \S+ ms", drawn)
    assert drawn.endswith(b"\r"), "the line is taken away at the end"


def test_too_many_connections_from_one_address_are_explained(bench: Bench) -> None:
    """The server's own limit: one sentence that says what to raise, and the rooms are taken away."""
    server = bench.serve(max_connections_per_address=8)
    done = roomkit("bench", server.url, "--rooms", "4", "--players", "4", "--seconds", "1")
    assert (done.returncode, done.stdout) == (1, "")
    said = done.stderr.splitlines()[-1]
    assert re.match(r"roomkit: only \d+ of 16 players came in \(.*4529 too many connections", said), said
    assert said.endswith("start the server with --max-connections-per-address 0 and with --max-connections above 16")
    assert len(server.rooms) == 0
    eventually(lambda: server.listener.connection_count == 0)


def test_too_many_rooms_are_explained(bench: Bench) -> None:
    """The server's limit on rooms; those that were made are taken away."""
    server = bench.serve(max_rooms=2)
    said = roomkit("bench", server.url, *QUICK).stderr.splitlines()[-1]
    assert said == (
        "roomkit: the server made 2 of 3 rooms and then refused (limit_exceeded): start it with a higher --max-rooms, "
        "or --max-rooms-per-owner 0"
    )
    assert len(server.rooms) == 0


def test_refused_messages_are_counted_and_explained(bench: Bench) -> None:
    """Past the server's message rate: refused by code with what to raise, expected of nobody, exit status 1."""
    server = bench.serve(message_rate=1, message_burst=5)
    done = roomkit("bench", server.url, "--rooms", "1", "--players", "2", "--rate", "30", "--seconds", "1")
    assert done.returncode == 1
    assert re.search(
        r"refused: \d+ x limit_exceeded: each player sends 15 a second; start the server with", done.stdout
    )
    delivered = re.search(r"delivered +(\d+) .* 100 % of (\d+)", done.stdout)
    assert delivered
    assert delivered[1] == delivered[2]


def test_lost_connections_are_counted_and_nothing_waits_for_them(bench: Bench) -> None:
    """The server closes a room in the middle: the close code is counted, the rest goes on, the end comes in time."""
    server = bench.serve()
    plan = Plan(rooms=2, players=2, rate=20, seconds=1.5)

    def shut(phase: str, result: Result) -> None:
        if phase == "load" and result.sent > 10 and len(server.rooms) == 2:
            server.rooms.remove_room(server.rooms.rooms()[0].id, "by the test")

    with Remote(server.url) as remote:
        result = Engine(server=remote, plan=plan, progress=shut).run()
    assert result.lost == {"4510 by the test": 2}
    assert 30 < result.sent < plan.messages, "the other room's players went on"
    assert not result.flawless
    assert result.load_seconds < 3


def test_a_cut_connection_is_told(bench: Bench) -> None:
    """Connections that end without a word are counted as lost; deliveries that were expected there are missing."""
    server = bench.serve()
    cut: list[bool] = []

    def pull_the_plug(phase: str, result: Result) -> None:
        if phase == "load" and result.sent > 5 and not cut:
            cut.append(True)
            reactor = server.listener.reactors[0]
            victim = next(h for h in reactor.handlers() if type(h).__name__ == "WebSocketConnection")
            reactor.call(victim.abort)

    with Remote(server.url) as remote:
        result = Engine(remote, Plan(rooms=1, players=3, rate=30, seconds=1), pull_the_plug).run()
    assert sum(result.lost.values()) == 1
    assert not result.flawless
    assert "lost connections: 1 x " in summary(result, "x")
    assert result.rooms_left == 0


def test_ctrl_c_ends_it_with_a_summary_and_closes_the_rooms(bench: Bench) -> None:
    """130, what was measured so far, and no room or connection is left."""
    server = bench.serve()
    running = Running("bench", server.url, "--rooms", "2", "--players", "2", "--rate", "10", "--seconds", "300")
    try:
        running.until("^load", running.err)
        running.process.send_signal(signal.SIGINT)
        assert running.end() == 130
        assert any("interrupted" in line for line in running.out.queue)
        assert not any("Traceback" in line for line in running.err.queue)
    finally:
        running.close()
    assert {str(room.status) for room in server.rooms.rooms()} <= {"closed"}
    eventually(lambda: server.listener.connection_count == 0)


def test_it_loads_worker_processes(tmp_path: Path) -> None:
    """Connections that are handed from one worker to another are connections like others."""
    from support.serve import ServeProcess

    server = ServeProcess("--workers", "2", "--max-connections-per-address", "0")
    try:
        done = roomkit("bench", server.url, "--rooms", "20", "--players", "4", "--seconds", "1", "--ramp", "0.2")
        assert done.returncode == 0, done
        assert "100 % of 400" in done.stdout
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rooms", "0"], "--rooms must be from 1 to 10000"),
        (["--rooms", "10000"], "10000 rooms of 4 are 40000 connections; one generator opens at most 20000"),
        (["--rate", "nan"], "--rate must be from 0.01 to 10000"),
        (["--seconds", "3601"], "--seconds must be from 0.1 to 3600"),
        (["--rooms", "5000", "--rate", "100", "--seconds", "100"], "that is 50000000 messages in all"),
        (["--plot", "x.gif"], "--plot must name a file that ends in .svg or .png"),
        (["--size", "300", "--operation", "select_song"], "--size must be at most 200 with --operation select_song"),
        (["--rooms", "many"], "argument --rooms: invalid int value: 'many'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_it_does_not_do_is_one_sentence(words: list[str], says: str) -> None:
    """Before anybody is asked anything."""
    assert says in sentence(roomkit("bench", "http://127.0.0.1:9", *words), 2)


def test_a_server_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    """Nobody there; TLS, which it does not speak; a file that cannot be written, told before the test."""
    assert "cannot reach http://127.0.0.1:9: Connection refused" in sentence(roomkit("bench", "http://127.0.0.1:9"), 1)
    assert "does not speak TLS" in sentence(roomkit("bench", "https://127.0.0.1:9"), 2)
    path = tmp_path / "no" / "x.svg"
    assert sentence(roomkit("bench", "http://127.0.0.1:9", "--plot", str(path)), 1).startswith(
        f"roomkit: cannot write {path}"
    )
    assert "URL" in sentence(roomkit("bench"), 2)


def test_png_by_matplotlib_or_a_clear_word(bench: Bench, tmp_path: Path) -> None:
    """With it a picture; without it a sentence that says what to install, before the test has begun."""
    (tmp_path / "matplotlib.py").write_text("raise ImportError('hidden by the test')\n")
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"}
    said = sentence(roomkit("bench", "http://127.0.0.1:9", "--plot", "x.png", env=env), 2)
    assert said == (
        "roomkit: --plot FILE.png needs matplotlib: pip install 'roomkit-server[bench]', or name a file.svg"
    )
    need_package("matplotlib")
    path = tmp_path / "bench.png"
    env = {"MPLCONFIGDIR": str(tmp_path)}
    assert roomkit("bench", bench.serve().url, *QUICK, "--plot", str(path), env=env).returncode == 0
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_generator_that_cannot_keep_up_says_so(bench: Bench) -> None:
    """Its clock jumps by 50 ms between sends: late by its own doing, which is no fault of the server's."""
    server = bench.serve()
    ticks = [0]

    def slow() -> int:
        from time import perf_counter_ns

        ticks[0] += 50_000_000
        return perf_counter_ns() + ticks[0]

    with Remote(server.url) as remote:
        result = Engine(remote, Plan(rooms=1, players=2, rate=100, seconds=1), lambda *_: None, slow).run()
    assert result.generator_limited
    assert "WARNING: the generator was the bottleneck" in summary(result, server.url)
    assert result.to_dict()["generator"]["limited"] is True


def test_a_result_without_anything_can_be_told_and_drawn() -> None:
    """Interrupted before the first message: no division by zero, no empty picture."""
    result = Result(Plan())
    assert "0 % of 0" in summary(result, "x")
    assert ET.fromstring(to_svg(result, "<&>")).tag.endswith("svg")
    assert json.dumps(result.to_dict())


@given(st.lists(st.integers(0, 10**11), min_size=1, max_size=60), st.sampled_from([1, 50, 90, 99, 99.9, 100]))
def test_percentiles_are_right_to_one_percent(nanoseconds: list[int], share: float) -> None:
    """Against the sorted list, by the nearest rank, never below and at most 0.8 % and a microsecond above."""
    counted = Latencies()
    for value in nanoseconds:
        counted.add(value)
    rank = max(1, -(-len(nanoseconds) * share // 100))
    exact = sorted(nanoseconds)[int(rank) - 1] / 1e9
    assert exact - 1e-12 <= counted.percentile(share) <= exact * 1.008 + 1.1e-6
    assert counted.percentile(100) == max(nanoseconds) / 1e9


def test_the_engine_refuses_a_plan_beyond_its_bounds(bench: Bench) -> None:
    """As a library too."""
    server: Server = bench.serve()
    with Remote(server.url) as remote, pytest.raises(CommandFailed):
        Engine(remote, Plan(rooms=10_000, players=1000), lambda *_: None)
