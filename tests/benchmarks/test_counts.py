"""The gains are kept: what is counted is compared with the stored baseline and with what was asked for. No clock.

Everything is counted once, in a fresh process, for all the tests: its threads, sockets and memory are its own.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fakes import PATIENCE, run_together
from support.needs import absent

from benchmarks import costs, counted, counts, library
from benchmarks.operations import OPERATIONS, PLAYERS, ByHand, Stage
from benchmarks.probe import Work, count, typical
from roomkit import Room, RoomConfig
from roomkit.metrics import Tally
from roomkit.runtime import Runtime

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"

Groups = dict[str, dict[str, dict[str, float]]]


@pytest.fixture(scope="module")
def measured() -> Groups:
    """Everything, counted now."""
    return counts.measure()


@pytest.fixture(scope="module")
def baseline() -> dict[str, Any]:
    """What is stored."""
    return counts.load()


@pytest.fixture
def stored(baseline: dict[str, Any]) -> Groups:
    """What is stored, as if it were counted now; to be spoilt."""
    return copy.deepcopy(counts.stored_groups(baseline, next(iter(baseline["packages"]))))


# The check.


def test_nothing_costs_more_than_it_did(
    measured: Groups, baseline: dict[str, Any], tell: Callable[[str], None]
) -> None:
    """Calls, instructions, locks, system calls, bytes, memory and threads are within what is stored."""
    found = counts.compare(measured, baseline)
    assert not found.worse, f"\n{found.tables()}\nworth it? python -m benchmarks.counts --write"
    if found.better:
        tell(f"{len(found.better)} counts have fallen; keep that: python -m benchmarks.counts --write")
    if found.unknown:
        absent(f"a baseline for {counts.version()} (python -m benchmarks.counts --write)")


def test_what_was_asked_for_is_kept(measured: Groups) -> None:
    """Reads without a lock, an idle room's memory, no thread for it, sweeps that cost what is due, one write each."""
    assert counts.broken_limits(measured) == []


def test_no_thread_by_the_connection_or_the_room(measured: Groups) -> None:
    """One I/O thread and the reaper serve nobody, a hundred, a thousand; none of them outlives the server."""
    threads = {name: kinds["threads"] for name, kinds in measured["Connections"].items() if "threads" in kinds}
    assert [threads.pop("server, stopped"), set(threads.values())] == [0, {2}]
    assert len(threads) == 4


def test_a_sweep_does_what_is_due_and_nothing_else(measured: Groups) -> None:
    """The same instructions, calls and locks among 20,000 rooms as among 1,000."""
    few, many = measured["A sweep"].values()
    assert few == many
    assert few["visited"] == 100


def test_each_of_many_gets_one_write(measured: Groups) -> None:
    """A message is read once and written once to each; ten that come together cost a tenth of that."""
    server = measured["The server's I/O thread"]
    one, burst = (
        server["a message to a room of 4, with its answer"],
        server["a message to a room of 4, when ten come at once"],
    )
    assert (one["polls"], one["reads"]) == (1, 1)
    assert one["writes"] <= 5  # the sender's answer may go with its event, or after it
    assert burst["writes"] == pytest.approx(one["writes"] / 10, abs=0.1)
    assert burst["opcodes"] < 0.75 * one["opcodes"]


# The check notices.


@pytest.mark.parametrize("kind", counts.KINDS)
def test_a_count_that_rises_is_noticed(kind: str, stored: Groups, baseline: dict[str, Any]) -> None:
    """Of each kind: a little more than it may rise fails the check, the most that it may does not."""
    for subjects in stored.values():
        for subject, kinds in subjects.items():
            if kind in kinds:
                was = kinds[kind]
                kinds[kind] = counts.KINDS[kind].most(was)
                assert compare_stored(stored, baseline).worse == []
                kinds[kind] += max(0.011, 0.001 * was)
                change = counts.Change(subject, kind, was, kinds[kind])
                assert compare_stored(stored, baseline).worse == [change]
                assert f"| {subject} | {counts.KINDS[kind].title} |" in compare_stored(stored, baseline).tables()
                kinds[kind] = was
                return
    pytest.fail(f"nothing is counted in {kind}")


def compare_stored(groups: Groups, baseline: dict[str, Any]) -> counts.Comparison:
    """As if the Python that it was stored with were this one."""
    section = next(iter(baseline["packages"]))
    renamed = {counts.version() if name == section else name: of for name, of in baseline["counts"].items()}
    return counts.compare(groups, {**baseline, "counts": renamed})


def test_a_count_that_falls_is_told_and_no_failure(stored: Groups, baseline: dict[str, Any]) -> None:
    """It is to be stored, so that it stays there."""
    stored["Operations of the library"]["send_message"]["opcodes"] *= 0.9
    found = compare_stored(stored, baseline)
    assert [found.worse, len(found.better)] == [[], 1]
    assert found.tables().startswith("Fallen:\n\n| what |")


def test_what_is_counted_anew_or_no_more_is_noticed(stored: Groups, baseline: dict[str, Any]) -> None:
    """Nobody takes a count away, nor adds one, without the baseline."""
    of = stored["Operations of the library"]
    of["something new"] = {"locks": 0}
    del of["create_room"]
    changes = compare_stored(stored, baseline).worse
    assert {(change.subject, change.baseline is None) for change in changes} == {
        ("something new", True),
        ("create_room", False),
    }


def test_another_python_is_compared_by_what_is_the_same(
    stored: Groups, baseline: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its instructions are its own, locks and system calls are not; storing it keeps the others."""
    monkeypatch.setattr(counts, "version", lambda: "Python 4.0")
    stored["Operations of the library"]["send_message"]["opcodes"] *= 2
    assert counts.compare(stored, baseline) == counts.Comparison([], unknown=True)
    stored["Operations of the library"]["send_message"]["locks"] += 1
    assert [change.kind for change in counts.compare(stored, baseline).worse] == ["locks"]
    both = counts.store(stored, baseline)
    assert set(both["counts"]) == {*baseline["counts"], "Python 4.0"}
    assert counts.compare(stored, both) == counts.Comparison([], unknown=False)


SPOILT: list[tuple[str, str, str, float]] = [
    ("Operations of the library", "get_state", "locks", 1),
    ("Operations of the library", "get_state", "opcodes", 100),
    ("Memory", "a room of 4, idle", "memory", 8193),
    ("Memory", "a room of 4 that is gone", "objects", 1),
    ("Threads of the library", "300 idle rooms of 4", "threads", 300),
    ("A sweep", "sweep: 100 due among 20,000 rooms", "visited", 20_000),
    ("A sweep", "sweep: 100 due among 20,000 rooms", "opcodes", 1e7),
    ("Connections", "server, 1,000 connections in 250 rooms", "threads", 1002),
    ("Connections", "server, stopped", "threads", 1),
    ("The server's I/O thread", "each further delivery of a message", "writes", 2),
    ("The server's I/O thread", "each further delivery of a message", "locks", 1),
]


@pytest.mark.parametrize(("title", "subject", "kind", "number"), SPOILT)
def test_a_broken_limit_is_noticed(title: str, subject: str, kind: str, number: float, stored: Groups) -> None:
    """Each limit by itself, whatever the baseline says."""
    assert counts.broken_limits(stored) == []
    stored[title][subject][kind] = number
    assert len(counts.broken_limits(stored)) == 1


def test_a_slower_library_is_noticed(baseline: dict[str, Any], stored: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: one more lock in the counter that every operation uses, and the operations' counts rise."""
    add = Tally.add

    def add_with_care(self: Tally, name: str, label: str = "", count: int = 1) -> None:
        with again:
            add(self, name, label, count)

    again = threading.Lock()
    honest = counted.count_operations()
    monkeypatch.setattr(Tally, "add", add_with_care)
    careful = counted.count_operations()
    for subject, kinds in careful.items():
        more = 0 if subject.startswith(("get_", "reading")) else 1
        assert kinds["locks"] >= honest[subject]["locks"] + more, subject
    stored["Operations of the library"] = careful
    worse = {(change.subject, change.kind) for change in compare_stored(stored, baseline).worse}
    assert {("send_message", "locks"), ("join, delivered to 4", "locks"), ("cleanup, nothing due", "locks")} <= worse


def test_the_command_says_so_by_its_status(
    stored: Groups,
    baseline: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """0 as stored, 1 and a table when something has risen or a limit is broken; --write makes it the new baseline."""
    monkeypatch.setattr(counts, "measure", lambda: stored)
    monkeypatch.setattr(counts, "version", lambda: next(iter(baseline["packages"])))
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(baseline))
    check = ["--check", "--baseline", str(path)]
    assert counts.main(check) == 0
    assert capsys.readouterr().out == "Every count is as stored.\n"
    stored["The server's I/O thread"]["a message to a room of 4, with its answer"]["writes"] += 1
    assert counts.main(check) == 1
    said = capsys.readouterr().out
    assert "| a message to a room of 4, with its answer | writes |" in said
    assert "python -m benchmarks.counts --write" in said
    assert counts.main(["--write", "--baseline", str(path)]) == 0
    assert counts.main(check) == 0
    stored["Operations of the library"]["get_state"]["locks"] = 1
    assert counts.main(["--write", "--baseline", str(path)]) == 0
    capsys.readouterr()
    assert counts.main(check) == 1  # a limit is one whatever is stored
    assert "Limit: a state read takes 1 locks, not none." in capsys.readouterr().out


# The instruments.


def test_the_probe_counts_what_is_done() -> None:
    """Calls of both kinds and locks, however they are taken; the same in every repetition."""
    lock, monitor = threading.Lock(), threading.Condition()

    def locks_four_times() -> None:
        with lock:
            pass
        with monitor:
            monitor.notify_all()
        lock.acquire()
        lock.release()
        with threading.RLock():
            pass

    works = [count(locks_four_times) for _ in range(5)]
    assert typical(works).locks == 4
    assert len(set(works[1:])) == 1  # from Python 3.12 on the first one is lower

    def calls() -> None:
        def one() -> None:
            len(())

        one(), one()

    work = typical([count(calls) for _ in range(5)])
    assert (work.calls, work.c_calls, work.locks) == (2, 2, 0)
    shorter = typical([count(lambda: [n + 1 for n in range(10)]) for _ in range(5)])
    longer = typical([count(lambda: [n + 1 for n in range(20)]) for _ in range(5)])
    assert longer.opcodes - shorter.opcodes >= 20
    assert Work(calls=4, locks=2).shared(2) == Work(calls=2, locks=1)


def test_two_runs_count_the_same() -> None:
    """Every operation, twice, in a process in which other tests have run."""
    assert counted.count_operations() == counted.count_operations()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_operation_can_be_prepared_again_and_again(operation: Any) -> None:
    """As the benchmark by the clock does."""
    for listening in operation.variants:
        stage = Stage(listening)
        for _ in range(3):
            operation.ready(stage)()
        stage.close()


def test_the_promises_can_be_measured() -> None:
    """In a hurry: each gives its figures. What they must be is for an idle machine."""
    assert library.read_beside_lock(100, 1)["ratio"] < 1
    assert library.beside_a_writer(0.1, 0.001)["writes"] > 0
    assert library.eight_threads(0.1)["fewest writes of a thread"] > 0
    assert library.sweep_few_and_many(1_000, 1_200)["sweep among 1,200, ms"] > 0
    left = library.come_and_go(500)
    assert left["rooms left"] == left["threads left"] == 0


def test_eight_threads_read_while_a_writer_is_inside_its_operation() -> None:
    """It stays there, under the lock, until they have read a thousand times each."""
    inside, leave = threading.Event(), threading.Event()

    def clock() -> float:
        if threading.current_thread().name == "writer":
            inside.set()
            assert leave.wait(PATIENCE)
        return 1000.0

    room = Room("room", RoomConfig(busy_timeout=PATIENCE), runtime=Runtime(clock), broadcaster=ByHand)
    for player in PLAYERS:
        room.add_player(player)
    before = room.get_state()
    writer = threading.Thread(target=lambda: room.set_player_ready("amy"), name="writer")
    writer.start()
    try:
        assert inside.wait(PATIENCE)
        seen: list[bool] = []
        run_together([lambda: seen.extend(room.get_state() is before for _ in range(1_000))] * 8)
        assert seen == [True] * 8_000
    finally:
        leave.set()
        writer.join(PATIENCE)
    assert room.get_state().get_player("amy").ready  # type: ignore[union-attr]


def test_reads_go_on_behind_a_change_that_nobody_has_read() -> None:
    """One change is made, the next one is inside its operation: who reads gets the state between them, at once."""
    inside, leave = threading.Event(), threading.Event()

    def clock() -> float:
        if threading.current_thread().name == "writer":
            inside.set()
            assert leave.wait(PATIENCE)
        return 1000.0

    room = Room("room", RoomConfig(busy_timeout=0), runtime=Runtime(clock), broadcaster=ByHand)
    for player in PLAYERS:
        room.add_player(player)
    room.get_state()
    room.set_player_ready("amy")
    writer = threading.Thread(target=lambda: room.set_player_ready("bob"), name="writer")
    writer.start()
    try:
        assert inside.wait(PATIENCE)
        assert [player.id for player in room.get_state().players if player.ready] == ["amy"]
    finally:
        leave.set()
        writer.join(PATIENCE)


def test_a_change_that_nobody_reads_makes_no_snapshot() -> None:
    """A room in which people only talk does not pay for readers that it has not."""
    stage = Stage(listening=False)
    room = stage.room("playing")

    def talk(read: bool) -> Work:
        if read:
            room.get_state()
        return count(lambda: room.send_message("amy", {}))

    unread, read = (typical([talk(read) for _ in range(5)]).opcodes for read in (False, True))
    assert read - unread > 50


# The page.


def test_the_page_has_a_place_for_the_times(tmp_path: Path) -> None:
    """Filled from a report of pytest-benchmark, twice the same, and the rest of the page stays."""
    report = {
        "benchmarks": [
            {"name": "test_operation[send_message]", "stats": {"min": 12.34e-6}, "extra_info": {}},
            {"name": "test_operation[send_message, delivered to 4]", "stats": {"min": 23.45e-6}, "extra_info": {}},
            {"name": "test_a_promise[quick]", "stats": {"min": 1.0}, "extra_info": {"ratio": 0.005}},
        ]
    }
    path, page = tmp_path / "report.json", tmp_path / "page.md"
    path.write_text(json.dumps(report))
    before = PAGE.read_text(encoding="utf-8")
    page.write_text(before, encoding="utf-8")
    assert costs.main([str(path), "--page", str(page)]) == 0
    once = page.read_text(encoding="utf-8")
    assert costs.main([str(path), "--page", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == once
    assert "| send_message | 12.3 | 23.4 |" in once
    assert "| A promise (quick) | seen |" in once
    for outside in (lambda text: text.partition("<!--")[0], lambda text: text.rpartition("-->")[2]):
        assert outside(once) == outside(before)


def test_the_page_tells_the_stored_counts(baseline: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the Python that it names."""
    page = PAGE.read_text(encoding="utf-8")
    named = [name for name in baseline["packages"] if f"\nWith {name}.\n" in page]
    assert len(named) == 1
    monkeypatch.setattr(counts, "version", lambda: named[0])
    assert counts.on_page(counts.stored_groups(baseline)) in page
