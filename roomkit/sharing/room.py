"""SharedRoom: a room that instances share. It tells nobody of anything that is not stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from roomkit.backends.base import Position
from roomkit.core import commands as c
from roomkit.core.events import Event
from roomkit.core.record import dump
from roomkit.errors import RoomBusy, ShuttingDown
from roomkit.room import Room
from roomkit.sharing.journal import Journal, Step, Waiter


class SharedRoom(Room):
    """A room in a store (see ``sharing.journal``). Its operations work in memory, as a room's do; then they are stored.

    Blocking: an operation also waits until it is stored, for as long as a lease lasts and one answer of the store may
    take, then it raises ``BackendUnavailable``: it may have been carried out or not. It does not wait on the thread
    that delivers the room's events. Once the lease may have ended, ``RoomBusy``: nothing changed.

    What is read is what was done here, stored or not.

    Thread safety: full.
    """

    shared = True

    __slots__ = ("_journal",)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Set before anybody can find the room; until then it is like any other.
        self._journal: Journal | None = None

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
            return super().execute(command, then, unless_changed)
        journal.check()
        wait = wait and not self._fanout.broadcaster.is_current()
        waiters: list[Waiter | None] = []

        def go_on_locked() -> bool:
            if journal.refusal is not None:  # since it was looked at: its connections are closed already
                raise journal.refusal()
            return unless_changed is None or unless_changed()

        def note_locked(events: list[Event]) -> None:
            waiters.append(journal.note_locked(events, wait))
            if then is not None:
                then(events)

        try:
            events = super().execute(command, note_locked, go_on_locked)
        finally:  # whatever went wrong after the change: it is to be stored
            if waiters:
                journal.mark()
        for waiter in waiters:  # one at most
            if waiter is not None:
                waiter.wait(self.id, journal.patience)
        return events

    def submit(self, command: c.Command, answer: Callable[[list[Event]], None]) -> None:
        """See Room."""
        fanout = self._fanout
        self.execute(command, lambda events: fanout.answer_locked(lambda: answer(events)), wait=False)

    def when_stored(self, tell: Callable[[], None]) -> None:
        """See Room."""
        journal = self._journal
        assert journal is not None
        with self._lock.write(self._config.busy_timeout):
            self._fanout.answer_locked(tell)
        journal.mark()

    # For the manager.

    def hand_over(self, reason: Callable[[], str]) -> None:
        """Take no more operations, and close every connection with 1012 after what is queued; the room stays.

        Raises:
            RoomBusy: the lock was not to be had; nothing changed.
        """
        journal = self._journal
        assert journal is not None
        with self._lock.write(self._config.busy_timeout):
            journal.refusal = lambda: ShuttingDown(f"room {self.id!r} goes on at another instance; come back")
            self._fanout.announce_restart_locked(reason)
        journal.mark()

    # For the node: see sharing.journal.Storable.

    def share(self, journal: Journal) -> Step:
        """See Storable."""
        with self._lock.write(self._config.busy_timeout):
            self._journal = journal
            self._fanout.hold_back_locked()
            return self._take_step_locked(journal, True)

    def disconnect_all(self) -> None:
        """See Storable."""
        journal = self._journal
        assert journal is not None

        def note_locked(events: list[Event]) -> None:
            journal.note_locked(events, False)

        for player in self.get_players():
            if player.connected:
                super().execute(c.Disconnect(player.id), note_locked)

    def take_step(self, timeout: float, whole: bool) -> Step:
        """See Storable."""
        journal = self._journal
        assert journal is not None
        with self._lock.write(timeout):
            return self._take_step_locked(journal, whole or journal.changed)

    def _take_step_locked(self, journal: Journal, whole: bool) -> Step:
        machine, runtime = self._machine, self._runtime
        # First: when it fails nothing was taken.
        record = dump(machine, runtime.clock(), runtime.wall_clock()) if whole else None
        events, waiters = journal.take_locked(machine.seq)
        entries, trailing = self._fanout.take_locked()
        return Step(record, Position(machine.epoch, machine.seq), events, entries, trailing, waiters)

    def release_step(self, step: Step) -> None:
        """See Storable."""
        self._fanout.release(step.entries, step.trailing)

    def known_events(self, seq: int) -> list[Event]:
        """See Storable."""
        return [event for event in self.get_recent_events(self._config.history_size) if event.seq <= seq]

    def abandon(self, timeout: float, reason: str) -> list[Waiter]:
        """See Storable."""
        journal = self._journal
        assert journal is not None
        journal.refusal = lambda: RoomBusy(f"room {self.id!r} goes on at another instance; try again")
        with self._lock.write(timeout):
            _, waiters = journal.take_locked(self._machine.seq)
            self._fanout.abandon_locked(reason)
            return waiters
