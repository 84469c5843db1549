"""A store between whose calls a test can come, and instances that share it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from support.fakes import PATIENCE, eventually

from roomkit import BackendUnavailable, RoomConfig, RoomManager
from roomkit.backends.base import Events
from roomkit.backends.memory import MemoryBackend, MemoryStore
from roomkit.testing import ManualClock

TTL = 0.6  # seconds of the hand-driven clock; a third of it is how long an instance sleeps in true time
STEP = 0.4 * TTL  # after so long leases are renewed, and do not end


class Unsteady:
    """A backend that does not answer while a test says so, or whose answers get lost.

    Attributes:
        down: every call fails, and does nothing; nothing is heard, but ``hear_again`` when it is over. deaf: calls
            with these names act, but their answer is lost.
        calls: the names of all that came through.
    """

    #: How long a caller waits for the store, beyond the lease: on a busy machine nothing is to run out by itself.
    timeout = PATIENCE

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self._down = False
        self._listeners: list[Any] = []
        self.deaf: set[str] = set()
        self.calls: list[str] = []
        self.batches: list[int] = []  # how many steps each commit had
        self.held = threading.Event()  # a call stands before a closed gate
        self._closed: str | None = None
        self._gate = threading.Event()
        self._gate.set()

    @property
    def down(self) -> bool:
        return self._down

    @down.setter
    def down(self, down: bool) -> None:
        was, self._down = self._down, down
        if was and not down:
            for listener in list(self._listeners):
                listener.hear_again()

    def listen(self, name: str, listener: Any) -> UnsteadyEar:
        """Never fails, as the backend's does not."""
        self.calls.append("listen")
        self._listeners.append(listener)
        return UnsteadyEar(self, name, listener)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.inner, name)
        return self.wrapped(name, attribute) if callable(attribute) else attribute

    def wrapped(self, name: str, attribute: Callable[..., Any]) -> Callable[..., Any]:
        """The method, through what a test has it go through."""

        def call(*args: Any, **options: Any) -> Any:
            if name == self._closed:
                self.held.set()
                assert self._gate.wait(PATIENCE)
            if self.down:
                raise BackendUnavailable("the store did not answer: it is down")
            self.calls.append(name)
            if name == "commit":
                self.batches.append(len(args[0]))
            answer = attribute(*args, **options)
            if name in self.deaf:
                raise BackendUnavailable("the store did not answer: it did, but nobody heard")
            return answer

        return call

    @contextmanager
    def holding(self, name: str = "commit") -> Iterator[threading.Event]:
        """Within the block calls with this name stand still; gives the event that tells that one does."""
        self._gate.clear()
        self.held.clear()
        self._closed = name
        try:
            yield self.held
        finally:
            self._closed = None
            self._gate.set()


class UnsteadyEar:
    """The way back: hears nothing while the backend is down."""

    def __init__(self, backend: Unsteady, name: str, listener: Any) -> None:
        self._backend = backend
        self._listener = listener
        self._inner = backend.inner.listen(name, self)

    def hear_events(self, room_id: str, epoch: str, events: Events) -> None:
        if not self._backend.down:
            self._listener.hear_events(room_id, epoch, events)

    def hear_letter(self, body: bytes) -> None:
        if not self._backend.down:
            self._listener.hear_letter(body)

    def hear_again(self) -> None:
        if not self._backend.down:
            self._listener.hear_again()

    def follow(self, room_ids: Sequence[str]) -> None:
        """While it is down: heard as soon as it is over, but not confirmed."""
        if self._backend.down:
            self._inner.follow(room_ids)
        self._backend.wrapped("follow", self._inner.follow)(room_ids)

    def unfollow(self, room_ids: Sequence[str]) -> None:
        self._inner.unfollow(room_ids)

    def close(self, timeout: float) -> bool:
        if self._listener in self._backend._listeners:
            self._backend._listeners.remove(self._listener)
        return bool(self._inner.close(timeout))


class Instances:
    """Managers that share one store in this process, with one clock that is driven by hand."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock)
        self.managers: list[RoomManager] = []

    def make(self, name: str, *, config: RoomConfig | None = None, **options: Any) -> RoomManager:
        """A started one."""
        backend: Any = Unsteady(MemoryBackend(self.store, lease_ttl=TTL))
        rooms = RoomManager(
            config, self.clock, wall_clock=self.clock.wall, backend=backend, instance=name, address=f"http://{name}",
            **options,
        )  # fmt: skip
        self.managers.append(rooms)
        rooms.start_cleanup()
        return rooms

    def lapse(self, rooms: RoomManager) -> None:
        """This one hears nothing for so long that its leases end; the others renew theirs in the meantime."""
        steady(rooms).down = True
        others = [other for other in self.managers if other is not rooms and not steady(other).down]
        self.pass_time(2 * TTL, *others)

    def pass_time(self, seconds: float, *alive: RoomManager) -> None:
        """Let time pass in steps so short that these renew their leases in each."""
        for _ in range(int(seconds / STEP) + 1):
            before = [(steady(rooms).calls, steady(rooms).calls.count("announce")) for rooms in alive]
            self.clock.advance(STEP)
            for calls, count in before:
                eventually(lambda: calls.count("announce") > count)  # noqa: B023

    def close(self) -> None:
        """End all of them."""
        for rooms in self.managers:
            steady(rooms).down = False
            steady(rooms).deaf.clear()
            rooms.shutdown(5.0, spread=0.0)


def steady(rooms: RoomManager) -> Unsteady:
    """The backend that the manager was given."""
    assert rooms._node is not None
    backend: Any = rooms._node._backend
    assert isinstance(backend, Unsteady)
    return backend


def settled(rooms: RoomManager) -> None:
    """Until all that its rooms did is stored."""
    node = rooms._node
    assert node is not None

    def idle() -> bool:
        journals = list(node._journals.values())
        return not node._marked and not any(journal.step or journal.changed for journal in journals)

    eventually(idle)


def answers_of(call: Callable[[], object]) -> list[Any]:
    """What a call gives, or raises, as a list, filled by the thread that makes it."""
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:
            answers.append(error)

    threading.Thread(target=run, name="caller", daemon=True).start()
    return answers
