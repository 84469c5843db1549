"""A TCP proxy: the network between a client and the server, and its failures."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading

from support.fakes import PATIENCE

_NOTHING, _ALL, _ANSWERS = range(3)  # what is held
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST, as a network that is gone


class Proxy:
    """Forwards every connection to ``port`` of ``host``, except during an outage.

    Thread safety: any thread. Its one thread, ``proxy``, ends with :meth:`close`, which joins it.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for sock in (self._listener, self._woken):
            self._selector.register(sock, selectors.EVENT_READ)
        self._peers: dict[socket.socket, socket.socket] = {}  # of the proxy's thread alone
        self._near: set[socket.socket] = set()  # the clients' ends; likewise
        self._changed = threading.Condition()  # reentrant: freezing and losing share steps
        # Guarded by _changed:
        self._is_down = False
        self._is_freezing = False
        self._is_holding = _NOTHING  # as asked for
        self._holds = _NOTHING  # as it is
        self._ended = False
        self.refused = 0  # connections that were tried during outages
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Lose every connection, and refuse new ones until :meth:`restore`. Returns when they are lost."""
        with self._changed:
            self._is_down = True
        self._wake.send(b"!")
        with self._changed:
            assert self._changed.wait_for(lambda: not self._peers, PATIENCE), "connections are left"

    def freeze(self) -> None:
        """The connections of this moment go dead without a word: nothing passes, nothing is closed. New ones work."""
        with self._changed:
            self._is_freezing = True
            self._wake.send(b"!")
            assert self._changed.wait_for(lambda: not self._is_freezing, PATIENCE), "nothing froze"

    def hold(self, *, only_answers: bool = False) -> None:
        """A black hole: nothing passes, nothing is closed, new connections are taken; until :meth:`let_go`, when what
        was sent meanwhile arrives, late. ``only_answers``: what clients send passes.
        """
        self._set_holding(_ANSWERS if only_answers else _ALL)

    def let_go(self) -> None:
        """After :meth:`hold`."""
        self._set_holding(_NOTHING)

    def _set_holding(self, holding: int) -> None:
        with self._changed:
            if self._holds == holding:
                return
            self._is_holding = holding
            self._wake.send(b"!")
            assert self._changed.wait_for(lambda: self._holds == holding, PATIENCE), "the proxy does not listen"

    def redirect(self, port: int) -> None:
        """New connections go to another port."""
        self._target = (self._target[0], port)

    def restore(self) -> None:
        """New connections go through again."""
        with self._changed:
            self._is_down = False

    def close(self) -> None:
        """Cut everything and end the thread. Can be called again."""
        with self._changed:
            self._ended = True
        with contextlib.suppress(OSError):
            self._wake.send(b"!")
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the proxy's thread did not end"

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._listener:
                    self._accept()
                elif sock is self._woken:
                    self._woken.recv(64)
                    self._woken_up()
                elif sock in self._peers:  # not closed earlier in this turn
                    self._forward(sock)
        self._lose_all()
        self._selector.close()
        for sock in (self._listener, self._wake, self._woken):
            sock.close()

    def _woken_up(self) -> None:
        with self._changed:
            if self._is_holding != self._holds:
                self._hold(self._is_holding)
                return
            if not self._is_freezing:
                self._lose_all()
                return
            for sock in self._peers:
                with contextlib.suppress(KeyError):  # frozen before
                    self._selector.unregister(sock)
            self._is_freezing = False
            self._changed.notify_all()

    def _hold(self, holding: int) -> None:
        self._holds = holding
        for sock in self._peers:  # those that were frozen wake as well
            with contextlib.suppress(KeyError):
                self._selector.unregister(sock)
            self._listen_to(sock)
        self._changed.notify_all()

    def _listen_to(self, sock: socket.socket) -> None:
        if self._holds == _NOTHING or (self._holds == _ANSWERS and sock in self._near):
            self._selector.register(sock, selectors.EVENT_READ)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        with self._changed:
            is_down = self._is_down
            self.refused += is_down
        if is_down:
            _reset(near)
            return
        try:
            far = socket.create_connection(self._target, PATIENCE)
        except OSError:
            _reset(near)
            return
        self._near.add(near)
        for sock, peer in ((near, far), (far, near)):
            sock.settimeout(PATIENCE)  # both ends read whatever they are sent, so that sending hardly ever waits
            self._peers[sock] = peer
            self._listen_to(sock)

    def _forward(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(65536)
            if data:
                self._peers[sock].sendall(data)
                return
        except OSError:
            pass
        self._forget(sock).close()
        sock.close()

    def _forget(self, sock: socket.socket) -> socket.socket:
        peer = self._peers.pop(sock)
        del self._peers[peer]
        self._near -= {sock, peer}
        for each in (sock, peer):
            with contextlib.suppress(KeyError):  # frozen
                self._selector.unregister(each)
        return peer

    def _lose_all(self) -> None:
        with self._changed:
            while self._peers:
                sock = next(iter(self._peers))
                _reset(self._forget(sock))
                _reset(sock)
            self._changed.notify_all()


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
