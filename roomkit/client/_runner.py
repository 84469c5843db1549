"""The thread that runs a client's machine: one loop for its connection, its deadlines and other threads' calls."""

from __future__ import annotations

import contextlib
import logging
import math
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from roomkit.client._link import READ, WRITE, Link, LinkErrors
from roomkit.client._machine import Machine
from roomkit.client._types import BufferFull, ClientError, ConnectionClosed
from roomkit.errors import LOST

log = logging.getLogger("roomkit.client")

#: How long the end of what the server sends is waited for after a close frame, so that it is not reset. Seconds.
_LINGER = 1.0
#: Calls that may wait for the thread, which is only ever slow when a name server is.
_MAX_CALLS = 10_000


class Network(NamedTuple):
    """What the runner needs to know. ``url``: gives the address for the next connection. Seconds, characters."""

    url: Callable[[], str]
    dial_timeout: float
    send_timeout: float
    max_message_size: int
    ssl_context: ssl.SSLContext | None


class Runner:
    """See the module.

    The thread is a daemon, for a client that was forgotten must not keep the process from ending. It ends when the
    machine is closed; :meth:`join` waits for that. Only it touches the machine's methods, once it is started.

    Thread safety: full. Nothing blocks but :meth:`join`.
    """

    def __init__(self, name: str, machine: Machine, network: Network, clock: Callable[[], float]) -> None:
        self.name = name
        self._machine = machine
        self._network = network
        self._clock = clock
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._thread: threading.Thread | None = None
        self._running = False
        self._is_over = False  # it was closed before it was started
        # Guarded by _lock where they change; the thread reads:
        self._calls: deque[Callable[[], None]] = deque()
        self._waker: socket.socket
        self._woken: socket.socket
        # Of the thread alone:
        self._link: Link | None = None

    # Any thread.

    @property
    def started(self) -> bool:
        """Whether there is, or was, a thread."""
        return self._thread is not None

    def is_current(self) -> bool:
        """Whether the caller is this thread."""
        return self._thread is threading.current_thread()

    def start(self) -> None:
        """Start the thread; nothing when it was started before.

        Raises:
            ConnectionClosed: the client has ended.
        """
        with self._lock:
            if self._is_over:
                raise self._machine.ended_error()
            if self._thread is not None:
                return
            self._woken, self._waker = socket.socketpair()
            self._woken.setblocking(False)
            self._waker.setblocking(False)
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._running = True
            try:
                self._thread.start()
            except BaseException:
                self._thread, self._running = None, False
                self._woken.close()
                self._waker.close()
                raise

    def post(self, call: Callable[[], None]) -> ClientError | None:
        """Have ``call`` made on the thread, soon; or why it will not be made."""
        with self._lock:
            if not self._running:
                ended = self._is_over or self._thread is not None
                return self._machine.ended_error() if ended else ConnectionClosed("not started: call connect() first")
            if len(self._calls) >= _MAX_CALLS:
                return BufferFull(f"{_MAX_CALLS} calls wait for the client's thread")
            self._calls.append(call)
            # Under the lock, so that the socket cannot be closed meanwhile; this send never waits.
            with contextlib.suppress(BlockingIOError):  # full: then it wakes anyway
                self._waker.send(b"\0")
        return None

    def close(self) -> None:
        """Have the machine closed; the thread then ends."""
        with self._lock:
            alone = self._thread is None and not self._is_over
            self._is_over = self._is_over or alone
        if alone:  # there is no thread, nor will there be
            self._machine.close(self._clock())
        else:
            self.post(lambda: self._machine.close(self._clock()))

    def join(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the thread to end; False: it still runs. It does not wait for itself."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    # The thread.

    def _run(self) -> None:
        machine = self._machine
        try:
            machine.start(self._clock())
            while machine.connection != "closed":
                if machine.socket is None:
                    self._wait(None, 0, None)
                else:
                    self._serve(machine.socket)
        except BaseException as error:
            log.exception("%s failed", self.name)
            machine.fail(self._clock(), f"the client failed: {error!r}")
        finally:
            with self._lock:
                self._running = False
                self._waker.close()
                self._woken.close()
                calls, self._calls = self._calls, deque()
            for call in calls:
                call()  # each finds the client ended

    def _serve(self, number: int) -> None:
        """Connect, and go on until the machine no longer wants this connection."""
        machine = self._machine
        try:
            link = self._connect(number)
        except _LetGo:
            return
        except LinkErrors as error:
            machine.lost(LOST, str(error) or type(error).__name__, self._clock())
            return
        self._link = link
        try:
            self._take_in(link, number)
            while machine.socket == number:
                stalled_at = None if link.unsent_since is None else link.unsent_since + self._network.send_timeout
                if stalled_at is not None and self._clock() >= stalled_at:
                    machine.lost(LOST, "the network takes nothing", self._clock())
                elif self._wait(link.raw, READ if stalled_at is None else READ | WRITE, stalled_at) or link.broken:
                    link.flush()
                    self._take_in(link, number)
        finally:
            self._link = None
            link.hang_up(machine.close_with, self._linger if machine.connection == "closed" else None)

    def _connect(self, number: int) -> Link:
        def wait(sock: socket.socket, mask: int, timeout: float) -> bool:
            until = self._clock() + timeout
            while True:
                ready = self._wait(sock, mask, until)
                if self._machine.socket != number:
                    raise _LetGo
                if ready or self._clock() >= until:
                    return ready

        network = self._network
        return Link(
            network.url(),
            wait=wait,
            timeout=network.dial_timeout,
            ssl_context=network.ssl_context,
            max_message_size=network.max_message_size,
            clock=self._clock,
        )

    def _take_in(self, link: Link, number: int) -> None:
        """What has come goes to the machine, and what it wants to send to the link."""
        machine = self._machine
        messages = link.read()
        if link.heard:
            machine.heard(self._clock())
        for message in messages:
            machine.received(message, self._clock())
            if machine.socket != number:
                return
        self._transmit()
        if link.ended is not None:
            machine.lost(*link.ended, self._clock())

    def _transmit(self) -> None:
        """Hand the link one message after the other, as long as the network takes them at once."""
        link, outgoing = self._link, self._machine.outgoing
        while link is not None and outgoing and link.unsent_since is None and not link.broken:
            link.transmit(outgoing.popleft())

    def _wait(self, sock: socket.socket | None, mask: int, until: float | None) -> bool:
        """Wait until ``sock`` is ready, something is due or a call came; see to the latter two. Whether it is ready."""
        machine, woken = self._machine, self._woken
        due = [at for at in (until, machine.next_deadline()) if at is not None]
        poll = select.poll()
        poll.register(woken, READ)
        if sock is not None:
            poll.register(sock, mask)
        # Rounded up: a moment late is better than a turn for nothing.
        ready = dict(poll.poll(math.ceil(max(0.0, min(due) - self._clock()) * 1000) if due else None))
        if woken.fileno() in ready:
            woken.recv(4096)
        for _ in range(len(self._calls)):
            self._calls.popleft()()
            self._transmit()
        machine.tick(self._clock())
        self._transmit()
        return sock is not None and sock.fileno() in ready

    @staticmethod
    def _linger(sock: socket.socket) -> None:
        """Read on until the server has closed as well."""
        until = time.monotonic() + _LINGER
        poll = select.poll()
        poll.register(sock, READ)
        while (left := until - time.monotonic()) > 0 and poll.poll(math.ceil(left * 1000)):
            if not sock.recv(65536):
                return


class _LetGo(Exception):
    """The machine does not want the connection any more that is being made."""
