"""The contract suite: what every backend must do, as tests. Public as ``roomkit.testing.BackendContract``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from roomkit.backends.base import Acted, Backend, Commit, Ear, Events, Held, Instance, Lease, Position
from roomkit.errors import BackendUnavailable
from roomkit.runtime import new_short_id

_LONG = 60.0  # the lease_ttl where nothing may lapse, however busy the machine is
_PROBE = b"is anybody there?"
_SHORT = 0.3  # where it is waited for


class BackendContract:
    """Tests of a backend. Derive a class whose name begins with ``Test``, say how a backend is made, and pytest runs
    them::

        class TestMine(BackendContract):
            def make_backend(self, lease_ttl: float) -> Backend:
                return MyBackend(lease_ttl=lease_ttl)

    Every test uses names of its own, so they can share a store that is not empty.

    Attributes:
        patience: seconds in which what must happen has happened.
    """

    patience = 20.0

    def make_backend(self, lease_ttl: float) -> Backend:
        """A backend on the store under test. Called several times in a test: all of them see the same store."""
        raise NotImplementedError

    def pass_time(self, seconds: float) -> None:
        """Let time pass for the store; override it where the store has a clock driven by hand."""
        time.sleep(seconds)

    # What the tests are made of.

    def setup_method(self) -> None:
        """For pytest: names of this test's own."""
        self.room, self.other, self.amy, self.bob = (f"{who}-{new_short_id()}" for who in ("r", "s", "amy", "bob"))
        self._made: list[Backend] = []
        self._ears: list[Ear] = []

    def teardown_method(self) -> None:
        """For pytest."""
        for ear in self._ears:
            ear.close(self.patience)
        for backend in self._made:
            backend.close()

    def _backend(self, lease_ttl: float = _LONG) -> Backend:
        self._made.append(self.make_backend(lease_ttl))
        return self._made[-1]

    def _lease(self, backend: Backend, instance: str, room_id: str | None = None) -> Lease:
        [lease] = backend.acquire(instance, [backend.scope_of(room_id or self.room)])
        assert isinstance(lease, Lease), lease
        return lease

    def _wait_until(self, predicate: Callable[[], object]) -> None:
        deadline = time.monotonic() + self.patience
        while not predicate():
            assert time.monotonic() < deadline, "it did not happen"
            self.pass_time(0.02)

    def _lapse(self, backend: Backend, *room_ids: str) -> None:
        """Nobody renews: wait until the leases have ended."""
        scopes = [backend.scope_of(room_id) for room_id in room_ids or (self.room,)]
        self._wait_until(lambda: backend.holders(scopes) == [None] * len(scopes))

    def _step(
        self, lease: Lease, revision: int, seq: int, events: int = 1, epoch: str = "e1", room_id: str | None = None
    ) -> Commit:
        """A commit whose record and events say what they are."""
        room_id = room_id or self.room
        record = b'{"id":"%b","revision":%d,"by":%d}' % (room_id.encode(), revision, lease.token)
        return Commit(lease, room_id, Position(epoch, seq), revision, record, _events(seq - events + 1, events))

    def _listen(self, backend: Backend, name: str | None = None) -> tuple[Heard, Ear]:
        """What is heard from here on: letters to the name, too."""
        heard = Heard()
        ear = backend.listen(name or self.amy, heard)
        self._ears.append(ear)
        self._wait_until(lambda: backend.send([(name or self.amy, _PROBE)]) == [True] and heard.probed)
        return heard, ear

    # Ownership.

    def test_one_instance_at_a_time_has_the_lease(self) -> None:
        """The second is told who has it, and for how long."""
        one, two = self._backend(), self._backend()
        self._lease(one, self.amy)
        [held] = two.acquire(self.bob, [two.scope_of(self.room)])
        assert isinstance(held, Held)
        assert held.instance == self.amy
        assert 0 < held.seconds <= one.lease_ttl
        [seen] = two.holders([two.scope_of(self.room)])
        assert seen is not None
        assert seen.instance == self.amy

    def test_of_many_who_ask_at_once_one_gets_it(self) -> None:
        """Whatever the order in which the store hears them."""
        backend = self._backend()
        backend.holders([])  # connected
        names = [f"{self.amy}-{n}" for n in range(8)]
        answers: list[Lease | Held] = []
        gate = threading.Barrier(len(names))

        def ask(name: str) -> None:
            gate.wait(self.patience)
            answers.extend(backend.acquire(name, [backend.scope_of(self.room)]))

        threads = [threading.Thread(target=ask, args=(name,), name=f"contract-{name}") for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(self.patience)
        assert len(answers) == len(names)
        [lease] = [answer for answer in answers if isinstance(answer, Lease)]
        assert {answer.instance for answer in answers} == {lease.instance}

    def test_a_lease_ends_unless_it_is_renewed(self) -> None:
        """Renewed it goes on past its first end; then it lapses, and another one takes over with a higher token."""
        backend = self._backend(_SHORT)
        lease = self._lease(backend, self.amy)
        for _ in range(3):
            self.pass_time(backend.lease_ttl * 0.6)
            [renewed] = backend.renew([lease])
            assert renewed is not None
            assert renewed.until > lease.until
            assert renewed.token == lease.token
            lease = renewed
        self._lapse(backend)
        [again] = backend.renew([lease])  # nobody has followed
        assert again is not None
        self._lapse(backend)
        taken = self._lease(self._backend(), self.bob)
        assert taken.token > lease.token
        assert backend.renew([lease]) == [None]
        assert backend.renew([taken]) != [None]

    def test_a_lease_that_is_released_can_be_had_at_once(self) -> None:
        """With a higher token; releasing the old one again changes nothing for the new."""
        backend = self._backend()
        first = self._lease(backend, self.amy)
        backend.release([first])
        assert backend.holders([backend.scope_of(self.room)]) == [None]
        second = self._lease(backend, self.bob)
        assert second.token > first.token
        backend.release([first])
        [held] = backend.holders([backend.scope_of(self.room)])
        assert held is not None
        assert held.instance == self.bob

    def test_who_has_the_lease_may_have_a_new_one(self) -> None:
        """The one before is followed, and fenced off."""
        backend = self._backend()
        first = self._lease(backend, self.amy)
        second = self._lease(backend, self.amy)
        assert second.token > first.token
        assert backend.renew([first]) == [None]
        assert backend.commit([self._step(first, 1, 1)]) == ["fenced"]
        assert backend.commit([self._step(second, 1, 1)]) == ["committed"]

    def test_leases_come_and_go_in_batches(self) -> None:
        """In the order in which they were asked for, whatever becomes of each."""
        backend = self._backend()
        rooms = [f"{self.room}.{n}" for n in range(20)]
        scopes = [backend.scope_of(room_id) for room_id in rooms]
        theirs = backend.acquire(self.bob, scopes[::2])
        answers = backend.acquire(self.amy, scopes)
        assert [answer.scope for answer in answers] == scopes
        assert [answer.instance for answer in answers] == [self.bob, self.amy] * 10
        mine = [answer for answer in answers if isinstance(answer, Lease)]
        stolen = [lease._replace(token=lease.token - 1) for lease in mine[:3]]
        renewed = backend.renew([*stolen, *mine])
        assert [lease is not None for lease in renewed] == [False] * 3 + [True] * 10
        backend.release([*mine, *(lease for lease in theirs if isinstance(lease, Lease))])
        assert backend.holders(scopes) == [None] * 20

    def test_nothing_to_do_is_done(self) -> None:
        """Empty batches are answered."""
        backend = self._backend()
        answers: list[Sequence[object]] = [
            backend.acquire(self.amy, []),
            backend.renew([]),
            backend.holders([]),
            backend.commit([]),
            backend.restore([]),
            backend.positions([]),
        ]
        assert answers == [[]] * 6
        backend.release([])

    # Committing.

    def test_a_room_is_made_once(self) -> None:
        """By the first commit; who opens it, here or elsewhere, finds its record byte for byte."""
        one, two = self._backend(), self._backend()
        lease = self._lease(one, self.amy)
        assert one.open(lease, self.room) is None
        assert one.positions([self.room]) == [None]
        step = self._step(lease, 1, 3, events=3)
        assert one.commit([step]) == ["committed"]
        one.release([lease])
        theirs = self._lease(two, self.bob)
        assert two.commit([self._step(theirs, 1, 1, epoch="e2")]) == ["conflict"]
        stored = two.open(theirs, self.room)
        assert stored is not None
        assert stored == (step.record, Position("e1", 3), 1, lease.token)
        assert two.positions([self.room, self.other]) == [Position("e1", 3), None]
        assert two.read(self.room, "e1", 0) == Events(1, tuple(step.events))

    def test_without_the_lease_nothing_is_committed(self) -> None:
        """The owner that was frozen until another took over is refused, however late it comes, and changes nothing."""
        backend = self._backend()
        old = self._lease(self._backend(_SHORT), self.amy)
        assert backend.commit([self._step(old, 1, 1)]) == ["committed"]
        self._lapse(backend)
        new = self._lease(backend, self.bob)
        before = backend.open(new, self.room)
        assert backend.commit([self._step(old, 2, 2)]) == ["fenced"]
        assert backend.restore([self._step(old, 5, 5)]) == ["fenced"]
        assert backend.commit([self._step(old, 2, 1, 0)._replace(record=None)]) == ["fenced"]
        assert backend.open(new, self.room) == before
        assert backend.commit([self._step(new, 2, 2)]) == ["committed"]
        assert backend.commit([self._step(old, 3, 3)]) == ["fenced"]
        assert backend.read(self.room, "e1", 0) == Events(1, tuple(_events(1, 2)))

    def test_a_lease_never_had_commits_nothing(self) -> None:
        """A made-up token of a room that nobody owns."""
        backend = self._backend()
        made_up = Lease(backend.scope_of(self.room), self.amy, 1, 0.0)
        assert backend.commit([self._step(made_up, 1, 1)]) == ["fenced"]
        assert backend.restore([self._step(made_up, 1, 1)]) == ["fenced"]
        assert backend.renew([made_up]) == [None]
        assert backend.positions([self.room]) == [None]

    def test_a_lapsed_lease_that_nobody_followed_still_commits(self) -> None:
        """The store refuses what could do harm; its owner has stopped by itself before."""
        backend = self._backend(_SHORT)
        lease = self._lease(backend, self.amy)
        assert backend.commit([self._step(lease, 1, 1)]) == ["committed"]
        self._lapse(backend)
        assert backend.commit([self._step(lease, 2, 2)]) == ["committed"]

    def test_a_commit_that_is_repeated_acts_once(self) -> None:
        """Its answer was lost: it is told that it is committed, and the events are there once."""
        backend = self._backend()
        lease = self._lease(backend, self.amy)
        for revision, seq, events in ((1, 1, 1), (2, 3, 2), (3, 3, 0), (4, 4, 1)):
            step = self._step(lease, revision, seq, events)
            for _ in range(3):
                assert backend.commit([step]) == ["committed"]
        assert backend.read(self.room, "e1", 0) == Events(1, tuple(_events(1, 4)))

    def test_a_commit_out_of_turn_changes_nothing(self) -> None:
        """One that leaves a revision out, and an old one that comes late."""
        backend = self._backend()
        lease = self._lease(backend, self.amy)
        assert backend.commit([self._step(lease, 2, 1)]) == ["conflict"]  # of a room that is not there
        for revision in (1, 2, 3):
            assert backend.commit([self._step(lease, revision, revision)]) == ["committed"]
        before = backend.open(lease, self.room)
        assert backend.commit([self._step(lease, 5, 4)]) == ["conflict"]
        assert backend.commit([self._step(lease, 2, 2)]) == ["conflict"]
        assert backend.commit([self._step(lease, 1, 1)]) == ["conflict"]
        assert backend.open(lease, self.room) == before
        assert backend.read(self.room, "e1", 0) == Events(1, tuple(_events(1, 3)))

    def test_commits_in_a_batch_are_each_whole(self) -> None:
        """Some are stored and some refused, and the outcomes stand in their order."""
        backend = self._backend()
        mine, theirs = self._lease(backend, self.amy), self._lease(backend, self.bob, self.other)
        fenced = theirs._replace(token=theirs.token - 1)
        third = f"{self.room}.3"
        batch = [
            self._step(fenced, 1, 1, room_id=self.other),
            self._step(mine, 1, 1),
            self._step(self._lease(backend, self.amy, third), 7, 7, room_id=third),
        ]
        assert backend.commit(batch) == ["fenced", "committed", "conflict"]
        assert backend.positions([self.other, self.room, third]) == [None, Position("e1", 1), None]

    def test_a_room_is_taken_away_with_its_events(self) -> None:
        """It can be made anew then, by whoever has the lease, and begins again."""
        backend = self._backend()
        lease = self._lease(backend, self.amy)
        assert backend.commit([self._step(lease, 1, 2, 2)]) == ["committed"]
        gone = self._step(lease, 2, 2, 0)._replace(record=None)
        for _ in range(2):
            assert backend.commit([gone]) == ["committed"]
            assert backend.open(lease, self.room) is None
            assert backend.positions([self.room]) == [None]
            assert backend.read(self.room, "e1", 0) is None
        backend.release([lease])
        lease = self._lease(backend, self.bob)
        assert backend.commit([self._step(lease, 1, 1, epoch="e2")]) == ["committed"]
        assert backend.read(self.room, "e2", 0) == Events(1, tuple(_events(1, 1)))

    def test_what_was_taken_away_is_not_restored(self) -> None:
        """By an owner that slept, say, while another one ended the room: it has not been lost. It can be made anew."""
        backend = self._backend()
        first = self._lease(backend, self.amy)
        assert backend.commit([self._step(first, 1, 2, 2)]) == ["committed"]
        backend.release([first])
        second = self._lease(backend, self.bob)
        assert backend.commit([self._step(second, 2, 2, 0)._replace(record=None)]) == ["committed"]
        for _ in range(2):
            backend.release([second])
            second = self._lease(backend, self.amy)
            assert backend.restore([self._step(second, 2, 3)]) == ["conflict"]
            assert backend.open(second, self.room) is None
        assert backend.commit([self._step(second, 1, 1, epoch="e2")]) == ["committed"]
        assert backend.restore([self._step(second, 5, 2, epoch="e2")]) == ["committed"]  # this one was not taken away

    def test_a_room_goes_on_elsewhere(self) -> None:
        """Its next owner's commits follow the last one's."""
        backend = self._backend()
        seq = 0
        for turn in range(4):
            lease = self._lease(backend, self.amy if turn % 2 else self.bob)
            stored = backend.open(lease, self.room)
            revision = stored.revision if stored is not None else 0
            seq += 2
            assert backend.commit([self._step(lease, revision + 1, seq, 2)]) == ["committed"]
            backend.release([lease])
        assert backend.read(self.room, "e1", 0) == Events(1, tuple(_events(1, 8)))

    def test_what_the_store_lost_is_restored(self) -> None:
        """Its owner has a later revision: it replaces an older one, or none, and the events follow without a hole."""
        backend = self._backend()
        lease = self._lease(backend, self.amy)
        assert backend.restore([self._step(lease, 4, 4, 4)]) == ["committed"]  # all was lost
        assert backend.read(self.room, "e1", 0) == Events(1, tuple(_events(1, 4)))
        later = self._step(lease, 9, 8, 6)  # and of these two are there still
        for _ in range(2):
            assert backend.restore([later]) == ["committed"]
        assert backend.read(self.room, "e1", 0) == Events(1, tuple(_events(1, 8)))
        stored = backend.open(lease, self.room)
        assert stored is not None
        assert stored == (later.record, Position("e1", 8), 9, lease.token)
        assert backend.restore([self._step(lease, 8, 8, 1)]) == ["conflict"]  # not back
        only = self._step(lease, 10, 8, 0)  # a change that caused no event
        assert backend.restore([only]) == ["committed"]
        assert backend.commit([self._step(lease, 11, 9)]) == ["committed"]
        assert backend.read(self.room, "e1", 4) == Events(5, tuple(_events(5, 5)))

    def test_restored_events_with_a_hole_begin_anew(self) -> None:
        """The owner has not all that the store lost: what is left is not told as if it were all."""
        backend = self._backend()
        lease = self._lease(backend, self.amy)
        assert backend.commit([self._step(lease, 1, 2, 2)]) == ["committed"]
        assert backend.restore([self._step(lease, 9, 9, 3)]) == ["committed"]
        assert backend.read(self.room, "e1", 0) is None
        assert backend.read(self.room, "e1", 2) is None
        assert backend.read(self.room, "e1", 6) == Events(7, tuple(_events(7, 3)))

    # Reading.

    def test_a_cursor_may_stand_anywhere(self) -> None:
        """Also in the middle of a commit, at the end, and not ahead of it."""
        backend = self._backend()
        lease = self._lease(backend, self.amy)
        seq = 0
        for revision, events in enumerate((3, 1, 5, 2), 1):
            seq += events
            assert backend.commit([self._step(lease, revision, seq, events)]) == ["committed"]
        for after in range(seq + 1):
            assert backend.read(self.room, "e1", after) == Events(after + 1, tuple(_events(after + 1, seq - after)))
        assert backend.read(self.room, "e1", seq + 1) is None
        assert backend.read(self.room, "e0", 0) is None
        assert backend.read(self.other, "e1", 0) is None

    def test_a_long_log_is_read_in_pieces(self) -> None:
        """Each goes on where the one before ended."""
        backend = self._backend()
        lease = self._lease(backend, self.amy)
        for revision in range(1, 51):
            assert backend.commit([self._step(lease, revision, revision)]) == ["committed"]
        found: list[bytes] = []
        while piece := backend.read(self.room, "e1", len(found), limit=7):
            assert piece.first == len(found) + 1
            if not piece.events:
                break
            found += piece.events
        assert found == list(_events(1, 50))

    def test_commands_are_kept_with_their_events(self) -> None:
        """Whoever reads gets those all of whose events it gets; they are gone with the events."""
        backend = self._backend()
        lease = self._lease(backend, self.amy)
        acted: list[Acted] = []
        seq = 0
        for revision, events in enumerate((3, 1, 5, 2), 1):
            commands = [Acted(f"c{seq + 1}", seq + 1, seq + 1), Acted(f'"\u55e8\\{revision}', seq + 1, seq + events)]
            acted += commands
            seq += events
            step = self._step(lease, revision, seq, events)._replace(acted=commands)
            for _ in range(2):
                assert backend.commit([step]) == ["committed"]
        for after in range(seq + 1):
            for limit in (1, 4, 1000):
                piece = backend.read(self.room, "e1", after, limit)
                assert piece is not None
                last = piece.first + len(piece.events) - 1
                assert piece.acted == tuple(one for one in acted if one.first > after and one.last <= last)
        both = [Acted("known", 10, 11), Acted("new", 12, 13)]
        restored = self._step(lease, 9, 13, 4)._replace(acted=both)
        assert backend.restore([restored]) == ["committed"]
        assert backend.read(self.room, "e1", 11) == Events(12, tuple(_events(12, 2)), (both[1],))
        assert backend.restore([self._step(lease, 20, 20, 2)]) == ["committed"]  # the others are gone
        assert backend.read(self.room, "e1", 18) == Events(19, tuple(_events(19, 2)))
        assert backend.commit([self._step(lease, 21, 20, 0)._replace(record=None)]) == ["committed"]
        assert backend.commit([self._step(lease, 1, 2, 2, epoch="e2")]) == ["committed"]
        assert backend.read(self.room, "e2", 0) == Events(1, tuple(_events(1, 2)))

    def test_who_does_not_own_a_room_can_look_at_it(self) -> None:
        """It is seen as it was committed last, whoever has the lease meanwhile, and the owner goes on."""
        one, two = self._backend(), self._backend()
        assert two.look(self.room) is None
        lease = self._lease(one, self.amy)
        for revision in (1, 2, 3):
            step = self._step(lease, revision, revision)
            assert one.commit([step]) == ["committed"]
            assert two.look(self.room) == (step.record, step.position, revision, lease.token)
        assert one.commit([self._step(lease, 4, 3, 0)._replace(record=None)]) == ["committed"]
        assert two.look(self.room) is None

    # Hearing.

    def test_commits_of_a_followed_room_are_heard(self) -> None:
        """Each once and in order, with its events and commands; not those before, none without events, none refused."""
        one, two = self._backend(), self._backend()
        lease, others = self._lease(one, self.amy), self._lease(one, self.amy, self.other)
        heard, ear = self._listen(two, self.bob)
        assert one.commit([self._step(lease, 1, 1), self._step(others, 1, 1, room_id=self.other)]) == ["committed"] * 2
        ear.follow([self.room])
        acted = (Acted("c1", 2, 2), Acted("c2", 3, 4))
        second = self._step(lease, 2, 4, 3)._replace(acted=acted)
        for step in (second, self._step(lease, 3, 4, 0), self._step(others, 2, 2, room_id=self.other)):
            for _ in range(2):
                assert one.commit([step]) == ["committed"]
        assert one.commit([self._step(lease, 9, 9)]) == ["conflict"]
        assert one.commit([self._step(lease._replace(token=lease.token - 1), 4, 5)]) == ["fenced"]
        assert one.commit([self._step(lease, 4, 5)]) == ["committed"]
        assert one.restore([self._step(lease, 9, 9, 6)]) == ["committed"]
        expected = [
            (self.room, "e1", Events(2, tuple(_events(2, 3)), acted)),
            (self.room, "e1", Events(5, tuple(_events(5, 1)))),
            (self.room, "e1", Events(4, tuple(_events(4, 6)))),
        ]
        self._wait_until(lambda: len(heard.commits) >= len(expected))
        assert heard.commits == expected

    def test_many_commits_are_heard_in_their_order(self) -> None:
        """By every ear that follows the room, its owner's too, also where the room is followed twice."""
        one, two = self._backend(), self._backend()
        lease = self._lease(one, self.amy)
        listeners: list[Heard] = []
        for backend in (one, two, two):
            heard, ear = self._listen(backend, f"{self.bob}-{len(listeners)}")
            ear.follow([self.room, self.other, self.room])
            ear.follow([self.room])
            listeners.append(heard)
        for revision in range(1, 201):
            assert one.commit([self._step(lease, revision, revision)]) == ["committed"]
        for heard in listeners:
            self._wait_until(partial(heard.has, commits=200))
            assert [events.first for _, _, events in heard.commits] == list(range(1, 201))

    def test_a_room_that_is_not_followed_any_more_is_not_heard(self) -> None:
        """After what was under way; the others are, and it is again once it is followed again."""
        backend = self._backend()
        room, other = self._lease(backend, self.amy), self._lease(backend, self.amy, self.other)
        heard, ear = self._listen(backend)
        ear.follow([self.room, self.other])
        ear.unfollow([self.room, "never-followed"])
        revision = 0

        def commit() -> bool:
            nonlocal revision
            revision += 1
            steps = [self._step(room, revision, revision), self._step(other, revision, revision, room_id=self.other)]
            assert backend.commit(steps) == ["committed"] * 2
            self._wait_until(lambda: heard.last(self.other) == revision)
            return heard.last(self.room) == revision

        self._wait_until(lambda: not commit())
        assert not commit()
        ear.follow([self.room])
        commit()
        self._wait_until(lambda: heard.last(self.room) == revision)
        for _ in range(20):  # at once
            ear.unfollow([self.room])
            ear.follow([self.room])
        commit()
        self._wait_until(lambda: heard.last(self.room) == revision)

    def test_many_rooms_are_followed_at_once(self) -> None:
        """On whatever nodes they are."""
        backend = self._backend()
        rooms = [f"{self.room}.{n}" for n in range(300)]
        leases = backend.acquire(self.amy, [backend.scope_of(room) for room in rooms])
        heard, ear = self._listen(backend)
        ear.follow(rooms)
        steps = [
            self._step(lease, 1, 1, room_id=room_id)
            for lease, room_id in zip(leases, rooms, strict=True)
            if isinstance(lease, Lease)
        ]
        assert backend.commit(steps) == ["committed"] * 300
        self._wait_until(lambda: len(heard.commits) >= 300)
        assert sorted(room_id for room_id, _, _ in heard.commits) == sorted(rooms)

    def test_letters_reach_those_who_listen_under_the_name(self) -> None:
        """All of them and nobody else, the letters of each sender in their order, whatever is in them; the sender knows
        whether somebody listens.
        """
        one, two = self._backend(), self._backend()
        assert one.send([]) == []
        assert one.send([(self.amy, b"too early"), (self.bob, b"too early")]) == [False, False]
        amy, _ = self._listen(one, self.amy)
        too, _ = self._listen(two, self.amy)
        bob, _ = self._listen(two, self.bob)
        nobody = f"{self.bob}-nobody"
        bodies = [b"%d \x00\xff\r\n" % n for n in range(50)]
        for body in bodies[:25]:
            assert two.send([(self.amy, body), (nobody, body), (self.bob, body)]) == [True, False, True]
        assert two.send([(self.amy, body) for body in bodies[25:]]) == [True] * 25
        for heard in (amy, too):
            self._wait_until(partial(heard.has, letters=50))
            assert heard.letters == bodies
        assert one.send([(self.amy, b"from another"), (self.amy, b"")]) == [True, True]
        for heard in (amy, too):
            self._wait_until(partial(heard.has, letters=52))
            assert heard.letters[50:] == [b"from another", b""]
        self._wait_until(lambda: len(bob.letters) >= 25)
        assert bob.letters == bodies[:25]

    def test_a_listener_that_fails_goes_on_hearing(self) -> None:
        """The commit and the letter that it failed at are nobody else's concern."""
        backend = self._backend()
        lease = self._lease(backend, self.amy)
        heard, ear = self._listen(backend)
        ear.follow([self.room])
        heard.fails = True
        assert backend.commit([self._step(lease, 1, 1)]) == ["committed"]
        assert backend.send([(self.amy, b"one")]) == [True]
        self._wait_until(lambda: heard.failed == 2)
        heard.fails = False
        assert backend.commit([self._step(lease, 2, 2)]) == ["committed"]
        assert backend.send([(self.amy, b"two")]) == [True]
        self._wait_until(lambda: heard.commits and heard.letters)
        assert heard.commits == [(self.room, "e1", Events(2, tuple(_events(2, 1))))]
        assert heard.letters == [b"two"]

    def test_a_closed_ear_hears_nothing(self) -> None:
        """Neither rooms nor letters, and its threads have ended; the backend goes on, and ends what is left."""
        backend, other = self._backend(), self._backend()
        lease = self._lease(backend, self.amy)
        heard, ear = self._listen(backend)
        ear.follow([self.room])
        for _ in range(2):
            assert ear.close(self.patience)
        self._wait_until(lambda: other.send([(self.amy, b"too late")]) == [False])
        assert backend.commit([self._step(lease, 1, 1)]) == ["committed"]
        try:
            ear.follow([self.room])
        except BackendUnavailable:
            pass
        else:
            raise AssertionError("a closed ear follows")
        ear.unfollow([self.room])
        assert (heard.commits, heard.letters) == ([], [])
        self._listen(backend)
        backend.close()
        self._wait_until(lambda: other.send([(self.amy, b"too late")]) == [False])

    # Instances.

    def test_instances_are_known_while_they_say_so(self) -> None:
        """With their addresses; silent for ``lease_ttl`` or withdrawn, they are not any more."""
        backend = self._backend()

        def ours() -> list[Instance]:
            return [instance for instance in backend.instances() if instance.name in (self.amy, self.bob)]

        amy, bob = Instance(self.amy, "http://amy:1"), Instance(self.bob, "http://bob:2")
        assert ours() == []
        backend.announce(amy)
        backend.announce(bob)
        assert ours() == [amy, bob]
        backend.withdraw(self.bob)
        assert ours() == [amy]
        moved = amy._replace(address="http://amy:3")
        backend.announce(moved)
        assert ours() == [moved]
        self._backend(_SHORT).announce(moved)
        self._wait_until(lambda: ours() == [])

    def test_what_a_dead_instance_owned_is_found(self) -> None:
        """And no more once somebody took it over, or it was released before."""
        backend, short = self._backend(), self._backend(_SHORT)
        rooms = [f"{self.room}.{n}" for n in range(6)]
        scopes = [backend.scope_of(room_id) for room_id in rooms]

        def orphans() -> set[str]:
            return set(backend.orphans(100_000)) & set(scopes)

        backend.announce(Instance(self.amy, "http://amy:1"))
        leases = [self._lease(short, self.amy, room_id) for room_id in rooms]
        assert backend.commit([self._step(lease, 1, 1, room_id=lease.scope) for lease in leases]) == ["committed"] * 6
        backend.release(leases[:1])
        assert orphans() == set()  # it is alive
        backend.withdraw(self.amy)
        assert orphans() == set(scopes[1:])
        self._lapse(backend, *rooms)
        backend.announce(Instance(self.bob, "http://bob:1"))
        backend.acquire(self.bob, scopes[1:4])
        assert orphans() == set(scopes[4:])
        assert len(backend.orphans(1)) == 1
        backend.acquire(self.bob, scopes[4:])
        assert orphans() == set()
        backend.withdraw(self.bob)
        assert orphans() == set(scopes[1:])

    def test_what_an_instance_hands_over_is_found(self) -> None:
        """It can be had at once; and is looked for where its instance is gone, without anybody asking for the room."""
        backend = self._backend()
        rooms = [f"{self.room}.{n}" for n in range(3)]
        scopes = [backend.scope_of(room_id) for room_id in rooms]

        def orphans() -> set[str]:
            return set(backend.orphans(100_000)) & set(scopes)

        backend.announce(Instance(self.amy, ""))
        leases = [self._lease(backend, self.amy, room_id) for room_id in rooms]
        assert backend.commit([self._step(lease, 1, 1, room_id=lease.scope) for lease in leases]) == ["committed"] * 3
        backend.release(leases, orphan=True)
        assert backend.holders(scopes) == [None] * 3
        assert orphans() == set()
        backend.withdraw(self.amy)
        assert orphans() == set(scopes)
        backend.announce(Instance(self.bob, ""))
        leases = [self._lease(backend, self.bob, room_id) for room_id in rooms]
        backend.release(leases[:1], orphan=True)
        backend.release(leases[1:])
        assert orphans() == set()
        backend.withdraw(self.bob)
        assert orphans() == set(scopes[:1])

    def test_closing_is_done_once(self) -> None:
        """And the leases stay."""
        one, two = self._backend(), self._backend()
        self._lease(one, self.amy)
        one.close()
        one.close()
        [held] = two.holders([two.scope_of(self.room)])
        assert held is not None


class Heard:
    """A listener that keeps what it hears. ``fails``: it raises instead."""

    def __init__(self) -> None:
        self.commits: list[tuple[str, str, Events]] = []
        self.letters: list[bytes] = []
        self.again = 0
        self.probed = False
        self.fails = False
        self.failed = 0

    def hear_events(self, room_id: str, epoch: str, events: Events) -> None:
        """A commit."""
        self._fail()
        self.commits.append((room_id, epoch, events))

    def hear_letter(self, body: bytes) -> None:
        """A letter; those by which a test finds out that it is listened are not kept."""
        if body == _PROBE:
            self.probed = True
            return
        self._fail()
        self.letters.append(body)

    def hear_again(self) -> None:
        """How often is counted."""
        self.again += 1

    def _fail(self) -> None:
        if self.fails:
            self.failed += 1
            raise ValueError("a listener that fails")

    def has(self, commits: int = 0, letters: int = 0) -> bool:
        """Whether it has heard so many."""
        return len(self.commits) >= commits and len(self.letters) >= letters

    def last(self, room_id: str) -> int:
        """The seq of the room's last event that was heard."""
        return max((e.first + len(e.events) - 1 for known, _, e in self.commits if known == room_id), default=0)


def _events(first: int, count: int) -> Sequence[bytes]:
    return [b'{"type":"message","seq":%d,"data":{"text":"\xe5\x97\xa8"}}' % seq for seq in range(first, first + count)]
