"""The I/O thread: epoll, timers, and the rooms whose connections it owns.

One turn of the loop, in this order:

1. wait for sockets, and handle each that is ready (messages are parsed and carried out here); while there is much to
   do, gather half a millisecond's worth of it first: a turn costs less than being woken for each message;
2. run what other threads asked for, and the timers that are due;
3. drain every room that was touched: its events are encoded and framed once, and written at once to each connection
   for which nothing else waits; for the others they go into the outbox;
4. flush every outbox: what the rooms sent, then the replies to the connection's own messages, then, if it is to be
   closed, the close frame, all in one write.

So an operation costs no hand-over between threads, its events reach its sender before its acknowledgement does, and a
connection costs one system call a turn however much there is to say. Nothing in here blocks but the wait in step 1.

Whatever a handler, a call or a room raises, SystemExit too, is its own affair: it is logged, and the turn goes on. A
thread that ended would leave every connection of it without an answer.
"""

from __future__ import annotations

import logging
import select
import selectors
import socket
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Hashable
from math import ceil, inf
from time import monotonic, sleep
from typing import Any, Protocol
from weakref import ref

from roomkit.core.expiry import DeadlineHeap

log = logging.getLogger("roomkit.reactor")

READ = 1
WRITE = 4
_MAX_WAIT = 60.0
#: Sockets handled in one turn. Under overload every socket is always ready; a turn without a bound would grow with what
#: arrives during the last one, and nothing would be delivered in the meantime.
_MAX_READY = 32
#: A thread that was woken within so many seconds of falling asleep, with few sockets ready, is busy: before it looks
#: again it lets more of them become ready for _GATHER seconds. At 8,000 messages a second to rooms of four that is a
#: third less CPU, most of it the price of falling asleep and of being woken. Who is woken less often looks at once. So
#: does who has much to do: the last turn and the pause after it take at most _PERIOD together, since a pause is time in
#: which nothing is done, and near its limit a thread would fall behind for it.
_BUSY = 0.001
_GATHER = 0.0005
_PERIOD = 0.0013
_FEW = 16
#: Upper bounds, in seconds, of the buckets in which turns are counted by the time that they took.
TURN_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_AFTER_FAILURE = 0.05  # seconds between a turn that failed and the next one
_MAX_ROUNDS = 16  # of steps 3 and 4 in one turn: a drain may drop a connection, which touches the room again


class Handler(Hashable, Protocol):
    """Something with a socket on the reactor. Every method is called by the reactor's thread."""

    def on_io(self, mask: int) -> None:
        """The socket is ready: WRITE alone says that only for writing; with any other bit recv tells what there is."""

    def on_deadline(self, now: float) -> None:
        """A deadline set with :meth:`Reactor.set_deadline` has passed."""

    def flush(self) -> None:
        """Write what is to be written."""

    def abort(self) -> None:
        """Something went wrong with this one: close it at once."""


class Visited(Hashable, Protocol):
    """Something that is visited in rounds, by the reactor's thread."""

    def on_visit(self, now: float) -> None:
        """A moment set with :meth:`Reactor.visit` has come."""

    def abort(self) -> None:
        """Something went wrong with this one: close it at once."""


class Reactor:
    """One I/O thread.

    Thread safety: :meth:`call`, :meth:`stop`, :meth:`is_current` from any thread; everything else from its own.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.now = monotonic()
        # How long turns took, the wait in step 1 left out: how many up to each of TURN_BOUNDS or longer, and in all.
        # Written by the reactor's thread, read by whoever scrapes.
        self.turn_counts = [0] * (len(TURN_BOUNDS) + 1)
        self.turn_seconds = 0.0
        self.turn_errors = 0
        # Made by start(), so that a server that does not get its port holds nothing.
        self._poller: _EpollPoller | _SelectorPoller
        self._wake_receiver: socket.socket
        self._wake_sender: socket.socket
        self._wake_fd = -1
        self._handlers: dict[int, Handler] = {}
        self._deadlines: DeadlineHeap[Handler] = DeadlineHeap()
        # Rounds: who is to be visited at a moment that many share, by that moment, and the moment by who.
        self._rounds: dict[float, _Round] = {}
        self._round_of: dict[Hashable, float] = {}
        self._next_deadline = inf  # no deadline is earlier; there may be none then any more
        self._gather = False  # before the next look
        self._dirty: list[Handler] = []
        self._touched: list[LoopBroadcaster] = []
        # From other threads; both are atomic, and a wake too many does no harm.
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_sent = True  # before the start there is nobody to wake
        self._stopping = False
        self._ident: int | None = None  # of the thread, while it runs
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    # Any thread.

    def start(self) -> None:
        """Start the thread: a daemon, joined by :meth:`stop`."""
        self._poller = _EpollPoller() if hasattr(select, "epoll") else _SelectorPoller()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._poller.register(self._wake_receiver.fileno(), READ)
        self._wake_fd = self._wake_receiver.fileno()
        self._wake_sent = False
        self._thread.start()

    def is_current(self) -> bool:
        """Whether the caller is this thread."""
        return self._ident == threading.get_ident()

    def call(self, function: Callable[[], None]) -> None:
        """Have ``function`` run on the thread, soon. Never blocks; after the stop nothing happens."""
        self._calls.append(function)
        self._wake()

    def _wake(self) -> None:
        if not self._wake_sent:
            self._wake_sent = True
            try:
                self._wake_sender.send(b"\0")
            except OSError:  # full (then it wakes anyway) or closed (then there is nobody to wake)
                pass

    def run_and_wait(self, function: Callable[[], None], timeout: float) -> bool:
        """Have ``function`` and a whole turn after it run; wait at most ``timeout`` seconds. False: it did not."""
        if not self._thread.is_alive():
            return False
        done = threading.Event()

        def then() -> None:
            function()
            self._calls.append(done.set)  # the turn after: what the function caused has been flushed by then
            self._wake()

        self.call(then)
        return done.wait(timeout)

    def stop(self, timeout: float) -> bool:
        """End the thread after its turn, abort what is left, wait at most ``timeout`` seconds; False: it still runs."""
        self._stopping = True
        self._wake()
        if self._thread.ident is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # The reactor's thread.

    def register(self, fd: int, handler: Handler, mask: int = READ) -> None:
        """Watch a socket."""
        self._poller.register(fd, mask)
        self._handlers[fd] = handler

    def replace(self, fd: int, handler: Handler) -> None:
        """Another handler for a socket that is watched (an upgraded connection)."""
        self._handlers[fd] = handler

    def modify(self, fd: int, mask: int) -> None:
        """Watch for something else."""
        self._poller.modify(fd, mask)

    def unregister(self, fd: int, handler: Handler) -> None:
        """Forget a socket and its deadline; before it is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._poller.unregister(fd)
        self._deadlines.discard(handler)
        self._leave_round(handler)

    def set_deadline(self, handler: Handler, deadline: float) -> None:
        """Call ``handler.on_deadline`` then, or at an earlier one that it has."""
        known = self._deadlines.get(handler)
        if known is None or deadline < known:
            self._deadlines.set(handler, deadline)
            if deadline < self._next_deadline:
                self._next_deadline = deadline

    def call_later(self, delay: float, function: Callable[[], None]) -> None:
        """Run ``function`` after ``delay`` seconds, unless the thread has ended by then."""
        self.set_deadline(_Later(function), self.now + delay)

    def visit(self, handler: Visited, at: float, step: float) -> None:
        """Call ``handler.on_visit`` at the first multiple of ``step`` seconds not before ``at``; instead of one before.

        For what thousands wait for at about the same time: a deadline of its own for each costs several times as much.
        """
        self._leave_round(handler)
        moment = ceil(at / step) * step
        self._round_of[handler] = moment
        going = self._rounds.get(moment)
        if going is None:
            going = self._rounds[moment] = _Round(lambda: self._go_round(moment))
            self.set_deadline(going, moment)
        going.visited[handler] = None

    def _leave_round(self, handler: Visited | Handler) -> None:
        moment = self._round_of.pop(handler, None)
        going = None if moment is None else self._rounds.get(moment)
        if moment is not None and going is not None:
            del going.visited[handler]
            if not going.visited:
                del self._rounds[moment]
                self._deadlines.discard(going)

    def _go_round(self, moment: float) -> None:
        going = self._rounds.pop(moment, None)
        if going is None:  # everybody has left it since it was found due, in this very turn
            return
        for handler in going.visited:
            if self._round_of.get(handler) == moment:  # not unregistered by a visit before
                del self._round_of[handler]
                try:
                    handler.on_visit(self.now)
                except BaseException:
                    self._failed(handler)

    def clear_deadline(self, handler: Handler) -> None:
        """Forget a handler's deadline."""
        self._deadlines.discard(handler)

    def mark_dirty(self, handler: Handler) -> None:
        """Flush this handler at the end of the turn. The handler sees to it that it asks once."""
        self._dirty.append(handler)

    def handlers(self) -> list[Handler]:
        """Everything with a socket here."""
        return list(self._handlers.values())

    def _run(self) -> None:
        self._ident = threading.get_ident()
        try:
            while not self._stopping:
                try:
                    self._turn()
                except BaseException:
                    self._turn_failed()
        finally:
            self._close()

    def _turn_failed(self) -> None:
        """The loop itself failed, not a handler: nobody else serves these connections, so it goes on, at a bounded
        pace. What was touched or is dirty still is."""
        self.turn_errors += 1
        log.critical("a turn of %s failed; it goes on", self.name, exc_info=True)
        sleep(_AFTER_FAILURE)

    def _turn(self) -> None:
        asleep = monotonic()
        wait = self._wait_time(asleep)
        if self._gather and wait > _GATHER:
            pause = min(_GATHER, self.now + _PERIOD - asleep)
            if pause > 0.0:
                sleep(pause)
                wait -= pause
        ready = self._poller.poll(wait)
        self.now = now = monotonic()
        self._gather = now - asleep < _BUSY and 0 < len(ready) < _FEW
        handlers = self._handlers
        for fd, mask in ready:
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler.on_io(mask)
                except BaseException:
                    self._failed(handler)
            elif fd == self._wake_fd:
                # In this order. A call before the second line finds the flag set and sends nothing: it is made below.
                # One after it sends a byte, which is not read here. The other way round that byte could be read here
                # and the flag stay set: nobody would ever wake this thread again.
                self._wake_receiver.recv(4096)
                self._wake_sent = False
        if self._calls:
            self._make_calls()
        if now >= self._next_deadline:
            self._meet_deadlines()
        for _ in range(_MAX_ROUNDS):
            if self._touched:
                self._drain()
            elif self._dirty:
                self._flush()
            else:
                break
        took = monotonic() - now
        self.turn_seconds += took
        self.turn_counts[bisect_left(TURN_BOUNDS, took)] += 1

    def _wait_time(self, now: float) -> float:
        if self._calls or self._touched or self._dirty:
            return 0.0
        wait = self._next_deadline - now
        return _MAX_WAIT if wait > _MAX_WAIT else wait if wait > 0.0 else 0.0

    def _make_calls(self) -> None:
        for _ in range(len(self._calls)):
            try:
                self._calls.popleft()()
            except BaseException:
                log.exception("a call on %s failed", self.name)

    def _meet_deadlines(self) -> None:
        for handler in self._deadlines.pop_due(self.now):
            try:
                handler.on_deadline(self.now)
            except BaseException:
                self._failed(handler)
        deadline = self._deadlines.next_deadline()
        self._next_deadline = inf if deadline is None else deadline

    def _drain(self) -> None:
        touched, self._touched = self._touched, []
        for broadcaster in touched:
            try:
                broadcaster.run()
            except BaseException:
                log.exception("draining room %s failed", broadcaster.room_id)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for handler in dirty:
            try:
                handler.flush()
            except BaseException:
                self._failed(handler)

    def _failed(self, handler: Handler | Visited) -> None:
        log.exception("a connection failed and is closed")
        try:
            handler.abort()
        except BaseException:
            log.exception("closing it failed as well")

    def _close(self) -> None:
        for handler in list(self._handlers.values()):
            try:
                handler.abort()
            except BaseException:
                log.exception("closing a connection failed")
        self._drain()
        self._poller.close()
        self._wake_receiver.close()
        self._wake_sender.close()


class _Later:
    """A call to be made by the clock: a handler with a deadline and no socket."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def on_io(self, mask: int) -> None:
        """Never: it has no socket."""

    def on_deadline(self, now: float) -> None:
        """See Handler."""
        self._function()

    def flush(self) -> None:
        """See Handler."""

    def abort(self) -> None:
        """See Handler."""


class _Round(_Later):
    """A moment at which many are visited, in the order in which they asked."""

    __slots__ = ("visited",)

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__(function)
        self.visited: dict[Any, None] = {}


class LoopBroadcaster:
    """A room's broadcaster on an I/O thread: drains at the end of the turn in which the room was touched.

    It holds ``drain``, a method, weakly while there is nothing to do, and so leaves no reference cycle behind.
    """

    __slots__ = ("_asked", "_drain", "_draining", "_due", "_owner", "_reactor", "room_id")

    def __init__(self, reactor: Reactor, room_id: str, drain: Callable[[], None]) -> None:
        self.room_id = room_id
        self._reactor = reactor
        method: Any = drain
        self._drain: Callable[[Any], None] = method.__func__
        self._owner = ref(method.__self__)
        # Written by the reactor's thread alone. Set: the room is among the touched ones. Cleared before the drain:
        # whoever sees it set has its event drained later.
        self._due: object = None
        # Set by another thread, which makes the call after that; cleared by the call. The reactor's thread must not
        # rely on it: the other may dawdle in between, and an event is to be out before its sender's answer.
        self._asked: object = None
        self._draining = False

    def wake(self) -> None:
        """See Broadcaster."""
        if self._due is not None:
            return
        reactor = self._reactor
        if reactor._ident == threading.get_ident():
            self._due = self._owner()
            reactor._touched.append(self)
        elif self._asked is None:
            self._asked = self._owner()
            try:
                reactor.call(self._touch)
            except MemoryError:  # the next one tries again
                self._asked = None
                raise

    def _touch(self) -> None:
        if self._due is None:
            self._due = self._owner()
            self._reactor._touched.append(self)
        self._asked = None  # afterwards, so that stop() sees one or the other

    def run(self) -> None:
        """Drain; the reactor's thread."""
        owner = self._due
        self._draining = True  # before the next line, so that stop() sees one or the other
        self._due = None
        try:
            if owner is not None:
                self._drain(owner)
        finally:
            self._draining = False

    def is_current(self) -> bool:
        """See Broadcaster."""
        return self._reactor.is_current()

    def retire(self) -> None:
        """See Broadcaster: there is no thread of the room's own."""

    def request_stop(self) -> None:
        """See Broadcaster: there is no thread of the room's own."""

    def stop(self, timeout: float) -> bool:
        """See Broadcaster: what is queued is delivered by the end of the turn that this waits for."""
        if self._reactor.is_current():
            return True
        if self._asked is None and self._due is None and not self._draining:  # in this order, which is that of events
            return True
        return self._reactor.run_and_wait(self.wake, timeout)  # who has set _asked may not have made its call yet


class _EpollPoller:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.register = self._epoll.register
        self.modify = self._epoll.modify
        self.unregister = self._epoll.unregister
        self.close = self._epoll.close

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        # EPOLLIN is 1 and EPOLLOUT 4; EPOLLERR and EPOLLHUP (8, 16) alone are taken as readable: recv says what is
        # wrong.
        return self._epoll.poll(timeout, _MAX_READY)


class _SelectorPoller:
    """For systems without epoll."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.unregister = self._selector.unregister
        self.close = self._selector.close

    @staticmethod
    def _events(mask: int) -> int:
        return (selectors.EVENT_READ if mask & READ else 0) | (selectors.EVENT_WRITE if mask & WRITE else 0)

    def register(self, fd: int, mask: int) -> None:
        self._selector.register(fd, self._events(mask))

    def modify(self, fd: int, mask: int) -> None:
        self._selector.modify(fd, self._events(mask))

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        found = []
        for key, events in self._selector.select(timeout)[:_MAX_READY]:
            mask = (READ if events & selectors.EVENT_READ else 0) | (WRITE if events & selectors.EVENT_WRITE else 0)
            found.append((key.fd, mask))
        return found
