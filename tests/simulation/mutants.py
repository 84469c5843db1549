"""``python -m tests.simulation.mutants``: breaks the real code on purpose, one place at a time, and shows that the
simulation finds each.

A mutant is a text to be found exactly once in a module, and what stands there instead: a lock that is not taken, a
check that is made too early. Each is run in a process of its own, which puts the text in place while it imports.
Exit 1 when one survives, or when its old text is not there any more.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Edit(NamedTuple):
    """In ``roomkit/FILE``: ``old``, which stands there once, becomes ``new``."""

    file: str
    old: str
    new: str


class Mutant(NamedTuple):
    """A fault. ``scenario``: where to look for it."""

    name: str
    edits: tuple[Edit, ...]
    scenario: str = "any"
    grain: str | None = None


def _one(name: str, file: str, old: str, new: str, scenario: str = "any", grain: str | None = None) -> Mutant:
    return Mutant(name, (Edit(file, old, new),), scenario, grain)


_RECHECK = "                if room.expire():  # checks again, under the room's lock\n"
_ATTACH = "        self.execute(command, attach)\n        return done[0]\n"
_LATE = ("self.execute(command, attach)", "attach(self.execute(command))")
_CAPACITY = "        if len(self.seats) >= self.config.max_players:\n"
_EARLY = "        if self.player_count >= self._config.max_players and player_id not in self._machine.seats:\n"
_EARLY += '            raise RoomFull("full")\n'
_RESERVE_RELEASED = "                fanout.queue.release(reserved)\n"
_DRAIN = "            entries, self.queue = self.queue, []\n"
_PARK = """                if not self._wanted:  # stopped, or nothing came: park
                    self._thread = None
                    return
                self._wanted = False
"""
_PARK_LATE = """                wanted, self._wanted = self._wanted, False
            if not wanted:
                self._thread = None
                return
"""
_SNAPSHOT = "self._snapshot = machine.snapshot() if self._was_read else None\n"
_COUNTED = '        runtime.tally.add("operations", type(command).__name__)\n'
_REACTOR = "server/reactor.py"
_READ_WAKE = """                self._wake_receiver.recv(4096)
                self._wake_sent = False
"""
_READ_WAKE_LATE = """                self._wake_sent = False
                self._wake_receiver.recv(4096)
"""
_WAKE = """        if self._due is not None:
            return
        reactor = self._reactor
"""
_TOUCH = """        if self._due is None:
            self._due = self._owner()
            self._reactor._touched.append(self)
        self._asked = None"""
_TOUCH_FOR_ALL = """        self._due = self._asked
        self._reactor._touched.append(self)
        self._asked = None"""
_ASK = """            self._asked = self._owner()
            try:
                reactor.call(self._touch)
            except MemoryError:  # the next one tries again
                self._asked = None
                raise
"""
_ROUND = """            if self._touched:
                self._drain()
            elif self._dirty:
                self._flush()
"""
_ROUND_FLUSHED_FIRST = """            if self._dirty:
                self._flush()
            elif self._touched:
                self._drain()
"""
_TAKE_TOUCHED = "        touched, self._touched = self._touched, []\n"
_AFTER_DRAIN = """                log.exception("draining room %s failed", broadcaster.room_id)
"""
_UNDER_WAY = "self._asked is None and self._due is None and not self._draining:"
_HAND_OVER = """        self.broadcaster.stop(timeout)
        self.broadcaster = factory"""
_NODE = "sharing/node.py"
_OWNED = "sharing/owned.py"
_ROOM = "sharing/room.py"
_FOLLOWING = "sharing/following.py"
_COPY = "sharing/copy.py"
_SESSION = "server/session.py"
_CARRIED_OUT = "            room.submit(command, partial(self._ack, message_id))\n"
_GIVEN_BACK = "                self.room.remove_connection(self.player_id, self._connection)\n"

MUTANTS = (
    Mutant(
        "write lock not taken",
        (
            Edit(
                "concurrency/rwlock.py", "        if not self._write.acquire(True, timeout):\n", "        if False:\n"
            ),
            Edit("concurrency/rwlock.py", "        self._write.release()\n", "        pass\n"),
        ),
    ),
    Mutant(
        "read lock not taken",
        (
            Edit("concurrency/rwlock.py", "        if not reader.acquire(timeout=timeout):\n", "        if False:\n"),
            Edit("concurrency/rwlock.py", "            reader.release()\n", "            pass\n"),
        ),
    ),
    Mutant(
        "events queued after the lock is released",
        (
            Edit("room.py", "reserved, dropped = fanout.publish_locked(events, reserved, key)\n", "pass\n"),
            Edit(
                "room.py",
                "                fanout.published(len(events), dropped)\n",
                "                fanout.publish_locked(events, 0, None)\n"
                "                fanout.published(len(events), dropped)\n",
            ),
        ),
    ),
    _one("reaper takes a room away without looking again", "manager.py", _RECHECK, "                if True:\n"),
    _one(
        "room that becomes due while it is swept is not closed",
        "room.py",
        "return gone or (machine.closed and machine.expired_reason(self._runtime.clock()) is not None)",
        "return gone or machine.expired_reason(self._runtime.clock()) is not None",
        "expiry",
    ),
    _one("reservation released twice", "room.py", _RESERVE_RELEASED, _RESERVE_RELEASED * 2),
    _one("reservation not released", "room.py", _RESERVE_RELEASED, "                pass\n"),
    _one(
        "drain loses what is appended meanwhile",
        "concurrency/eventqueue.py",
        _DRAIN + "            gap",
        "            entries = list(self.queue)\n            self.mutex.release()\n            self.mutex.acquire()\n"
        "            self.queue = []\n            gap",
    ),
    _one("wake lost between looking and parking", "concurrency/worker.py", _PARK, _PARK_LATE, "crowd"),
    Mutant(
        "_wanted cleared after the work",
        (
            Edit("concurrency/worker.py", _PARK, _PARK.replace("                self._wanted = False\n", "")),
            Edit(
                "concurrency/worker.py",
                "                self._work()\n",
                "                self._work()\n                self._wanted = False\n",
            ),
        ),
    ),
    _one(
        "worker asked to stop leaves its last run out",
        "concurrency/worker.py",
        "if not self._wanted:  # stopped",
        "if self._stopping or not self._wanted:  # stopped",
        "shutdown",
    ),
    _one("resume attached after the lock is released", "room.py", _ATTACH, _ATTACH.replace(*_LATE), "resume"),
    Mutant(
        "capacity looked at before the lock",
        (
            Edit("core/state.py", _CAPACITY, "        if False:\n"),
            Edit(
                "room.py",
                "        command = c.AddPlayer(",
                _EARLY + "        command = c.AddPlayer(",
            ),
            Edit("room.py", "        command = c.Join(\n", _EARLY + "        command = c.Join(\n"),
            Edit("room.py", "ShuttingDown\nfrom roomkit.fanout", "RoomFull, ShuttingDown\nfrom roomkit.fanout"),
        ),
        "crowd",
    ),
    _one("drop not counted", "concurrency/eventqueue.py", "        self.dropped[kind] += 1\n", "", "drops"),
    _one(
        "drop not announced when nothing follows",
        "fanout.py",
        "        if waiting or dropped:\n",
        "        if waiting > dropped:\n",
        "drops",
    ),
    _one(
        "gap hung on the wrong entry",
        "concurrency/eventqueue.py",
        "            entry.gap = self._take_gap()\n",
        "            (self.queue[0] if self.queue else entry).gap = self._take_gap()\n",
        "drops",
    ),
    _one(
        "gap lost with the entry that is replaced",
        "concurrency/eventqueue.py",
        "        if older.gap is not None:\n",
        "        if False:\n",
        "drops",
    ),
    _one(
        "who joins while the room closes is left open",
        "room.py",
        "machine.seq, first, closed=machine.closed, number",
        "machine.seq, first, closed=False, number",
    ),
    _one(
        "who joins after shutdown is told nothing",
        "room.py",
        "                if self._fanout.stopped and self._machine.closed:",
        "                if False:",
        "shutdown",
    ),
    _one(
        "nearer deadline of a room that is being swept is lost",
        "manager.py",
        "            if known is not None and deadline >= known:",
        "            if known is None or deadline >= known:",
        "expiry",
    ),
    _one(
        "somebody else's sweep does not wake the reaper",
        "manager.py",
        "        if due and (reaper := self._reaper) is not None:  # it may have fallen asleep",
        "        if False:  # it may have fallen asleep",
        "expiry",
    ),
    _one(
        "heap entry of an old deadline honoured",
        "core/expiry.py",
        "                return\n            del self._keys[known[1]]\n",
        "                return\n",
    ),
    _one(
        "wake of the reaper lost before it sleeps",
        "reaper.py",
        "if pause > 0 and not self._woken and not self._stopping:",
        "if pause > 0 and not self._stopping:",
        "expiry",
    ),
    _one(
        "limits looked at before the manager's lock only",
        "manager.py",
        "                if new:\n                    self._check_limits_locked(room.id, owner)\n",
        "                if new:\n                    pass\n",
        "resume",
    ),
    _one(
        "loss of a replaced connection drops the new one",
        "room.py",
        "lambda: fanout.find_locked(link.player_id) is link",
        "lambda: True",
        "resume",
    ),
    _one(
        "counter without its lock",
        "metrics.py",
        "        with self._lock:\n            self._counts[name, label] += count\n\n    def add_many",
        "        self._counts[name, label] += count\n\n    def add_many",
        "mixed",
        "opcodes",
    ),
    _one(
        "hook called under the manager's lock",
        "manager.py",
        "                self._on_watermark(room, pressure)\n",
        "                with self._lock:\n                    self._on_watermark(room, pressure)\n",
        "drops",
    ),
    _one(
        "room's lock taken under the manager's",
        "manager.py",
        "            with self._lock:\n                if new",
        "            with self._lock:\n                deadline = room.next_deadline()\n                if new",
    ),
    Mutant(
        "snapshot replaced after the events are out",
        (
            Edit("room.py", _SNAPSHOT, "pass\n"),
            Edit("room.py", _COUNTED, "        self._snapshot = None\n" + _COUNTED),
        ),
    ),
    _one(
        "who leaves is not told the rest",
        "fanout.py",
        "                    self._leaving[link] = None\n",
        "",
    ),
    _one(
        "a connection that failed gets more after its close",
        "fanout.py",
        "            if link.ended:\n                continue\n",
        "",
    ),
    _one(
        "subscriber's last gap not told",
        "delivery.py",
        "            self._tell_gap_locked()  # what was left out came after everything in the outbox\n",
        "",
    ),
    _one(
        "shutdown does not wait for subscribers",
        "fanout.py",
        "            end = subscription.join if ended else subscription.stop\n"
        "            ended = end(max(0.0, deadline - monotonic())) and ended\n",
        "            pass\n",
        "shutdown",
    ),
    _one(
        "wake-up not sent",
        _REACTOR,
        '                self._wake_sender.send(b"\\0")\n',
        "                pass\n",
        "server",
    ),
    _one("wake-up's flag cleared before its byte is read", _REACTOR, _READ_WAKE, _READ_WAKE_LATE, "server"),
    _one(
        "touched by another thread without waking",
        _REACTOR,
        _ASK,
        "            self._due = self._owner()\n            reactor._touched.append(self)\n",
        "server",
    ),
    _one("drained by the thread that operates", _REACTOR, _ASK, "            self._drain(self._owner())\n", "server"),
    Mutant(
        "I/O thread relies on a touch that another is about to make",
        (
            Edit(_REACTOR, _WAKE, _WAKE.replace("is not None", "is not None or self._asked is not None")),
            Edit(_REACTOR, _TOUCH, _TOUCH_FOR_ALL),
        ),
        "server",
    ),
    _one(
        "is_current() says no",
        _REACTOR,
        "        return self._reactor.is_current()\n",
        "        return False\n",
        "server",
    ),
    _one(
        "room touched in the last round is slept over",
        _REACTOR,
        "        if self._calls or self._touched or self._dirty:\n",
        "        if self._calls or self._dirty:\n",
        "server",
    ),
    _one(
        "calls made before the start are slept over",
        _REACTOR,
        "        if self._calls or self._touched or self._dirty:\n",
        "        if self._touched or self._dirty:\n",
        "switch",
    ),
    Mutant(
        "room touched while others are drained is forgotten",
        (
            Edit(_REACTOR, _TAKE_TOUCHED, "        touched = list(self._touched)\n"),
            Edit(_REACTOR, _AFTER_DRAIN, _AFTER_DRAIN + "        self._touched = []\n"),
        ),
        "server",
    ),
    _one(
        "room touched while it is drained itself is forgotten",
        _REACTOR,
        "            self._draining = False\n",
        "            self._draining = False\n            self._due = None\n",
        "server",
    ),
    _one("answers written before the events", _REACTOR, _ROUND, _ROUND_FLUSHED_FIRST, "server"),
    _one(
        "stop() does not wait for the drain that is under way",
        _REACTOR,
        _UNDER_WAY,
        _UNDER_WAY.replace(" and not self._draining", ""),
        "server",
    ),
    _one(
        "nearer deadline of a connection is slept over",
        _REACTOR,
        "            if deadline < self._next_deadline:\n                self._next_deadline = deadline\n",
        "",
        "server",
    ),
    _one(
        "what was queued for the thread before is left",
        "fanout.py",
        "        self.broadcaster = factory(self.room_id, self.drain)\n",
        "        self.broadcaster = factory(self.room_id, self.drain)\n        return\n",
        "switch",
    ),
    _one(
        "the thread before is not waited for",
        "fanout.py",
        _HAND_OVER,
        _HAND_OVER.replace("stop(timeout)", "request_stop()"),
        "switch",
    ),
    _one(
        "room that is being made is not handed over",
        "manager.py",
        "            room.use_broadcaster(broadcaster, 0)  # it may be another one than when the room was made\n",
        "",
        "switch",
    ),
    _one("rooms to come are not handed over", "manager.py", "            self._broadcaster = factory\n", "", "switch"),
    _one(
        "told before it is carried out",
        _SESSION,
        _CARRIED_OUT,
        "            self._ack(message_id, room.get_state().seq)\n            room.execute(command)\n",
        "sessions",
    ),
    _one(
        "a refusal is not told",
        _SESSION,
        "        except RoomkitError as error:\n            self._refuse(parsed.id, error)\n",
        "        except RoomkitError:\n            pass\n",
        "sessions",
    ),
    _one(
        "a refusal is told twice",
        _SESSION,
        '        self._server.tally.add("refused", error.code)\n',
        "        self._reply_error(message_id, error.code, str(error))\n",
        "sessions",
    ),
    _one(
        "a message over the rate is carried out",
        _SESSION,
        "        if not within_rate:\n",
        "        if False:\n",
        "sessions",
    ),
    _one(
        "bad messages are never too many",
        _SESSION,
        "            if self._bad_messages > _MAX_BAD_MESSAGES:\n",
        "            if False:\n",
        "sessions",
    ),
    _one(
        "who is not let in is not told",
        _SESSION,
        "        self._connection.close(code, str(error))\n",
        "        pass\n",
        "sessions",
    ),
    _one(
        "what a client has already is not said",
        _SESSION,
        "            seq=request.seq,\n",
        "            seq=None,\n",
        "sessions",
    ),
    _one("a lost connection keeps its seat", _SESSION, _GIVEN_BACK, "                pass\n", "sessions"),
    _one(
        "a loss that the room was too busy for is forgotten",
        _SESSION,
        "                self._connection.reactor.call_later(_RETRY, lambda: self.on_close(code, reason))\n",
        "                pass\n",
        "sessions",
    ),
    _one(
        "a loss drops whoever has the seat",
        _SESSION,
        _GIVEN_BACK,
        "                self.room.remove_connection(self.player_id)\n",
        "sessions",
    ),
    _one(
        "a step that has to be stored again is taken anew",
        _NODE,
        "        if journal.step is None:\n            journal.step = room.take_step",
        "        if True:\n            journal.step = room.take_step",
        "sharing",
    ),
    _one(
        "delivered before it is stored",
        _NODE,
        "        if step.record is not None:\n            return _commit_of(journal, room, step)\n",
        "        if step.record is not None:\n            room.release_step(step)\n"
        "            return _commit_of(journal, room, step)\n",
        "sharing",
    ),
    _one(
        "a change noted after the lock is released",
        _OWNED,
        """            noted = True
            journal.note_locked(events, waits, command_id)
            if then is not None:
                then(events)

        try:
            events = super().execute(command, note_locked, go_on_locked, timeout=timeout)
""",
        """            noted = True
            if then is not None:
                then(events)

        try:
            events = super().execute(command, note_locked, go_on_locked, timeout=timeout)
            if noted:
                journal.note_locked(events, waits, command_id)
""",
        "sharing",
    ),
    _one(
        "a lost connection is not noted",
        _OWNED,
        "            journal.note_locked(events, waits, command_id)\n",
        "            if type(command) is not c.Disconnect:\n"
        "                journal.note_locked(events, waits, command_id)\n",
        "sharing",
    ),
    _one(
        "what came during a step that is stored again is not marked",
        _NODE,
        "        else:  # one that was not stored; for what has come since then there is the next turn\n"
        "            self.mark(journal)\n",
        "",
        "sharing",
    ),
    _one(
        "the mark of what is forgotten is left",
        _NODE,
        "            if self._marked.get(room.id) is journal:\n                del self._marked[room.id]\n",
        "",
        "sharing",
    ),
    _one(
        "a mark does not wake",
        _NODE,
        "                if not self._marked:  # else the thread was woken, and has not looked yet\n",
        "                if False:\n",
        "sharing",
    ),
    _one(
        "what is queued outlives the loss of the room",
        "fanout.py",
        "            self.queue.drain(held=True)\n            for",
        "            self.release(*self.queue.drain(held=True))\n            for",
        "sharing",
    ),
    _one(
        "who waits is told that it is stored when the room is lost",
        _NODE,
        "*waiters), False)",
        "*waiters), True)",
        "sharing",
    ),
    _one(
        "two threads open a room",
        _NODE,
        "            if not self._condition.wait_for(free, _GIVE_UP):\n",
        "            if False:\n",
        "sharing",
    ),
    _one(
        "a room that is ours already is adopted",
        _NODE,
        "if scope not in self._busy and scope not in self._journals]",
        "if scope not in self._busy]",
        "sharing",
    ),
    Mutant(
        "verdicts swapped",
        (
            Edit(_NODE, '        return "ours"\n', '        return "again"\n'),
            Edit(
                _NODE,
                'revision == revision:\n        return "again"\n',
                'revision == revision:\n        return "ours"\n',
            ),
        ),
        "sharing",
    ),
    _one(
        "who came after us is overwritten",
        _NODE,
        "    if stored.token > lease.token:",
        "    if False:",
        "sharing",
    ),
    _one(
        "the store takes every token",
        "backends/memory.py",
        "return scope is not None and scope.token == lease.token",
        "return scope is not None",
        "sharing",
    ),
    _one(
        "seats of a room that was taken over stay connected",
        _OWNED,
        "            self._carry_out(journal, c.Disconnect(player.id), None, lambda: find(player.id) is None, None)\n",
        "            pass\n",
        "sharing",
    ),
    _one(
        "a drained instance does not store what is left",
        _NODE,
        "not (self._marked or self._locked)):",
        "True):",
        "sharing",
    ),
    # Of rooms that are followed, and of what is asked of their owners.
    Mutant(
        "what was missed is not read, nor asked for by looking",
        (
            Edit(_FOLLOWING, "            room.copy_of.hole = True\n", "            pass\n"),
            Edit(_FOLLOWING, "        if copy.state.seq < copy.late:", "        if False:"),
        ),
        "following",
    ),
    _one(
        "a hole is not filled",
        _FOLLOWING,
        "            self.fill(room)\n            return True\n",
        "            return True\n",
        "following",
    ),
    _one(
        "a state that was never one is told",
        _ROOM,
        "        for event in events:\n            copy.state = advance(",
        "        for event in events[1:] or events:\n            copy.state = advance(",
        "following",
    ),
    _one(
        "a hole in what was heard is not noticed",
        _ROOM,
        "if heard.epoch != machine.epoch or first > machine.seq + 1:\n",
        "if heard.epoch != machine.epoch:\n",
        "following",
    ),
    _one(
        "a command is sent again under a new id",
        _COPY,
        "        self.post.post(waiting.to, waiting.letter)\n",
        "        letter = waiting.letter\n"
        "        self.waiting.pop(letter.id, None)\n"
        "        fields = {name: getattr(letter, name) for name in letter.__struct_fields__}\n"
        "        again = type(letter)(**{**fields, 'id': letter.id + '+'})\n"
        "        waiting.letter = again if waiting.to else letter\n"
        "        self.waiting[waiting.letter.id] = waiting\n"
        "        self.post.post(waiting.to, waiting.letter)\n",
        "following",
    ),
    _one(
        "the owner does not remember what it carried out",
        _OWNED,
        "            if command_id in journal.acted:\n",
        "            if False:\n",
        "following",
    ),
    _one(
        "a connection that is lost while it is let in is attached",
        _ROOM,
        "                if mine and copy.coming.pop(number, None) is not None:\n",
        "                if False:\n",
        "following",
    ),
    _one(
        "whose connections an instance has is told once",
        _FOLLOWING,
        "        if copy.owner != self.name and (moved or present):\n",
        "        if copy.owner != self.name and moved:\n",
        "following",
    ),
    _one(
        "a state that is older than its events",
        _ROOM,
        "            self._snapshot = copy.state  # first: whoever gets an event must not read an older state\n",
        "",
        "following",
    ),
    _one(
        "what waits is not carried out where the room is taken over",
        _NODE,
        "            for waiting in list(copy.waiting.values()):\n                copy.send(waiting)\n",
        "",
        "following",
    ),
    _one(
        "connections at an instance that let go of the room stay",
        _NODE,
        "            unheard = [] if room is None else room.unheard(since)\n",
        "            unheard: list[str] = []\n",
        "following",
    ),
    _one(
        "who waits for an answer is not told when the room is let go of",
        _OWNED,
        "            self._fanout.tell_last_locked()\n",
        "",
        "following",
    ),
    _one(
        "a connection that was replaced gets its answer before its events",
        "fanout.py",
        "        self._leaving[link] = None\n        try:\n",
        "        self._leaving[link] = None\n        del self._leaving[link]\n        try:\n",
        "following",
    ),
    _one(
        "letters that are posted do not wake",
        _FOLLOWING,
        "        elif not waiting:  # else the thread was woken, and has not looked yet\n            self._wake()\n",
        "",
        "following",
    ),
)


class _Overlay(importlib.machinery.SourceFileLoader):
    """Imports a module of roomkit's with a mutant's texts in place."""

    edits: tuple[Edit, ...] = ()

    def get_data(self, path: str) -> bytes:
        data = super().get_data(path)
        return patch(data.decode(), self.edits).encode() if path.endswith(".py") else data

    def path_stats(self, path: str) -> dict[str, int]:
        raise OSError("no cache: neither read nor written")

    def set_data(self, path: str, data: bytes, *, _mode: int = 0o666) -> None:
        pass


def patch(source: str, edits: tuple[Edit, ...]) -> str:
    """The source with the edits made.

    Raises:
        ValueError: an old text is not there exactly once.
    """
    for edit in edits:
        count = source.count(edit.old)
        if count != 1:
            raise ValueError(f"roomkit/{edit.file}: stands there {count} times, not once: {edit.old!r}")
        source = source.replace(edit.old, edit.new)
    return source


def check(mutant: Mutant) -> None:
    """Raise ValueError if the mutant cannot be made any more."""
    for file in {edit.file for edit in mutant.edits}:
        patch((ROOT / "roomkit" / file).read_text(), tuple(edit for edit in mutant.edits if edit.file == file))


class _Finder:
    def __init__(self, mutant: Mutant) -> None:
        self._edits: dict[str, tuple[Edit, ...]] = {}
        for edit in mutant.edits:
            module = "roomkit." + edit.file.removesuffix(".py").replace("/", ".")
            self._edits[module] = (*self._edits.get(module, ()), edit)

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        edits = self._edits.get(name)
        if edits is None:
            return None
        loader = _Overlay(name, str(ROOT / "roomkit" / edits[0].file))
        loader.edits = edits
        return importlib.util.spec_from_loader(name, loader)


def hunt(mutant: Mutant, seeds: int) -> str:
    """In this process: run the mutant until a seed kills it; what did."""
    sys.meta_path.insert(0, _Finder(mutant))  # type: ignore[arg-type]
    import roomkit

    # An empty package: only the reactor and the sessions are looked at, and to import the server takes longer than most
    # mutants live.
    roomkit.server = sys.modules["roomkit.server"] = ModuleType("roomkit.server")  # type: ignore[attr-defined]
    roomkit.server.__path__ = [str(ROOT / "roomkit" / "server")]
    from .patch import patched
    from .world import simulate

    with patched():
        for seed in range(seeds):
            scheduler, _ = simulate(seed, mutant.scenario, grain=mutant.grain)
            if scheduler.finding is not None:
                return f"seed {seed}: {scheduler.finding}"
    return ""


def hunt_in_process(mutant: Mutant, seeds: int) -> tuple[str, float]:
    """In a process of its own; what killed it ("": nothing did), and the seconds that it took."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "tests.simulation.mutants", "--hunt", mutant.name, "--seeds", str(seeds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{mutant.name}: {done.stderr[-2000:]}")
    return done.stdout.strip(), time.perf_counter() - began


def main(arguments: list[str] | None = None) -> int:
    """Run all, or those whose names contain ``--only``; exit 1 when one survives."""
    parser = argparse.ArgumentParser("python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="a part of the name")
    parser.add_argument("--seeds", type=int, default=1000, help="a mutant that lives through so many survives")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/simulation.md")
    parser.add_argument("--hunt", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.hunt:
        print(hunt(next(mutant for mutant in MUTANTS if mutant.name == options.hunt), options.seeds))
        return 0
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    for mutant in chosen:
        check(mutant)
    survivors = 0
    began = time.perf_counter()
    with ThreadPoolExecutor(max(1, options.jobs)) as pool:
        for mutant, (killed, seconds) in zip(
            chosen, pool.map(lambda mutant: hunt_in_process(mutant, options.seeds), chosen), strict=True
        ):
            survivors += not killed
            first = killed.splitlines()[0] if killed else "SURVIVED"
            if options.markdown:
                seed, _, found = first.partition(": ")
                invariant, number = found.partition(":")[0], seed.removeprefix("seed ")
                print(f"| {mutant.name} | `{mutant.scenario}` | {number} | {invariant} |", flush=True)
            else:
                print(f"{mutant.name}: {first[:160]} ({seconds:.1f} s)", flush=True)
    print(f"{len(chosen)} mutants, {survivors} survived, {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
