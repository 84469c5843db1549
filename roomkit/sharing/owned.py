"""OwnedRoom: a room that this instance owns. It works in memory like any other, and is stored (``sharing.journal``);
nothing leaves it before that. It also serves instances that follow it (``sharing.room``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from roomkit.backends.base import Acted, Position
from roomkit.concurrency.eventqueue import Entry
from roomkit.core import commands as c
from roomkit.core.events import Event
from roomkit.core.record import complete, dump_form
from roomkit.core.snapshot import Player
from roomkit.core.state import RoomMachine
from roomkit.delivery import Answer, Link
from roomkit.errors import CLOSE, InvalidRecord, PlayerNotFound, RoomBusy, RoomkitError, ShuttingDown
from roomkit.room import Room
from roomkit.sharing.copy import Post
from roomkit.sharing.journal import Form, Journal, Step, Waiter, Waits
from roomkit.sharing.letters import Ask, Gone, Present, Replaced

_SAME_CLOCK = 0.1  # seconds by which the clock may have been set since a record's times were written


class Replies(Waits, Protocol):
    """Whoever is to be told of a command of another instance. ``seq``: how far it brought the room."""

    seq: int


class Past(NamedTuple):
    """What is known of a room that was another instance's, besides its record and its events.

    ``acted``: the last commands that it carried out for other instances. ``elsewhere``: the connections of instances
    that live, by player: whose, and which (``core.record.dump``). ``post``: the way there.
    """

    acted: list[Acted]
    elsewhere: Mapping[str, tuple[str, int]]
    post: Post


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


class OwnedRoom(Room):
    """See the module. What is true of every shared room is told by ``SharedRoom``.

    Thread safety: full.
    """

    shared = True

    __slots__ = ("_heard_of", "_journal")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._heard_of: dict[str, float] = {}  # when instances told last that they have connections; in single steps
        # Set before anybody can find the room; until then it is like any other.
        self._journal: Journal | None = None

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
        journal = self._journal
        if journal is None:
            return super().execute(command, then, unless_changed, timeout=timeout)
        waiter = Waiter() if wait and not self._fanout.broadcaster.is_current() else None
        events = self._carry_out(journal, command, then, unless_changed, waiter, timeout=timeout)
        if waiter is not None:
            waiter.wait(self.id, journal.patience)
        return events

    def execute_once(self, command: c.Command, command_id: str) -> None:
        """:meth:`execute`, once for each ``command_id``: it may come again, also to the next owner."""
        journal = self._journal
        assert journal is not None
        waiter = Waiter()
        self._carry_out(journal, command, None, None, waiter, command_id)
        waiter.wait(self.id, journal.patience)

    def _carry_out(
        self,
        journal: Journal,
        command: c.Command,
        then: Callable[[list[Event]], None] | None,
        unless_changed: Callable[[], bool] | None,
        waits: Waits | None,
        command_id: str = "",
        timeout: float | None = None,
    ) -> list[Event]:
        """As the owner, and once for each ``command_id``; ``waits`` is told when it is stored. ``timeout``: for the
        lock, instead of ``busy_timeout``.
        """
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
            events = super().execute(command, note_locked, go_on_locked, timeout=timeout)
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

        def told(events: list[Event]) -> None:
            if answer is not None:
                seq = events[-1].seq if events else self._machine.seq
                self._answer_locked(lambda: answer(seq), refuse)

        self.execute(command, told, wait=False)

    def when_stored(self, tell: Callable[[], None], refuse: Callable[[RoomkitError], None] | None = None) -> None:
        """See Room."""
        with self._lock.write(self._config.busy_timeout):
            self._answer_locked(tell, refuse)
        self._told()

    def _answer_locked(self, tell: Callable[[], None], refuse: Callable[[RoomkitError], None] | None) -> None:
        """Have it told once what is queued is stored; where that takes too long ``refuse`` is called instead."""
        journal = self._journal
        if journal is not None and refuse is not None:
            tell = journal.pledge_locked(tell, refuse)
        self._fanout.answer_locked(tell)

    def give_up_answers(self, timeout: float) -> None:
        """The store does not answer: refuse what has waited for too long. Raises RoomBusy."""
        journal = self._journal
        if journal is None or not journal.pledges:
            return
        with self._lock.write(timeout):
            overdue = journal.overdue_locked()
        self._fanout.release([Entry(Answer(pledge.give_up), 0) for pledge in overdue], None)

    def _told(self) -> None:
        """Something is in the queue that no operation put there: have it delivered."""
        journal = self._journal
        if journal is not None:
            journal.mark()
        else:
            self._fanout.published(0, 0)

    # For another instance, which follows; on the threads that carry out what others ask.

    def serve(self, post: Post, ask: Ask, reply: Replies, timeout: float | None = None) -> None:
        """Carry out a command of somebody who is connected elsewhere; ``reply`` is told once it is stored.

        Args:
            timeout: seconds to wait for the room's lock; None: its ``busy_timeout``.

        Raises:
            RoomkitError: nothing changed, ``reply`` is not told.
        """
        journal = self._journal
        assert journal is not None
        elsewhere = ask.number and ask.sender != post.name

        def attach(events: list[Event]) -> None:
            reply.seq = self._machine.seq
            if elsewhere and not self._machine.closed:
                player_id = getattr(ask.command, "player_id", "")
                self._attach_remote_locked(post, ask.sender, ask.number, player_id)
            self._carried_out_locked(ask, events)

        self._carry_out(journal, ask.command, attach, lambda: self._is_wanted(ask), reply, ask.id, timeout)

    def _is_wanted(self, ask: Ask) -> bool:
        """Under the write lock: whether it is to be carried out still."""
        return True

    def _carried_out_locked(self, ask: Ask, events: Sequence[Event]) -> None:
        """It was, with these events."""

    def _attach_remote_locked(self, post: Post, instance: str, number: int, player_id: str) -> None:
        link = self._fanout.find_locked(player_id)
        self._heard_of[instance] = self._runtime.clock()
        if link is None or not _is_at(link, instance, number):
            remote = Remote(post, instance, number, self.id, player_id)
            self._fanout.attach_remote_locked(player_id, remote, number)

    @property
    def journal(self) -> Journal | None:
        """Where it is owned, or was."""
        return self._journal

    @property
    def epoch(self) -> str:
        """Which of the rooms that had this id at some time it is."""
        return self._machine.epoch

    @property
    def takes_operations(self) -> bool:
        """Whether this instance owns the room, and its lease lasts."""
        journal = self._journal
        assert journal is not None
        try:
            journal.check()
        except RoomkitError:
            return False
        return True

    def acted_by(self, command_id: str) -> Acted | None:
        """The events that a command of another instance caused, if any are known."""
        journal = self._journal
        return None if journal is None else journal.acted.get(command_id)

    def serve_gone(self, gone: Gone) -> None:
        """A connection elsewhere is lost. Raises RoomBusy."""
        with self._lock.read(self._config.busy_timeout):
            link = self._fanout.find_locked(gone.player)
        if link is None:  # it was lost while its player was being let in here: the seat counts as connected
            journal = self._journal
            assert journal is not None
            find = self._fanout.find_locked  # looked at again: the player may just be coming back
            with suppress(PlayerNotFound):
                self._carry_out(journal, c.Disconnect(gone.player), None, lambda: find(gone.player) is None, None)
        elif _is_at(link, gone.sender, gone.number):
            self.drop_link(link)

    def serve_present(self, post: Post, present: Present) -> None:
        """An instance says whose connections it has: what differs from what is known here is put right.

        Raises:
            RoomBusy: not all of it was; it comes again.
        """
        journal = self._journal
        assert journal is not None
        sender = present.sender
        self._heard_of[sender] = self._runtime.clock()
        newer = False
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
                    if link.number <= present.upto and link.number not in present.coming:
                        # It has joined anew, and that connection was lost before it was let in: so is what told of it.
                        self.drop_link(link)
                        self._reconnect(journal, post, sender, number, player_id)
                    continue  # else it has joined anew since it wrote this
                post.post(sender, Replaced(post.name, self.id, player_id, number))
        for link in links.values():
            theirs = isinstance(link.connection, Remote) and link.connection.instance == sender
            if theirs and link.number <= present.upto and link.number not in present.coming:
                self.drop_link(link)
            elif theirs:  # newer than what was written
                newer = True
        if not present.players and not newer:
            self._heard_of.pop(sender, None)

    def unheard(self, since: float) -> list[str]:
        """Instances that have connections, as far as is known here, and have not told so since then: they had to let go
        of the room, and their last letters were lost.
        """
        return [name for name, at in list(self._heard_of.items()) if at < since]

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

    # For the manager.

    def hand_over(self, reason: Callable[[], str], *, hurry: bool = False) -> None:
        """Take no more operations, and close every connection with 1012 after what is queued; the room stays.

        Args:
            hurry: whoever waits for the owner of a room that is followed here is not answered first.

        Raises:
            RoomBusy: the lock was not to be had, and nothing changed; or the owner has not answered yet, and operations
            are refused from now on.
        """

        def refusal() -> RoomkitError:
            return ShuttingDown(f"room {self.id!r} goes on at another instance; come back")

        if not hurry:
            self._check_answered(refusal)
        with self._lock.write(self._config.busy_timeout):
            self._refuse(refusal)
            self._fanout.announce_restart_locked(reason)
        self._told()

    def _check_answered(self, refusal: Callable[[], RoomkitError]) -> None:
        """Raises RoomBusy: see :meth:`hand_over`."""

    def _refuse(self, refusal: Callable[[], RoomkitError]) -> None:
        """From now on nothing is begun any more."""
        if self._journal is not None:
            self._journal.refusal = refusal

    # For the node.

    def share(self, journal: Journal, past: Past | None = None) -> None:
        """From now on this instance owns the room, and nothing leaves it before it is stored. Its first step is the
        journal's: from here on others may be at work in it.
        """
        with self._lock.write(self._config.busy_timeout):
            self._share_locked(journal, past)

    def _share_locked(self, journal: Journal, past: Past | None) -> None:
        self._journal = journal
        self._fanout.hold_back_locked()
        if past is not None:
            for one in past.acted:
                journal.remember_locked(one)
            for player_id, (instance, number) in past.elsewhere.items():
                seat = self._machine.seats.get(player_id)
                if seat is not None and seat.connected:
                    self._attach_remote_locked(past.post, instance, number, player_id)
        journal.step = self._take_step_locked(journal, True)

    def go_on_with(self, machine: RoomMachine, journal: Journal, past: Past, timeout: float) -> None:
        """This instance, which followed the room, owns it now: ``machine`` is as the room was stored. Who is connected
        here stays so. Otherwise as :meth:`share`.

        Raises:
            InvalidRecord: not all of its events were heard; nothing changed. RoomBusy: its lock was not to be had in so
            many seconds; likewise.
        """
        with self._lock.write(timeout):
            if (machine.epoch, machine.seq) != (self._machine.epoch, self._machine.seq):
                raise InvalidRecord("not all of its events were heard")
            self._check_goes_on_locked()
            self._machine = machine
            self._snapshot = None
            self._share_locked(journal, past)

    def _check_goes_on_locked(self) -> None:
        """Raises InvalidRecord: who followed the room has just let go of it."""

    def put_right(self) -> None:
        """It was another instance's: whoever has a connection, here or at an instance that lives, is connected, and
        every other seat begins its grace. Others may be at work in the room, come in and go.

        Raises:
            RoomBusy, ShuttingDown: not all of them; to be called again.
        """
        journal = self._journal
        assert journal is not None
        for player in self.get_players():
            try:
                self._put_right(player, journal)
            except (RoomBusy, ShuttingDown):
                raise
            except RoomkitError:  # gone in the meantime, or the room is closed
                pass
        journal.unsettled = False

    def _put_right(self, player: Player, journal: Journal) -> None:
        """Have a seat be connected when there is a connection."""
        find = self._fanout.find_locked
        if player.connected:
            self._carry_out(journal, c.Disconnect(player.id), None, lambda: find(player.id) is None, None)
        else:
            self._carry_out(journal, c.Connect(player.id), None, lambda: find(player.id) is not None, None)

    def take_step(self, timeout: float, whole: bool) -> Step:
        """What it did since the last one; ``whole``: with its record also when it did nothing.

        Raises:
            RoomBusy: its lock was not to be had in so many seconds; nothing was taken.
        """
        journal = self._journal
        assert journal is not None
        self._lock.acquire_write(timeout)
        try:
            return self._take_step_locked(journal, whole or journal.changed)
        finally:
            self._lock.release_write()

    def _take_step_locked(self, journal: Journal, whole: bool) -> Step:
        machine = self._machine
        record = self._record_locked(journal) if whole else None  # first: when it fails nothing was taken
        events, acted, waiters = journal.take_locked(machine.seq)
        entries, trailing = self._fanout.take_locked()
        return Step(record, Position(machine.epoch, machine.seq), events, acted, entries, trailing, waiters)

    def _record_locked(self, journal: Journal) -> bytes:
        machine, runtime = self._machine, self._runtime
        shift = runtime.wall_clock() - runtime.clock()
        links = self._fanout.links_locked()
        form = journal.form
        if (
            form is None
            or form.number != machine.form
            or form.links is not links
            or abs(form.shift - shift) > _SAME_CLOCK
        ):
            text = dump_form(machine, shift, self._elsewhere_locked())
            form = journal.form = Form(machine.form, links, shift, text)
        return complete(machine, shift, form.text)

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

        def refusal() -> RoomkitError:
            return RoomBusy(f"room {self.id!r} goes on at another instance; try again")

        journal = self._journal
        self._refuse(refusal)
        with self._lock.write(timeout):
            waiters: list[Waits] = [] if journal is None else journal.take_locked(self._machine.seq)[2]
            self._fanout.abandon_locked(reason)
            self._abandoned_locked()
            self._fanout.tell_last_locked()
        return waiters

    def _abandoned_locked(self) -> None:
        """Whoever waits for anything else is to be told."""


def _is_at(link: Link, instance: str, number: int) -> bool:
    remote = link.connection
    return isinstance(remote, Remote) and (remote.instance, remote.number) == (instance, number)
