"""Small tools of the room tests with real threads: connections that block or call back, bounded waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from roomkit import Event, Room
from roomkit.delivery import Batch
from roomkit.testing import RecordingConnection

#: The bound of every wait in the tests; it is only ever reached by a failure.
PATIENCE = 20.0


class Wire(RecordingConnection):
    """A recording connection. ``on_deliver(batch)`` comes before the recording: it may raise, block or call back."""

    def __init__(self, on_deliver: Callable[[Batch], None] | None = None) -> None:
        super().__init__()
        self._on_deliver = on_deliver

    def deliver(self, batch: Batch) -> None:
        if self._on_deliver is not None:
            self._on_deliver(batch)
        super().deliver(batch)

    def wait(self, predicate: Callable[[Wire], object]) -> None:
        """Until ``predicate(self)`` holds; fails after PATIENCE."""
        self.wait_for(lambda wire: predicate(self), PATIENCE)

    def wait_for_seq(self, seq: int) -> None:
        """Until the event with this seq, or a welcome that contains it, is there."""
        self.wait(lambda wire: wire.last_seq() >= seq)

    def wait_closed(self) -> int:
        """Until it is closed; the code."""
        self.wait(lambda wire: wire.closes)
        return self.closes[0][0]

    @property
    def seqs(self) -> list[int]:
        return [event["seq"] for event in self.events]

    @property
    def gaps(self) -> list[dict[str, Any]]:
        return [message["data"] for message in self.of_type("gap")]

    def last_seq(self) -> int:
        for message in reversed(self.messages):
            if "seq" in message:
                return int(message["seq"])
            if message["type"] == "welcome":
                return int(message["data"]["seq"])
        return 0


class Blocker(Wire):
    """A connection whose ``deliver`` blocks (which a real one must not) from :meth:`block` until :meth:`let_go`.

    ``entered`` tells that the thread which delivers stands in it.
    """

    def __init__(self) -> None:
        super().__init__(self._stand)
        self.entered = threading.Event()
        self._gate = threading.Event()
        self._gate.set()

    def block(self) -> None:
        self._gate.clear()
        self.entered.clear()

    def let_go(self) -> None:
        self._gate.set()

    def _stand(self, batch: Batch) -> None:
        if not self._gate.is_set():
            self.entered.set()
            assert self._gate.wait(PATIENCE)


class Reader:
    """A thread that reads a room from :meth:`come_in` until :meth:`leave`. ``inside``: whether it has come in."""

    def __init__(self, room: Room) -> None:
        self.inside = threading.Event()
        self._room = room
        self._leave = threading.Event()

    def come_in(self) -> None:
        start_thread(self._read, "reader")
        assert self.inside.wait(PATIENCE)

    def leave(self) -> None:
        self._leave.set()

    def _read(self) -> None:
        with self._room.reading():
            self.inside.set()
            assert self._leave.wait(PATIENCE)


class Listener:
    """A subscriber that keeps its events."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        # Guarded by _changed:
        self.events: list[Event] = []
        self.threads: set[str] = set()

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()

    def wait(self, predicate: Callable[[Listener], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: predicate(self), PATIENCE), self.types

    def wait_for_seq(self, seq: int) -> None:
        self.wait(lambda listener: any(event.seq >= seq for event in listener.events))

    @property
    def seqs(self) -> list[int]:
        return [event.seq for event in self.events if event.seq]

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]

    @property
    def gaps(self) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.type == "gap"]


class SelfDrainer:
    """A broadcaster that says that every thread is the one that drains (as on the server's I/O thread, where operations
    are carried out by it), and that drains only when the room or the test has it do so.
    """

    def __init__(self, room_id: str, drain: Callable[[], None]) -> None:
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1

    def is_current(self) -> bool:
        return True

    def retire(self) -> None:
        pass

    def request_stop(self) -> None:
        pass

    def stop(self, timeout: float) -> bool:
        return True


def eventually(predicate: Callable[[], object]) -> None:
    """For what no event can tell (that another thread waits for a lock): look again until it holds, within PATIENCE."""
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE
    while not predicate():
        assert time.monotonic() < deadline, "it never came to be"
        pause.wait(0.0005)


def start_thread(function: Callable[[], object], name: str = "test") -> threading.Thread:
    """A started daemon thread; join it with :func:`join`."""
    thread = threading.Thread(target=function, name=name, daemon=True)
    thread.start()
    return thread


def join(*threads: threading.Thread) -> None:
    """Wait for threads to end; fails after PATIENCE."""
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"{thread.name} did not end"


def run_together(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run each on a thread of its own, all released at once; their results, or the exceptions that they raised."""
    barrier = threading.Barrier(len(functions))
    results: list[Any] = [None] * len(functions)

    def run(index: int) -> None:
        try:
            barrier.wait(PATIENCE)
            results[index] = functions[index]()
        except BaseException as error:
            results[index] = error

    join(*[start_thread(lambda index=index: run(index)) for index in range(len(functions))])  # type: ignore[misc]
    return results


def raise_any(results: Iterable[Any]) -> None:
    """Raise the first exception among the results of :func:`run_together`."""
    for result in results:
        if isinstance(result, BaseException):
            raise result


def rooms_threads() -> list[str]:
    """Names of the threads of roomkit's that are alive."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("roomkit"))
