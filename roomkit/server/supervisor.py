"""Supervisor: ``roomkit serve --workers N``. It starts the workers, starts anew what dies, and stops them.

It holds what must outlive a worker: the listening socket, and both ends of every inbox (``peers.py``). It serves nobody
itself. A worker ends by itself when its supervisor is gone: its standard input then is at its end.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import selectors
import socket
import subprocess  # the workers  # nosec B404
import sys
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from roomkit.server.acceptor import host_in_url, listen
from roomkit.server.process import DRAIN_SLACK
from roomkit.settings import Settings

log = logging.getLogger("roomkit.supervisor")

_GIVE_UP = 3  # times that a worker dies young at the first start
_HEALTHY = 10.0  # seconds after which a worker that dies is started anew at once
_BACKOFF = (0.0, 0.5, 1.0, 2.0, 5.0)  # seconds before the next start of one that keeps dying
_KILL_TIMEOUT = 5.0


class Supervisor:
    """The processes of one server.

    Its thread, ``roomkit-supervisor``, is a daemon, started by :meth:`start` and joined by :meth:`stop`.

    Raises:
        PortInUse: the port cannot be had; nothing is held.

    Thread safety: :meth:`start`, :meth:`stop` and the context from one thread at a time.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._listening = listen(settings.host, settings.port)
        self._inboxes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(settings.workers)]
        self._workers = [_Worker(n) for n in range(settings.workers)]
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._watch, name="roomkit-supervisor", daemon=True)
        self._notify: Callable[[], None] | None = None
        self._ready: set[int] = set()  # changed by the supervisor's thread alone
        self._stopping = False

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *exc: object) -> None:
        """Kill what still runs, and let go of everything."""
        self._stopping = True
        self._wake.send(b"\0")
        if self._thread.ident is not None:
            self._thread.join(_KILL_TIMEOUT)
        for worker in self._workers:
            worker.kill()
        for pair in (*self._inboxes, (self._wake, self._woken), (self._listening,)):
            for sock in pair:
                sock.close()

    @property
    def url(self) -> str:
        """What a browser opens."""
        host, port = self._listening.getsockname()[:2]
        return f"http://{host_in_url(host)}:{port}"

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that run, by number."""
        return [worker.process.pid for worker in self._workers if worker.process is not None]

    def start(self, notify: Callable[[], None]) -> None:
        """Start every worker. ``notify`` is called when all of them serve for the first time, or one cannot be started;
        :attr:`ready` tells which.
        """
        self._notify = notify
        for worker in self._workers:
            self._spawn(worker)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether every worker serves."""
        return len(self._ready) == len(self._workers)

    def stop(self) -> bool:
        """Have every worker drain, and wait for it, at most ``drain_timeout`` and some seconds.

        Returns:
            Whether all of them ended well.
        """
        self._stopping = True
        self._wake.send(b"\0")
        self._thread.join(_KILL_TIMEOUT)
        deadline = monotonic() + self._settings.drain_timeout + DRAIN_SLACK
        for worker in self._workers:
            worker.ask_to_stop()
        ended = [worker.wait(deadline - monotonic()) for worker in self._workers]
        return all(ended)

    def _spawn(self, worker: _Worker) -> None:
        settings = dataclasses.asdict(share_of(self._settings))
        inbox = self._inboxes[worker.number][0]
        senders = [pair[1] for pair in self._inboxes]
        worker.spawn(settings, self._listening, inbox, senders)
        log.info("worker %d runs as process %d", worker.number, worker.process.pid if worker.process else 0)

    # The supervisor's thread.

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for worker in self._workers:
                worker.watch(selector)
            while not self._stopping:
                due = [worker.start_at for worker in self._workers if worker.process is None]
                timeout = max(0.0, min(due) - monotonic()) if due else None
                for key, _ in selector.select(timeout):
                    if isinstance(key.data, _Worker):
                        self._hear(key.data, selector)
                for worker in self._workers:
                    if worker.process is None and monotonic() >= worker.start_at and not self._stopping:
                        self._spawn(worker)
                        worker.watch(selector)

    def _hear(self, worker: _Worker, selector: selectors.BaseSelector) -> None:
        """A worker says that it serves, or has ended."""
        if worker.said_something():
            self._ready.add(worker.number)
            if self.ready:
                self._tell()
            return
        worker.unwatch(selector)
        status = worker.reap()
        self._ready.discard(worker.number)
        delay = worker.delay_next_start()
        log.error(
            "worker %d ended with status %d; its rooms are gone; it is started again in %g s",
            worker.number,
            status,
            delay,
        )
        if worker.failures == _GIVE_UP:
            self._tell()

    def _tell(self) -> None:
        notify, self._notify = self._notify, None
        if notify is not None:
            notify()


class _Worker:
    """One worker's process, and how it did."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.start_at = 0.0
        self.failures = 0

    def spawn(
        self, settings: dict[str, Any], listening: socket.socket, inbox: socket.socket, senders: list[socket.socket]
    ) -> None:
        """Start the process; it says ``ready`` on its standard output when it serves."""
        descriptors = [sock.fileno() for sock in (listening, inbox, *senders)]
        self.started_at = monotonic()
        self.process = subprocess.Popen(  # this interpreter, fixed arguments, no shell  # nosec B603
            [sys.executable, "-m", "roomkit.server.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=descriptors,
        )
        orders = {"number": self.number, "settings": settings, "descriptors": descriptors}
        assert self.process.stdin is not None
        try:  # by a pipe: other users can read a command line, and there may be a token in it
            self.process.stdin.write(json.dumps(orders).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it is dead already, as its output will say
            pass

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Look out for its word, and its end."""
        assert self.process is not None
        assert self.process.stdout is not None
        selector.register(self.process.stdout, selectors.EVENT_READ, self)

    def unwatch(self, selector: selectors.BaseSelector) -> None:
        """The opposite."""
        assert self.process is not None
        assert self.process.stdout is not None
        selector.unregister(self.process.stdout)

    def said_something(self) -> bool:
        """Read its output; False: it is at its end, and so is the worker."""
        assert self.process is not None
        assert self.process.stdout is not None
        return bool(self.process.stdout.read1(64))  # type: ignore[attr-defined]

    def delay_next_start(self) -> float:
        """Set ``start_at``, later each time it dies young; the delay in seconds."""
        self.failures = 0 if monotonic() - self.started_at >= _HEALTHY else self.failures + 1
        delay = _BACKOFF[min(self.failures, len(_BACKOFF) - 1)]
        self.start_at = monotonic() + delay
        return delay

    def ask_to_stop(self) -> None:
        """Have it drain."""
        process = self.process
        if process is not None:
            process.terminate()

    def wait(self, timeout: float) -> bool:
        """Wait for its end; whether it ended well."""
        process = self.process
        if process is None:
            return True
        try:
            return process.wait(max(0.0, timeout)) == 0
        except subprocess.TimeoutExpired:
            return False

    def kill(self) -> None:
        """End it now, if it still runs."""
        if self.process is not None:
            self.process.kill()
            self.reap()

    def reap(self) -> int:
        """Its status, once its output has ended or it was killed; its pipes are closed."""
        process, self.process = self.process, None
        assert process is not None
        try:
            status = process.wait(_KILL_TIMEOUT)
        except subprocess.TimeoutExpired:  # it closed its output and goes on
            process.kill()
            status = process.wait(_KILL_TIMEOUT)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass
        return status


def share_of(settings: Settings) -> Settings:
    """The settings of one worker: bounds on all rooms and connections are shared out, those on one address are not,
    because all its connections may be for one room.
    """
    workers = settings.workers
    return dataclasses.replace(
        settings,
        max_rooms=-(-settings.max_rooms // workers),
        max_connections=-(-settings.max_connections // workers),
    )
