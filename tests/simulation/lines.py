"""The server's side of a simulated world: I/O threads, and the clients' lines to them.

The threads are roomkit's own (``Reactor``), over simulated sockets. A line stands for a WebSocket: what its client asks
for is carried out by the room's I/O thread, and answered when that thread flushes, behind the events.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import roomkit.server.reactor
from roomkit import Room, RoomBusy, RoomkitError
from roomkit.core.events import CRITICAL_TYPES
from roomkit.server.reactor import LoopBroadcaster, Reactor

from . import primitives as p

if TYPE_CHECKING:
    from .actors import Wire
    from .world import World

#: Virtual seconds after which a connection's loss that a room was too busy for is told to it again.
RETRY = 0.5
#: How often a line is looked at, so that a client that has vanished without a word is noticed.
HEARTBEAT = 3.0


class Loops:
    """The I/O threads of a world, as ``roomkit.server.Server`` has them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.reactors: list[Reactor] = []
        self.open = False  # clients may come over a line

    def broadcaster(self, room_id: str, drain: Callable[[], None]) -> LoopBroadcaster:
        return LoopBroadcaster(self.of(room_id), room_id, drain)

    def of(self, room_id: str) -> Reactor:
        return self.reactors[zlib.crc32(room_id.encode()) % len(self.reactors)]

    def start(self) -> None:
        """In the order of ``Server.start``: the rooms are theirs before they run."""
        knobs = self.world.knobs
        roomkit.server.reactor._MAX_ROUNDS = knobs.max_rounds
        self.reactors = [Reactor(f"roomkit-io-{number}") for number in range(knobs.io_threads)]
        self.world.manager.use_broadcaster(self.broadcaster, 1000.0)
        for reactor in self.reactors:
            reactor.start()
        self.open = True

    def stop(self) -> None:
        for reactor in self.reactors:
            if not reactor.stop(1000.0):
                self.world.scheduler.fail("shutdown", f"{reactor.name} did not end in time")

    def check_idle(self) -> None:
        """Before the clock jumps. A thread that waits for sockets has nothing to do, and one that drains waits for no
        place in a queue: it is the one who makes it."""
        for reactor in self.reactors:
            thread: Any = reactor._thread
            if thread.waits_for("poll"):
                left = len(reactor._calls), len(reactor._touched), len(reactor._dirty)
                if any(left):
                    text = f"{reactor.name} sleeps, with %d calls, %d rooms and %d connections to look at" % left
                    self.world.scheduler.fail("a wake is lost", text)
                self._check_deadline(reactor, thread)
            if thread.waits_for("condition of queue mutex"):
                self.world.scheduler.fail("an I/O thread waits for itself", reactor.name)

    def _check_deadline(self, reactor: Reactor, thread: Any) -> None:
        deadline = reactor._deadlines.next_deadline()
        if deadline is not None and not self.world.late:
            wakes = self.world.scheduler.wakes_at(thread._task)
            if wakes is None or wakes > max(deadline, self.world.scheduler.now) + 0.01:
                self.world.scheduler.fail("an I/O thread oversleeps", f"until {wakes}, its deadline is {deadline}")

    def check_at_work(self, broadcaster: LoopBroadcaster, what: str) -> None:
        """The room's queue is not empty."""
        thread: Any = broadcaster._reactor._thread
        knows = thread._task is not None and not thread.waits_for("poll")
        if broadcaster._asked is None and broadcaster._due is None and not knows:
            self.world.scheduler.fail("a wake is lost", f"{what} is not empty, and its I/O thread does not know")


class Request:
    """What a client asks for, and what came of it."""

    def __init__(self, operation: Callable[[], Any]) -> None:
        self.operation = operation
        self.result: Any = None
        self.error: RoomkitError | None = None
        self.last_seq = 0  # of the events that it made in the line's room
        self.answered = p.Event()


class Line:
    """See the module. The handler of a :class:`Wire` on its room's I/O thread."""

    def __init__(self, world: World, wire: Wire, room: Room) -> None:
        self.world = world
        self.wire = wire
        self.room = room
        self.reactor = world.loops.of(room.id)
        self._client, self._server = p.socketpair()  # each byte in it: one more request
        self._requests: deque[Request] = deque()
        self._done: list[Request] = []
        self._dirty = False
        self._ended = False
        self.reactor.call(self._begin)

    # The client's threads.

    def ask(self, operation: Callable[[], Any]) -> Any:
        """Have it carried out and wait for the answer: what it returned or raised, or None when the line has ended."""
        request = Request(operation)
        self._requests.append(request)
        try:
            self._client.send(b"\0")
        except OSError:
            return None
        request.answered.wait()
        if request.error is not None:
            raise request.error
        return request.result

    def hang_up(self) -> None:
        self._client.close()

    # The I/O thread: what a handler does.

    def _begin(self) -> None:
        self.reactor.register(self._server.fileno(), self)
        self.reactor.visit(self, self.reactor.now + HEARTBEAT, 1.0)

    def on_visit(self, now: float) -> None:
        if self.wire.cut:
            self.lose()
        else:
            self.reactor.visit(self, now + HEARTBEAT, 1.0)

    def on_io(self, mask: int) -> None:
        asked = self._server.recv(4096)
        if not asked:
            self.lose()
            return
        for _ in asked:
            request = self._requests.popleft()
            self.world.made[self.world.scheduler.current] = None
            try:
                request.result = request.operation()
            except RoomkitError as error:
                request.error = error
            made = self.world.made[self.world.scheduler.current]
            if made is not None and made[0] is self.room:
                request.last_seq = made[1]
            self._done.append(request)
        self.mark_dirty()

    def mark_dirty(self) -> None:
        if not self._dirty:
            self._dirty = True
            self.reactor.mark_dirty(self)

    def flush(self) -> None:
        self._dirty = False
        done, self._done = self._done, []
        for request in done:
            if not self.wire.closes:
                self.check_told(request.last_seq)
            request.answered.set()
        if self.wire.closes:
            self._end()

    def check_told(self, seq: int) -> None:
        """docs/protocol.md: the events that an operation caused arrive before its answer."""
        wire = self.wire
        stream = wire.stream
        if not seq or wire.cut or stream is None:
            return
        kept = stream.truth.events[seq - 1].type in CRITICAL_TYPES or not (self.room.dropped or self.room.conflated)
        if stream.last < seq and kept:
            stream.fail("answered too early", f"the answer comes before event {seq}, it was told {stream.last}")

    def lose(self) -> None:
        """The client is gone: a seat that nobody else has taken meanwhile is dropped, if need be later."""
        self.wire.cut = True
        self._end()
        try:
            self.room.remove_connection(self.wire.player.name, self.wire)
        except RoomBusy:
            self.world.outcomes["loss told later"] += 1
            self.reactor.call_later(RETRY, self.lose)

    abort = lose

    def on_deadline(self, now: float) -> None:
        """Never: it has none."""

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self.reactor.unregister(self._server.fileno(), self)
            self._server.close()  # from here on nothing more can be asked
            for request in (*self._done, *self._requests):
                request.answered.set()
