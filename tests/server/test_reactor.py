"""The I/O thread: what other threads ask of it is never forgotten, and it outlives what it is asked to do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.fakes import run_together

import roomkit.server.reactor as reactor_module
from roomkit.server.reactor import Reactor

PATIENCE = 20.0


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """A started one."""
    made = Reactor("roomkit-io-test")
    made.start()
    yield made
    assert made.stop(PATIENCE)


def call_and_wait(reactor: Reactor) -> bool:
    done = threading.Event()
    reactor.call(done.set)
    return done.wait(PATIENCE)


def test_a_call_while_it_wakes_is_not_the_last(reactor: Reactor) -> None:
    """A call that comes between the wake-up and the reading of its byte: neither it nor those after it are forgotten.
    (The byte it sends is read along with the first one; whoever remembers that it was sent would wait for ever.)"""
    inside = threading.Event()
    real = reactor._wake_receiver

    class Nosy:
        """The receiving end, which makes another thread call at the worst moment."""

        def recv(self, size: int) -> bytes:
            if not inside.is_set():
                caller = threading.Thread(target=reactor.call, args=[inside.set])
                caller.start()
                caller.join()
            return real.recv(size)

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    reactor._wake_receiver = Nosy()  # type: ignore[assignment]
    assert call_and_wait(reactor)
    assert inside.wait(PATIENCE)
    assert call_and_wait(reactor)
    assert call_and_wait(reactor)


def test_calls_from_many_threads_are_all_made(reactor: Reactor) -> None:
    """Each of eight threads waits for its own call before the next one: a single one forgotten would stop it."""

    def caller() -> bool:
        return all(call_and_wait(reactor) for _ in range(300))

    assert run_together([caller] * 8) == [True] * 8


def test_calls_before_the_start_are_made_by_it() -> None:
    """And a reactor that never starts can be stopped, and holds nothing."""
    reactor = Reactor("roomkit-io-test")
    made = threading.Event()
    reactor.call(made.set)
    assert not reactor.run_and_wait(lambda: None, PATIENCE)
    reactor.start()
    try:
        assert made.wait(PATIENCE)
    finally:
        assert reactor.stop(PATIENCE)
    assert not reactor.run_and_wait(lambda: None, PATIENCE)
    assert Reactor("roomkit-io-test").stop(PATIENCE)


def test_a_call_that_raises_is_logged(reactor: Reactor, caplog: Any) -> None:
    """The next one is made."""
    reactor.call(lambda: 1 / 0)
    assert call_and_wait(reactor)
    assert "division by zero" in caplog.text


class Handler:
    """A handler for a test; each method does what ``does`` says for its name."""

    def __init__(self, **does: Callable[[], Any]) -> None:
        self._does = does
        self.seen: list[str] = []
        self.happened = threading.Event()

    def _do(self, name: str) -> None:
        self.seen.append(name)
        try:
            self._does.get(name, lambda: None)()
        finally:
            self.happened.set()

    def on_io(self, mask: int) -> None:
        self._do("on_io")

    def on_deadline(self, now: float) -> None:
        self._do("on_deadline")

    def flush(self) -> None:
        self._do("flush")

    def abort(self) -> None:
        self._do("abort")


@pytest.mark.parametrize("where", ["on_io", "on_deadline", "flush"])
def test_a_handler_that_raises_is_aborted_alone(reactor: Reactor, where: str, caplog: Any) -> None:
    """Whatever it fails in, even if closing it fails as well: the thread goes on."""
    mine, other = socket.socketpair()
    handler = Handler(**{where: lambda: 1 / 0, "abort": lambda: [][1]})

    def begin() -> None:
        if where == "on_io":
            reactor.register(mine.fileno(), handler)
        elif where == "on_deadline":
            reactor.set_deadline(handler, reactor.now)
        else:
            reactor.mark_dirty(handler)

    with mine, other:
        other.send(b"x")
        reactor.call(begin)
        assert handler.happened.wait(PATIENCE)
        assert call_and_wait(reactor)
        reactor.call(lambda: reactor.unregister(mine.fileno(), handler))
        assert call_and_wait(reactor)
    assert handler.seen[:2] == [where, "abort"]
    assert "division by zero" in caplog.text


def test_the_earlier_deadline_counts(reactor: Reactor) -> None:
    """set_deadline never puts a deadline off; clear_deadline does away with it."""
    handler, cleared = Handler(), Handler()

    def begin() -> None:
        reactor.set_deadline(handler, reactor.now + 0.01)
        reactor.set_deadline(handler, reactor.now + 3600)
        reactor.set_deadline(cleared, reactor.now)
        reactor.clear_deadline(cleared)

    reactor.call(begin)
    assert handler.happened.wait(PATIENCE)
    assert call_and_wait(reactor)
    assert cleared.seen == []


def test_what_is_left_is_aborted_at_the_end() -> None:
    """Every handler that still has a socket."""
    reactor = Reactor("roomkit-io-test")
    reactor.start()
    mine, other = socket.socketpair()
    handler = Handler()
    with mine, other:
        reactor.call(lambda: reactor.register(mine.fileno(), handler))
        assert call_and_wait(reactor)
        assert reactor.stop(PATIENCE)
    assert handler.seen == ["abort"]


class Script:
    """Time and sockets by a script, for turns that are made by hand: what becomes ready, and after how long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        self.waits: list[float] = []
        self.next: tuple[float, int] = (0.0, 0)  # after how many seconds how many sockets become ready
        self.reactor = Reactor("roomkit-io-test")
        self.reactor._poller = self  # type: ignore[assignment]
        monkeypatch.setattr(reactor_module, "monotonic", lambda: self.now)
        monkeypatch.setattr(reactor_module, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        self.waits.append(timeout)
        after, count = self.next
        if after > timeout:
            self.now += timeout
            return []
        self.now += max(0.0, after - (self.slept[-1] if self.slept else 0.0))
        return [(fd, 1) for fd in range(1000, 1000 + count)]

    def slept_in_turn(self, after: float, count: int) -> list[float]:
        """Make a turn; how it slept before it looked."""
        self.slept.clear()
        self.next = (after, count)
        self.reactor._turn()
        return list(self.slept)


def test_who_is_woken_often_lets_more_become_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second message in quick succession on it looks only after half a millisecond; not when they come rarely,
    nor when there is much to do anyway.
    """
    script = Script(monkeypatch)
    assert script.slept_in_turn(0.0001, 1) == []
    assert script.slept_in_turn(0.0001, 1) == [0.0005]
    assert script.slept_in_turn(0.0008, 1) == [0.0005]
    assert script.slept_in_turn(0.005, 1) == [0.0005]
    assert script.slept_in_turn(0.005, 1) == [], "they come rarely by now"
    assert script.slept_in_turn(0.0001, 50) == []
    assert script.slept_in_turn(0.0001, 50) == [], "many are ready"
    assert script.slept_in_turn(0.0001, 1) == []
    assert script.slept_in_turn(100.0, 1) == [0.0005]
    assert script.slept_in_turn(0.0, 0) == [], "nothing came"


def test_it_sleeps_past_nothing_that_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a call to make or a deadline near it looks at once, and after a sleep it waits for that much less."""
    script = Script(monkeypatch)
    script.slept_in_turn(0.0001, 1)
    script.reactor.call(lambda: None)
    assert script.slept_in_turn(0.0001, 1) == []
    assert script.waits[-1] == 0.0
    script.slept_in_turn(0.0001, 1)
    script.reactor.call_later(0.0003, lambda: None)
    assert script.slept_in_turn(0.0001, 1) == []
    script.slept_in_turn(1.0, 1)  # it passes
    script.slept_in_turn(0.0001, 1)
    script.reactor.call_later(0.2, lambda: None)
    assert script.slept_in_turn(0.0001, 1) == [0.0005]
    assert script.waits[-1] < 0.2


class Visitor:
    """Notes when it was visited; may do something then."""

    def __init__(self, does: Callable[[], Any] = lambda: None) -> None:
        self.at: list[float] = []
        self.aborted = False
        self._does = does

    def on_visit(self, now: float) -> None:
        self.at.append(now)
        self._does()

    def abort(self) -> None:
        self.aborted = True


def test_visits_are_paid_together(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """At the first multiple of the step and once; who moved, left, or was made to leave by another is not visited, and
    one that raises is aborted alone.
    """
    script = Script(monkeypatch)
    reactor = script.reactor
    early, late, moved, left, broken, last = (Visitor() for _ in range(6))
    taken: Any = Visitor()
    killer = Visitor(lambda: reactor.unregister(-1, taken))
    broken._does = lambda: 1 / 0  # type: ignore[assignment,return-value]
    for visitor, at in ((early, 100.2), (late, 101.5), (moved, 100.3), (left, 100.4), (killer, 100.5), (taken, 100.6)):
        reactor.visit(visitor, at, 1.0)
    reactor.visit(moved, 101.2, 1.0)
    reactor.visit(broken, 100.9, 1.0)
    reactor.visit(last, 101.0, 1.0)
    reactor.unregister(-1, left)  # type: ignore[arg-type]
    script.slept_in_turn(0.99, 0)
    assert not early.at
    script.slept_in_turn(10.0, 0)  # nothing comes: the wait ends at the deadline
    assert script.now == 101.0
    assert [len(visitor.at) for visitor in (early, killer, broken, last)] == [1, 1, 1, 1]
    assert late.at == moved.at == left.at == taken.at == []
    assert broken.aborted
    assert "ZeroDivisionError" in caplog.text
    script.slept_in_turn(10.0, 0)
    assert script.now == 102.0
    assert late.at == moved.at == [102.0]
    reactor.visit(early, 500.0, 1.0)
    reactor.unregister(-1, early)  # type: ignore[arg-type]
    assert (len(reactor._rounds), len(reactor._round_of), len(reactor._deadlines)) == (0, 0, 0), "nothing is left"


def test_a_round_that_everybody_left_while_it_was_due(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Two rounds are due in one turn, and a visit of the first empties the second, or moves who is in it: nobody is
    visited who left, who comes anew is, and nothing fails. (Found by the soak: a KeyError in the log.)
    """
    script = Script(monkeypatch)
    reactor = script.reactor
    taken: Any = Visitor()
    moved = Visitor()

    def change() -> None:
        reactor.unregister(-1, taken)
        reactor.visit(moved, 110.0, 1.0)

    killer = Visitor(change)
    reactor.visit(killer, 101.0, 1.0)
    reactor.visit(taken, 102.0, 1.0)
    reactor.visit(moved, 103.0, 1.0)
    script.now = 105.0  # the process stood still
    script.slept_in_turn(0.0, 0)
    assert (killer.at, taken.at, moved.at) == ([105.0], [], [])
    script.slept_in_turn(10.0, 0)
    assert moved.at == [110.0]
    assert not caplog.records
    assert (len(reactor._rounds), len(reactor._round_of), len(reactor._deadlines)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("turn", "pause"), [(0.0001, [0.0005]), (0.0007, [0.0005]), (0.0010, [0.0003]), (0.0014, []), (0.5, [])]
)
def test_who_has_much_to_do_pauses_less(turn: float, pause: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are gathered for half a millisecond after a short turn, for less after one of a millisecond, and not at
    all after a long one: then enough has come together by itself."""

    class Poller:
        def poll(self, wait: float) -> list[tuple[int, int]]:
            return []

    slept: list[float] = []
    busy = Reactor("roomkit-io-test")
    busy._poller = Poller()  # type: ignore[assignment]
    busy._gather = True
    busy.now = 100.0
    monkeypatch.setattr(reactor_module, "monotonic", lambda: 100.0 + turn)
    monkeypatch.setattr(reactor_module, "sleep", slept.append)
    busy._turn()
    assert slept == pytest.approx(pause)
