"""Desk: where an instance carries out what others ask of it, each room's in order.

On threads of its own, since a room may have to be waited for, and a lifecycle asks its user's code. A message waits for
neither where its room is free: the thread that has heard it carries it out, and no other needs to be woken.
"""

from __future__ import annotations

import logging
import threading
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from roomkit.concurrency.worker import Worker
from roomkit.core.commands import SendMessage
from roomkit.errors import BackendUnavailable, RoomBusy, RoomkitError, ShuttingDown
from roomkit.metrics import Tally
from roomkit.sharing.copy import Post
from roomkit.sharing.letters import Any_, Ask, Call, Done, Gone, Present, Refused
from roomkit.sharing.room import SharedRoom

log = logging.getLogger("roomkit.sharing")

_THREADS = 4
_MOST = 5000  # letters that may wait for one of them
_REMEMBERED = 10_000  # answers; what is asked again is asked within seconds

#: What an instance can be called for besides commands of a room: name -> function of (room id, data).
Handlers = Mapping[str, Callable[[str, dict[str, Any]], Any]]


class Answers:
    """What was answered, by who asked and the id. It is asked again when the answer is late or lost: then it gets the
    same answer, and is not carried out after all because a seat is free by now, say. What caused events is known
    by the room (``OwnedRoom.acted_by``).

    Thread safety: full.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._given: dict[tuple[str, str], Done | Refused] = {}

    def get(self, asked: Ask | Call) -> Done | Refused | None:
        """The answer, if there was one."""
        with self._lock:
            return self._given.get((asked.sender, asked.id))

    def keep(self, asked: Ask | Call, answer: Done | Refused) -> None:
        """For when it is asked again."""
        with self._lock:
            self._given[asked.sender, asked.id] = answer
            if len(self._given) > _REMEMBERED:
                del self._given[next(iter(self._given))]


class Reply:
    """Tells the instance that asked once it is stored. See Waits."""

    __slots__ = ("_answers", "_ask", "_post", "_room", "again", "seq")

    def __init__(self, post: Post, room: SharedRoom, ask: Ask, answers: Answers) -> None:
        self.seq = 0
        self._answers = answers
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
            answer = Done(post.name, ask.room, ask.id, 0, self.seq)
            self._answers.keep(ask, answer)
            post.post(ask.sender, answer)
        elif self.again or ask.sender == post.name:
            post.post(ask.sender, Done(post.name, ask.room, ask.id, acted.first, acted.last))


class _PutRight(NamedTuple):
    """What an instance asks of itself."""

    room: str


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
        self._answers = Answers()
        self._working = [False] * _THREADS  # set by each before it looks whether there is something
        self._letters: list[deque[Any_ | _PutRight]] = [deque() for _ in range(_THREADS)]
        self._workers = [Worker(f"roomkit-desk-{n}", self._work(n)) for n in range(_THREADS)]

    @property
    def running(self) -> bool:
        """Whether there are threads at this moment."""
        return any(worker.running for worker in self._workers)

    def take(self, letter: Any_ | _PutRight) -> None:
        """Carry it out soon. Past the bound it is left out and counted: who asked asks again."""
        # A call may wait for the store, or for others: it has nothing to do with its room's order.
        at = self._lane_of(letter.id if isinstance(letter, Call) else letter.room)
        letters = self._letters[at]
        # Only this thread brings what others ask, so what it brought before is done.
        if not (letters or self._working[at]) and self._carry_out_at_once(letter):
            return
        if len(letters) >= _MOST:
            self._tally.add("letters_left_out")
            return
        letters.append(letter)
        self._workers[at].wake()  # each time: whether its thread looks once more cannot be seen from here

    @staticmethod
    def _lane_of(name: str) -> int:
        return zlib.crc32(name.encode()) % _THREADS

    def put_right(self, room_id: str) -> None:
        """Have a room that was another instance's put right (``OwnedRoom.put_right``). Where a reader is in the way it
        is to be asked for again.
        """
        self.take(_PutRight(room_id))

    def stop(self, timeout: float) -> bool:
        """End the threads; whether they have within so many seconds each."""
        ended = [worker.stop(timeout) for worker in self._workers]
        return all(ended)

    def _work(self, at: int) -> Callable[[], None]:
        letters = self._letters[at]

        def work() -> None:
            self._working[at] = True
            while letters:
                letter = letters.popleft()
                try:
                    self._handle(letter)
                except (RoomBusy, ShuttingDown):  # what it was about is told again, to whoever has the room then
                    pass
                except BaseException:
                    log.exception("a letter about room %s could not be handled", letter.room)
            self._working[at] = False

        return work

    def _handle(self, letter: Any_ | _PutRight) -> None:
        if isinstance(letter, Ask):
            self._carry_out(letter)
        elif isinstance(letter, Call):
            self._call(letter)
        else:
            room = self._find(letter.room)
            if room is None:
                return
            if isinstance(letter, _PutRight):
                room.put_right()
            elif isinstance(letter, Gone):
                room.serve_gone(letter)
            else:
                assert isinstance(letter, Present)  # what is an answer is not for a desk
                room.serve_present(self._post, letter)

    def _carry_out_at_once(self, letter: Any_ | _PutRight) -> bool:
        """Whether it is done; else it is as if nobody had tried."""
        if type(letter) is not Ask or type(letter.command) is not SendMessage:
            return False
        try:
            return self._carry_out(letter, at_once=True)
        except BaseException:
            log.exception("a letter about room %s could not be handled", letter.room)
            return True

    def _carry_out(self, ask: Ask, *, at_once: bool = False) -> bool:
        """``at_once``: without waiting for anything; False: that could not be, and it is still to be done."""
        post = self._post
        room = self._find(ask.room)
        if room is None or (ask.epoch and ask.epoch != room.epoch):  # or made anew: who asks will find that out
            post.post(ask.sender, Refused(post.name, ask.room, ask.id, elsewhere=True))
            return True
        answer = self._answers.get(ask)
        if answer is not None:
            post.post(ask.sender, answer)
            return True
        try:
            room.serve(post, ask, Reply(post, room, ask, self._answers), 0.0 if at_once else None)
            self._tally.add("forwards_served")
            return True
        except RoomkitError as error:
            if at_once and isinstance(error, RoomBusy):
                return False
            # Who asked was this instance, before it owned the room: there is nobody else to ask.
            elsewhere = not room.takes_operations and ask.sender != post.name
            answer = Refused(post.name, ask.room, ask.id, error.code, str(error), elsewhere)
        except Exception as error:  # of a lifecycle's check, say: who asked need not wait for nothing
            if room.acted_by(ask.id) is not None:  # and it was carried out: its event tells so
                raise
            answer = _failed(post, ask, error)
        self._tally.add("forwards_served")
        if not answer.elsewhere:
            self._answers.keep(ask, answer)
        post.post(ask.sender, answer)
        return True

    def _call(self, call: Call) -> None:
        post = self._post
        answer = self._answers.get(call)
        if answer is not None:
            post.post(call.sender, answer)
            return
        handler = self._handlers.get(call.what)
        try:
            if handler is None:
                raise BackendUnavailable(f"instance {post.name!r} knows no {call.what[:64]!r}")
            data = handler(call.room, call.data)
        except RoomkitError as error:
            answer = Refused(post.name, call.room, call.id, error.code, str(error))
        except Exception as error:
            answer = _failed(post, call, error)
        else:
            answer = Done(post.name, call.room, call.id, data=data)
        if _is_small(answer):  # what only looks may be looked at again
            self._answers.keep(call, answer)
        post.post(call.sender, answer)


def _failed(post: Post, asked: Ask | Call, error: Exception) -> Refused:
    """The answer to what failed in a way that nobody meant to tell of: whatever the error says stays in the log."""
    log.exception("what instance %.200r asked about room %s failed", asked.sender, asked.room)
    sentence = f"the operation failed at the room's owner: {type(error).__name__}"
    return Refused(post.name, asked.room, asked.id, RoomkitError.code, sentence)


def _is_small(answer: Done | Refused) -> bool:
    """Whether it can be kept for long."""
    return isinstance(answer, Refused) or answer.data is None or isinstance(answer.data, str)
