"""A thread of the library's or the server's is killed, or its work fails: it is noticed, told, and made up for."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from players import metrics
from support.bench import Bench
from support.fakes import PATIENCE, Listener, Wire, eventually, join

from roomkit import RoomManager
from roomkit.concurrency.worker import Worker
from roomkit.fanout import Fanout
from roomkit.testing import ManualClock


def named(name: str) -> threading.Thread:
    """The live thread of this name."""
    return next(thread for thread in threading.enumerate() if thread.name == name)


def put_into(thread: threading.Thread, error: type[BaseException]) -> None:
    """Have it raised in that thread at its next instruction in Python."""
    assert thread.ident is not None
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(error)) == 1


class FailingCondition(threading.Condition):
    """A condition on which waiting fails as often as it is told to: there is no memory for the lock that it needs."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__(lock)  # type: ignore[arg-type]
        self.failures = 0

    def wait(self, timeout: float | None = None) -> bool:
        if self.failures:
            self.failures -= 1
            raise MemoryError
        return super().wait(timeout)


@pytest.mark.parametrize("which", ["broadcaster", "subscriber"])
def test_a_thread_that_dies_while_it_waits_is_replaced(which: str, caplog: pytest.LogCaptureFixture) -> None:
    """The broadcaster's, and a subscriber's, cannot even wait: it is logged, and the next event starts another one,
    which delivers everything, once and in order."""
    rooms = RoomManager()
    room = rooms.create_room("room")
    wire, listener = Wire(), Listener()
    room.join("amy", wire)
    room.subscribe(listener)
    room.send_message(None, {"n": 0})
    wire.wait_for_seq(room.get_state().seq)
    listener.wait_for_seq(room.get_state().seq)
    worker: Any = room._fanout.broadcaster if which == "broadcaster" else room._fanout._subscriptions[0]._worker
    assert isinstance(worker, Worker)
    first = named(worker.name)
    eventually(lambda: sys._current_frames()[first.ident or 0].f_code.co_name == "wait")
    put_into(first, SystemExit)  # it is asleep, or about to be, and will be dead as soon as it is woken
    for n in range(20):  # fewer than there are places in the queue
        room.send_message(None, {"n": n})
    join(first)
    for n in range(20):
        room.send_message(None, {"n": n})
    last = room.get_state().seq
    wire.wait_for_seq(last)
    listener.wait_for_seq(last)
    assert wire.seqs == list(range(wire.seqs[0], last + 1))
    assert listener.seqs == list(range(listener.seqs[0], last + 1))
    assert named(worker.name) is not first
    # "now", or "by the next wake" when it died in the moment before it slept.
    assert f"{worker.name} died; it is started again" in caplog.text
    assert rooms.shutdown(PATIENCE)


def test_no_memory_to_wait_with(caplog: pytest.LogCaptureFixture) -> None:
    """The wait itself fails: the thread ends, and does not try again and again; the next wake is served."""
    ran = threading.Semaphore(0)
    worker = Worker("roomkit-test", lambda: ran.release() or None)
    condition = worker._condition = FailingCondition(worker._lock)
    condition.failures = 1
    worker.wake()
    assert ran.acquire(timeout=PATIENCE)
    eventually(lambda: not worker.running)
    assert not ran.acquire(blocking=False)
    worker.wake()
    assert ran.acquire(timeout=PATIENCE)
    assert worker.stop(PATIENCE)
    eventually(lambda: "roomkit-test died; it is started again by the next wake" in caplog.text)


def test_an_operation_that_finds_no_thread_is_done_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The system has no thread to give: the change stands, it is counted and logged, and the next one, when there are
    threads again, delivers both."""
    rooms = RoomManager()
    room = rooms.create_room("room")
    wire = Wire()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", refuse)
        room.join("amy", wire)
        room.send_message(None, {"n": 1})
    assert room.get_state().seq == 3
    assert (wire.messages, rooms.tally.get("delivery_errors")) == ([], 2)
    room.send_message(None, {"n": 2})
    wire.wait_for_seq(4)
    assert wire.types == ["welcome", "message", "message"]
    assert "has nobody to deliver its events" in caplog.text
    assert rooms.shutdown(PATIENCE)


@pytest.mark.parametrize("error", [ValueError, SystemExit], ids=lambda error: error.__name__)
def test_the_reaper_outlives_its_clock(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    """A clock of somebody's own that fails: the reaper logs it and asks again, and rooms expire."""
    clock = ManualClock()
    failures = [error] * 2

    def faulty() -> float:
        if failures and threading.current_thread().name == "roomkit-reaper":
            raise failures.pop()("made on purpose")
        return clock()

    rooms = RoomManager(clock=faulty)
    rooms.create_room("room").close()
    clock.advance(1000)
    rooms.start_cleanup()
    eventually(lambda: "room" not in rooms)
    assert not failures
    assert "the next deadline is not to be had" in caplog.text
    assert rooms.shutdown(PATIENCE)


@pytest.mark.parametrize("error", [OSError, MemoryError, SystemExit], ids=lambda error: error.__name__)
def test_an_io_thread_whose_turn_fails_goes_on(
    bench: Bench, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """The wait for sockets itself fails, three times in a row: every connection is still there, what was to be
    delivered is, new ones come in, and it is counted."""
    server = bench.serve()
    server.rooms.create_room("room")
    amy, bob = bench.join(server, player_id="amy"), bench.join(server, player_id="bob")
    reactor = server.listener.reactors[0]
    poller = reactor._poller
    failed = threading.Semaphore(0)

    class Failing:
        """The poller, which fails three times."""

        left = 3

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            if self.left:
                self.left -= 1
                failed.release()
                raise error("made on purpose")
            return poller.poll(timeout)

        def __getattr__(self, name: str) -> Any:
            return getattr(poller, name)

    thread = named("roomkit-io-0")
    reactor._poller = Failing()  # type: ignore[assignment]
    amy.send("message", {"n": 1}, id="1")  # wakes it from the last good wait
    for _ in range(3):
        assert failed.acquire(timeout=PATIENCE)
    assert amy.until("ack")["id"] == "1"
    bob.until_seq(bob.do("message", {"n": 2})["seq"])
    assert bench.join(server, player_id="cat").do("ping")
    assert named("roomkit-io-0") is thread
    assert metrics(server.listener.address[1])["roomkit_io_turn_errors_total"] == 3
    assert caplog.text.count("a turn of roomkit-io-0 failed; it goes on") == 3


@pytest.mark.parametrize("where", ["call", "drain", "on_io", "flush"])
def test_nothing_that_exits_takes_the_io_thread_with_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """SystemExit in each step of a turn: the others of that turn, and all turns after it, are served."""
    server = bench.serve()
    for name in ("one", "two"):
        server.rooms.create_room(name)
    amy, bob = bench.join(server, "one", "amy"), bench.join(server, "two", "bob")
    victims = [True]

    def once(real: Callable[..., Any], fits: Callable[..., object] = lambda *arguments: True) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if victims and fits(*arguments):
                victims.clear()
                raise SystemExit("made on purpose")
            return real(*arguments)

        return call

    reactor = server.listener.reactors[0]
    connection = next(iter(server.rooms.get_room("one").connections().values()))
    kind: Any = type(connection)
    if where == "call":
        reactor.call(once(lambda: None))
    elif where == "drain":
        monkeypatch.setattr(Fanout, "_drain", once(Fanout._drain, lambda self: self.room_id == "one"))
    else:
        monkeypatch.setattr(kind, where, once(getattr(kind, where), lambda self, *_: self is connection))
    amy.send("message", {"n": 1}, id="1")
    for n in range(5):
        assert bob.do("message", {"n": n})
    if where in ("on_io", "flush"):
        assert amy.wait_closed() == 1006
    else:
        amy.until("ack")
        amy.until_seq(amy.do("message", {"n": 2})["seq"])
        assert [event["data"]["data"] for event in amy.events if event["type"] == "message"] == [{"n": 1}, {"n": 2}]
    assert not victims
    assert metrics(server.listener.address[1])["roomkit_io_turn_errors_total"] == 0
    assert "SystemExit: made on purpose" in caplog.text
