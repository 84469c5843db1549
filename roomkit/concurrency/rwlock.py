"""A reader-writer lock that refuses to hang on itself (seed, second disaster: RWMutex and the upgrade trap).

The lock proper is readerwriterlock's *fair* one: readers share it, and a waiting writer holds back the readers that
come after it, so a read-heavy room cannot starve its writers. This module adds who holds what, so that a thread that
would wait for itself gets a ``LockUpgradeError`` at once instead of hanging for good.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

from readerwriterlock.rwlock import RWLockFair

from roomkit.errors import LockUpgradeError, RoomBusy


class RWLock:
    """Many readers or one writer.

    ``read()`` within ``read()`` of the same thread is allowed and takes nothing new (waiting for a writer that waits
    for this very reader would hang). Asking for ``write()`` while reading or writing, or for ``read()`` while writing,
    raises ``LockUpgradeError``.

    Thread safety: full. Blocking: at most ``timeout`` seconds per call.
    """

    __slots__ = ("_lock", "_readers", "_write", "_writer")

    def __init__(self) -> None:
        self._lock = RWLockFair()
        # One for all who write: its only state, whether it is held, is touched by who holds it.
        self._write = self._lock.gen_wlock()
        # Each thread touches only its own key, so the dict needs no lock of its own: thread id -> depth of reads.
        self._readers: dict[int, int] = {}
        # The writing thread's id; only ever compared by a thread with its own id, so no race can make it match.
        self._writer: int | None = None

    @contextmanager
    def read(self, timeout: float) -> Iterator[None]:
        """Share the lock with other readers.

        Raises:
            RoomBusy: it was not to be had within ``timeout`` seconds; nothing is held.
            LockUpgradeError: this thread holds the write lock; it still does.
        """
        me = get_ident()
        depth = self._readers.get(me, 0)
        if depth:
            self._readers[me] = depth + 1
            try:
                yield
            finally:
                self._readers[me] = depth
            return
        if self._writer == me:
            raise LockUpgradeError("this thread holds the write lock and asks for the read lock")
        reader = self._lock.gen_rlock()
        if not reader.acquire(timeout=timeout):
            raise RoomBusy(f"no read lock within {timeout} s")
        self._readers[me] = 1
        try:
            yield
        finally:
            del self._readers[me]
            reader.release()

    def refuse_upgrade(self) -> None:
        """Raise what :meth:`acquire_write` would, for a caller that has to wait for something else first.

        Raises:
            LockUpgradeError: this thread reads or writes already, and still does.
        """
        me = get_ident()
        if me in self._readers:
            raise LockUpgradeError(
                "this thread holds the read lock and asks for the write lock: leave the read block first, "
                "then check again what was read"
            )
        if self._writer == me:
            raise LockUpgradeError("this thread holds the write lock and asks for it again")

    def acquire_write(self, timeout: float) -> None:
        """Take the lock alone; :meth:`release_write` gives it back.

        Raises:
            RoomBusy: it was not to be had within ``timeout`` seconds; nothing is held.
            LockUpgradeError: this thread reads or writes already, and still does.
        """
        me = get_ident()
        if me in self._readers or self._writer == me:
            self.refuse_upgrade()
        if not self._write.acquire(True, timeout):
            raise RoomBusy(f"no write lock within {timeout} s")
        self._writer = me

    def release_write(self) -> None:
        """Give the lock back. Only for the thread that holds it."""
        self._writer = None
        self._write.release()

    @contextmanager
    def write(self, timeout: float) -> Iterator[None]:
        """:meth:`acquire_write` and :meth:`release_write` as a block."""
        self.acquire_write(timeout)
        try:
            yield
        finally:
            self.release_write()
