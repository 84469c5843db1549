"""SharedRoom: a room that instances share. It tells nobody of anything that is not stored.

One instance owns it: there it works in memory like any other room, and is stored (``sharing.journal``). Where another
instance has connections of it, it *follows*: it has a copy that goes after the owner's events, delivers them, and asks
the owner for every change (``sharing.copy``). An instance that follows becomes the owner when that one is gone, and
nobody who is connected to it needs to know.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Protocol

from roomkit.backends.base import Acted, Position
from roomkit.core import commands as c
from roomkit.core.events import Event
from roomkit.core.ids import check_id, check_name, is_secret
from roomkit.core.mirror import advance
from roomkit.core.record import dump, load_events
from roomkit.core.snapshot import Player
from roomkit.core.state import RoomMachine
from roomkit.delivery import Connection, Link
from roomkit.errors import (
    CLOSE,
    BackendUnavailable,
    InvalidRecord,
    PlayerNotFound,
    RoomBusy,
    RoomkitError,
    ShuttingDown,
    error_for,
)
from roomkit.room import Joined, Room
from roomkit.sharing.copy import Coming, Copy, Heard, Outcome, Post
from roomkit.sharing.journal import Journal, Step, Waiter, Waits
from roomkit.sharing.letters import Ask, Call, Done, Gone, Present, Refused, Replaced

log = logging.getLogger("roomkit.sharing")

_LOCK = 0.002  # seconds for which one room's lock may hold up all the others
_LINGER = 30.0  # seconds for which a room is followed that nobody here wants anything of
_ids = itertools.count(1)


class Replies(Waits, Protocol):
    """Whoever is to be told of a command of another instance. ``seq``: how far it brought the room."""

    seq: int


class Remote:
    """A connection that another instance has, and delivers to. See Connection."""

    __slots__ = ("_player_id", "_post", "_room_id", "instance", "number")

    def __init__(self, post: Post, instance: str, number: int, room_id: str, player_id: str) -> None:
        self.instance = instance
        self.number = number
        self._post = post
        self._room_id = room_id
        self._player_id = player_id

    @property
    def address(self) -> str:
        """Where it is, for pages to show."""
        return self.instance

    def deliver(self, batch: object) -> None:
        """Nothing: the other instance follows the room."""

    def close(self, code: int, reason: str) -> None:
        """Of all that closes connections only this cannot be seen from the room's events."""
        if code == CLOSE["replaced"]:
            self._post.post(self.instance, Replaced(self._post.name, self._room_id, self._player_id, self.number))


class SharedRoom(Room):
    """See the module. Its operations are those of every room.

    Blocking: an operation also waits until it is stored, and where another instance owns the room for that one's
    answer: for as long as a lease lasts, and somewhat more, then it raises ``BackendUnavailable``: it may have been
    carried out or not. It does not wait on the thread that delivers the room's events. Once the lease may have ended,
    ``RoomBusy``: nothing changed.

    What is read is what was done here, stored or not; where another instance owns the room, what was heard of it.

    Thread safety: full.
    """

    shared = True

    __slots__ = ("_copy", "_journal")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Set before anybody can find the room; until then it is like any other. Where both are there it was followed
        # before it was owned.
        self._journal: Journal | None = None
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
    ) -> list[Event]:
        """See Room."""
        journal = self._journal
        if journal is None:
            if self._copy is None:
                return super().execute(command, then, unless_changed)
            return self._ask_owner(command, wait)
        waiter = Waiter() if wait and not self._fanout.broadcaster.is_current() else None
        events = self._carry_out(journal, command, then, unless_changed, waiter)
        if waiter is not None:
            waiter.wait(self.id, journal.patience)
        return events

    def _carry_out(
        self,
        journal: Journal,
        command: c.Command,
        then: Callable[[list[Event]], None] | None,
        unless_changed: Callable[[], bool] | None,
        waits: Waits | None,
        command_id: str = "",
    ) -> list[Event]:
        """As the owner, and once for each ``command_id``; ``waits`` is told when it is stored."""
        journal.check()
        noted = False

        def go_on_locked() -> bool:
            nonlocal noted
            if journal.refusal is not None:  # since it was looked at: its connections are closed already
                raise journal.refusal()
            if command_id in journal.acted:
                noted = True
                journal.note_locked((), waits)
                return False
            return unless_changed is None or unless_changed()

        def note_locked(events: list[Event]) -> None:
            nonlocal noted
            noted = True
            journal.note_locked(events, waits, command_id)
            if then is not None:
                then(events)

        try:
            events = super().execute(command, note_locked, go_on_locked)
        finally:  # whatever went wrong after the change: it is to be stored
            if noted:
                journal.mark()
        if not noted and waits is not None:
            waits.settle(True)
        return events

    def submit(
        self,
        command: c.Command,
        answer: Callable[[int], None] | None = None,
        refuse: Callable[[RoomkitError], None] | None = None,
    ) -> None:
        """See Room."""
        fanout = self._fanout
        if self.followed:

            def done(events: Sequence[Event], letter: Done) -> None:
                if answer is not None:
                    fanout.answer_locked(lambda: answer(letter.last))

            def refused(error: RoomkitError) -> None:
                if refuse is not None:
                    fanout.answer_locked(lambda: refuse(error))

            self._send(command, done, refused)
            return

        def told(events: list[Event]) -> None:
            if answer is not None:
                seq = events[-1].seq if events else self._machine.seq
                fanout.answer_locked(lambda: answer(seq))

        self.execute(command, told, wait=False)

    def when_stored(self, tell: Callable[[], None]) -> None:
        """See Room."""
        with self._lock.write(self._config.busy_timeout):
            self._fanout.answer_locked(tell)
        self._told()

    def _told(self) -> None:
        """Something is in the queue that no operation put there: have it delivered."""
        journal = self._journal
        if journal is not None:
            journal.mark()
        else:
            self._fanout.published(0, 0)

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
        copy.ask(Ask(name, self.id, f"{name}/{next(_ids)}", command, number), done, refused)

    def _ask_owner(self, command: c.Command, wait: bool) -> list[Event]:
        outcome = Outcome()
        self._send(command, lambda events, letter: outcome.settle(list(events)), outcome.refuse)
        if not wait or self._fanout.broadcaster.is_current():
            return []
        events: list[Event] = self._wait(outcome)
        return events

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

    def add_player(self, player_id: str, name: str | None = None, *, token: str | None = None) -> Player:
        """See Room."""
        if not self.followed:
            return super().add_player(player_id, name, token=token)
        check_id(player_id, "a player id")
        command = c.AddPlayer(player_id, check_name(name, player_id), self._runtime.new_token(), token)
        outcome = Outcome()

        def done(events: Sequence[Event], letter: Done) -> None:
            outcome.settle(self._seated_locked(command, events))

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
        return seat.view(command.new_token if _was_seated(command.player_id, events) else command.token)

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
        self._come_in(command, connection, epoch, seq, greeting, outcome.settle, outcome.refuse)
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
            self._come_in(command, connection, epoch, seq, greeting, lambda joined: None, refused)
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
        self._come_in(c.Connect(player_id), connection, epoch, seq, greeting, outcome.settle, outcome.refuse)
        joined: Joined = self._wait(outcome)
        return joined

    def _come_in(
        self,
        command: c.Join | c.Connect,
        connection: Connection | None,
        epoch: str | None,
        seq: int | None,
        greeting: Mapping[str, Any] | None,
        done: Callable[[Joined], None],
        refused: Callable[[RoomkitError], None],
    ) -> None:
        """Ask the owner for the seat; then attach the connection to it, unless it is lost by then."""
        copy = self._copy
        assert copy is not None
        player_id = command.player_id
        number = 0 if connection is None else copy.post.next_number()
        if connection is not None:
            copy.coming[number] = Coming(player_id, connection)

        def arrived(events: Sequence[Event], letter: Done) -> None:
            seat = self._machine.seats.get(player_id)
            if connection is not None and copy.coming.pop(number, None) is None:
                return  # lost meanwhile: the owner knows
            if seat is None:
                refused(PlayerNotFound(f"player {player_id!r} has left room {self.id!r} already"))
                return
            made = _was_seated(player_id, events)
            token = None
            if isinstance(command, c.Join):
                token = command.new_token if made else command.token
            player = seat.view(token)
            if connection is None:
                done(Joined(player, self._machine.snapshot(), None))
                return
            known = None if made else epoch
            done(self._attach_locked(player_id, connection, known, seq, greeting, player, number))

        def not_let_in(error: RoomkitError) -> None:
            copy.coming.pop(number, None)
            refused(error)

        try:
            self._send(command, arrived, not_let_in, number)
        except RoomkitError:
            copy.coming.pop(number, None)
            raise

    def remove_connection(self, player_id: str, connection: Connection | None = None) -> bool:
        """See Room. Where another instance owns the room, whether this one had the connection."""
        copy = self._copy
        if copy is not None:
            for number, coming in list(copy.coming.items()):
                mine = coming.player_id == player_id and (connection is None or coming.connection is connection)
                if mine and copy.coming.pop(number, None) is not None:
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
            if not self._fanout.detach_locked(link):
                return False
        copy.give_up(link.player_id, link.number, self.id)
        return True

    def expire(self) -> bool:
        """See Room. One that another instance owns is only ever let go of, when nobody here wants anything of it."""
        copy = self._copy
        if self._journal is not None or copy is None:
            return super().expire()
        now = copy.post.now()
        if self._fanout.in_use or copy.waiting or copy.coming:
            copy.idle_since = now
        return now - copy.idle_since >= _LINGER

    def next_deadline(self) -> float:
        """See Room."""
        copy = self._copy
        if self._journal is not None or copy is None:
            return super().next_deadline()
        return copy.post.now() + _LINGER / 2

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
        with self._lock.write(timeout):
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
        if self._journal is None:
            self._fanout.published(count, dropped)
        else:
            self._journal.mark()
        if copy.hole or copy.broken:
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
            self._done_locked(copy, Done("", self.id, *one))
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
            if letter.last > self._machine.seq:  # it has overtaken its events
                copy.later.append(letter)
            else:
                self._done_locked(copy, letter)
        elif letter.elsewhere:
            copy.post.behind(self.id)  # sent again, to whoever has the room then
        else:
            waiting = copy.waiting.get(letter.id)
            if waiting is not None and waiting.to == letter.sender:  # else somebody else may have carried it out
                del copy.waiting[letter.id]
                waiting.refused(error_for(letter.code, letter.message))

    def _done_locked(self, copy: Copy, letter: Done) -> None:
        waiting = copy.waiting.pop(letter.id, None)
        if waiting is None:
            return
        events: Sequence[Event] = ()
        if letter.first:
            events = (self._history.since(letter.first - 1) or ())[: letter.last - letter.first + 1]
        waiting.done(events, letter)

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

    # For another instance, which follows; on the threads that carry out what others ask.

    def serve(self, post: Post, ask: Ask, reply: Replies) -> None:
        """Carry out a command of somebody who is connected elsewhere; ``reply`` is told once it is stored.

        Raises:
            RoomkitError: nothing changed, ``reply`` is not told.
        """
        journal = self._journal
        if journal is None:
            raise RoomBusy(f"room {self.id!r} is not here")
        elsewhere = ask.number and ask.sender != post.name

        def attach(events: list[Event]) -> None:
            reply.seq = self._machine.seq
            if elsewhere and not self._machine.closed:
                player_id = getattr(ask.command, "player_id", "")
                self._attach_remote_locked(post, ask.sender, ask.number, player_id)

        self._carry_out(journal, ask.command, attach, None, reply, ask.id)

    def _attach_remote_locked(self, post: Post, instance: str, number: int, player_id: str) -> None:
        link = self._fanout.find_locked(player_id)
        if link is None or not _is_at(link, instance, number):
            remote = Remote(post, instance, number, self.id, player_id)
            self._fanout.attach_remote_locked(player_id, remote, number)

    @property
    def takes_operations(self) -> bool:
        """Whether this instance owns the room, and its lease lasts."""
        journal = self._journal
        try:
            if journal is not None:
                journal.check()
        except RoomkitError:
            return False
        return journal is not None

    def acted_by(self, command_id: str) -> Acted | None:
        """The events that a command of another instance caused, if any are known."""
        journal = self._journal
        return None if journal is None else journal.acted.get(command_id)

    def serve_gone(self, gone: Gone) -> None:
        """A connection elsewhere is lost. Raises RoomBusy."""
        with self._lock.read(self._config.busy_timeout):
            link = self._fanout.find_locked(gone.player)
        if link is not None and _is_at(link, gone.sender, gone.number):
            self.drop_link(link)

    def serve_present(self, post: Post, present: Present) -> None:
        """An instance says whose connections it has: what differs from what is known here is put right.

        Raises:
            RoomBusy: not all of it was; it comes again.
        """
        journal = self._journal
        if journal is None:
            return
        sender = present.sender
        with self._lock.read(self._config.busy_timeout):
            links = {link.player_id: link for link in self._fanout.links_locked()}
            seats = set(self._machine.seats)
        for player_id, number in present.players.items():
            link = links.pop(player_id, None)
            if player_id not in seats:  # it hears of that by itself
                continue
            if link is None:
                self._reconnect(journal, post, sender, number, player_id)
            elif not _is_at(link, sender, number):
                if link.number > number and _is_at(link, sender, link.number):
                    continue  # it has joined anew since it wrote this
                post.post(sender, Replaced(post.name, self.id, player_id, number))
        for link in links.values():
            theirs = isinstance(link.connection, Remote) and link.connection.instance == sender
            if theirs and link.number <= present.upto and link.number not in present.coming:
                self.drop_link(link)

    def _reconnect(self, journal: Journal, post: Post, instance: str, number: int, player_id: str) -> None:
        try:
            self._carry_out(
                journal,
                c.Connect(player_id),
                lambda events: self._attach_remote_locked(post, instance, number, player_id),
                lambda: self._fanout.find_locked(player_id) is None,
                None,
            )
        except (RoomBusy, ShuttingDown):
            raise
        except RoomkitError:  # gone in the meantime, or the room is closed
            pass

    def drop_instances(self, gone: Container[str]) -> None:
        """Instances are not there any more: whoever was connected there begins its grace. Raises RoomBusy."""
        for link in self._fanout.links_locked():
            if isinstance(link.connection, Remote) and link.connection.instance in gone:
                self.drop_link(link)

    # For the manager.

    def hand_over(self, reason: Callable[[], str]) -> None:
        """Take no more operations, and close every connection with 1012 after what is queued; the room stays.

        Raises:
            RoomBusy: the lock was not to be had; nothing changed.
        """

        def refusal() -> RoomkitError:
            return ShuttingDown(f"room {self.id!r} goes on at another instance; come back")

        journal, copy = self._journal, self._copy
        with self._lock.write(self._config.busy_timeout):
            if journal is not None:
                journal.refusal = refusal
            if copy is not None:
                copy.ended = refusal
            self._fanout.announce_restart_locked(reason)
        self._told()

    # For the node.

    def share(self, journal: Journal, acted: Iterable[Acted] = ()) -> Step:
        """From now on this instance owns the room, and nothing leaves it before it is stored; its first step.

        Args:
            acted: the last commands that it carried out for other instances.
        """
        with self._lock.write(self._config.busy_timeout):
            return self._share_locked(journal, acted)

    def _share_locked(self, journal: Journal, acted: Iterable[Acted]) -> Step:
        for one in acted:
            journal.remember_locked(one)
        self._journal = journal
        self._fanout.hold_back_locked()
        return self._take_step_locked(journal, True)

    def go_on_with(self, machine: RoomMachine, journal: Journal, acted: Iterable[Acted]) -> Step:
        """This instance, which followed the room, owns it now: ``machine`` is as the room was stored. Who is connected
        here stays so. Its first step.

        Raises:
            InvalidRecord: not all of its events were heard; nothing changed. RoomBusy.
        """
        with self._lock.write(self._config.busy_timeout):
            if (machine.epoch, machine.seq) != (self._machine.epoch, self._machine.seq):
                raise InvalidRecord("not all of its events were heard")
            self._machine = machine
            self._snapshot = None
            return self._share_locked(journal, acted)

    def welcome_back(self, elsewhere: Mapping[str, tuple[str, int]], alive: Container[str], post: Post) -> None:
        """It was another instance's: whoever is connected at one that is ``alive``, or here, still is, and every other
        seat begins its grace. Before anybody else knows the room, whatever became of its lease; the caller marks it.

        Args:
            elsewhere: see ``core.record.dump``. post: the way to other instances.
        """
        journal = self._journal
        assert journal is not None
        with self._lock.write(self._config.busy_timeout):
            for player in self._machine.snapshot().players:
                instance, number = elsewhere.get(player.id, ("", 0))
                if player.connected and instance in alive and instance != post.name:
                    self._attach_remote_locked(post, instance, number, player.id)
            here = {link.player_id for link in self._fanout.links_locked()}
        for player in self.get_players():
            if player.connected and player.id not in here:
                super().execute(c.Disconnect(player.id), journal.note_locked)
            elif not player.connected and player.id in here:
                super().execute(c.Connect(player.id), journal.note_locked)

    def take_step(self, timeout: float, whole: bool) -> Step:
        """What it did since the last one; ``whole``: with its record also when it did nothing.

        Raises:
            RoomBusy: its lock was not to be had in so many seconds; nothing was taken.
        """
        journal = self._journal
        assert journal is not None
        with self._lock.write(timeout):
            return self._take_step_locked(journal, whole or journal.changed)

    def _take_step_locked(self, journal: Journal, whole: bool) -> Step:
        machine, runtime = self._machine, self._runtime
        # First: when it fails nothing was taken.
        record = dump(machine, runtime.clock(), runtime.wall_clock(), self._elsewhere_locked()) if whole else None
        events, acted, waiters = journal.take_locked(machine.seq)
        entries, trailing = self._fanout.take_locked()
        return Step(record, Position(machine.epoch, machine.seq), events, acted, entries, trailing, waiters)

    def _elsewhere_locked(self) -> dict[str, tuple[str, int]]:
        return {
            link.player_id: (link.connection.instance, link.number)
            for link in self._fanout.links_locked()
            if isinstance(link.connection, Remote)
        }

    def release_step(self, step: Step) -> None:
        """It is stored: deliver it."""
        self._fanout.release(step.entries, step.trailing)

    def known_events(self, seq: int) -> list[Event]:
        """Those up to ``seq`` that it still has, without a hole."""
        return [event for event in self.get_recent_events(self._config.history_size) if event.seq <= seq]

    def abandon(self, timeout: float, reason: str) -> list[Waits]:
        """It goes on elsewhere, or is not followed further: close its connections with 1012, deliver nothing that is
        not stored. Who waits for a step of it.

        Raises:
            RoomBusy: its lock was not to be had in so many seconds; from now on it refuses operations all the same.
        """
        journal, copy = self._journal, self._copy

        def refusal() -> RoomkitError:
            return RoomBusy(f"room {self.id!r} goes on at another instance; try again")

        if journal is not None:
            journal.refusal = refusal
        if copy is not None:
            copy.ended = refusal
        with self._lock.write(timeout):
            waiters: list[Waits] = [] if journal is None else journal.take_locked(self._machine.seq)[2]
            self._fanout.abandon_locked(reason)
            if copy is not None:
                for letter_id in list(copy.waiting):
                    waiting = copy.waiting.pop(letter_id, None)
                    if waiting is not None:
                        why = f"room {self.id!r} went on elsewhere before its owner had answered"
                        waiting.refused(BackendUnavailable(why))
        return waiters


def _was_seated(player_id: str, events: Sequence[Event]) -> bool:
    return any(event.type == "player_joined" and event.data["player"]["id"] == player_id for event in events)


def _is_at(link: Link, instance: str, number: int) -> bool:
    remote = link.connection
    return isinstance(remote, Remote) and (remote.instance, remote.number) == (instance, number)
