"""Instances as processes, each with a network of its own to each server of their store; and the stores."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from support.proxy import Proxy
from support.serve import ServeProcess
from support.valkey import ValkeyCluster, ValkeyServer

Address = tuple[str, int]


class Store:
    """What the instances share: ``one`` server of our own that keeps what it was told, a ``cluster`` of three masters
    with a replica each, or whatever is at a URL (and is then left in peace).

    ``server``, ``cluster``: where it is ours.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.server: ValkeyServer | None = None
        self.cluster: ValkeyCluster | None = None
        self.login: tuple[str, ...] = ()
        if kind == "one":
            self.server = ValkeyServer(folder / "valkey", keep=True)
            self.url = self.server.url
        elif kind == "cluster":
            self.cluster = ValkeyCluster(folder / "cluster", replicas=1)
            self.url = self.cluster.url
        else:
            self.url = kind
        self.addresses = [("127.0.0.1", server.port) for server in self.servers] or self._look_up()

    def _look_up(self) -> list[Address]:
        """Of somebody else's store: every server that the driver would go to."""
        from redis import Redis, RedisCluster

        parts = urlsplit(self.url)
        if parts.password:
            self.login = (parts.username or "default", parts.password)
        with Redis.from_url(self.url) as single:
            if not single.info("cluster").get("cluster_enabled"):
                return [(parts.hostname or "127.0.0.1", parts.port or 6379)]
        cluster = RedisCluster.from_url(self.url)
        try:
            return [(node.host, int(node.port)) for node in cluster.get_nodes()]
        finally:
            cluster.close()

    @property
    def servers(self) -> list[ValkeyServer]:
        """Our own ones."""
        if self.cluster is not None:
            return self.cluster.servers
        return [] if self.server is None else [self.server]

    def close(self) -> None:
        """End what is ours."""
        for server in self.servers:
            server.stop()


class Berth:
    """A place for an instance: one after the other is there, with the same network to the store."""

    def __init__(self, addresses: Sequence[Address], start: Callable[[Sequence[str]], ServeProcess]) -> None:
        self.networks = [Proxy(port, host) for host, port in addresses]
        ways = [f"{host}:{port}={net.port}" for (host, port), net in zip(addresses, self.networks, strict=True)]
        self._flags = [word for way in ways for word in ("--via", way)]
        self._start = start
        self.gone: list[ServeProcess] = []
        self.instance = start(self._flags)

    def renew(self) -> ServeProcess:
        """Another instance in its place; the one before, which may still run."""
        before, self.instance = self.instance, self._start(self._flags)
        self.gone.append(before)
        return before

    def signal(self, number: int) -> None:
        """To its instance, if that runs."""
        with suppress(ProcessLookupError):
            os.kill(self.instance.pid, number)

    def cut(self) -> None:
        """It loses the store, and cannot come back to it."""
        for network in self.networks:
            network.cut()

    def hold(self) -> None:
        """Nothing passes between it and the store, nobody is told."""
        for network in self.networks:
            network.hold()

    def deafen(self) -> None:
        """What it says to the store gets there; nothing comes back, nobody is told."""
        for network in self.networks:
            network.hold(only_answers=True)

    def mend(self) -> None:
        """Its network is as it was."""
        for network in self.networks:
            network.let_go()
            network.restore()

    def close(self) -> None:
        """End the instances, and the network."""
        self.mend()
        for instance in (*self.gone, self.instance):
            with suppress(ProcessLookupError):
                os.kill(instance.pid, signal.SIGCONT)
            instance.stop()
        for network in self.networks:
            network.close()


class Fleet:
    """Berths at a store.

    Args:
        flags: more for each instance.
    """

    def __init__(self, store: Store, prefix: str, ttl: float, berths: int = 3, flags: Sequence[str] = ()) -> None:
        self.store = store
        self.ttl = ttl
        self.berths: list[Berth] = []

        def start(ways: Sequence[str]) -> ServeProcess:
            return ServeProcess(store.url, prefix, str(ttl), *ways, *flags, program="tests/sharing/instance.py")

        try:
            for _ in range(berths):
                self.berths.append(Berth(store.addresses, start))
        except BaseException:
            self.close()
            raise

    def port(self, at: int) -> int:
        """Where people reach an instance."""
        return self.berths[at % len(self.berths)].instance.port

    @property
    def logs(self) -> list[str]:
        """What each instance printed and logged."""
        return [one.output for berth in self.berths for one in (*berth.gone, berth.instance)]

    def close(self) -> None:
        """End all."""
        for berth in self.berths:
            berth.close()
