"""SharedRoom: a room that instances share. It tells nobody of anything that is not stored.

One instance owns it: there it works in memory like any other room, and is stored (``sharing.journal``). Where another
instance has connections of it, it *follows*: it has a copy that goes after the owner's events, delivers them, and asks
the owner for every change (``sharing.copy``). An instance that follows becomes the owner when that one is gone, and
nobody who is connected to it needs to know.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from roomkit.core import commands as c
from roomkit.core.events import Event
from roomkit.core.ids import check_id, check_name, is_secret
from roomkit.core.mirror import advance
from roomkit.core.record import load_events
from roomkit.core.snapshot import Player
from roomkit.delivery import Connection, Link
from roomkit.errors import BackendUnavailable, InvalidRecord, PlayerNotFound, RoomBusy, RoomkitError, error_for
from roomkit.room import Joined
from roomkit.sharing.copy import Coming, Copy, Heard, Outcome
from roomkit.sharing.journal import Told
from roomkit.sharing.letters import Ask, Call, Done, Present, Refused, Replaced
from roomkit.sharing.owned import OwnedRoom

log = logging.getLogger("roomkit.sharing")

_LOCK = 0.002  # seconds for which one room's lock may hold up all the others
_SOON = 0.05  # seconds until it is looked who owns a room, after its owner has said that it does not
_LINGER = 30.0  # seconds for which a room is followed that nobody here wants anything of
_ids = itertools.count(1)


class SharedRoom(OwnedRoom):
    """See the module. Its operations are those of every room.

    Blocking: an operation also waits until it is stored, and where another instance owns the room for that one's
    answer: for as long as a lease lasts, and somewhat more, then it raises ``BackendUnavailable``: it may have been
    carried out or not. It does not wait on the thread that delivers the room's events. Once the lease may have ended,
    ``RoomBusy``: nothing changed.

    What is read is what was done here, stored or not; where another instance owns the room, what was heard of it.

    Thread safety: full.
    """

    __slots__ = ("_copy",)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Set before anybody can find the room. Where a journal is there as well it was followed before it was owned.
        self._copy: Copy | None = None

    @property
    def followed(self) -> bool:  # type: ignore[override]
        """See Room."""
        return self._journal is None and self._copy is not None

    @property
    def copy(self) -> Copy | None:
        """What is known of it here, if it is or was followed. For the node."""
        return self._copy

    @property
    def copy_of(self) -> Copy:
        """:attr:`copy`, where it is there."""
        assert self._copy is not None
        return self._copy

    # Operations.

    def execute(
        self,
        command: c.Command,
        then: Callable[[list[Event]], None] | None = None,
        unless_changed: Callable[[], bool] | None = None,
        *,
        wait: bool = True,
        timeout: float | None = None,
    ) -> list[Event]:
        """See Room."""
        if self.followed:
            return self._ask_owner(command, wait)
        return super().execute(command, then, unless_changed, wait=wait, timeout=timeout)

    def submit(
        self,
        command: c.Command,
        answer: Callable[[int], None] | None = None,
        refuse: Callable[[RoomkitError], None] | None = None,
    ) -> None:
        """See Room."""
        if not self.followed:
            super().submit(command, answer, refuse)
            return
        fanout = self._fanout

        def done(events: Sequence[Event], letter: Done) -> None:
            if answer is not None:
                fanout.answer_locked(lambda: answer(letter.last))

        def refused(error: RoomkitError) -> None:
            if refuse is not None:
                fanout.answer_locked(lambda: refuse(error))

        self._send(command, done, refused)

    # Where another instance owns the room.

    def _send(
        self,
        command: c.Command,
        done: Callable[[Sequence[Event], Done], None],
        refused: Callable[[RoomkitError], None],
        number: int = 0,
    ) -> None:
        copy = self._copy
        assert copy is not None
        name = copy.post.name
        ask = Ask(name, self.id, f"{name}/{next(_ids)}", command, number, self._machine.epoch)
        copy.ask(ask, done, refused)

    def _ask_owner(self, command: c.Command, wait: bool) -> list[Event]:
        outcome = Outcome()

        def done(events: Sequence[Event], letter: Done) -> None:
            self._tell_locked(lambda: outcome.settle(list(events)), self._gone(outcome))

        self._send(command, done, outcome.refuse)
        if not wait or self._fanout.broadcaster.is_current():
            return []
        events: list[Event] = self._wait(outcome)
        return events

    def _tell_locked(self, tell: Callable[[], None], lost: Callable[[], None]) -> None:
        """What was asked of the owner is carried out. Where the room is this instance's by now it is to be stored
        first; ``lost`` is called when the room went on elsewhere before that.
        """
        journal = self._journal
        if journal is None:
            tell()
        else:
            journal.note_locked((), Told(tell, lost))

    def _gone(self, outcome: Outcome) -> Callable[[], None]:
        """For a thread that waits."""
        why = f"room {self.id!r} went on elsewhere before its change was confirmed"
        return lambda: outcome.refuse(BackendUnavailable(why))

    def _wait(self, outcome: Outcome) -> Any:
        assert self._copy is not None
        return outcome.wait(self.id, self._copy.post.patience + 1.0)

    def call_owner(self, what: str, data: dict[str, Any]) -> Any:
        """See Room."""
        copy = self._copy
        assert copy is not None
        outcome = Outcome()
        name = copy.post.name
        letter = Call(name, self.id, f"{name}/{next(_ids)}", what, data)
        copy.ask(letter, lambda events, answer: outcome.settle(answer.data), outcome.refuse)
        return self._wait(outcome)

    def ask_transfer(self, player_id: str | None, new_room_id: str, answer: Callable[[int], None] | None) -> None:
        """Have the owner do what ``RoomManager.transfer`` does. Its events tell that it has, to whoever owns the room
        then, and ``answer`` comes behind them: a connection that waits for it is closed with them.

        Raises:
            RoomkitError: what it raised.
        """
        copy = self.copy_of
        outcome = Outcome()
        name = copy.post.name
        call_id = f"{name}/{next(_ids)}"

        def done(events: Sequence[Event], letter: Done) -> None:
            if answer is not None:
                self._fanout.answer_locked(lambda: answer(letter.last))
            self._tell_locked(lambda: outcome.settle(None), self._gone(outcome))

        data = {"player_id": player_id, "new_room_id": new_room_id, "id": call_id}
        copy.ask(Call(name, self.id, call_id, "transfer", data), done, outcome.refuse)
        self._wait(outcome)

    def add_player(self, player_id: str, name: str | None = None, *, token: str | None = None) -> Player:
        """See Room."""
        if not self.followed:
            return super().add_player(player_id, name, token=token)
        check_id(player_id, "a player id")
        command = c.AddPlayer(player_id, check_name(name, player_id), self._runtime.new_token(), token)
        outcome = Outcome()

        def done(events: Sequence[Event], letter: Done) -> None:
            seated = self._seated_locked(command, events)
            self._tell_locked(lambda: outcome.settle(seated), self._gone(outcome))

        self._send(command, done, outcome.refuse)
        player: Player | None = self._wait(outcome)
        if player is None:
            raise PlayerNotFound(f"player {player_id!r} has left room {self.id!r} already")
        return player

    def _seated_locked(self, command: c.AddPlayer | c.Join, events: Sequence[Event]) -> Player | None:
        """Who has just come in, with the seat's token; None: is gone already."""
        seat = self._machine.seats.get(command.player_id)
        if seat is None:
            return None
        return seat.view(command.new_token if _was_seated(command, events) else command.token)

    def join(
        self,
        player_id: str,
        connection: Connection | None = None,
        *,
        name: str | None = None,
        token: str | None = None,
        password: str | None = None,
        epoch: str | None = None,
        seq: int | None = None,
        greeting: Mapping[str, Any] | None = None,
    ) -> Joined:
        """See Room."""
        if not self.followed:
            return super().join(
                player_id,
                connection,
                name=name,
                token=token,
                password=password,
                epoch=epoch,
                seq=seq,
                greeting=greeting,
            )
        outcome = Outcome()
        command = self._join_command(player_id, name, token, password, connection is not None)
        lost = self._lost(outcome)
        self._come_in(command, connection, epoch, seq, greeting, outcome.settle, outcome.refuse, lost)
        joined: Joined = self._wait(outcome)
        return joined

    def submit_join(
        self,
        player_id: str,
        connection: Connection,
        refuse: Callable[[RoomkitError], None],
        *,
        name: str | None = None,
        token: str | None = None,
        password: str | None = None,
        epoch: str | None = None,
        seq: int | None = None,
        greeting: Mapping[str, Any] | None = None,
    ) -> None:
        """See Room."""
        if not self.followed:
            super().submit_join(
                player_id,
                connection,
                refuse,
                name=name,
                token=token,
                password=password,
                epoch=epoch,
                seq=seq,
                greeting=greeting,
            )
            return
        fanout = self._fanout

        def refused(error: RoomkitError) -> None:
            fanout.answer_locked(lambda: refuse(error))

        try:
            command = self._join_command(player_id, name, token, password, True)
            self._come_in(command, connection, epoch, seq, greeting, lambda joined: None, refused, lambda: None)
        except RoomkitError as error:
            refuse(error)

    def _join_command(
        self, player_id: str, name: str | None, token: str | None, password: str | None, connected: bool
    ) -> c.Join:
        check_id(player_id, "a player id")
        new_token = token if token is not None and is_secret(token) else self._runtime.new_token()
        reserved_for = self._config.reservation_ttl
        return c.Join(player_id, check_name(name, player_id), new_token, token, password, connected, reserved_for)

    def add_connection(
        self,
        player_id: str,
        connection: Connection,
        *,
        epoch: str | None = None,
        seq: int | None = None,
        greeting: Mapping[str, Any] | None = None,
    ) -> Joined:
        """See Room. Where another instance owns the room the welcome does not tell the seat's token."""
        if not self.followed:
            return super().add_connection(player_id, connection, epoch=epoch, seq=seq, greeting=greeting)
        outcome = Outcome()
        lost = self._lost(outcome)
        self._come_in(c.Connect(player_id), connection, epoch, seq, greeting, outcome.settle, outcome.refuse, lost)
        joined: Joined = self._wait(outcome)
        return joined

    def _lost(self, outcome: Outcome) -> Callable[[], None]:
        """For a thread that waits for an answer that nobody will ask for any more."""
        why = f"the connection or room {self.id!r} was lost while a seat was asked for; it may have been taken or not"
        return lambda: outcome.refuse(BackendUnavailable(why))

    def _come_in(
        self,
        command: c.Join | c.Connect,
        connection: Connection | None,
        epoch: str | None,
        seq: int | None,
        greeting: Mapping[str, Any] | None,
        done: Callable[[Joined], None],
        refused: Callable[[RoomkitError], None],
        lost: Callable[[], None],
    ) -> None:
        """Ask the owner for the seat; then attach the connection to it, unless it is lost by then."""
        copy = self._copy
        assert copy is not None
        player_id = command.player_id
        number = 0 if connection is None else copy.post.next_number()
        if connection is not None:
            copy.coming[number] = Coming(player_id, connection, lost)

        def arrived(events: Sequence[Event], letter: Done) -> None:
            seat = self._machine.seats.get(player_id)
            if connection is not None and copy.coming.pop(number, None) is None:
                return  # lost meanwhile: the owner knows
            if seat is None:
                refused(PlayerNotFound(f"player {player_id!r} has left room {self.id!r} already"))
                return
            made = _was_seated(command, events)
            token = None
            if isinstance(command, c.Join):
                token = command.new_token if made else command.token
            player = seat.view(token)
            if connection is None:
                joined = Joined(player, self._machine.snapshot(), None)
            else:
                known = None if made else epoch
                joined = self._attach_locked(player_id, connection, known, seq, greeting, player, number)
            self._tell_locked(lambda: done(joined), lost)

        def not_let_in(error: RoomkitError) -> None:
            copy.coming.pop(number, None)
            refused(error)

        try:
            self._send(command, arrived, not_let_in, number)
        except RoomkitError:
            copy.coming.pop(number, None)
            raise

    def subscribe(self, callback: Callable[[Event], None], *, limit: int = 1000) -> Callable[[], None]:
        """See Room. RoomBusy also: the room goes on elsewhere, or was let go of here; get it again."""
        stop = super().subscribe(callback, limit=limit)
        refusal = self._copy.ended if self.followed and self._copy is not None else None
        if refusal is not None:  # nothing more would ever come
            stop()
            raise refusal()
        return stop

    def remove_connection(self, player_id: str, connection: Connection | None = None) -> bool:
        """See Room. Where another instance owns the room, whether this one had the connection."""
        copy = self._copy
        if copy is not None:
            for number, coming in list(copy.coming.items()):
                mine = coming.player_id == player_id and (connection is None or coming.connection is connection)
                if mine and copy.coming.pop(number, None) is not None:
                    copy.withdraw(number)
                    coming.lost()
                    copy.give_up(player_id, number, self.id)
        if not self.followed:
            return super().remove_connection(player_id, connection)
        with self._lock.read(self._config.busy_timeout):
            link = self._fanout.find_locked(player_id)
        if link is None or (connection is not None and link.connection is not connection):
            return False
        return self.drop_link(link)

    def drop_link(self, link: Link) -> bool:
        """See Room."""
        copy = self._copy
        if self._journal is not None or copy is None:
            return super().drop_link(link)
        with self._lock.write(self._config.busy_timeout):
            still_followed = self._journal is None
            if still_followed and not self._fanout.detach_locked(link):
                return False
        if not still_followed:  # it has just become this instance's: the owner that would be told is gone
            return super().drop_link(link)
        copy.give_up(link.player_id, link.number, self.id)
        return True

    def expire(self) -> bool:
        """See Room. One that another instance owns is only ever let go of, when nobody here wants anything of it."""
        copy = self._copy
        if self._journal is not None or copy is None:
            return super().expire()
        now = copy.post.now()

        def refusal() -> RoomkitError:
            return RoomBusy(f"room {self.id!r} is not followed here any more; get it again")

        with self._lock.write(self._config.busy_timeout):
            if self._journal is None and now - copy.idle_since >= _LINGER and copy.ended is None:
                copy.ended = refusal  # first: whoever asks from now on is refused, or is seen here
            if self._fanout.in_use or copy.waiting or copy.coming:
                copy.idle_since = now
                if copy.ended is refusal:
                    copy.ended = None
            return copy.ended is refusal

    def is_expired(self) -> bool:
        """See Room. Of one that another instance owns nothing is known of that here."""
        return not self.followed and super().is_expired()

    def deadlines(self) -> list[tuple[str, str | None, float]]:
        """See Room. Of one that another instance owns none is known here."""
        return [] if self.followed else super().deadlines()

    def next_deadline(self) -> float:
        """See Room."""
        copy = self._copy
        if self._journal is not None or copy is None:
            return super().next_deadline()
        return copy.post.now() + _LINGER / 2

    def _check_goes_on_locked(self) -> None:
        if self._copy is not None and self._copy.ended is not None:
            raise InvalidRecord("it was just let go of")

    # What is heard of it.

    def follow(self, copy: Copy) -> None:
        """From now on this is another instance's. Before anybody can find it."""
        self._copy = copy

    def hear(self, item: Heard | Done | Refused | Replaced) -> None:
        """Something for this room: work it off, now if nobody is in the way. Never blocks for long."""
        copy = self._copy
        assert copy is not None
        copy.heard.append(item)
        try:
            self.catch_up(_LOCK)
        except RoomBusy:
            copy.post.behind(self.id)

    def catch_up(self, timeout: float) -> None:
        """Work off what was heard.

        Raises:
            RoomBusy: the lock was not to be had in so many seconds.
        """
        copy = self._copy
        assert copy is not None
        count = dropped = 0
        self._lock.acquire_write(timeout)
        try:
            while copy.heard:
                item = copy.heard.popleft()
                if not isinstance(item, Heard):
                    self._take_letter_locked(copy, item)
                elif self._journal is None and not copy.broken:  # else it is what was committed here
                    try:
                        more, lost = self._follow_locked(copy, item)
                        count += more
                        dropped += lost
                    except (LookupError, TypeError, ValueError, MemoryError) as error:  # InvalidRecord is a ValueError
                        log.error("what was heard of room %s makes no sense: %s", self.id, error)
                        copy.broken = True
        finally:
            self._lock.release_write()
        if self._journal is None:
            self._fanout.published(count, dropped)
        else:
            self._journal.mark()
        if self._journal is None and (copy.hole or copy.broken):  # an owner misses nothing
            copy.post.behind(self.id)

    def _follow_locked(self, copy: Copy, heard: Heard) -> tuple[int, int]:
        """The new ones of these events; how many, and how many of them had no place in the queue."""
        machine, fanout = self._machine, self._fanout
        first, raw, acted = heard.events
        last = first + len(raw) - 1
        if heard.epoch != machine.epoch or first > machine.seq + 1:
            copy.hole = True
            return 0, 0
        events = load_events(raw[machine.seq + 1 - first :], last) if last > machine.seq else []
        dropped = 0
        for event in events:
            copy.state = advance(machine, copy.state, event)
            self._snapshot = copy.state  # first: whoever gets an event must not read an older state
            self._history.append(event)
            dropped += fanout.publish_locked((event,), 0, None)[1]
        for one in acted:
            self._done_locked(copy, Done("", self.id, *one), events)
        for letter in copy.later[:]:
            if letter.last <= machine.seq:
                copy.later.remove(letter)
                self._done_locked(copy, letter)
        return len(events), dropped

    def _take_letter_locked(self, copy: Copy, letter: Done | Refused | Replaced) -> None:
        if isinstance(letter, Replaced):
            link = self._fanout.find_locked(letter.player)
            if link is not None and link.number == letter.number:
                self._fanout.replace_locked(link)
        elif isinstance(letter, Done):
            if letter.id not in copy.waiting:  # it was answered before, or nobody asked
                return
            if letter.last > self._machine.seq:  # it has overtaken its events
                copy.later.append(letter)
            else:
                self._done_locked(copy, letter)
        else:
            waiting = copy.waiting.get(letter.id)
            if waiting is None or waiting.to != letter.sender:  # somebody else may have carried it out
                return
            if not letter.elsewhere:
                del copy.waiting[letter.id]
                waiting.refused(error_for(letter.code, letter.message))
            elif not copy.turned_away:  # it is sent again, to whoever has the room then
                copy.turned_away = _SOON
                copy.post.look_in(_SOON)

    def _done_locked(self, copy: Copy, letter: Done, heard: Sequence[Event] = ()) -> None:
        waiting = copy.waiting.pop(letter.id, None)
        if waiting is None:
            return
        if not heard and letter.first:
            heard = self._history.since(letter.first - 1) or ()
        waiting.done([event for event in heard if letter.first <= event.seq <= letter.last], letter)

    # What was asked of an owner, and is this instance's to carry out since it went on with the room. As any owner does
    # it a connection is attached in the same step as its player is let in.

    def _is_wanted(self, ask: Ask) -> bool:
        copy = self._copy
        if copy is None or ask.sender != copy.post.name:
            return True
        return ask.id in copy.waiting and (not ask.number or ask.number in copy.coming)

    def _carried_out_locked(self, ask: Ask, events: Sequence[Event]) -> None:
        copy = self._copy
        if copy is None or ask.sender != copy.post.name:
            return
        waiting = copy.waiting.pop(ask.id, None)
        if waiting is not None:
            first = events[0].seq if events else 0
            waiting.done(events, Done(ask.sender, self.id, ask.id, first, self._machine.seq))

    def give_up_waiting(self, letter_id: str, error: RoomkitError, timeout: float) -> None:
        """There was no answer in time. Raises RoomBusy."""
        copy = self._copy
        assert copy is not None
        with self._lock.write(timeout):
            waiting = copy.waiting.pop(letter_id, None)
            if waiting is not None:
                waiting.refused(error)
        self._told()

    def present(self, timeout: float) -> Present:
        """Whose connections are here. Raises RoomBusy."""
        copy = self._copy
        assert copy is not None
        with self._lock.read(timeout):
            # The number first: who comes later is not in the list, and not meant.
            upto = copy.post.next_number()
            players = {link.player_id: link.number for link in self._fanout.links_locked()}
            return Present(copy.post.name, self.id, upto, players, tuple(copy.coming))

    # The end.

    def _refuse(self, refusal: Callable[[], RoomkitError]) -> None:
        super()._refuse(refusal)
        if self._copy is not None:
            self._copy.ended = refusal

    def _check_answered(self, refusal: Callable[[], RoomkitError]) -> None:
        copy = self._copy
        if self._journal is None and copy is not None:
            copy.ended = refusal  # first: whoever asks from now on is refused, or is seen here
            if copy.waiting:
                raise RoomBusy(f"the owner of room {self.id!r} has not answered yet")

    def _abandoned_locked(self) -> None:
        copy = self._copy
        if copy is None:
            return
        for letter_id in list(copy.waiting):
            waiting = copy.waiting.pop(letter_id, None)
            if waiting is not None:
                why = f"room {self.id!r} went on elsewhere before its owner had answered"
                waiting.refused(BackendUnavailable(why))


def _was_seated(command: c.AddPlayer | c.Join | c.Connect, events: Sequence[Event]) -> bool:
    """Whether it took a new seat. Its events may be gone by now; but without its token nobody gets a held one."""
    if isinstance(command, c.Connect):
        return False
    joined = (event.data["player"]["id"] for event in events if event.type == "player_joined")
    return command.token is None or command.player_id in joined
