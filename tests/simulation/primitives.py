"""Simulated locks, conditions, threads, clocks and sockets, and the order in which locks may be taken.

They behave as the real ones (``threading``'s documentation): a released lock is anybody's to take, a notified thread
has to win the lock again, nobody is woken without cause. Each use is a switch point.
"""

from __future__ import annotations

import itertools
import select
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .scheduler import Scheduler, SimulationOver, Task, active

# docs/architecture.md and the top of roomkit/manager.py: room -> queue; the manager's alone; leaves last.
ROOM, QUEUE, MANAGER, LEAF = "room lock", "queue mutex", "manager lock", "leaf lock"
STORE = "store's lock"  # of the backend in memory, which is called under none

#: Which lock the modules make. None: a part of something that is looked at as a whole (the reader-writer lock).
RANKS: dict[str, str | None] = {
    "roomkit.manager": MANAGER,
    "roomkit.concurrency.eventqueue": QUEUE,
    "roomkit.concurrency.turns": LEAF,
    "roomkit.concurrency.worker": LEAF,
    "roomkit.delivery": LEAF,
    "roomkit.metrics": LEAF,
    "roomkit.reaper": LEAF,
    "roomkit.sharing.node": LEAF,
    "roomkit.sharing.desk": LEAF,
    "roomkit.sharing.following": LEAF,
    "roomkit.backends.memory": STORE,
    "readerwriterlock.rwlock": None,
}

#: What may be held when a lock of this rank is taken.
MAY_HOLD: dict[str, frozenset[str]] = {
    ROOM: frozenset(),
    QUEUE: frozenset({ROOM}),
    MANAGER: frozenset(),
    STORE: frozenset(),
    LEAF: frozenset({ROOM, QUEUE, MANAGER}),
}


def check_order(scheduler: Scheduler, lock: Any) -> None:
    """Before a lock is taken: whether it may be, with what this thread holds."""
    for held in scheduler.current.held:
        if held.rank not in MAY_HOLD[lock.rank]:
            scheduler.fail("lock order", f"{lock} is taken while {held} is held")


def check_no_locks(scheduler: Scheduler, what: str) -> None:
    """Before somebody else's code is called."""
    held = scheduler.current.held
    if held:
        scheduler.fail("called under a lock", f"{what} while {', '.join(map(str, held))} is held")


class Lock:
    """``threading.Lock``."""

    __slots__ = ("_owner", "_scheduler", "_waiters", "name", "rank")

    def __init__(self, maker: str | None = None) -> None:
        module = maker if maker is not None else sys._getframe(1).f_globals["__name__"]
        self._scheduler = active()
        self._owner: Task | None = None
        self._waiters: list[Task] = []
        self.name = module.rpartition(".")[2]
        if module.startswith(("roomkit", "readerwriterlock")):
            if module not in RANKS:
                self._scheduler.fail("lock order", f"{module} makes a lock of which tests/simulation knows no rank")
            self.rank = RANKS[module]
        else:
            self.rank = None

    def __str__(self) -> str:
        return f"{self.rank or 'lock'} ({self.name})"

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler = self._scheduler
        if timeout != -1:
            if not blocking or timeout < 0:
                raise ValueError("a timeout that means nothing")
            if timeout > threading.TIMEOUT_MAX:
                raise OverflowError("timeout value is too large")
        if self.rank is not None:
            check_order(scheduler, self)
        scheduler.point("acquire", self)
        me = scheduler.current
        if self._owner is not None:
            if not blocking or timeout == 0:
                return False
            until = None if timeout == -1 else scheduler.now + timeout
            while self._owner is not None:
                self._waiters.append(me)
                woken = scheduler.block(str(self), None if until is None else max(0.0, until - scheduler.now))
                if not woken:
                    self._waiters.remove(me)
                    if self._owner is not None:
                        return False
        self._owner = me
        if self.rank is not None:
            me.held.append(self)
        return True

    def release(self) -> None:
        owner = self._owner
        if owner is None:
            raise RuntimeError("release unlocked lock")
        self._owner = None
        if self.rank is not None:
            owner.held.remove(self)
        scheduler = self._scheduler
        self._wake_one()
        if not scheduler.over:
            scheduler.point("release", self)

    def _wake_one(self) -> None:
        """One of those who still wait may try again. Who has given up in the meantime looks at the lock by itself."""
        waiting = [task for task in self._waiters if task.waits_for is not None]
        if waiting:
            chosen = waiting[int(self._scheduler.rng.random() * len(waiting))] if len(waiting) > 1 else waiting[0]
            self._waiters.remove(chosen)
            self._scheduler.wake(chosen)

    def locked(self) -> bool:
        return self._owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


class Condition:
    """``threading.Condition``, over a :class:`Lock`."""

    def __init__(self, lock: Lock | None = None) -> None:
        self._lock = lock if lock is not None else Lock(sys._getframe(1).f_globals["__name__"])
        self._waiters: list[Task] = []
        self.acquire = self._lock.acquire
        self.release = self._lock.release

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def _check_held(self) -> None:
        if self._lock._owner is not active().current:
            raise RuntimeError("cannot wait on or notify with an un-acquired lock")

    def wait(self, timeout: float | None = None) -> bool:
        self._check_held()
        scheduler = active()
        me = scheduler.current
        self._waiters.append(me)
        # Released without a switch point: on the list of those who wait and without the lock are one step.
        lock = self._lock
        lock._owner = None
        if lock.rank is not None:
            me.held.remove(lock)
        lock._wake_one()
        woken = scheduler.block(f"condition of {lock}", timeout if timeout is None else max(0.0, timeout))
        if not woken and me in self._waiters:
            self._waiters.remove(me)
        lock.acquire()
        return woken

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        scheduler = active()
        until = None if timeout is None else scheduler.now + timeout
        result = predicate()
        while not result:
            left = None if until is None else until - scheduler.now
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result

    def notify(self, n: int = 1) -> None:
        self._check_held()
        scheduler = active()
        for task in self._waiters[:n]:
            scheduler.wake(task)
        del self._waiters[:n]
        scheduler.point("notify", self._lock)

    def notify_all(self) -> None:
        self.notify(len(self._waiters))


class Event:
    """``threading.Event``."""

    def __init__(self) -> None:
        self._condition = Condition(Lock("simulation"))
        self._flag = False

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        with self._condition:
            self._flag = True
            self._condition.notify_all()

    def clear(self) -> None:
        with self._condition:
            self._flag = False

    def wait(self, timeout: float | None = None) -> bool:
        with self._condition:
            return bool(self._condition.wait_for(lambda: self._flag, timeout))


_thread_numbers = itertools.count(1)


class Thread:
    """``threading.Thread``."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        assert target is not None
        self.name = name or f"Thread-{next(_thread_numbers)}"
        self.daemon = bool(daemon)
        self._target = target
        self._args = args
        self._kwargs = kwargs or {}
        self._task: Task | None = None

    def start(self) -> None:
        scheduler = active()
        if self._task is not None:
            raise RuntimeError("threads can only be started once")
        if scheduler.over:
            raise SimulationOver
        self._task = scheduler.spawn(self.name, self._run)
        self._task.thread = self
        scheduler.start_real(self._task)
        scheduler.point("start", self.name)

    def _run(self) -> None:
        self._target(*self._args, **self._kwargs)

    @property
    def ident(self) -> int | None:
        return None if self._task is None else self._task.index + 1

    def waits_for(self, what: str) -> bool:
        """Whether what it waits for begins with this."""
        return self._task is not None and (self._task.waits_for or "").startswith(what)

    @property
    def waits_to_be_woken(self) -> bool:
        """Whether it waits on a condition."""
        return self.waits_for("condition")

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.finished

    def join(self, timeout: float | None = None) -> None:
        scheduler = active()
        if self._task is None:
            raise RuntimeError("cannot join thread before it is started")
        if self._task is scheduler.current:
            raise RuntimeError("cannot join current thread")
        scheduler.point("join", self.name)
        if not self._task.finished and (timeout is None or timeout > 0):
            self._task.joiners.append(scheduler.current)
            scheduler.block(f"the end of {self.name}", timeout)
            if scheduler.current in self._task.joiners:
                self._task.joiners.remove(scheduler.current)


def get_ident() -> int:
    return active().current.index + 1


def current_thread() -> Any:
    return active().current.thread


class Socket:
    """One end of a ``socket.socketpair`` that does not block. What is sent is there at once, and all of it fits."""

    def __init__(self) -> None:
        self._scheduler = active()
        self._scheduler.sockets.append(self)
        self._number = len(self._scheduler.sockets) - 1
        self._received = b""
        self._closed = False
        self._peer: Socket
        self.watcher: Epoll | None = None

    def fileno(self) -> int:
        return -1 if self._closed else self._number

    def setblocking(self, flag: bool) -> None:
        assert not flag, "nothing in a run may block but by the scheduler"

    @property
    def readable(self) -> bool:
        return bool(self._received) or self._peer._closed

    def send(self, data: bytes) -> int:
        self._scheduler.point("send", self._number)
        if self._closed or self._peer._closed:
            raise BrokenPipeError("closed")
        self._peer._received += data
        self._peer._tell()
        return len(data)

    def recv(self, most: int) -> bytes:
        self._scheduler.point("recv", self._number)
        if self._closed:
            raise OSError("closed")
        if not self.readable:
            raise BlockingIOError("there is nothing to be read")
        data, self._received = self._received[:most], self._received[most:]
        return data

    def close(self) -> None:
        self._closed = True
        self._peer._tell()
        if not self._scheduler.over:
            self._scheduler.point("close", self._number)

    def _tell(self) -> None:
        if self.watcher is not None:
            self.watcher.tell()


def socketpair() -> tuple[Socket, Socket]:
    one, other = Socket(), Socket()
    one._peer, other._peer = other, one
    return one, other


class Epoll:
    """``select.epoll`` for one thread: level-triggered, and only for reading, since everything can be sent."""

    def __init__(self) -> None:
        self._watched: dict[int, Socket] = {}
        self._waiter: Task | None = None

    def register(self, fd: int, mask: int) -> None:
        watched = self._watched[fd] = active().sockets[fd]
        watched.watcher = self

    def modify(self, fd: int, mask: int) -> None:
        assert fd in self._watched

    def unregister(self, fd: int) -> None:
        self._watched.pop(fd).watcher = None

    def close(self) -> None:
        self._watched.clear()

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        scheduler = active()
        scheduler.point("poll")
        if timeout > 0 and not self._ready():
            self._waiter = scheduler.current
            scheduler.block("poll", timeout)
            self._waiter = None
        return [(fd, 1) for fd in self._ready()[:most]]

    def _ready(self) -> list[int]:
        return [fd for fd, watched in self._watched.items() if watched.readable]

    def tell(self) -> None:
        """One of those that it watches has become readable."""
        if self._waiter is not None:
            active().wake(self._waiter)


class Namespace:
    """Stands for a module. What it does not have is an error, so nothing real slips through."""

    def __init__(self, real: Any, **names: Any) -> None:
        self.__real = real
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the simulation has no {self.__real.__name__}.{name}: add it to tests/simulation/primitives.py"
        )


def clock() -> float:
    return active().clock()


def wall() -> float:
    return active().wall()


def sleep(seconds: float) -> None:
    active().sleep(seconds)


THREADING = Namespace(
    threading,
    Lock=Lock,
    Condition=Condition,
    Event=Event,
    Thread=Thread,
    get_ident=get_ident,
    current_thread=current_thread,
    TIMEOUT_MAX=threading.TIMEOUT_MAX,
)
SELECT = Namespace(select, epoll=Epoll)
SELECTORS = Namespace(selectors)
SOCKET = Namespace(socket, socketpair=socketpair)
TIME = Namespace(time, monotonic=clock, perf_counter=clock, time=wall, sleep=sleep)


@contextmanager
def held_as(lock: Any) -> Iterator[None]:
    """Have ``lock`` be among those that this thread holds."""
    held = active().current.held
    held.append(lock)
    try:
        yield
    finally:
        held.remove(lock)
