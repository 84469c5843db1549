"""What an instance hears with on Redis: connections that subscribe, one for each node with something to be heard.

The driver's own PubSub is not used: over a cluster it asks one node after the other, its thread ends with the first
outage, and it does not notice a server that is frozen. Here each node has a :class:`_Feed`, a thread that is the only
one to touch its connection. Others say what is wanted (:class:`RedisEar`) and wake it by a pair of sockets.

A channel is in one of these states:

1. wanted, with a feed (``_feeds_of``), which subscribes to it when it can;
2. confirmed: everything that is published on it is heard;
3. missed: it was confirmed, or somebody who waited for that was told that it is not, and is not now. When such a
   channel is confirmed, the listener is told that something may have been missed (``hear_again``).

In a cluster a channel belongs to the node that has its slot. Where slots have moved, the feeds that notice it (their
connection is lost, a subscription is refused or ended, somebody else has read the cluster's map anew) look where their
channels are now and hand them over; a feed without a channel ends. Channels whose node is not known are with the feed
of the letters, which always exists.
"""

from __future__ import annotations

import contextlib
import logging
import random
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from redis import exceptions as errors
from redis.crc import key_slot

from roomkit.backends.redis_entry import read_entry
from roomkit.backends.redis_wire import NOTHING, Wire
from roomkit.errors import BackendUnavailable, InvalidRecord

if TYPE_CHECKING:
    from roomkit.backends.base import Listener
    from roomkit.backends.redis_nodes import Address, Nodes

log = logging.getLogger("roomkit.backends.redis")

_CHUNK = 500  # channels in one go: what they are answered is read before more is asked
_PAUSES = (0.05, 1.0)  # seconds between attempts, the first and the longest
_LOST = (errors.RedisError, OSError, BackendUnavailable)


class RedisEar:
    """See ``base.Ear``.

    Args:
        letters: the channel of the letters. rooms: a room's channel, with ``{}`` where its id stands in braces.

    Lock order: ``_changed`` is a leaf; nothing is sent, read or called under it, but for a byte that wakes a feed.

    Thread safety: full.
    """

    def __init__(self, nodes: Nodes, timeout: float, letters: str, rooms: str, listener: Listener) -> None:
        self.nodes = nodes
        self.timeout = timeout
        self.letters = letters.encode()
        before, after = rooms.split("{}")
        self._before, self._after = f"{before}{{".encode(), f"}}{after}".encode()
        self._listener = listener
        self._changed = threading.Condition(threading.Lock())
        # Guarded by _changed, which is notified when channels are confirmed, and at the end:
        self._closed = False
        self._feeds_of: dict[bytes, _Feed] = {}
        self._feeds: dict[Address, _Feed] = {}  # those that know their node
        self._confirmed: set[bytes] = set()
        self._missed: set[bytes] = {self.letters}
        self._threads: list[threading.Thread] = []
        self._count = 0
        with self._changed:
            self._give_locked(self.letters, self._start_locked(None))

    # What the instance asks for.

    def follow(self, room_ids: Sequence[str]) -> None:
        """See Ear."""
        deadline = time.monotonic() + self.timeout
        channels = [self._before + room_id.encode() + self._after for room_id in dict.fromkeys(room_ids)]
        with self._changed:
            new = [channel for channel in channels if channel not in self._feeds_of]
        places = self.nodes.locate(new, connect=False)
        with self._changed:
            self._check_open_locked()
            self._place_locked(zip(new, places, strict=True))
            waiting = set(channels)

            def all_confirmed() -> bool:
                waiting.difference_update(self._confirmed)
                return self._closed or not waiting

            if self._changed.wait_for(all_confirmed, deadline - time.monotonic()):
                self._check_open_locked()
                return
            self._missed.update(channel for channel in waiting if channel in self._feeds_of)
            raise BackendUnavailable(f"the store did not answer: {len(waiting)} rooms are not heard yet")

    def unfollow(self, room_ids: Sequence[str]) -> None:
        """See Ear."""
        with self._changed:
            woken: dict[_Feed, None] = {}
            for room_id in room_ids:
                channel = self._before + room_id.encode() + self._after
                feed = self._feeds_of.pop(channel, None)
                if feed is not None:
                    feed.drop_locked(channel)
                    woken[feed] = None
                    self._confirmed.discard(channel)
                    self._missed.discard(channel)
            for feed in woken:
                feed.wake_locked()

    def close(self, timeout: float) -> bool:
        """See Ear."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
            for feed in {*self._feeds.values(), *self._feeds_of.values()}:
                feed.wake_locked()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return self.ended

    @property
    def ended(self) -> bool:
        """Whether it is closed, and its threads have ended."""
        with self._changed:
            return self._closed and not any(thread.is_alive() for thread in self._threads)

    def _check_open_locked(self) -> None:
        if self._closed:
            raise BackendUnavailable("the ear is closed")

    # Which feed has which channel.

    def _start_locked(self, address: Address | None) -> _Feed:
        self._count += 1
        feed = _Feed(self, address)
        thread = threading.Thread(target=feed.run, name=f"roomkit-feed-{self._count}", daemon=True)
        try:
            thread.start()
        except BaseException:
            feed.close_locked()
            raise
        self._threads = [*(other for other in self._threads if other.is_alive()), thread]
        if address is not None:
            self._feeds[address] = feed
        return feed

    def _give_locked(self, channel: bytes, feed: _Feed) -> None:
        before = self._feeds_of.get(channel)
        if before is feed:
            return
        if before is not None:
            before.drop_locked(channel)
            self._lose_locked([channel])
        self._feeds_of[channel] = feed
        feed.take_locked(channel)

    def _place_locked(self, places: Iterable[tuple[bytes, Address | None]]) -> None:
        """Give channels to the feeds of their nodes; those whose node is not known stay where they are."""
        woken: dict[_Feed, None] = {}
        for channel, address in places:
            feed = self._feeds_of.get(channel, self._feeds_of[self.letters])
            if address is not None:
                known = self._feeds.get(address)
                feed = known if known is not None else self._start_locked(address)
            self._give_locked(channel, feed)
            woken[feed] = None
        for feed in woken:
            feed.wake_locked()

    def settle(self, feed: _Feed) -> bool:
        """Hand over the feed's channels that are elsewhere by the cluster's map, and give it its node if it has none.

        Returns:
            Whether it goes on: nothing is closed, and it has channels.

        Raises:
            BackendUnavailable: where they are is not known, since nothing could be reached yet.
        """
        with self._changed:
            channels = list(feed.channels)
        places = self.nodes.locate(channels, connect=True)
        with self._changed:
            if feed.address is None:
                free = (place for place in places if place is not None and place not in self._feeds)
                feed.address = next(free, None)
                if feed.address is not None:
                    self._feeds[feed.address] = feed
            if not self._closed:
                current = zip(channels, places, strict=True)
                self._place_locked(pair for pair in current if self._feeds_of.get(pair[0]) is feed)
            return self._goes_on_locked(feed)

    def goes_on(self, feed: _Feed) -> bool:
        """Whether the feed still has something to do; if not, nothing is given to it any more."""
        with self._changed:
            return self._goes_on_locked(feed)

    def _goes_on_locked(self, feed: _Feed) -> bool:
        if feed.channels and not self._closed:
            return True
        if feed.address is not None and self._feeds.get(feed.address) is feed:
            del self._feeds[feed.address]
        return False

    def end(self, feed: _Feed) -> None:
        """Its thread ends."""
        with self._changed:
            feed.close_locked()

    def wanted(self, feed: _Feed, limit: int) -> list[tuple[bytes, bool]]:
        """Channels of which it is to be looked whether they are subscribed to, and whether they should be."""
        if not feed.changes:  # who adds some wakes the feed afterwards
            return []
        with self._changed:
            chunk = [
                (channel, channel in feed.channels) for channel, _ in zip(feed.changes, range(limit), strict=False)
            ]
            for channel, _ in chunk:
                del feed.changes[channel]
            return chunk

    def confirm(self, feed: _Feed, channels: Iterable[bytes]) -> bool:
        """The server says that these are subscribed to; whether something of them was missed."""
        with self._changed:
            ours = {channel for channel in channels if self._feeds_of.get(channel) is feed}
            missed = self._missed & ours
            self._missed -= missed
            self._confirmed |= ours
            self._changed.notify_all()
            return bool(missed)

    def lose(self, feed: _Feed, channels: Iterable[bytes]) -> None:
        """These of a feed's channels are not subscribed to any more: they are to be again."""
        with self._changed:
            lost = feed.channels.intersection(channels)
            self._lose_locked(lost)
            feed.changes.update(dict.fromkeys(lost))

    def lose_all(self, feed: _Feed) -> None:
        """None of its channels is subscribed to any more."""
        with self._changed:
            self._lose_locked(feed.channels)
            feed.changes = dict.fromkeys(feed.channels)

    def _lose_locked(self, channels: Iterable[bytes]) -> None:
        lost = self._confirmed.intersection(channels)
        self._confirmed -= lost
        self._missed |= lost

    # What is heard.

    def hear(self, channel: bytes, body: bytes) -> None:
        """Something was published."""
        try:
            if channel == self.letters:
                self._listener.hear_letter(body)
                return
            entry = read_entry(body)
            if entry.events.events:
                room_id = channel[len(self._before) : -len(self._after)].decode()
                self._listener.hear_events(room_id, entry.epoch, entry.events)
        except InvalidRecord as error:
            log.warning("what was heard of a room is passed over: %s", error)
            self.hear_again()
        except Exception:
            log.exception("a listener failed")

    def hear_again(self) -> None:
        """Something may have been missed."""
        try:
            self._listener.hear_again()
        except Exception:
            log.exception("a listener failed")


class _Asked(NamedTuple):
    """A channel in a command that was sent and not answered yet. The commands are numbered."""

    number: int
    subscribe: bool
    channel: bytes


class _Feed:
    """One node's connection and its thread, which ends when it has no channel, or with the ear."""

    def __init__(self, ear: RedisEar, address: Address | None) -> None:
        self._ear = ear
        self._nodes = ear.nodes
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        # Guarded by the ear's lock:
        self.address = address
        self.channels: set[bytes] = set()
        self.changes: dict[bytes, None] = {}  # channels that came or went, in this order
        # Of its thread alone:
        self._asked: deque[_Asked] = deque()
        self._number = 0  # of the last command
        self._current: dict[bytes, int] = {}  # subscribed to, or asked for: by which command
        self._confirmed: list[bytes] = []  # and the ear was not told yet
        self._owes = False  # the listener is to be told that something was missed
        self._failures = 0  # since all was well
        self._again_at: float | None = None  # when channels that were refused are asked for again
        self._refused: list[bytes] = []
        self._looks = -1  # of which settling saw the outcome
        self._settled_at = 0.0

    def take_locked(self, channel: bytes) -> None:
        """A channel of its own now."""
        self.channels.add(channel)
        self.changes[channel] = None

    def drop_locked(self, channel: bytes) -> None:
        """Not any more."""
        self.channels.discard(channel)
        self.changes[channel] = None

    def wake_locked(self) -> None:
        """Have the thread look for changes."""
        with contextlib.suppress(OSError):  # it is full of such bytes, or closed
            self._wake.send(b"!")

    def close_locked(self) -> None:
        """Its thread has ended, or was none."""
        self._wake.close()
        self._woken.close()

    def run(self) -> None:
        """The thread: connects, again and again, and serves the connection until it is lost."""
        try:
            while self._ear.goes_on(self):
                try:
                    if self._failures:
                        self._nodes.look_again()
                    if not self._settle():
                        return
                    if self.address is None:
                        raise BackendUnavailable("no node has what is to be heard")
                    self._connect_and_serve(self.address)
                except _LOST as error:
                    if self._ear.goes_on(self):
                        level = logging.DEBUG if self._failures else logging.WARNING
                        log.log(level, "the store is not heard until it is there again: %s", error)
                except Exception:
                    log.exception("the thread that hears the store failed, and begins anew")
                self._forget()
                self._failures += 1
                self._rest()
        finally:
            self._ear.end(self)

    def _forget(self) -> None:
        """The connection is lost, and all that was asked of it."""
        self._asked.clear()
        self._current.clear()
        self._confirmed.clear()
        self._refused.clear()
        self._again_at = None
        self._ear.lose_all(self)

    def _settle(self) -> bool:
        self._looks = self._nodes.looks
        self._settled_at = time.monotonic()
        return self._ear.settle(self)

    def _pause(self) -> float:
        first, longest = _PAUSES
        return min(longest, first * (1 << min(self._failures - 1, 10))) * random.uniform(0.5, 1.0)  # nosec B311

    def _rest(self) -> None:
        """Between two attempts; what wakes it is looked at by then."""
        until = time.monotonic() + self._pause()
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            while (left := until - time.monotonic()) > 0 and self._ear.goes_on(self):
                if selector.select(left):
                    self._drain()

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass

    def _connect_and_serve(self, address: Address) -> None:
        wire = self._nodes.connect(address)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._woken, selectors.EVENT_READ)
                selector.register(wire.socket, selectors.EVENT_READ)
                self._serve(wire, selector, "S" if address.host else "")
        finally:
            wire.close()

    def _serve(self, wire: Wire, selector: selectors.BaseSelector, shard: str) -> None:
        """Returns when there is nothing to do any more, raises when the connection is lost."""
        timeout = self._ear.timeout
        heard_at, pinged = time.monotonic(), False
        while self._looked_after():
            if not self._asked:
                self._tell()
                self._ask(wire, shard)
                if not self._asked:
                    self._be_well()
            left = heard_at + (2 * timeout if pinged else timeout) - time.monotonic()
            if left <= 0:
                if pinged:
                    raise errors.ConnectionError("it is silent")
                wire.send([("PING",)])
                pinged = True
                continue
            if self._again_at is not None:
                left = min(left, max(0.0, self._again_at - time.monotonic()))
            for key, _ in selector.select(left):
                if key.fileobj is self._woken:
                    self._drain()
                else:
                    wire.receive()
                    heard_at, pinged = time.monotonic(), False
                    while (reply := wire.next()) is not NOTHING:
                        self._take(reply)

    def _looked_after(self) -> bool:
        """Whether it goes on; after a look where its channels are, if they may have moved."""
        now = time.monotonic()
        if self._again_at is not None and now >= self._again_at:
            self._again_at = None
            self._ear.lose(self, self._refused)
            self._refused.clear()
            self._nodes.look_again()
            return self._settle()
        if self._looks != self._nodes.looks and now >= self._settled_at + _PAUSES[1]:
            return self._settle()
        return self._ear.goes_on(self)

    def _ask(self, wire: Wire, shard: str) -> None:
        """Subscribe to what came and unsubscribe from what went, a part of it: the rest follows when it is answered."""
        commands: dict[tuple[bool, int], list[bytes]] = {}
        for channel, wanted in self._ear.wanted(self, _CHUNK):
            if wanted and channel in self._current:  # it went and came again before anybody looked
                self._confirmed.append(channel)
            elif wanted or channel in self._current:
                slot = key_slot(channel) if shard else 0
                commands.setdefault((wanted, slot), []).append(channel)
        packed = []
        for (subscribe, _), channels in commands.items():
            self._number += 1
            packed.append((f"{shard}{'SUBSCRIBE' if subscribe else 'UNSUBSCRIBE'}", *channels))
            for channel in channels:
                self._asked.append(_Asked(self._number, subscribe, channel))
                if subscribe:
                    self._current[channel] = self._number
                else:
                    del self._current[channel]
        if packed:
            wire.send(packed)

    def _take(self, reply: Any) -> None:
        """An answer, or something published."""
        if isinstance(reply, errors.ResponseError):
            self._answered_with(reply)
            return
        if not isinstance(reply, list) or len(reply) != 3:  # PONG
            return
        kind, channel, body = reply
        if kind in (b"message", b"smessage"):
            self._ear.hear(channel, body)
        elif kind in (b"subscribe", b"ssubscribe"):
            self._answered(True, channel)
        elif kind in (b"unsubscribe", b"sunsubscribe"):
            self._answered(False, channel)

    def _answered(self, subscribe: bool, channel: bytes) -> None:
        if self._asked and self._asked[0][1:] == (subscribe, channel):
            number = self._asked.popleft().number
            if subscribe and self._current.get(channel) == number:
                self._confirmed.append(channel)
        elif not subscribe and self._current.pop(channel, None) is not None:  # it says so by itself: the slot has moved
            self._tell()
            self._refuse([channel])

    def _answered_with(self, error: errors.ResponseError) -> None:
        """A refusal: of the oldest command that is not answered yet."""
        if not self._asked:
            raise error
        number, subscribe, _ = self._asked[0]
        channels: list[bytes] = []
        while self._asked and self._asked[0].number == number:
            channels.append(self._asked.popleft().channel)
        if not subscribe:
            return
        if not self._failures:
            log.warning("some of what is to be heard is refused by the store, and asked for again: %s", error)
        self._refuse([channel for channel in channels if self._current.pop(channel, None) is not None])

    def _refuse(self, channels: list[bytes]) -> None:
        """Not to be had here now: ask again, wherever they are then, after a pause."""
        self._ear.lose(self, channels)
        self._refused += channels
        if self._again_at is None:
            self._failures += 1
            self._again_at = time.monotonic() + self._pause()

    def _tell(self) -> None:
        """Whoever waits for a channel hears that it is confirmed."""
        if self._confirmed:
            self._owes |= self._ear.confirm(self, self._confirmed)
            self._confirmed.clear()

    def _be_well(self) -> None:
        """Nothing is left to be asked: whoever listens is told if something was missed."""
        self._tell()
        if self._failures and self._again_at is None:
            log.info("the store is heard again")
            self._failures = 0
        if self._owes:
            self._owes = False
            self._ear.hear_again()
