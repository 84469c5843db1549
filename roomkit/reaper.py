"""The reaper: one daemon thread that sleeps until the next deadline and then sweeps (seed, fourth disaster)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("roomkit.reaper")

#: The longest sleep: bounds the harm of a clock that jumps or is driven by hand.
MAX_SLEEP = 60.0
_RETRY = 1.0


class Reaper:
    """Runs ``sweep()`` whenever ``seconds_to_next()`` has passed.

    A daemon, since it must not keep a process alive whose owner forgot it; joined by :meth:`stop`.

    Monitor: ``_condition`` guards ``_woken`` and ``_stopping``; the thread waits on it, :meth:`wake` and :meth:`stop`
    notify. ``sweep`` runs without it.

    Thread safety: full.
    """

    def __init__(self, sweep: Callable[[], object], seconds_to_next: Callable[[], float]) -> None:
        self._sweep = sweep
        self._seconds_to_next = seconds_to_next
        self._condition = threading.Condition(threading.Lock())
        # Guarded by _condition:
        self._woken = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="roomkit-reaper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Look at the deadlines again; never blocks. Within a sweep of its own it does so anyway."""
        if self._thread is threading.current_thread():
            return
        with self._condition:
            self._woken = True
            self._condition.notify()

    def stop(self, timeout: float) -> bool:
        """End the thread and wait for it at most ``timeout`` seconds; False if it still runs."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread is threading.current_thread() or not self._thread.ident:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            try:
                pause = min(MAX_SLEEP, self._seconds_to_next())
            except BaseException:  # an injected clock's, say
                log.exception("the next deadline is not to be had; it is asked for again")
                pause = _RETRY
            with self._condition:
                if pause > 0 and not self._woken and not self._stopping:
                    self._condition.wait(pause)
                if self._stopping:
                    return
                self._woken = False
            try:
                self._sweep()
            except BaseException:  # SystemExit too: without this thread nothing would ever expire
                log.exception("a sweep failed; the next one goes on")
