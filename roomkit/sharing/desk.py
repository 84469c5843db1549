"""Desk: where an instance carries out what others ask of it, on threads of its own, each room's in order."""

from __future__ import annotations

import logging
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from roomkit.concurrency.worker import Worker
from roomkit.errors import BackendUnavailable, RoomBusy, RoomkitError
from roomkit.metrics import Tally
from roomkit.sharing.copy import Post
from roomkit.sharing.letters import Any_, Ask, Call, Done, Gone, Present, Refused
from roomkit.sharing.room import SharedRoom

log = logging.getLogger("roomkit.sharing")

_THREADS = 4
_MOST = 5000  # letters that may wait for one of them

#: What an instance can be called for besides commands of a room: name -> function of (room id, data).
Handlers = Mapping[str, Callable[[str, dict[str, Any]], Any]]


class Reply:
    """Tells the instance that asked once it is stored. See Waits."""

    __slots__ = ("_ask", "_post", "_room", "again", "seq")

    def __init__(self, post: Post, room: SharedRoom, ask: Ask) -> None:
        self.seq = 0
        self.again = room.acted_by(ask.id) is not None  # it was carried out before
        self._post = post
        self._room = room
        self._ask = ask

    def settle(self, stored: bool) -> None:
        """What had events is told by the room's log, to whoever follows it; what had none only by this."""
        post, ask = self._post, self._ask
        if not stored:
            post.post(ask.sender, Refused(post.name, ask.room, ask.id, elsewhere=True))
            return
        acted = self._room.acted_by(ask.id)
        if acted is None:
            post.post(ask.sender, Done(post.name, ask.room, ask.id, 0, self.seq))
        elif self.again or ask.sender == post.name:
            post.post(ask.sender, Done(post.name, ask.room, ask.id, acted.first, acted.last))


class Desk:
    """See the module.

    Args:
        find: a room that this instance owns, or None.

    Thread safety: full. :meth:`take` never blocks.
    """

    def __init__(self, post: Post, find: Callable[[str], SharedRoom | None], handlers: Handlers, tally: Tally) -> None:
        self._post = post
        self._find = find
        self._handlers = handlers
        self._tally = tally
        self._letters: list[deque[Any_]] = [deque() for _ in range(_THREADS)]
        self._workers = [Worker(f"roomkit-desk-{n}", self._work(n)) for n in range(_THREADS)]

    @property
    def running(self) -> bool:
        """Whether there are threads at this moment."""
        return any(worker.running for worker in self._workers)

    def take(self, letter: Any_) -> None:
        """Carry it out soon. Past the bound it is left out and counted: who asked asks again."""
        at = zlib.crc32(letter.room.encode()) % _THREADS
        if isinstance(letter, Call):  # may wait for the store, or for others
            at = zlib.crc32(letter.id.encode()) % _THREADS
        letters = self._letters[at]
        if len(letters) >= _MOST:
            self._tally.add("letters_left_out")
            return
        letters.append(letter)
        if len(letters) == 1:  # else its thread looks once more, after the one before
            self._workers[at].wake()

    def stop(self, timeout: float) -> bool:
        """End the threads; whether they have within so many seconds each."""
        ended = [worker.stop(timeout) for worker in self._workers]
        return all(ended)

    def _work(self, at: int) -> Callable[[], None]:
        letters = self._letters[at]

        def work() -> None:
            while letters:
                letter = letters.popleft()
                try:
                    self._handle(letter)
                except RoomBusy:  # what it was about is told again
                    pass
                except BaseException:
                    log.exception("a letter about room %s could not be handled", letter.room)

        return work

    def _handle(self, letter: Any_) -> None:
        if isinstance(letter, Ask):
            self._carry_out(letter)
        elif isinstance(letter, Call):
            self._call(letter)
        else:
            room = self._find(letter.room)
            if room is None:
                return
            if isinstance(letter, Gone):
                room.serve_gone(letter)
            elif isinstance(letter, Present):
                room.serve_present(self._post, letter)

    def _carry_out(self, ask: Ask) -> None:
        post = self._post
        room = self._find(ask.room)
        if room is None:
            post.post(ask.sender, Refused(post.name, ask.room, ask.id, elsewhere=True))
            return
        self._tally.add("forwards_served")
        try:
            room.serve(post, ask, Reply(post, room, ask))
        except RoomkitError as error:
            elsewhere = not room.takes_operations
            post.post(ask.sender, Refused(post.name, ask.room, ask.id, error.code, str(error), elsewhere))

    def _call(self, call: Call) -> None:
        post = self._post
        handler = self._handlers.get(call.what)
        try:
            if handler is None:
                raise BackendUnavailable(f"instance {post.name!r} knows no {call.what[:64]!r}")
            data = handler(call.room, call.data)
        except RoomkitError as error:
            post.post(call.sender, Refused(post.name, call.room, call.id, error.code, str(error)))
        else:
            post.post(call.sender, Done(post.name, call.room, call.id, data=data))
