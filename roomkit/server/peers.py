"""Peers: what one worker process of ``roomkit serve --workers N`` knows of the others, and how it reaches them.

Every room belongs to the worker that its id hashes to. Each worker has an inbox, one end of a pair of Unix datagram
sockets whose other end every worker holds. A letter in it carries a file descriptor, and is one of two things:

* a client's connection with what was read from it so far: its WebSocket is for a room of that worker, which serves it
  from then on as if it had accepted it itself. No message of it ever passes through another process.
* one end of a new socket pair over which the sender asks a question in HTTP: REST requests that name another worker's
  room, and the lists and figures that need all workers.

The supervisor holds both ends of every inbox, so that letters to a worker that has died wait for its successor.
"""

from __future__ import annotations

import array
import errno
import http.client
import logging
import socket
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from roomkit.errors import RoomBusy
from roomkit.runtime import new_short_id
from roomkit.server.reactor import WRITE, Reactor

log = logging.getLogger("roomkit.peers")

ANSWER_TIMEOUT = 5.0  # seconds that another worker has to answer, a restart included
_MAX_LETTER = 131_072
_MAX_WAITING = 1024  # connections that may wait for a place in one inbox
_LETTERS_PER_TURN = 64
_HOP_BY_HOP = {"connection", "keep-alive", "upgrade", "transfer-encoding", "content-length", "expect", "te", "trailer"}


def owner_of(room_id: str, workers: int) -> int:
    """The number of the worker that a room belongs to. The high bits: the low ones choose its I/O thread."""
    return (zlib.crc32(room_id.encode("utf-8", "replace")) >> 16) % workers


class Letter(msgspec.Struct, frozen=True, array_like=True):
    """What comes with a file descriptor.

    Attributes:
        address: the client's. received: what was read from it and is yet to be understood. unsent: what is yet to be
        written to it. is_question: it is another worker that asks. sent_at: monotonic seconds (the same clock in all
        processes of a machine); a question is not answered after ``ANSWER_TIMEOUT``, when nobody waits any more.
    """

    address: str
    received: bytes
    unsent: bytes = b""
    is_question: bool = False
    sent_at: float = 0.0


class PeerAnswer(NamedTuple):
    """What another worker answered."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Peers:
    """One worker's view of all of them.

    Args:
        index: this worker's number, from 0.
        inbox: where letters to this worker arrive.
        senders: the way into each worker's inbox, by number; this worker's own among them.

    Thread safety: :meth:`ask` and the properties from any thread; it blocks at most ``ANSWER_TIMEOUT`` seconds.
    :meth:`send_connection` from the thread of the reactor that :meth:`open` was given.
    """

    def __init__(self, index: int, inbox: socket.socket, senders: Sequence[socket.socket]) -> None:
        self.index = index
        self.count = len(senders)
        self._inbox = inbox
        self._senders = list(senders)
        self._outgoing: list[_Outgoing] = []
        for sock in (inbox, *senders):
            sock.setblocking(False)

    def owner_of(self, room_id: str) -> int:
        """The number of the worker that the room belongs to, whether it exists or not."""
        return owner_of(room_id, self.count)

    def new_room_id(self, owner: int | None = None) -> str:
        """An id that hashes to the worker ``owner`` (default: this one)."""
        owner = self.index if owner is None else owner
        while self.owner_of(room_id := new_short_id()) != owner:
            pass
        return room_id

    # The reactor's thread.

    def open(self, reactor: Reactor, deliver: Callable[[Letter, socket.socket], None]) -> None:
        """From now on give each letter to ``deliver``, with its socket, on the reactor's thread."""
        reactor.register(self._inbox.fileno(), _Inbox(reactor, self._inbox, deliver))
        self._outgoing = [_Outgoing(reactor, sock) for sock in self._senders]

    def send_connection(self, owner: int, letter: Letter, sock: socket.socket) -> None:
        """Give a client's connection to its owner, and close it here. Never blocks.

        When the owner's inbox is full the connection waits; when too many wait it is closed, and the client comes back.
        """
        self._outgoing[owner].send(letter, sock)

    # Any thread.

    def ask(
        self, owner: int, method: str, target: str, headers: Mapping[str, str], body: bytes, address: str
    ) -> PeerAnswer:
        """Have another worker answer an HTTP request, as if its client had sent it there.

        Raises:
            RoomBusy: it did not answer in time (it may be about to be restarted); what it did is not known.
        """
        return self.read_answer(self.start_asking(owner, method, target, headers, body, address))

    def start_asking(
        self, owner: int, method: str, target: str, headers: Mapping[str, str], body: bytes, address: str
    ) -> http.client.HTTPConnection | None:
        """The first half of :meth:`ask`, so that several can be asked at once; None: there is no asking it now."""
        near, far = socket.socketpair()
        question = http.client.HTTPConnection("worker", timeout=ANSWER_TIMEOUT)
        question.sock = near
        near.settimeout(ANSWER_TIMEOUT)
        try:
            with far:
                letter = Letter(address, b"", is_question=True, sent_at=time.monotonic())
                _post(self._senders[owner], letter, far.fileno())
            sent = {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}
            question.request(method, target, body or None, {**sent, "Connection": "close"})
        except OSError as error:
            question.close()
            log.warning("worker %d cannot be asked: %s", owner, error.strerror or error)
            return None
        return question

    def read_answer(self, question: http.client.HTTPConnection | None) -> PeerAnswer:
        """The second half of :meth:`ask`."""
        if question is None:
            raise RoomBusy("the worker process of this room takes no more requests; try again")
        try:
            response = question.getresponse()
            kept = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP]
            return PeerAnswer(response.status, kept, response.read())
        except (OSError, http.client.HTTPException):
            raise RoomBusy("the worker process of this room did not answer; try again") from None
        finally:
            question.close()

    def close(self) -> None:
        """Close the sockets; after the reactor has ended."""
        for sock in (self._inbox, *self._senders):
            sock.close()


def _post(sender: socket.socket, letter: Letter, fd: int) -> None:
    """Put a letter into an inbox; BlockingIOError: it is full."""
    descriptors = array.array("i", [fd])
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
    try:
        sender.sendmsg([msgspec.msgpack.encode(letter)], rights)
    except OSError as error:
        if error.errno in (errno.ENOBUFS, errno.ETOOMANYREFS):  # so many on their way that the system takes no more
            raise BlockingIOError(error.errno, error.strerror) from None
        raise


class _Inbox:
    """Letters from the other workers. On the reactor."""

    def __init__(self, reactor: Reactor, sock: socket.socket, deliver: Callable[[Letter, socket.socket], None]) -> None:
        self._reactor = reactor
        self._sock = sock
        self._deliver = deliver

    def on_io(self, mask: int) -> None:
        """See reactor.Handler."""
        for _ in range(_LETTERS_PER_TURN):
            try:
                data, descriptors, _, _ = socket.recv_fds(self._sock, _MAX_LETTER, 1)
            except BlockingIOError:
                return
            except OSError as error:  # no file descriptor free: the letter is lost with its connection
                log.error("a connection from another worker is lost: %s", error.strerror)
                return
            if descriptors:
                sock = socket.socket(fileno=descriptors[0])
                self._deliver(msgspec.msgpack.decode(data, type=Letter), sock)
            else:  # the system cut the descriptor off for lack of free ones
                log.error("a connection from another worker is lost: too many open files")

    def on_deadline(self, now: float) -> None:
        """See reactor.Handler."""

    def flush(self) -> None:
        """See reactor.Handler."""

    def abort(self) -> None:
        """See reactor.Handler."""
        self._reactor.unregister(self._sock.fileno(), self)


class _Outgoing:
    """The way into one worker's inbox, with those who wait while it is full. On the reactor."""

    def __init__(self, reactor: Reactor, sock: socket.socket) -> None:
        self._reactor = reactor
        self._sock = sock
        self._waiting: deque[tuple[Letter, socket.socket]] = deque()

    def send(self, letter: Letter, sock: socket.socket) -> None:
        """See Peers.send_connection."""
        if len(self._waiting) >= _MAX_WAITING:
            log.error("a connection is closed: too many wait for their worker")
            sock.close()
            return
        self._waiting.append((letter, sock))
        if len(self._waiting) == 1 and not self._send_waiting():
            self._reactor.register(self._sock.fileno(), self, WRITE)

    def _send_waiting(self) -> bool:
        """Send as much as goes in; whether that was all."""
        while self._waiting:
            letter, sock = self._waiting[0]
            try:
                _post(self._sock, letter, sock.fileno())
            except BlockingIOError:
                return False
            except OSError as error:
                log.error("a connection could not be given to its worker: %s", error.strerror)
            sock.close()
            self._waiting.popleft()
        return True

    def on_io(self, mask: int) -> None:
        """See reactor.Handler."""
        if self._send_waiting():
            self._reactor.unregister(self._sock.fileno(), self)

    def on_deadline(self, now: float) -> None:
        """See reactor.Handler."""

    def flush(self) -> None:
        """See reactor.Handler."""

    def abort(self) -> None:
        """See reactor.Handler."""
        self._reactor.unregister(self._sock.fileno(), self)
        while self._waiting:
            self._waiting.popleft()[1].close()
