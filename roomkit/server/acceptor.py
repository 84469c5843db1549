"""The listening socket: how it is had, and how it goes on accepting whatever happens."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable

from roomkit.metrics import Tally
from roomkit.server.reactor import Reactor

log = logging.getLogger("roomkit.server")

_BACKLOG = 4096
_ACCEPTS_PER_TURN = 64
_ACCEPT_PAUSE = 1.0  # seconds without accepting after the process ran out of file descriptors
#: What accept(2) says of the connection that it would have returned: the next one may be well.
_FAILED_CONNECTION = {
    errno.ECONNABORTED,
    errno.EPERM,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
}


class PortInUse(OSError):
    """The address cannot be listened on: another program does, or it is not this machine's."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        PortInUse: it cannot be had; nothing is held.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        sock.close()
        code = getattr(error, "errno", None)
        why = "the port is in use" if code == errno.EADDRINUSE else getattr(error, "strerror", None) or str(error)
        raise PortInUse(code, f"cannot listen on {host} port {port}: {why}") from None
    return sock


def host_in_url(host: str) -> str:
    """The listening address as a browser on this machine would write it."""
    every = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # nothing is bound here  # nosec B104
    return every.get(host, f"[{host}]" if ":" in host else host)


class Acceptor:
    """The listening socket. It outlives a connection that fails while it is accepted, and a lack of file descriptors or
    whatever else keeps it from accepting: it pauses, and goes on. On the reactor.

    Args:
        take: called as ``take(connected socket, address)``.
    """

    def __init__(
        self, reactor: Reactor, sock: socket.socket, take: Callable[[socket.socket, str], None], tally: Tally
    ) -> None:
        self.sock = sock
        self._reactor = reactor
        self._take = take
        self._tally = tally
        self._open = False
        self._paused = False

    def open(self) -> None:
        """Begin to accept."""
        self._open = True
        self._reactor.register(self.sock.fileno(), self)

    def on_io(self, mask: int) -> None:
        """See reactor.Handler."""
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, peer = self.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _FAILED_CONNECTION:
                    continue
                self._pause(error)
                return
            self._tally.add("connections_accepted")
            self._take(sock, peer[0])

    def _pause(self, error: OSError) -> None:
        log.error("cannot accept connections: %s; trying again in %g s", error.strerror, _ACCEPT_PAUSE)
        self._tally.add("accept_pauses")
        self._paused = True
        self._reactor.unregister(self.sock.fileno(), self)
        self._reactor.set_deadline(self, self._reactor.now + _ACCEPT_PAUSE)

    def on_deadline(self, now: float) -> None:
        """See reactor.Handler."""
        if self._paused and self._open:
            self._paused = False
            self._reactor.register(self.sock.fileno(), self)

    def flush(self) -> None:
        """See reactor.Handler."""

    def abort(self) -> None:
        """Close the socket; what is accepted goes on."""
        if self._open:
            self._open = False
            if not self._paused:
                self._reactor.unregister(self.sock.fileno(), self)
            self.sock.close()
