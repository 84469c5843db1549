"""What everybody was told is true, whatever happens to the instances; and the check would notice if it were not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from storm import Storm, calm
from support.unsteady import Unsteady

from roomkit.backends.base import Backend, Commit, Lease, Outcome
from roomkit.backends.memory import MemoryBackend, MemoryStore
from roomkit.fanout import Fanout
from roomkit.sharing.journal import Journal
from roomkit.sharing.node import Node


def storm(seed: int, seconds: float, kind: type[MemoryBackend] = MemoryBackend) -> Storm:
    """Over a store in memory."""
    store = MemoryStore(log_size=1_000_000)
    return Storm(seed, lambda ttl: kind(store, lease_ttl=ttl), seconds).run()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_that_was_told_is_lost(seed: int) -> None:
    """Instances that are cut off, slow, deaf and drained: one history, all acknowledged messages are in it, once, and
    every player got it without a hole, over all of its connections.
    """
    calm(storm(seed, 4.0))


class NoFence(MemoryBackend):
    """Whoever had the lease once may commit."""

    def _is_current_locked(self, lease: Lease) -> bool:
        return lease.scope in self._store.scopes

    def _commit_locked(self, step: Commit, restore: bool) -> Outcome:
        room = self._store.rooms.get(step.room_id)
        return super()._commit_locked(step._replace(revision=room.revision + 1 if room is not None else 1), restore)


def deliver_at_once(patch: pytest.MonkeyPatch) -> None:
    """What is queued is delivered whether it is stored or not."""
    patch.setattr(Fanout, "hold_back_locked", lambda self: None)
    patch.setattr(Fanout, "release", lambda self, entries, trailing: None)
    patch.setattr(Fanout, "take_locked", lambda self: ([], None))


def forget_events(patch: pytest.MonkeyPatch) -> None:
    """A step that has to be stored again is taken anew."""
    take = Node._next_commit

    def taken_anew(self: Node, journal: Journal) -> Commit | None:
        journal.step = None
        return take(self, journal)

    patch.setattr(Node, "_next_commit", taken_anew)


@pytest.mark.parametrize("mutate", [deliver_at_once, forget_events])
def test_the_check_catches(mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is wrong on purpose, one promise each."""
    mutate(monkeypatch)
    assert any(storm(seed, 3.0).violations() for seed in range(5))


def test_the_check_catches_a_store_without_a_fence() -> None:
    """And one that takes commits in any order."""
    assert any(storm(seed, 3.0, NoFence).violations() for seed in range(5))


def test_a_backend_that_is_unsteady_passes_on_what_it_is() -> None:
    """The tests' own tool."""
    backend: Backend = Unsteady(MemoryBackend(lease_ttl=7.0))  # type: ignore[assignment]
    assert backend.lease_ttl == 7.0
