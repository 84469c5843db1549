"""Pool: connections to one Redis node, for questions and answers.

The driver makes the connections and knows the protocol. What it does around a pipeline (pools, retries, callbacks for
each answer) costs twice as much as the exchange itself, for every commit and every letter.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis import Connection
from redis import exceptions as errors

_FRESH = 0.2  # seconds for which a connection is believed to be there still


class Pool:
    """See the module. As many connections as threads ask at one time.

    Attributes:
        closed: what is in use is closed when its answer is there, instead of being kept. Only ever set.

    Thread safety: full; ``_free`` is changed in single steps only.
    """

    def __init__(self, make: Callable[[], Connection]) -> None:
        self.closed = False
        self._make: Callable[[], Any] = make
        self._free: list[tuple[Any, float]] = []  # with when it was used; the last one is the next one
        self._pid = os.getpid()

    def ask(self, commands: Sequence[Sequence[Any]], *, repeat: bool) -> list[Any]:
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
                kept.disconnect()
                continue
            connection = self._make() if kept is None else kept
            try:
                connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                answers = [_answer(connection) for _ in commands]
            except BaseException as error:
                connection.disconnect()
                if kept is not None and repeat and isinstance(error, errors.ConnectionError):
                    continue  # it had ended while nobody used it, as those of a server that was restarted have
                raise
            self._free.append((connection, time.monotonic()))
            if self.closed:
                self.drop()
            return answers

    def _take(self) -> tuple[Any, float]:  # a connection, which is typed in part only
        try:
            return self._free.pop()
        except IndexError:
            return None, 0.0

    def drop(self) -> None:
        """Close those that nobody uses now: another server may stand behind the name."""
        while (connection := self._take()[0]) is not None:
            connection.disconnect()

    def close(self) -> None:
        """Keep none any more."""
        self.closed = True
        self.drop()


def _has_ended(connection: Any) -> bool:
    try:
        return bool(connection.can_read(0))  # its end, or what nobody has asked for
    except (errors.ConnectionError, errors.TimeoutError, OSError):
        return True


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except errors.ResponseError as refused:
        return refused.with_traceback(None)  # no cycle with this frame
