"""A proxy with the shipped configuration, and what it stands in front of."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sharing.stories import Story, violations
from support.fakes import PATIENCE, eventually
from support.needs import absent
from support.rest import request
from support.serve import ServeProcess
from support.valkey import free_port
from support.ws import Closed, HandshakeFailed, WsClient

from roomkit.runtime import new_short_id

DEPLOY = Path(__file__).parents[2] / "deploy"
TTL = 1.0  # of the instances' leases, in seconds
_HERE = "127.0.0.1"
#: The environment in which an nginx that is no service runs: its files are elsewhere, and nothing else is another.
_AROUND_NGINX = """\
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log notice;
events {{ worker_connections 512; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/roomkit.conf;
}}
"""


def program(name: str) -> str:
    """A daemon's program, which may be where only root looks; or skip (or fail)."""
    for folder in (*os.environ.get("PATH", "").split(":"), "/usr/sbin", "/usr/local/sbin"):
        if os.access(f"{folder}/{name}", os.X_OK):
            return f"{folder}/{name}"
    absent(f"the program {name}")
    raise AssertionError


class RealProxy:
    """A real haproxy or nginx with the shipped file, whose addresses are these ports' instead. ``port``: its own."""

    def __init__(self, kind: str, ports: Sequence[int], folder: Path) -> None:
        self.kind = kind
        self.port = free_port()
        self._log = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by stop()
        command = {"haproxy": self._haproxy, "nginx": self._nginx}[kind](ports, folder)
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        try:
            eventually(lambda: self._process.poll() is not None or self.ask("/healthz") in (200, 502, 503))
            assert self._process.poll() is None, self.output
        except BaseException:
            self.stop()
            raise

    def _haproxy(self, ports: Sequence[int], folder: Path) -> list[str]:
        text = (DEPLOY / "haproxy.cfg").read_text()
        return [program("haproxy"), "-db", "-f", self._write(folder / "haproxy.cfg", text, ":8000", ports)]

    def _nginx(self, ports: Sequence[int], folder: Path) -> list[str]:
        text = (DEPLOY / "nginx.conf").read_text()
        assert "/var/log/nginx/" in text
        self._write(folder / "roomkit.conf", text.replace("/var/log/nginx/", f"{folder}/"), "8000", ports)
        user = "user root;" if os.geteuid() == 0 else ""  # else its worker could not open the test's folder
        path = folder / "nginx.conf"
        path.write_text(_AROUND_NGINX.format(folder=folder, user=user))
        return [program("nginx"), "-c", str(path), "-p", str(folder)]

    def _write(self, path: Path, text: str, listens: str, ports: Sequence[int]) -> str:
        """The shipped text with other addresses; an instance fewer for each port that there is not."""
        listens_at = listens.replace("8000", str(self.port)) if listens[0] == ":" else f"{_HERE}:{self.port}"
        replaced = text.replace(f"-{listens}}}", f"-{_HERE}{listens_at}}}").replace(
            f"listen {listens};", f"listen {listens_at};"
        )
        assert replaced != text
        for n, shipped in enumerate((8081, 8082, 8083)):
            assert f"{_HERE}:{shipped}" in replaced
            if n < len(ports):
                replaced = replaced.replace(f"{_HERE}:{shipped}", f"{_HERE}:{ports[n]}")
            else:
                replaced = re.sub(rf"^ *server .*{_HERE}:{shipped}.*\n", "", replaced, flags=re.MULTILINE)
        path.write_text(replaced)
        return str(path)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return _HERE, self.port

    def ask(self, path: str, method: str = "GET") -> int:
        """The status of an answer through it; 0: there was none."""
        try:
            return request(self.address, method, path).status
        except OSError:
            return 0

    @property
    def output(self) -> str:
        """What it said."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def stop(self) -> None:
        """End it, with all its connections."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self._log.close()


class Player(Story):
    """Plays in one room through a proxy, on a thread of its own, and comes back whenever it is thrown out."""

    def __init__(self, site: Site, room_id: str, name: str) -> None:
        super().__init__(room_id, name)
        self.token = secrets.token_urlsafe(16)
        self._site = site
        self.sent = 0
        self.thread = threading.Thread(target=self._run, name=f"player-{name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self._site.over.is_set():
            try:
                client = WsClient(
                    self._site.proxy.address,
                    room_id=self.room_id,
                    player_id=self.name,
                    token=self.token,
                    patience=4 * TTL,
                    **self.known,
                )
            except (OSError, HandshakeFailed, Closed):
                self._site.over.wait(0.05)  # before the next try
                continue
            with client:
                with suppress(Closed, OSError):  # TimeoutError is one
                    self._play(client)
                if client.welcome:
                    self.take(client.welcome, client.events)
            self._site.over.wait(0.05)

    def _play(self, client: WsClient) -> None:
        client.expect("welcome")
        while not self._site.over.is_set():
            self.sent += 1
            name = f"{self.name}.{self.sent}"
            answer = client.ask("message", {"n": name})
            if answer["type"] == "ack":
                self.acked[name] = answer["data"]["seq"]
            self._site.over.wait(0.02)  # no faster than a client may send
        client.until_seq(client.do("state")["seq"])


class Site:
    """Instances that share their rooms, at ports that they keep, behind a proxy."""

    def __init__(self, kind: str, redis_url: str, folder: Path, instances: int) -> None:
        self.redis_url = redis_url
        self.prefix = f"test-{new_short_id()}:"
        self.over = threading.Event()
        self.players: list[Player] = []
        self.instances = [self._start(0) for _ in range(instances)]
        try:
            self.proxy = RealProxy(kind, [instance.port for instance in self.instances], folder)
            eventually(lambda: self.proxy.ask("/readyz") == 200)
        except BaseException:
            self._stop_instances()
            raise

    def _start(self, port: int) -> ServeProcess:
        return ServeProcess(
            *("--redis-prefix", self.prefix, "--lease-ttl", str(TTL), "--max-connections-per-address", "0"),
            *("--max-players", "8", "--history-size", "100000", "--reconnect-grace", "60", "--drain-timeout", "5"),
            *("--close-timeout", "0.3"),
            env={"ROOMKIT_REDIS": self.redis_url},
            port=port,
        )

    def make_room(self, room_id: str) -> None:
        """Where the proxy sends its players; and four of them play there."""
        answer = request(self.proxy.address, "POST", f"/api/rooms?room_id={room_id}", {"id": room_id})
        assert answer.status == 201, answer.body
        self.players += [Player(self, room_id, f"{room_id}-{n}") for n in range(4)]
        self.goes_on()

    def goes_on(self) -> None:
        """Until everybody was acknowledged something from now on."""
        before = {player: len(player.acked) for player in self.players}
        eventually(lambda: all(len(player.acked) > count for player, count in before.items()))

    def websockets(self) -> list[int]:
        """How many are open at each instance."""
        pages = [request((_HERE, instance.port), "GET", "/metrics").body.decode() for instance in self.instances]
        found = [re.search(r"^roomkit_websockets ([0-9.]+)$", page, re.MULTILINE) for page in pages]
        return [int(float(match[1])) for match in found if match is not None]

    def home(self) -> int:
        """The instance where all players are, once they are all somewhere."""
        eventually(lambda: sorted(self.websockets())[-1] == len(self.players) == sum(self.websockets()))
        return self.websockets().index(len(self.players))

    def crowd(self) -> tuple[int, int]:
        """The instance where most players are, and how many, once they are all somewhere. Who came in while the proxy
        took one for dead, on a busy machine, is at another.
        """
        eventually(lambda: sum(self.websockets()) == len(self.players))
        counts = self.websockets()
        return counts.index(max(counts)), max(counts)

    def kill(self, at: int) -> None:
        """-9."""
        os.kill(self.instances[at].pid, signal.SIGKILL)
        self.instances[at].stop()

    def drain(self, at: int) -> None:
        """SIGTERM, and its end."""
        assert self.instances[at].stop() == 0, self.instances[at].output

    def start_again(self, at: int) -> None:
        """Another one, at the same port."""
        self.instances[at] = self._start(self.instances[at].port)

    def check(self) -> None:
        """All stop playing: nothing was lost, twice or out of order, and everybody resumed what was interrupted."""
        from roomkit.backends.redis import RedisBackend

        self.over.set()
        for player in self.players:
            player.thread.join(PATIENCE)
            assert not player.thread.is_alive()
        backend = RedisBackend(self.redis_url, prefix=self.prefix)
        try:
            assert violations(backend, self.players) == []
        finally:
            backend.close()

    def _stop_instances(self) -> None:
        for instance in self.instances:
            instance.stop()

    def close(self) -> None:
        """End all of them."""
        self.over.set()
        for player in self.players:
            player.thread.join(PATIENCE)
        self.proxy.stop()
        self._stop_instances()
