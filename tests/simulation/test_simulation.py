"""The library on a virtual clock under a seeded scheduler: that nothing is found, and that it would be."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

import roomkit.concurrency.worker
import roomkit.manager
import roomkit.server.reactor

from . import primitives as p
from .__main__ import digest, main
from .knobs import SCENARIOS
from .mutants import ROOT
from .patch import patched, real_locks_of, real_ones
from .scheduler import Finding, Scheduler, activate
from .world import simulate

pytestmark = pytest.mark.no_cover  # pytest-cov's: it would count every line of millions of steps

SEEDS = 2000
PARTS = 10


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_is_found(part: int) -> None:
    """Two thousand interleavings of players, server code, broadcasters, I/O threads and reaper keep every invariant."""
    operations = 0
    with patched():
        for seed in range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS):
            scheduler, world = simulate(seed)
            assert scheduler.finding is None, f"python -m tests.simulation --seed {seed}: {scheduler.finding}"
            assert not scheduler.alive()
            operations += world.operations
    assert operations > 10 * SEEDS // PARTS  # it did something


@pytest.mark.parametrize(("scenario", "first"), [("sharing", 0), ("sharing", 130), ("following", 0)])
def test_nothing_is_found_where_rooms_are_shared(scenario: str, first: int) -> None:
    """Some four hundred interleavings of players at all instances, which are cut off, deaf, mute, frozen, killed and
    drained meanwhile; and what makes it hard for rooms that are followed does happen in them.
    """
    outcomes: Counter[str] = Counter()
    with patched():
        for seed in range(first, first + 130):
            scheduler, world = simulate(seed, scenario)
            again = f"python -m tests.simulation --scenario {scenario} --seed {seed}"
            assert scheduler.finding is None, f"{again}: {scheduler.finding}"
            assert not scheduler.alive()
            outcomes += world.outcomes
    for what, least in LEAST.items():
        assert outcomes[what] >= least, f"{what}: {outcomes[what]}"


def test_nothing_is_found_where_players_come_by_sessions() -> None:
    """Two hundred interleavings of players who send JSON to real sessions, and vanish, are slow and come back; and what
    makes it hard for a session does happen in them.
    """
    outcomes: Counter[str] = Counter()
    with patched():
        for seed in range(200):
            scheduler, world = simulate(seed, "sessions")
            again = f"python -m tests.simulation --scenario sessions --seed {seed}"
            assert scheduler.finding is None, f"{again}: {scheduler.finding}"
            assert not scheduler.alive()
            outcomes += world.outcomes
    for what, least in LEAST_OF_SESSIONS.items():
        assert outcomes[f"session: {what}"] >= least, f"{what}: {outcomes[f'session: {what}']}"


#: What two hundred of them see at least; two to four times as much was seen.
LEAST_OF_SESSIONS = {
    "welcome": 500,
    "resumed": 150,
    "lost before the welcome": 12,
    "loss told later": 3,
    "ack": 1200,
    "invalid_message": 400,
    "invalid_transition": 400,
    "not_host": 80,
    "player_not_found": 30,
    "room_busy": 20,
    "over the rate": 40,
    "refused 4505": 120,
    "closed 1000": 40,
    "closed 1003": 10,
    "closed 1008": 5,
    "closed 4008": 6,
    "closed 4503": 7,
    "closed 4509": 25,
    "closed 4510": 50,
}


#: What a hundred and thirty of them see at least; two to four times as much was seen.
LEAST = {
    "acknowledged": 300,
    "closed 1012": 150,
    "closed 4509": 30,
    "resumed": 100,
    "resumed at another instance": 50,
    "let in where the room is followed": 100,
    "went while it was let in": 20,
    "went on with what it followed": 20,
    "fault: kill": 10,
    "fault: mute": 30,
    "heard late": 80,
    "not heard": 40,
    "letter lost": 50,
    "stands still": 25,
    "no answer: commit": 50,
    "count: forwards_served": 500,
    "count: forwards_sent_again": 50,
    "count: gap_fills": 40,
    "count: rooms_taken_over": 40,
    "count: rooms_lost": 30,
}


def test_the_scenarios_reach_what_they_are_for() -> None:
    """Between them the seeds see drops, gaps, replays, full rooms, busy rooms, watermarks, expiry and shutdown."""
    seen: set[str] = set()
    with patched():
        for scenario in SCENARIOS:
            for seed in range(20):
                scheduler, world = simulate(seed, scenario, grain="locks")
                seen |= set(world.outcomes)
                if any(wire.replayed_up_to for wire in world.wires):
                    seen.add("replayed")
                if any(wire.stream is not None and wire.stream.announced for wire in world.wires):
                    seen.add("told of a gap")
                if any(wire.stream is not None and wire.stream.replaced for wire in world.wires):
                    seen.add("replaced")
                if any(wire.line is not None and wire.messages for wire in world.wires):
                    seen.add(f"over a line: {world.knobs.broadcaster}")
                if scenario == "switch" and any(task.name.startswith("roomkit-room-") for task in scheduler.tasks):
                    seen.add("handed over by a thread")
                seen |= {f"closed {code}" for wire in world.wires for code, _ in wire.closes}
    wanted = {"room_busy", "room_full", "watermark", "shutting_down", "limit_exceeded", "room_exists", "not_host"}
    wanted |= {"invalid_transition", "player_banned", "room_locked", "replayed", "told of a gap", "replaced", "expired"}
    wanted |= {"closed 1000", "closed 1012", "closed 4503", "closed 4509", "closed 4510", "closed 1011", "log: a"}
    wanted |= {"over a line: server", "over a line: switch", "handed over by a thread"}
    wanted |= {"acknowledged", "resumed at another instance", "stands still", "no answer: commit"}
    assert not wanted - seen


@pytest.mark.parametrize("grain", ["locks", "lines", "opcodes"])
def test_a_seed_is_a_run(grain: str) -> None:
    """The same seed does the same twice, and in a new process with other hashes; another seed does something else."""
    with patched():
        for seed in range(5):  # so that what a process keeps between runs would show
            simulate(seed)
        first, again, other = digest(7, grain=grain), digest(7, grain=grain), digest(8, grain=grain)
        assert digest(7, "switch", grain) == digest(7, "switch", grain)
        assert digest(7, "sessions", grain) == digest(7, "sessions", grain)
        assert digest(7, "sharing", grain) == digest(7, "sharing", grain)
    assert first == again != other
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", "--seed", "7", "--grain", grain, "--digest"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.strip() == first


def test_a_seed_prints_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    """``--seed`` prints the knobs, the schedule and the numbered steps."""
    assert main(["--seed", "3", "--trace", "0"]) == 0
    printed = capsys.readouterr().out
    assert "seed 3, scenario=" in printed
    assert "apply Join" in printed
    assert "nothing was found" in printed


def find(body: Callable[[], None], seed: int = 0) -> Finding | None:
    """What a small run of its own finds."""
    scheduler = Scheduler(seed, grain="locks")
    activate(scheduler)
    try:
        return scheduler.run(body)
    finally:
        activate(None)
        assert not scheduler.alive()


def test_a_deadlock_is_found_with_every_threads_stack() -> None:
    """Two threads that take two locks in opposite order: some seed stops both, and the report shows where."""

    def both_ways() -> None:
        one, two = p.Lock("test"), p.Lock("test")

        def forth() -> None:
            with one, two:
                pass

        def back() -> None:
            with two, one:
                pass

        threads = [p.Thread(target=forth, name="forth"), p.Thread(target=back, name="back")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    found = [finding for seed in range(300) if (finding := find(both_ways, seed)) is not None]
    assert found
    assert found[0].kind == "deadlock"
    assert "forth waits for" in str(found[0])
    assert "with two, one" in str(found[0])


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ("roomkit.metrics", "roomkit.manager"),
        ("roomkit.metrics", "roomkit.delivery"),
        ("roomkit.manager", "roomkit.concurrency.eventqueue"),
        ("roomkit.concurrency.eventqueue", "roomkit.manager"),
    ],
)
def test_a_lock_taken_against_the_order_is_found(outer: str, inner: str) -> None:
    """Whatever the interleaving: the order itself is looked at, not the deadlock that might follow."""

    def wrong() -> None:
        with p.Lock(outer), p.Lock(inner):
            pass

    finding = find(wrong)
    assert finding is not None
    assert finding.kind == "lock order"


def test_the_order_that_is_written_down_is_allowed() -> None:
    """A queue's mutex, and a leaf under it."""

    def right() -> None:
        with p.Lock("roomkit.concurrency.eventqueue"), p.Lock("roomkit.metrics"):
            pass
        with p.Lock("roomkit.manager"), p.Lock("roomkit.metrics"):
            pass

    assert find(right) is None


def test_a_hook_under_a_lock_is_found() -> None:
    """What is called from outside the library holds nothing."""

    def wrong() -> None:
        scheduler = p.active()
        p.check_no_locks(scheduler, "a hook")
        with p.Lock("roomkit.metrics"):
            p.check_no_locks(scheduler, "a hook")

    finding = find(wrong)
    assert finding is not None
    assert finding.kind == "called under a lock"


def test_a_thread_that_dies_is_found() -> None:
    """Also one that nobody joins."""

    def wrong() -> None:
        p.Thread(target=lambda: 1 / 0, name="victim").start()
        p.sleep(1)

    finding = find(wrong)
    assert finding is not None
    assert finding.kind == "a thread died"
    assert "ZeroDivisionError" in str(finding)


def test_time_is_virtual() -> None:
    """An hour of waiting, in a lock, a condition, an event, a join and a sleep, takes no time."""
    passed = []

    def wait() -> None:
        lock, condition, event = p.Lock("test"), p.Condition(p.Lock("test")), p.Event()
        sleeper = p.Thread(target=lambda: p.sleep(3600), name="sleeper")
        sleeper.start()
        began = p.clock()
        lock.acquire()
        assert not lock.acquire(timeout=600)
        with condition:
            assert not condition.wait(600)
            assert not condition.wait_for(lambda: False, 600)
        assert not event.wait(600)
        sleeper.join(600)
        assert sleeper.is_alive()
        p.sleep(600)
        passed.append(p.clock() - began)

    began = time.perf_counter()
    assert find(wait) is None
    assert 3600 <= passed[0] < 3601
    assert time.perf_counter() - began < 30


def test_a_condition_wakes_who_waits_and_gives_the_lock_back() -> None:
    """The primitives behave as the real ones: notify wakes one, notify_all the rest, each with the lock held."""
    woken: list[str] = []

    def play() -> None:
        condition = p.Condition(p.Lock("test"))
        ready: list[str] = []

        def wait(name: str) -> None:
            with condition:
                ready.append(name)
                assert condition.wait(5)
                assert condition._lock.locked()
                woken.append(name)

        threads = [p.Thread(target=wait, args=(name,), name=name) for name in "abc"]
        for thread in threads:
            thread.start()
        p.sleep(1)
        assert len(ready) == 3
        with condition:
            condition.notify()
        p.sleep(1)
        assert len(woken) == 1
        with condition:
            condition.notify_all()
        for thread in threads:
            thread.join()
        with pytest.raises(RuntimeError):
            condition.notify()
        with pytest.raises(RuntimeError):
            p.Lock("test").release()

    for seed in range(20):
        woken.clear()
        assert find(play, seed) is None
        assert len(woken) == 3


def test_a_poll_ends_when_a_socket_is_readable_or_the_time_has_passed() -> None:
    """Level-triggered, and the other end's close is something to read; who uses a closed socket is told so."""
    polled = []

    def play() -> None:
        ours, theirs = p.socketpair()
        epoll = p.Epoll()
        epoll.register(ours.fileno(), 1)
        began = p.clock()
        assert epoll.poll(5.0, 8) == []
        assert 5.0 <= p.clock() - began < 5.1

        def send_and_close() -> None:
            p.sleep(1)
            theirs.send(b"ab")
            p.sleep(1)
            theirs.close()

        sender = p.Thread(target=send_and_close, name="sender")
        sender.start()
        ready = [(ours.fileno(), 1)]
        assert epoll.poll(60.0, 8) == epoll.poll(60.0, 8) == ready
        assert p.clock() - began < 60
        assert ours.recv(1) + ours.recv(1) == b"ab"
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        assert epoll.poll(60.0, 8) == ready
        assert ours.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            ours.send(b"c")
        epoll.unregister(ours.fileno())
        assert epoll.poll(1.0, 8) == []
        ours.close()
        with pytest.raises(OSError, match="closed"):
            ours.recv(1)
        sender.join()
        polled.append(True)

    for seed in range(20):
        assert find(play, seed) is None
    assert len(polled) == 20


def test_no_real_primitive_is_left_in_a_run() -> None:
    """Not in the modules and not in what they have made; and afterwards all are the real ones again."""
    with patched():
        assert real_ones() == []
        assert roomkit.concurrency.worker.threading is not threading
        for seed in range(5):
            _, world = simulate(seed)
            assert real_locks_of(world.manager, *world.rooms, *world.loops.reactors) == []
    assert "roomkit.concurrency.worker.threading" in real_ones()
    assert roomkit.concurrency.worker.threading is threading
    assert roomkit.manager.time is time
    assert roomkit.server.reactor.socket is socket
    assert roomkit.manager.random is random
    with roomkit.RoomManager() as rooms:
        assert rooms.create_room("r").add_player("amy").id == "amy"
        assert real_locks_of(rooms)
