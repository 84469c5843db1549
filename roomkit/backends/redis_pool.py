"""Pool: connections to one Redis node, for questions and answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis import exceptions as errors

from roomkit.backends.redis_wire import Command, Wire

_FRESH = 0.2  # seconds for which a connection is believed to be there still
_ENDED = (errors.ConnectionError, ConnectionError)


class Pool:
    """See the module. As many connections as threads ask at one time.

    Attributes:
        closed: what is in use is closed when its answer is there, instead of being kept. Only ever set.

    Thread safety: full; ``_free`` is changed in single steps only.
    """

    def __init__(self, make: Callable[[], Wire]) -> None:
        self.closed = False
        self._make = make
        self._free: list[tuple[Wire, float]] = []  # with when it was used; the last one is the next one
        self._pid = os.getpid()

    def ask(self, commands: Sequence[Command], *, repeat: bool) -> list[Any]:
        """The answers to all of them, in one way there and back; a refusal is the exception that tells it.

        Blocks for at most the connection's timeout, from one answer to the next.

        Args:
            repeat: whether they may be carried out twice, where a connection ends that was kept for later.

        Raises:
            redis.exceptions.ConnectionError, TimeoutError, OSError: there is no answer; each may have been carried out
            or not.
        """
        if self._pid != os.getpid():  # these are the parent's, which goes on with them
            self._pid, self._free = os.getpid(), []
        while True:
            kept, used_at = self._take()
            if kept is not None and not repeat and time.monotonic() - used_at > _FRESH and _has_ended(kept):
                kept.close()
                continue
            wire = self._make() if kept is None else kept
            try:
                answers = wire.ask(commands)
            except BaseException as error:
                wire.close()
                if kept is not None and repeat and isinstance(error, _ENDED):
                    continue  # it had ended while nobody used it, as those of a server that was restarted have
                raise
            self._free.append((wire, time.monotonic()))
            if self.closed:
                self.drop()
            return answers

    def _take(self) -> tuple[Wire | None, float]:
        try:
            return self._free.pop()
        except IndexError:
            return None, 0.0

    def drop(self) -> None:
        """Close those that nobody uses now: another server may stand behind the name."""
        while (wire := self._take()[0]) is not None:
            wire.close()

    def close(self) -> None:
        """Keep none any more."""
        self.closed = True
        self.drop()


def _has_ended(wire: Wire) -> bool:
    try:
        return wire.has_input()  # its end, or what nobody has asked for
    except (OSError, ValueError):
        return True
