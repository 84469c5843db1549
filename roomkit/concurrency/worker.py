"""Threads on demand: a worker that parks when idle, and a small pool with a bounded queue.

Both are daemons so that a hook that never returns cannot keep the process from ending, and both are joined by their
owner, with a bound.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

log = logging.getLogger("roomkit.worker")


class Worker:
    """Runs ``work`` on a thread of its own whenever :meth:`wake` was called since the last run began.

    The thread is started by the first ``wake`` and ends after ``linger`` seconds without one, so an idle worker costs
    no thread. ``work`` is never run by two threads at once.

    Monitor: ``_lock`` guards ``_wanted``, ``_stopping``, ``_thread`` and ``_condition``; the thread waits on the
    condition, ``wake`` and ``stop`` notify. ``work`` runs without it. The condition, several times the size of all the
    rest, exists from the first thread on: most workers of a large server never have one.

    Thread safety: full. Neither ``wake`` nor ``request_stop`` blocks.
    """

    def __init__(self, name: str, work: Callable[[], None], linger: float = 5.0) -> None:
        self.name = name
        self._work = work
        self._linger = linger
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._condition: threading.Condition | None = None
        self._wanted = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Have ``work`` run once more, soon. After a stop: nothing."""
        with self._lock:
            if self._stopping:
                return
            self._wanted = True
            if self._thread is None:
                if self._condition is None:
                    self._condition = threading.Condition(self._lock)
                thread = threading.Thread(target=self._run, args=(self._condition,), name=self.name, daemon=True)
                thread.start()  # may raise; then there is none, and the next wake tries again
                self._thread = thread
            else:
                self._notify_locked()

    def _notify_locked(self) -> None:
        if self._condition is not None:
            self._condition.notify()

    @property
    def running(self) -> bool:
        """Whether there is a thread at this moment."""
        return self._thread is not None

    def is_current(self) -> bool:
        """Whether the caller is this worker's thread."""
        return self._thread is threading.current_thread()

    def retire(self) -> None:
        """From now on park at once when idle; another ``wake`` is still served."""
        with self._lock:
            self._linger = 0.0
            self._notify_locked()

    def request_stop(self) -> None:
        """Let the thread end after the run that is under way and one more if it was asked for."""
        with self._lock:
            self._stopping = True
            self._notify_locked()

    def stop(self, timeout: float) -> bool:
        """:meth:`request_stop`, then wait up to ``timeout`` seconds for the thread; False if it still runs.

        Called by the worker's own thread it does not wait.
        """
        self.request_stop()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _run(self, condition: threading.Condition) -> None:
        try:
            self._serve(condition)
        except BaseException:  # no memory for the wait, or an exception that somebody put into this thread
            with self._lock:
                self._thread = None
                wanted = self._wanted and not self._stopping
            log.exception("%s died; it is started again %s", self.name, "now" if wanted else "by the next wake")
            if wanted:
                self.wake()

    def _serve(self, condition: threading.Condition) -> None:
        while True:
            with condition:
                if not self._wanted and not self._stopping and self._linger:
                    condition.wait(self._linger)
                if not self._wanted:  # stopped, or nothing came: park
                    self._thread = None
                    return
                self._wanted = False
            try:
                self._work()
            except BaseException:  # SystemExit too: a dead thread would be taken for a busy one
                log.exception("%s failed and goes on", self.name)


class PoolFull(Exception):
    """The pool's queue has no place."""


class WorkerPool:
    """A fixed number of threads that run jobs in the order of submission, started with the first job.

    Thread safety: full. ``submit`` never blocks.
    """

    def __init__(self, name: str, threads: int, backlog: int) -> None:
        self.name = name
        self._size = threads
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(backlog)
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._threads: list[threading.Thread] = []
        self._stopped = False

    def submit(self, job: Callable[[], None]) -> None:
        """Run ``job()`` on one of the threads.

        Raises:
            PoolFull: too many jobs wait, or the pool was stopped; the job is not run.
        """
        with self._lock:
            if self._stopped:
                raise PoolFull(f"{self.name} is stopped")
            if len(self._threads) < self._size:
                thread = threading.Thread(target=self._run, name=f"{self.name}-{len(self._threads)}", daemon=True)
                thread.start()
                self._threads.append(thread)
            try:
                self._jobs.put_nowait(job)
            except queue.Full:
                raise PoolFull(f"{self.name}: {self._jobs.maxsize} jobs wait already") from None

    def stop(self, timeout: float) -> bool:
        """Drop what has not begun, wait up to ``timeout`` seconds for what has; False if a thread still runs."""
        with self._lock:
            self._stopped = True
            threads = list(self._threads)
            try:
                while True:
                    self._jobs.get_nowait()
            except queue.Empty:
                pass
            for _ in threads:
                try:
                    self._jobs.put_nowait(None)
                except queue.Full:  # fewer places than threads: the rest is woken by those that end
                    break
        deadline = monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                with suppress(queue.Full):
                    self._jobs.put_nowait(None)  # for the next thread, should there have been no place for its own
                return
            try:
                job()
            except BaseException:  # SystemExit too: the pool would be a thread short for good
                log.exception("a job of %s failed", self.name)
