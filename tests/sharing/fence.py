"""The store's own word on who owned a room when: MONITOR at each of its servers, and what must be so of that.

A script's steps are shown as they are made (``[0 lua]``), behind the call (``EVALSHA``) with what the instance said of
itself. A replica shows what it copies as well, but not as a script's; so each step is seen once, at the server that
made it.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from support.fakes import PATIENCE, eventually

_LINE = re.compile(rb"([\d.]+) \[\d+ (\S+)\] (.*)", re.DOTALL)
_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_CALL = 16  # words of a call that are looked at: its keys, the instance, the token, and so on, without the record


class Acquired(NamedTuple):
    """A lease was given."""

    token: int
    instance: str


class Committed(NamedTuple):
    """A step was stored under a token, at the word of an instance. ``restored``: as one that the store had lost."""

    token: int
    instance: str
    epoch: str
    seq: int
    revision: int
    restored: bool


class Logged(NamedTuple):
    """Events were added to the log."""

    first: int
    events: tuple[Any, ...]
    acted: int


class Missed(NamedTuple):
    """The server was killed: of what it did at the very last it did not get to show everything."""


Act = Acquired | Committed | Logged | Missed
_MISSED = b"missed"  # in place of a line


class Seen(NamedTuple):
    """An act, the moment by the server's clock, and the server's port."""

    at: float
    server: int
    act: Act


class Watch:
    """Hears everything that servers do for the keys of one prefix.

    Thread safety: any thread. A thread for each server, ``watch``, ends with the server's connection or :meth:`close`.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode()
        self._login: Sequence[str] = ()
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._lines: dict[int, list[bytes]] = defaultdict(list)
        self._ends: dict[int, tuple[socket.socket, threading.Thread]] = {}

    def attach(self, port: int, host: str = "127.0.0.1", login: Sequence[str] = ()) -> None:
        """Hear this server from now on; it shows all that it does after this returns. ``login``: user and password."""
        self._login = login
        sock = self._connect((host, port))
        sock.sendall(b"MONITOR\r\n")
        stream = sock.makefile("rb")
        answer = stream.readline()
        if answer != b"+OK\r\n":
            sock.close()
            raise ValueError(f"the store shows nothing: {answer!r}")
        sock.settimeout(None)
        thread = threading.Thread(target=self._run, args=(port, stream), name="watch", daemon=True)
        with self._lock:
            before = self._ends.get(port)  # of the same server, before it was killed
            self._ends[port] = (sock, thread)
            if before is not None:
                self._lines[port].append(_MISSED)
        if before is not None:
            before[0].close()
        thread.start()

    def _connect(self, address: tuple[str, int]) -> socket.socket:
        sock = socket.create_connection(address, PATIENCE)
        if self._login:
            sock.sendall(f"AUTH {' '.join(self._login)}\r\n".encode())
            if sock.recv(1024) != b"+OK\r\n":
                sock.close()
                raise ValueError("the store does not let us in")
        return sock

    def _run(self, port: int, stream: Any) -> None:
        with self._lock:
            lines = self._lines[port]
        room, echo = self._prefix + b"room:{", b' "ECHO" "' + self._prefix
        with contextlib.suppress(OSError), stream:
            for line in stream:
                if b' "EVALSHA" ' in line and room in line:
                    lines.append(line[1:800])  # without the record
                elif (b' lua] "' in line and room in line and b'] "SET" ' not in line) or echo in line:
                    lines.append(line[1:])

    def catch_up(self) -> None:
        """Until all has been heard that servers which run have done by now."""
        with self._lock:
            ends = [(sock, self._lines[port], port) for port, (sock, thread) in self._ends.items() if thread.is_alive()]
        for sock, lines, port in ends:
            mark = f"{secrets.token_hex(8)} {port}".encode()
            with self._connect(sock.getpeername()) as other:
                other.sendall(b'ECHO "%b%b"\r\n' % (self._prefix, mark))
                other.recv(1024)
            eventually(lambda lines=lines, mark=mark: any(mark in line for line in lines[-1000:]))  # type: ignore[misc]

    def close(self) -> None:
        """Hear nothing more."""
        with self._lock:
            ends, self._ends = list(self._ends.values()), {}
        for sock, thread in ends:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)
            sock.close()

    def histories(self) -> dict[str, list[Seen]]:
        """What became of each room, in its order."""
        with self._lock:
            lines = {port: list(some) for port, some in self._lines.items()}
        found: dict[str, list[Seen]] = defaultdict(list)
        for port, some in lines.items():
            for room_id, seen in read_lines(port, some, self._prefix.decode()):
                found[room_id].append(seen)
        for history in found.values():
            history.sort(key=lambda seen: seen.at)  # stable: within a server they are in order
        return found


def read_lines(port: int, lines: Iterable[bytes], prefix: str) -> Iterable[tuple[str, Seen]]:
    """What MONITOR said, as acts of rooms."""
    key = re.compile(re.escape(prefix) + r"room:\{([^}]*)\}(.*)")
    call: list[str] = []
    missed = 0
    knows: dict[str, int] = defaultdict(int)  # how much was missed before the last act of a room
    for line in lines:
        missed += line == _MISSED
        found = _LINE.match(line)
        if found is None:
            continue
        words = [_plain(word[1]) for word in islice(_WORD.finditer(found[3]), _CALL)]
        if found[2] != b"lua":
            call = words
            continue
        where = key.fullmatch(words[1]) if len(words) > 1 else None
        if where is None:
            continue
        act = _act_of(words, where[2], call)
        if act is not None:
            at = float(found[1])
            if knows[where[1]] != missed:
                knows[where[1]] = missed
                yield where[1], Seen(at, port, Missed())
            yield where[1], Seen(at, port, act)


def _act_of(words: Sequence[str], kind: str, call: Sequence[str]) -> Act | None:
    fields = dict(zip(words[2::2], words[3::2], strict=False))
    if words[0] == "HSET" and kind == ":lease" and "token" in fields:
        return Acquired(int(fields["token"]), fields["instance"])
    if words[0] == "HSET" and kind == ":lease" and "revision" in fields:
        said = call[3 + int(call[2]) :]  # behind the script's name, the number of keys and the keys
        return Committed(
            int(fields["by"]), said[0], fields["epoch"], int(fields["seq"]), int(fields["revision"]), said[5] == "1"
        )
    if words[0] == "XADD":
        entry = msgspec.json.decode(words[-1].encode("latin-1"))
        return Logged(entry["first"], tuple(entry["events"]), len(entry.get("acted", ())))
    return None


def _plain(word: bytes) -> str:
    """Without the escapes of MONITOR; each character is a byte."""
    return word.decode("unicode_escape") if b"\\" in word else word.decode("latin-1")


def violations(room_id: str, history: Sequence[Seen], log: Sequence[Any] | None) -> list[str]:
    """What must not be in one room's history, whose log is this at the end (None: it has a hole).

    Two owners in one epoch of the fence: a token that is had by two, a commit under a token that is not the last one
    given or by another instance than was given it, a token that goes back. A fork: a commit that does not follow the
    one before it, or an event that was logged and is another one at the end. Where something was missed, also since
    a replica took over, there may have been more commits, and another owner.
    """
    wrong: list[str] = []
    owners: dict[int, str] = {}
    newest = 0
    last: Committed | None = None
    server = 0
    sure = True
    for _, where, act in history:
        sure = sure and where == (server or where)
        server = where
        if isinstance(act, Missed):
            sure = False
        elif isinstance(act, Acquired):
            if act.token <= newest:
                wrong.append(f"{room_id}: token {act.token} was given to {act.instance} after {newest}")
            if owners.setdefault(act.token, act.instance) != act.instance:
                wrong.append(f"{room_id}: token {act.token} is had by {owners[act.token]} and {act.instance}")
            newest = max(newest, act.token)
        elif isinstance(act, Committed):
            if not sure and act.token > newest:
                newest = act.token
                owners[newest] = act.instance
            if last is not None and not sure and act.revision > last.revision:
                last = last._replace(revision=act.revision - 1)
            wrong += _wrong_with(room_id, act, last, newest, owners)
            last, sure = act, True
        elif isinstance(act, Logged) and log is not None:
            for seq, event in enumerate(act.events, act.first):
                if seq > len(log) or log[seq - 1] != event:
                    wrong.append(f"{room_id}: what was logged as event {seq} is another one at the end")
    if last is not None and log is not None and last.seq < len(log):
        wrong.append(f"{room_id}: its log has {len(log)} events, the last commit ended with {last.seq}")
    return wrong


def _wrong_with(
    room_id: str, act: Committed, last: Committed | None, newest: int, owners: dict[int, str]
) -> Iterable[str]:
    what = f"{room_id}: revision {act.revision} by {act.instance} under token {act.token}"
    if act.token != newest:
        yield f"{what}, when {newest} had been given to {owners.get(newest)}"
    if owners.get(act.token) != act.instance:
        yield f"{what}, which was given to {owners.get(act.token)}"
    if last is None:
        return
    if act.epoch != last.epoch:
        yield f"{what} in epoch {act.epoch}, which was {last.epoch}"
    if act.seq < last.seq:
        yield f"{what} ends with {act.seq}, the one before with {last.seq}"
    if act.revision <= last.revision or (act.revision != last.revision + 1 and not act.restored):
        yield f"{what} follows revision {last.revision} by {last.instance}"
