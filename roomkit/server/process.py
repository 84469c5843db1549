"""What the process of a server does besides serving: it waits for signals, and drains."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

log = logging.getLogger("roomkit")

DRAIN_SLACK = 5.0  # seconds past the timeout of a drain until the process ends in any case


def drain(stop: Callable[[], object], timeout: float, signals: Signals) -> bool:
    """Run ``stop``, which takes at most about ``timeout`` seconds; a signal meanwhile, and nobody waits for it.

    Returns:
        Whether it came to its end.
    """
    log.info("draining for at most %g s; a second signal stops at once", timeout)
    stopped = threading.Event()

    def run() -> None:
        try:
            stop()
            stopped.set()
        finally:
            signals.wake()

    threading.Thread(target=run, name="roomkit-drain", daemon=True).start()  # not joined: ended with the process
    signals.wait(timeout + DRAIN_SLACK)
    if not stopped.is_set():
        log.warning("stopped before everything was drained")
    return stopped.is_set()


class Signals:
    """SIGINT and SIGTERM from the first line on, as bytes in a pipe.

    Setting a `threading.Event` in a handler can hang: the handler runs in the main thread, between any two
    instructions, and so also where that thread holds the event's lock because it begins to wait.

    Thread safety: `wake` from any thread; the rest from the main thread.
    """

    def __init__(self) -> None:
        self.came = False  # whether there was any
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)

    def __enter__(self) -> Signals:
        signal.set_wakeup_fd(self._sender.fileno())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)  # has Python write to the wake-up file, and nothing more
        return self

    def __exit__(self, *exc: object) -> None:
        signal.set_wakeup_fd(-1)
        self._receiver.close()
        self._sender.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.came = True

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the next signal or `wake`, at most ``timeout`` seconds."""
        self._receiver.settimeout(timeout)
        try:
            self._receiver.recv(1)
        except TimeoutError:
            pass

    def wake(self) -> None:
        """End the wait."""
        try:
            self._sender.send(b"\0")
        except OSError:  # closed: nobody waits any more
            pass
