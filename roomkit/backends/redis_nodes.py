"""Calls to Redis: one server or a cluster, many calls in one go, each to the node that holds its key.

The driver's own repeating is off: redis-py repeats ten times by default, writes too. What is repeated here, and within
the same bound, is what a node refused to do: a script that it did not know, a key that has moved.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis import ConnectionPool, Redis, RedisCluster
from redis import exceptions as errors
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry

from roomkit.backends.redis_pool import Pool
from roomkit.backends.redis_wire import Command, Wire, command, pack
from roomkit.errors import BackendUnavailable, InvalidConfig

log = logging.getLogger("roomkit.backends.redis")

_URL = re.compile(r"(rediss?|unix)://")
_PAUSE = 0.02  # seconds before a moved key is looked for again
#: Refused without having been done: after a look at the cluster's map it can be sent again.
_ELSEWHERE = (errors.AskError, errors.ClusterDownError, errors.TryAgainError, errors.ReadOnlyError)
_ABSENT = (errors.ConnectionError, errors.TimeoutError, errors.RedisClusterException, OSError)


class Script:
    """A Lua script. ``%PUBLISH%`` in it stands for the command that publishes within one shard."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._by_kind = {clustered: self._variant(clustered) for clustered in (False, True)}
        self._heads = {clustered: pack("EVALSHA", self.digest(clustered)) for clustered in (False, True)}

    def _variant(self, clustered: bool) -> tuple[str, str]:
        text = self._text.replace("%PUBLISH%", "'SPUBLISH'" if clustered else "'PUBLISH'")
        return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def text(self, clustered: bool) -> str:
        """What a server is given."""
        return self._by_kind[clustered][0]

    def digest(self, clustered: bool) -> str:
        """What it is called by."""
        return self._by_kind[clustered][1]

    def head(self, clustered: bool) -> bytes:
        """The words with which a call of it begins, packed."""
        return self._heads[clustered]

    def call(self, keys: Sequence[str], *arguments: Any) -> Call:
        """A call of it; the keys share a slot."""
        return Call(keys[0], (len(keys), *keys, *arguments), self)

    def packed_call(self, key: str, count: int, *parts: bytes) -> Call:
        """Likewise, of ``count`` packed words: how many keys, the keys (``key`` is the first), the arguments."""
        return Call(key, (count, *parts), self, packed=True)


#: A command that in a cluster publishes within one shard.
PUBLISH = "PUBLISH"


class Call(NamedTuple):
    """A command with the key that says where it goes, or a script's keys and arguments (see ``Script``)."""

    key: str
    words: tuple[Any, ...]
    script: Script | None = None
    packed: bool = False

    def command(self, clustered: bool) -> Command:
        """As it is sent."""
        words, script = self.words, self.script
        if script is None:
            return ("SPUBLISH", *words[1:]) if clustered and words[0] == PUBLISH else words
        if self.packed:
            return command(words[0] + 2, script.head(clustered), *words[1:])
        return ("EVALSHA", script.digest(clustered), *words)


class Address(NamedTuple):
    """A node of a cluster; the host is empty: the server of the URL itself."""

    host: str
    port: int


class Nodes:
    """The server or the cluster behind a URL. Connects with the first use.

    Raises:
        InvalidConfig: it is no URL of a Redis.

    Thread safety: full. A connection is had by one thread at a time; no lock is held during a call.
    """

    def __init__(self, url: str, timeout: float) -> None:
        if not _URL.match(url):
            raise InvalidConfig("a store's URL begins with redis://, rediss:// or unix://")  # it may have a password
        self._url = url
        self._timeout = timeout
        self._options: dict[str, Any] = {
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
        }
        if not url.startswith("unix:"):
            self._options["socket_keepalive"] = True  # a socket of this machine has none, and refuses the option
        self._lock = threading.Lock()  # a leaf: held for the exchange of these two, not while one is made
        self._looking = threading.Lock()  # nobody waits for it: had by the thread that reads the cluster's map
        # Guarded by _lock:
        self._single: Redis | None = None
        self._cluster: RedisCluster | None = None
        self._closed = False
        self._looks = 0
        self._pools: dict[Address, Pool] = {}

    @property
    def looks(self) -> int:
        """How often it was looked again: another number, and the nodes may have others' keys now."""
        with self._lock:
            return self._looks

    def locate(self, keys: Sequence[bytes], *, connect: bool) -> list[Address | None]:
        """For each key, in their order: the node that has it by the cluster's map as it is known; None: nobody has it.

        Args:
            connect: if it is not connected yet; else it knows no node of any key and does not block.

        Raises:
            BackendUnavailable: it could not connect.
        """
        if not connect:
            with self._lock:
                if self._single is None and self._cluster is None:
                    return [None] * len(keys)
        try:
            _, cluster = self._connect()
        except (*_ABSENT, errors.RedisError) as error:
            raise BackendUnavailable(f"the store did not answer: {error}") from None
        if cluster is None:
            return [Address("", 0)] * len(keys)
        return [_node_of(cluster, key) for key in keys]

    def connect(self, address: Address) -> Wire:
        """A connection to a node, of the caller's own. Blocks and raises as ``Wire`` does."""
        pool = ConnectionPool.from_url(self._url, protocol=2, **self._options)
        # The URL may say otherwise, and then the driver adds what it needs to hear of maintenance by RESP 3.
        options = {name: value for name, value in pool.connection_kwargs.items() if "maint" not in name}
        options["protocol"] = 2
        if address.host:
            options.update(host=address.host, port=address.port)
        return Wire(pool.connection_class(**options))

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """The answers, in the order of the calls.

        Blocks at most about twice ``timeout`` seconds.

        Raises:
            BackendUnavailable: one of them was not answered. It, and any other, may have been carried out or not.
        """
        answers: list[Any] = [None] * len(calls)
        left = list(range(len(calls)))
        deadline = time.monotonic() + self._timeout
        try:
            while left:
                why, left = self._attempt(calls, left, answers)
                if left and time.monotonic() >= deadline:
                    raise BackendUnavailable(f"the store did not answer: {why or 'it forgets its scripts'}")
                if why:
                    time.sleep(_PAUSE)
                    self.look_again()
            return answers
        except _ABSENT as error:
            self.look_again()
            raise BackendUnavailable(f"the store did not answer: {error}") from None
        except errors.RedisError as error:
            raise BackendUnavailable(f"the store refused: {error}") from None

    def _attempt(self, calls: Sequence[Call], wanted: list[int], answers: list[Any]) -> tuple[str, list[int]]:
        """Send these once; which of them are to be sent again, and why where that is to be looked into."""
        clustered, routes = self._route(calls, wanted)
        why = ""
        again: list[int] = []
        for pool, places in routes:
            commands = [calls[place].command(clustered) for place in places]
            repeat = all(calls[place].words[0] != PUBLISH for place in places)  # else what is heard is heard twice
            unknown: dict[Script, None] = {}
            for place, answer in zip(places, pool.ask(commands, repeat=repeat), strict=True):
                if isinstance(answer, errors.NoScriptError):
                    script = calls[place].script
                    assert script is not None
                    unknown[script] = None
                    again.append(place)
                elif isinstance(answer, _ELSEWHERE):
                    why = str(answer)
                    again.append(place)
                elif isinstance(answer, Exception):
                    try:
                        raise answer
                    finally:
                        del answer  # a cycle with this frame
                else:
                    answers[place] = answer
            if unknown:
                pool.ask([("SCRIPT", "LOAD", script.text(clustered)) for script in unknown], repeat=True)
        return why, again

    def _route(self, calls: Sequence[Call], wanted: list[int]) -> tuple[bool, list[tuple[Pool, list[int]]]]:
        _, cluster = self._connect()
        if cluster is None:
            return False, [(self._pool(Address("", 0)), wanted)]
        router: Any = cluster
        nodes: dict[Address, list[int]] = {}
        for place in wanted:
            node: ClusterNode | None = router.get_node_from_key(calls[place].key)
            if node is None:
                raise errors.ClusterDownError("a slot is served by nobody")
            nodes.setdefault(Address(node.host, node.port), []).append(place)
        return True, [(self._pool(address), places) for address, places in nodes.items()]

    def _pool(self, address: Address) -> Pool:
        pool = self._pools.get(address)
        if pool is not None:
            return pool
        with self._lock:
            if self._closed:
                raise BackendUnavailable("the backend is closed")
            return self._pools.setdefault(address, Pool(lambda: self.connect(address)))

    def _connect(self) -> tuple[Redis | None, RedisCluster | None]:
        with self._lock:
            if self._closed:
                raise BackendUnavailable("the backend is closed")
            if self._single is not None or self._cluster is not None:
                return self._single, self._cluster
        single: Redis | None = Redis.from_url(self._url, **self._options)
        assert single is not None
        cluster: RedisCluster | None = None
        try:
            if single.info("cluster").get("cluster_enabled"):
                cluster = RedisCluster.from_url(self._url, require_full_coverage=False, **self._options)
                single.close()
                single = None
        except BaseException:
            if single is not None:
                single.close()
            raise
        with self._lock:
            if self._closed or self._single is not None or self._cluster is not None:  # another thread was first
                spare = (single, cluster)
            else:
                self._single, self._cluster = single, cluster
                return single, cluster
        _close(*spare)
        return self._connect()

    def look_again(self) -> None:
        """The cluster's map may be another now, or another server stand behind the name.

        Blocks at most about ``timeout`` seconds for each node of a cluster, and not at all while another thread is at
        it: the driver loses connections when two are. Errors are passed over.
        """
        if not self._looking.acquire(blocking=False):
            return
        try:
            with self._lock:
                single, cluster = self._single, self._cluster
                pools = list(self._pools.values())
            for pool in pools:
                pool.drop()
            if cluster is not None:
                before = _clients(cluster)
                try:
                    cluster.nodes_manager.initialize()
                finally:
                    for client in before - _clients(cluster):  # which the driver forgets with their connections
                        client.connection_pool.disconnect()
            elif single is not None:
                single.connection_pool.disconnect(inuse_connections=False)
        except (*_ABSENT, errors.RedisError) as error:
            log.debug("the cluster's map could not be read: %s", error)
        finally:
            with self._lock:
                self._looks += 1
            self._looking.release()

    def close(self) -> None:
        """Close the connections. A second call does nothing; calls afterwards raise BackendUnavailable."""
        with self._lock:
            self._closed = True
            single, self._single = self._single, None
            cluster, self._cluster = self._cluster, None
            pools = list(self._pools.values())
        for pool in pools:
            pool.close()
        _close(single, cluster)


def _node_of(cluster: RedisCluster, key: bytes) -> Address | None:
    router: Any = cluster
    try:
        node: ClusterNode | None = router.get_node_from_key(key)
    except errors.RedisClusterException:
        return None
    return None if node is None else Address(node.host, node.port)


def _clients(cluster: RedisCluster) -> set[Redis]:
    """Of its nodes, those that were used."""
    nodes = [*cluster.nodes_manager.nodes_cache.values(), *cluster.nodes_manager.startup_nodes.values()]
    return {node.redis_connection for node in nodes if node.redis_connection is not None}


def _close(single: Redis | None, cluster: RedisCluster | None) -> None:
    if single is not None:
        single.close()
    if cluster is not None:
        clients = _clients(cluster)
        cluster.close()
        for client in clients:  # whose pools the driver leaves open
            client.connection_pool.disconnect()
