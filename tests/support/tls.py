"""A certificate for the tests of TLS, and TLS in front of a server that speaks none."""

from __future__ import annotations

import select
import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from support.fakes import PATIENCE


def make_certificate(folder: Path) -> tuple[str, str]:
    """A self-signed certificate for localhost, and its key, as files in ``folder``."""
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=DNS:localhost -keyout {key} -out {cert}".split(),
        check=True,
        capture_output=True,
        timeout=60,
    )
    return cert, key


class TlsFront:
    """Speaks TLS at ``port`` of localhost, and passes on in plain what it hears to a port of 127.0.0.1.

    ``refused``: handshakes that failed. Its threads end with :meth:`close`, which joins them.
    """

    def __init__(self, target: int, cert: str, key: str) -> None:
        self._target = ("127.0.0.1", target)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(cert, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.refused = 0
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._accept, name="tls-front", daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """End all connections and threads."""
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        self._listener.close()

    def __enter__(self) -> TlsFront:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                sock, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(sock,), name="tls-front-connection", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(PATIENCE)
            try:
                near = self._context.wrap_socket(sock, server_side=True)
            except OSError:
                self.refused += 1
                return
            with near, suppress(OSError), socket.create_connection(self._target, PATIENCE) as far:
                while self._pass(near, far):
                    pass

    def _pass(self, near: ssl.SSLSocket, far: socket.socket) -> bool:
        """What is there goes to the other side; False: one of them has ended."""
        if self._ended.is_set():
            return False
        readable = [near] if near.pending() else select.select([near, far], [], [], 0.05)[0]
        for source, sink in ((near, far), (far, near)):
            if source in readable:
                source.settimeout(0)
                try:
                    data = source.recv(65536)
                except ssl.SSLWantReadError:  # a piece of a record
                    continue
                finally:
                    source.settimeout(PATIENCE)
                if not data:
                    return False
                sink.sendall(data)
        return True
