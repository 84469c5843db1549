"""Taking a connection out of the hands of the WSGI server that accepted it.

A WSGI server believes that a connection is its own until the application has returned: it writes an answer, shuts the
socket down and closes it. All of this goes by the *number* of the file descriptor. So the connection gets a second
number (``dup``), which is ours, and the server's number is made to mean a socket whose other end is closed (``dup2``).
Whatever the server does afterwards it does to that: a read gives the end, a write fails as it does when any client has
gone away, a close closes. Every server copes with that, and none has to be told; its thread is free, its counts of
connections go down, and nothing of its own reaches the client.

TLS is the exception: the keys live in the server's socket object, bound to its number. Such a socket is lent to us for
as long as the connection lives, and the server's thread waits until then.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from typing import Any

import simple_websocket  # type: ignore[import-untyped,unused-ignore]

_READ_AHEAD = 1 << 20  # more than any server's buffer


class NoSocket(Exception):
    """This server gives an application no way to its connection, or none that works; the text names it."""


def find_socket(environ: dict[str, Any]) -> socket.socket:
    """The connection that a request came on.

    Raises:
        NoSocket: it is not to be had. Nothing was touched.
    """
    software = str(environ.get("SERVER_SOFTWARE") or "this server")
    patched = _monkey_patched()
    if patched is not None:
        # roomkit's queues are made of the standard library's, which gevent replaces by ones of another make.
        raise NoSocket(f"{software}: {patched} has replaced this process's threads and sockets; use a threaded server")
    if environ.get("wsgi.multiprocess") and "werkzeug.socket" in environ:
        raise NoSocket(f"{software} forks for each request: use threads (threaded=True), not processes")
    if software.startswith("WSGIServer/"):  # wsgiref's, and Django's runserver, which is made of it
        found = getattr(getattr(_buffer(environ.get("wsgi.input")), "raw", None), "_sock", None)
    else:
        try:
            found = _Finder(environ, thread_class=_NoThread).sock
        except RuntimeError:
            found = None
    if not isinstance(found, socket.socket):
        raise NoSocket(
            f"{software} gives an application no way to its connection (docs: Embedding lists those that do)"
        )
    return found


class _Finder(simple_websocket.Server):  # type: ignore[misc,unused-ignore]
    """simple-websocket knows where each server keeps the socket. The handshake and the frames are ours: the checks,
    limits and bounds of the bundled server (simple-websocket would accept compression without any).
    """

    def handshake(self) -> None:
        self.connected = True


class _NoThread:
    """simple-websocket would start one here."""

    name = ""

    def __init__(self, target: Callable[[], None]) -> None:
        pass

    def start(self) -> None:
        pass


def _monkey_patched() -> str | None:
    """Who has replaced threads or sockets by its own, if anybody."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and (gevent.is_module_patched("threading") or gevent.is_module_patched("socket")):
        return "gevent"
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and (eventlet.is_monkey_patched("thread") or eventlet.is_monkey_patched("socket")):
        return "eventlet"
    return None


class Connection:
    """A connection that a WSGI server has read an upgrade from.

    Args:
        keep_thread: the request's thread stays until the connection has ended (:meth:`wait`), as it does with TLS.

    Thread safety: the request's thread only.
    """

    def __init__(self, environ: dict[str, Any], keep_thread: bool = False) -> None:
        self._stream = environ.get("wsgi.input")
        self._theirs = find_socket(environ)
        self._closed = threading.Event() if keep_thread or isinstance(self._theirs, ssl.SSLSocket) else None
        self._lent: ssl.SSLSocket | None = None

    def take(self) -> tuple[socket.socket, bytes]:
        """The socket, non-blocking and ours, and what came behind the request.

        Raises:
            OSError: no file descriptor is free; the connection is still the server's.
        """
        if isinstance(self._theirs, ssl.SSLSocket):
            return self._borrow(self._theirs)
        fd = self._theirs.fileno()
        os.set_blocking(fd, False)  # of the connection, not of the number: the server's and ours alike
        ours = None
        try:
            received = _read_ahead(self._stream)
            copy = os.dup(fd)
            ours = socket.socket(fileno=copy) if self._closed is None else _Watched(copy, self._closed)
            ours.setblocking(False)
            _let_go(fd)
        except OSError:
            os.set_blocking(fd, True)
            if ours is not None:
                ours.close()
            raise
        _no_delay(ours)
        return ours, received

    def _borrow(self, sock: ssl.SSLSocket) -> tuple[socket.socket, bytes]:
        assert self._closed is not None
        self._lent = sock
        self._timeout = sock.gettimeout()
        sock.setblocking(False)
        received = _read_ahead(self._stream)
        while sock.pending():  # decrypted already: it would not make the socket readable again
            received += sock.recv(sock.pending())
        sock.close = self._closed.set  # type: ignore[method-assign] # closing it is the server's affair
        _no_delay(sock)
        return sock, received

    def wait(self) -> None:
        """Where the thread cannot be freed: block until the connection has ended (heartbeat, close or stop)."""
        if self._closed is None:
            return
        self._closed.wait()
        if self._lent is not None:
            del self._lent.close
            _let_go(self._lent.fileno())
            self._lent.settimeout(self._timeout)


class _Watched(socket.socket):
    """A socket that says when it is closed."""

    __slots__ = ("_event",)

    def __init__(self, fd: int, event: threading.Event) -> None:
        super().__init__(fileno=fd)
        self._event = event

    def close(self) -> None:
        super().close()
        self._event.set()


def _read_ahead(stream: Any) -> bytes:
    """What the server has read of the connection beyond the request. The connection is non-blocking."""
    unreader = getattr(getattr(stream, "reader", None), "unreader", None)  # gunicorn's
    if unreader is not None:
        received: bytes = unreader.buf.getvalue()
        unreader.buf.seek(0)
        unreader.buf.truncate()
        return received
    try:
        return _buffer(stream).read1(_READ_AHEAD) or b""
    except (OSError, ValueError, AttributeError):  # TLS: nothing there; or no buffer at all
        return b""


def _buffer(stream: Any) -> Any:
    """The buffered reader of the connection; Django's runserver wraps it to bound a body."""
    return getattr(getattr(stream, "_read", None), "__self__", stream)


def _no_delay(sock: socket.socket) -> None:
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _let_go(fd: int) -> None:
    """Have the number mean a socket whose other end is closed."""
    os.dup2(_dead_end(), fd, inheritable=False)


@functools.cache
def _dead_end() -> int:
    """One for the whole process, and for those that it forks; never closed."""
    ours, other = socket.socketpair()
    other.close()
    return ours.detach()
