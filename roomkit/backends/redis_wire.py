"""Wire: a connection to a Redis node, and what goes over it: commands, their answers, and what is published.

The driver makes the connection (names, TLS, passwords, RESP); hiredis, which is its parser too, packs and reads. What
the driver does around each command and each answer (pools, retries, callbacks, health checks) costs several times as
much as that, and is not needed here.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis import Connection
from redis import exceptions as errors
from redis.connection import DefaultParser

_SIZE = 65536  # bytes read at once

#: What :meth:`Wire.next` gives where there is no whole answer yet. (None is an answer.)
NOTHING = object()

#: Its words, each of them text, bytes or a number; or written already, by :func:`command`.
Command = Sequence[Any] | bytes


def pack(*words: Any) -> bytes:
    """Words as they are sent: a part of a command, to be written once and sent often."""
    packed: bytes = hiredis.pack_command(words)
    return packed[packed.index(b"\n") + 1 :]


def command(count: int, *parts: bytes) -> bytes:
    """One of ``count`` words, packed in so many parts."""
    return b"*%d\r\n%b" % (count, b"".join(parts))


class Wire:
    """See the module. Made with a connection that it then connects and owns.

    Blocking: each step at most the connection's timeout; ``next`` and ``has_input`` never. An error leaves it useless:
    it is to be closed.

    Raises:
        redis.exceptions.ConnectionError, TimeoutError, OSError: it could not connect.

    Thread safety: none; one thread at a time.
    """

    __slots__ = ("_connection", "_pending", "_reader", "socket")

    def __init__(self, connection: Connection) -> None:
        driver: Any = connection  # typed in part only
        self._connection = driver
        self._reader = hiredis.Reader(
            protocolError=errors.InvalidResponse, replyError=DefaultParser.parse_error, notEnoughData=NOTHING
        )
        try:
            driver.connect()
        except BaseException:
            self.close()
            raise
        self.socket: socket.socket = driver._sock
        self._pending: Callable[[], int] | None = getattr(self.socket, "pending", None)  # of TLS, read already

    def send(self, commands: Sequence[Command]) -> None:
        """Have them carried out."""
        self.socket.sendall(
            b"".join([one if type(one) is bytes else hiredis.pack_command(tuple(one)) for one in commands])
        )

    def receive(self) -> None:
        """Wait for what comes next, whole answers or not.

        Raises:
            redis.exceptions.ConnectionError, OSError: nothing will, or did in time.
        """
        data = self.socket.recv(_SIZE)
        if not data:
            raise errors.ConnectionError("the server has closed the connection")
        self._reader.feed(data)
        while self._pending is not None and (more := self._pending()):
            self._reader.feed(self.socket.recv(more))

    def next(self) -> Any:
        """The next of the answers that are here, or NOTHING; a refusal is the exception that tells it.

        Raises:
            redis.exceptions.ConnectionError: the server is not to be used, and says so.
        """
        answer = self._reader.gets()
        if isinstance(answer, errors.ConnectionError):
            raise answer
        return answer

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Send them, and wait for all their answers. Raises as :meth:`receive` and :meth:`next` do."""
        self.send(commands)
        answers: list[Any] = []
        while len(answers) < len(commands):
            answer = self.next()
            if answer is NOTHING:
                self.receive()
            else:
                answers.append(answer)
        return answers

    def has_input(self) -> bool:
        """Whether there is something to receive: an answer, what nobody has asked for, or its end."""
        poller = select.poll()
        poller.register(self.socket, select.POLLIN)
        return bool(poller.poll(0))

    def close(self) -> None:
        """Also a second time."""
        self._connection.disconnect()
