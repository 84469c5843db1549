"""The Redis backend: Redis 6.2 or later, Valkey, one server or a cluster.

Keys, each after the prefix. Braces are literal: what belongs to one room shares a slot of a cluster, hence a script.

==========================  =======  ================================================================================
``room:{ID}``               string   the room's record, JSON (``core/record.py``)
``room:{ID}:lease``         hash     token, instance, until (ms, the server's clock); epoch, seq and revision of the
                                     record, and ``by``, the token that it was committed with; ``gone``: it was
                                     taken away
``room:{ID}:log``           stream   one entry a commit (``redis_entry.py``), with the id ``SEQ-0`` of its last event;
                                     bounded
``room:{ID}:events``        channel  the same entries, live (in a cluster: of its shard)
``instance:{NAME}``         string   its address; there as long as it is alive
``instance:{NAME}:scopes``  set      the rooms that it may own: noted before they are acquired, so never one too few
``instance:{NAME}:letters`` channel  what others send to it (in a cluster: of its shard)
``instances``               set      their names
==========================  =======  ================================================================================

Everything that must be one step is one script. Scripts ask the server for the time, so the instances' clocks do not
matter. No command is repeated by the driver: every one here may be sent again and acts once.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from roomkit.backends.base import (
    REMEMBERED,
    Acted,
    Commit,
    Ear,
    Events,
    Held,
    Instance,
    Lease,
    Listener,
    Outcome,
    Position,
    Stored,
)
from roomkit.backends.redis_ear import RedisEar
from roomkit.backends.redis_entry import Entry, first_seq, read_entry, write_entry
from roomkit.backends.redis_nodes import PUBLISH, Call, Nodes, Script
from roomkit.backends.redis_wire import pack
from roomkit.errors import InvalidConfig, InvalidRecord

_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"

# KEYS: lease. ARGV: instance, ttl, how long the key stays where there is no room.
_ACQUIRE = Script(
    _NOW
    + """
local l = redis.call('HMGET', KEYS[1], 'token', 'instance', 'until', 'revision', 'gone')
if l[2] and l[2] ~= ARGV[1] and tonumber(l[3]) > now then return {0, l[2], tonumber(l[3]) - now} end
local token = math.max(now, (tonumber(l[1] or 0)) + 1)
redis.call('HSET', KEYS[1], 'token', token, 'instance', ARGV[1], 'until', now + ARGV[2])
if not l[4] and not l[5] then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return {token, l[2]}
"""
)

# KEYS: lease, room, log. ARGV: instance, token, ttl, how long the keys stay.
_RENEW = Script(
    _NOW
    + """
local l = redis.call('HMGET', KEYS[1], 'token', 'instance', 'revision', 'gone')
if l[1] ~= ARGV[2] or l[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'until', now + ARGV[3])
if l[4] then return 1 end
if not l[3] then redis.call('PEXPIRE', KEYS[1], ARGV[3] + 60000)
elseif redis.call('PTTL', KEYS[2]) < ARGV[4] / 2 then
    for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[4]) end
end
return 1
"""
)

# KEYS: lease. ARGV: instance, token.
_RELEASE = Script(
    """
local l = redis.call('HMGET', KEYS[1], 'token', 'instance', 'revision', 'gone')
if l[1] ~= ARGV[2] or l[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'until', 0)
if l[3] then return 1 end
if not l[4] then redis.call('HDEL', KEYS[1], 'instance') end
return 2
"""
)

# KEYS: lease.
_HOLDER = Script(
    _NOW
    + """
local l = redis.call('HMGET', KEYS[1], 'instance', 'until')
if not l[1] or tonumber(l[2]) <= now then return false end
return {l[1], tonumber(l[2]) - now}
"""
)

# KEYS: lease, room.
_OPEN = Script(
    """
local l = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'revision', 'by')
return {redis.call('GET', KEYS[2]), l[1], l[2], l[3], l[4]}
"""
)

# KEYS: lease, room, log. ARGV: instance, token, epoch, seq, revision, whether to restore, first seq of the events,
# entry, channel, how long the keys stay, entries to keep, how long it is remembered that a room was taken away, record
# (none: take the room away).
_COMMIT = Script(
    """
local l = redis.call('HMGET', KEYS[1], 'token', 'instance', 'epoch', 'seq', 'revision', 'by', 'gone')
if l[1] ~= ARGV[2] or l[2] ~= ARGV[1] then return 1 end
local revision, want, seq = tonumber(l[5] or 0), tonumber(ARGV[5]), tonumber(l[4] or 0)
if l[3] == ARGV[3] and revision == want and l[6] == ARGV[2] then return 0 end
if not ARGV[13] and revision == 0 then return 0 end
if ARGV[6] == '1' then
    if revision >= want or l[7] then return 2 end
elseif revision ~= want - 1 then
    return 2
end
if not ARGV[13] then
    redis.call('DEL', KEYS[2], KEYS[3])
    redis.call('HDEL', KEYS[1], 'epoch', 'seq', 'revision', 'by')
    redis.call('HSET', KEYS[1], 'gone', 1)
    redis.call('PEXPIRE', KEYS[1], ARGV[12])
    return 0
end
if l[7] then redis.call('HDEL', KEYS[1], 'gone') end
if l[3] ~= ARGV[3] then
    seq = 0
    redis.call('DEL', KEYS[3])
end
redis.call('SET', KEYS[2], ARGV[13], 'PX', ARGV[10])
redis.call('HSET', KEYS[1], 'epoch', ARGV[3], 'seq', ARGV[4], 'revision', ARGV[5], 'by', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[10])
if tonumber(ARGV[4]) > seq then
    if tonumber(ARGV[7]) > seq + 1 then redis.call('DEL', KEYS[3]) end
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[11], ARGV[4] .. '-0', 'b', ARGV[8])
    redis.call('PEXPIRE', KEYS[3], ARGV[10])
    redis.call(%PUBLISH%, ARGV[9], ARGV[8])
end
return 0
"""
)

_MOST_FRAMES = 10_000


class _Frame(NamedTuple):
    """Of a room's commits: the key by which they find their node, and what is packed once."""

    key: str
    head: bytes
    tail: bytes


_OUTCOMES: tuple[Outcome, ...] = ("committed", "fenced", "conflict")
_SPARE = 60.0  # seconds for which the lease of a room that is not there stays known
_PREFIX = re.compile(r"[^{}\s]{0,64}")


class RedisBackend:
    """See the module and ``base.Backend``.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, with user and password; whether a cluster answers there
            is found out.
        prefix: before every key and channel: one server serves several installations.
        lease_ttl: seconds for which a lease is had.
        record_ttl: seconds for which a room is kept that no instance holds any more.
        log_size: about how many commits of a room can be read again.
        timeout: seconds that one answer may take.

    Connects with the first use. A server that is not there makes every method raise ``BackendUnavailable``.

    Raises:
        InvalidConfig: another kind of URL, a lease_ttl that makes no sense, or a prefix with braces or blanks.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "roomkit:",
        lease_ttl: float = 5.0,
        record_ttl: float = 1800.0,
        log_size: int = 1000,
        timeout: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise InvalidConfig(f"a key prefix is at most 64 characters without braces and blanks (got {prefix!r})")
        if not 0.05 <= lease_ttl <= record_ttl:
            raise InvalidConfig(f"lease_ttl must be from 0.05 to record_ttl seconds (got {lease_ttl!r})")
        self.lease_ttl = lease_ttl
        self.timeout = timeout
        self._prefix = prefix
        self._lease_ms = round(lease_ttl * 1000)
        self._record_ms = round(record_ttl * 1000)
        self._log_size = log_size
        self._clock = clock
        self._nodes = Nodes(url, timeout)
        self._frames: dict[tuple[str, str, int, str], _Frame] = {}  # changed in single steps
        self._lock = threading.Lock()  # a leaf
        # Guarded by _lock:
        self._ears: list[RedisEar] = []

    def scope_of(self, room_id: str) -> str:
        """The room itself."""
        return room_id

    def _room(self, room_id: str, what: str = "") -> str:
        return f"{self._prefix}room:{{{room_id}}}{what}"

    def _instance(self, name: str, what: str = "") -> str:
        return f"{self._prefix}instance:{{{name}}}{what}"

    @property
    def _names(self) -> str:
        return f"{self._prefix}instances"

    # Instances.

    def announce(self, instance: Instance) -> None:
        """See Backend."""
        key = self._instance(instance.name)
        self._nodes.run(
            [
                Call(key, ("SET", key, instance.address, "PX", self._lease_ms)),
                Call(self._names, ("SADD", self._names, instance.name)),
            ]
        )

    def withdraw(self, name: str) -> None:
        """See Backend."""
        key = self._instance(name)
        self._nodes.run([Call(key, ("DEL", key))])

    def instances(self) -> list[Instance]:
        """See Backend."""
        alive = self._look_up_instances()
        return [Instance(name, address) for name, address in sorted(alive.items()) if address is not None]

    def _look_up_instances(self) -> dict[str, str | None]:
        """Every name that is known, with its address where it is alive."""
        names = [_text(name) for name in self._nodes.run([Call(self._names, ("SMEMBERS", self._names))])[0]]
        keys = [self._instance(name) for name in names]
        found = self._nodes.run([Call(key, ("GET", key)) for key in keys])
        return {name: None if address is None else _text(address) for name, address in zip(names, found, strict=True)}

    def orphans(self, limit: int = 1000) -> list[str]:
        """See Backend. Forgets dead instances of which nothing is left."""
        found: list[str] = []
        for name, address in self._look_up_instances().items():
            if address is not None or len(found) >= limit:
                continue
            key = self._instance(name, ":scopes")
            scopes = [
                _text(scope) for scope in self._nodes.run([Call(key, ("SRANDMEMBER", key, limit - len(found)))])[0]
            ]
            if not scopes:
                self._nodes.run([Call(self._names, ("SREM", self._names, name))])
                continue
            leases = [self._room(scope, ":lease") for scope in scopes]
            last = self._nodes.run([Call(lease, ("HGET", lease, "instance")) for lease in leases])
            theirs = [scope for scope, who in zip(scopes, last, strict=True) if who is not None and _text(who) == name]
            found += theirs
            self._forget(name, set(scopes).difference(theirs))
        return found

    def _forget(self, name: str, scopes: set[str]) -> None:
        if scopes:
            key = self._instance(name, ":scopes")
            self._nodes.run([Call(key, ("SREM", key, *sorted(scopes)))])

    # Leases.

    def acquire(self, instance: str, scopes: Sequence[str]) -> list[Lease | Held]:
        """See Backend."""
        if not scopes:
            return []
        key = self._instance(instance, ":scopes")
        self._nodes.run([Call(key, ("SADD", key, *scopes)), Call(self._names, ("SADD", self._names, instance))])
        until = self._clock() + self.lease_ttl
        spare = self._lease_ms + round(_SPARE * 1000)
        leases = [self._room(scope, ":lease") for scope in scopes]
        answers = self._nodes.run([_ACQUIRE.call([lease], instance, self._lease_ms, spare) for lease in leases])
        acquired: list[Lease | Held] = []
        followed: dict[str, set[str]] = {}  # whose scopes they were
        for scope, answer in zip(scopes, answers, strict=True):
            if answer[0]:
                acquired.append(Lease(scope, instance, answer[0], until))
                if len(answer) > 1 and answer[1] is not None and _text(answer[1]) != instance:
                    followed.setdefault(_text(answer[1]), set()).add(scope)
            else:
                acquired.append(Held(scope, _text(answer[1]), answer[2] / 1000))
                followed.setdefault(instance, set()).add(scope)
        for name, theirs in followed.items():
            self._forget(name, theirs)
        return acquired

    def renew(self, leases: Sequence[Lease]) -> list[Lease | None]:
        """See Backend. None also where the server has lost the lease with its data."""
        until = self._clock() + self.lease_ttl
        calls = [
            _RENEW.call(self._keys(lease.scope), lease.instance, lease.token, self._lease_ms, self._record_ms)
            for lease in leases
        ]
        answers = self._nodes.run(calls)
        return [lease._replace(until=until) if ok else None for lease, ok in zip(leases, answers, strict=True)]

    def release(self, leases: Sequence[Lease], *, orphan: bool = False) -> None:
        """See Backend."""
        calls = [_RELEASE.call([self._room(lease.scope, ":lease")], lease.instance, lease.token) for lease in leases]
        given_up: dict[str, set[str]] = {}
        for lease, done in zip(leases, self._nodes.run(calls), strict=True):
            if done == 2 or (done and not orphan):  # 2: there is no room
                given_up.setdefault(lease.instance, set()).add(lease.scope)
        for name, scopes in given_up.items():
            self._forget(name, scopes)

    def holders(self, scopes: Sequence[str]) -> list[Held | None]:
        """See Backend."""
        answers = self._nodes.run([_HOLDER.call([self._room(scope, ":lease")]) for scope in scopes])
        return [
            None if answer is None else Held(scope, _text(answer[0]), answer[1] / 1000)
            for scope, answer in zip(scopes, answers, strict=True)
        ]

    # Rooms.

    def _keys(self, room_id: str) -> list[str]:
        return [self._room(room_id, ":lease"), self._room(room_id), self._room(room_id, ":log")]

    def open(self, lease: Lease, room_id: str) -> Stored | None:
        """See Backend."""
        return self.look(room_id)

    def look(self, room_id: str) -> Stored | None:
        """See Backend."""
        record, epoch, seq, revision, token = self._nodes.run([_OPEN.call(self._keys(room_id)[:2])])[0]
        if record is None or revision is None:
            return None
        return Stored(record, Position(_text(epoch), int(seq)), int(revision), int(token))

    def commit(self, commits: Sequence[Commit]) -> list[Outcome]:
        """See Backend."""
        return self._commit(commits, "0")

    def restore(self, commits: Sequence[Commit]) -> list[Outcome]:
        """See Backend."""
        return self._commit(commits, "1")

    def _commit(self, commits: Sequence[Commit], restore: str) -> list[Outcome]:
        calls = []
        for step in commits:
            key, head, tail = self._frame(step)
            changing = pack(step.position.seq, step.revision, restore, first_seq(step), write_entry(step))
            record = () if step.record is None else (b"$%d\r\n%b\r\n" % (len(step.record), step.record),)
            calls.append(_COMMIT.packed_call(key, 16 + len(record), head, changing, tail, *record))
        return [_OUTCOMES[answer] for answer in self._nodes.run(calls)]

    def _frame(self, step: Commit) -> _Frame:
        """What is the same in all commits of a room under one lease."""
        lease, epoch = step.lease, step.position.epoch
        of = (step.room_id, lease.instance, lease.token, epoch)
        frame = self._frames.get(of)
        if frame is None:
            if len(self._frames) >= _MOST_FRAMES:
                self._frames.clear()
            keys = self._keys(step.room_id)
            channel = self._room(step.room_id, ":events")
            frame = self._frames[of] = _Frame(
                keys[0],
                pack(len(keys), *keys, lease.instance, lease.token, epoch),
                pack(channel, self._record_ms, self._log_size, round(REMEMBERED * 1000)),
            )
        return frame

    # Events.

    def positions(self, room_ids: Sequence[str]) -> list[Position | None]:
        """See Backend."""
        keys = [self._room(room_id, ":lease") for room_id in room_ids]
        answers = self._nodes.run([Call(key, ("HMGET", key, "epoch", "seq")) for key in keys])
        return [None if epoch is None else Position(_text(epoch), int(seq)) for epoch, seq in answers]

    def read(self, room_id: str, epoch: str, after: int, limit: int = 1000) -> Events | None:
        """See Backend.

        Raises:
            InvalidRecord: what is in the log is not what roomkit wrote there.
        """
        lease, _, log = self._keys(room_id)
        known, rows = self._nodes.run(
            [
                Call(lease, ("HMGET", lease, "epoch", "seq")),
                Call(log, ("XRANGE", log, f"{max(0, after) + 1}-0", "+", "COUNT", limit)),
            ]
        )
        if known[0] is None or _text(known[0]) != epoch or after > int(known[1]):
            return None
        events: list[bytes] = []
        acted: list[Acted] = []
        for _, fields in rows:
            last = after + len(events)
            entry = _read_row(fields)
            first, more, commands = entry.events
            if entry.epoch != epoch or first > last + 1:  # made anew, or trimmed
                return None
            events += more[last + 1 - first :]
            acted += [one for one in commands if one.first > after and one.last > last]
            if len(events) >= limit:
                break
        if not events and after < int(known[1]):
            return None
        return Events(after + 1, tuple(events), tuple(acted))

    # Hearing.

    def listen(self, name: str, listener: Listener) -> Ear:
        """See Backend. One thread, with a connection, for each node that has something to be heard."""
        letters = self._instance(name, ":letters")
        ear = RedisEar(self._nodes, self.timeout, letters, self._room("", ":events"), listener)
        with self._lock:
            self._ears = [other for other in self._ears if not other.ended]
            self._ears.append(ear)
        return ear

    def send(self, letters: Sequence[tuple[str, bytes]]) -> list[bool]:
        """See Backend."""
        channels = [self._instance(name, ":letters") for name, _ in letters]
        calls = [Call(key, (PUBLISH, key, body)) for key, (_, body) in zip(channels, letters, strict=True)]
        return [answer > 0 for answer in self._nodes.run(calls)]

    def close(self) -> None:
        """See Backend. Blocks for at most a few times ``timeout`` where something is listened to."""
        with self._lock:
            ears, self._ears = self._ears, []
        for ear in ears:
            ear.close(4 * self.timeout)
        self._nodes.close()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _read_row(fields: Sequence[bytes]) -> Entry:
    if len(fields) != 2 or fields[0] != b"b":
        raise InvalidRecord("what is in the log is no commit: it has no text")
    return read_entry(fields[1])
