"""Turns: of many threads that would do the same, one does it, and the others wait for their turn, not for ever."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class Turns:
    """See the module. No lock is held during a turn, so anything may be called in it.

    Monitor: ``_condition`` guards ``_taken``; whoever waits for a key waits on it, and the end of a turn notifies all.

    Thread safety: full.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        # Guarded by _condition:
        self._taken: set[Hashable] = set()

    @contextmanager
    def take(self, key: Hashable, timeout: float) -> Iterator[bool]:
        """Within the block no other thread has this key's turn; gives whether that is so.

        Blocks for at most ``timeout`` seconds. False: somebody else has it still; the block is run all the same.
        """
        with self._condition:
            mine = self._condition.wait_for(lambda: key not in self._taken, timeout)
            if mine:
                self._taken.add(key)
        try:
            yield mine
        finally:
            if mine:
                with self._condition:
                    self._taken.discard(key)
                    self._condition.notify_all()
