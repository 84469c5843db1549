"""The reader-writer lock: who may hold it together, who goes first, and that it refuses to hang on itself."""

from __future__ import annotations

import threading

import pytest
from support.fakes import PATIENCE, eventually, join, raise_any, run_together, start_thread

from roomkit.concurrency.rwlock import RWLock
from roomkit.errors import LockUpgradeError, RoomBusy


def turned_away(lock: RWLock, mode: str) -> bool:
    """Whether this thread gets a RoomBusy at once."""
    try:
        with getattr(lock, mode)(0):
            return False
    except RoomBusy:
        return True


def assert_free(lock: RWLock) -> None:
    """Nobody holds the lock in any mode, seen from this thread and from another."""

    def take_both() -> None:
        with lock.write(0):
            pass
        with lock.read(0):
            pass

    take_both()
    raise_any(run_together([take_both]))


class Holder:
    """A thread that holds the lock until it is released; it has it when the constructor returns."""

    def __init__(self, lock: RWLock, mode: str) -> None:
        self._leave = threading.Event()
        entered = threading.Event()

        def hold() -> None:
            with getattr(lock, mode)(PATIENCE):
                entered.set()
                self._leave.wait(PATIENCE)

        self._thread = start_thread(hold)
        assert entered.wait(PATIENCE)

    def release(self) -> None:
        self._leave.set()
        join(self._thread)


def test_readers_share_the_lock() -> None:
    """Eight readers stand in the lock at the same moment: each waits in there for all the others."""
    lock = RWLock()
    inside = threading.Barrier(8)

    def read() -> None:
        with lock.read(PATIENCE):
            inside.wait(PATIENCE)

    raise_any(run_together([read] * 8))
    assert_free(lock)


@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_writer_keeps_everybody_out(mode: str) -> None:
    """While a writer holds the lock neither a reader nor another writer gets in; afterwards both do."""
    lock = RWLock()
    writer = Holder(lock, "write")
    assert turned_away(lock, mode)
    writer.release()
    assert not turned_away(lock, mode)
    assert_free(lock)


def test_a_reader_keeps_writers_out_and_lets_readers_in() -> None:
    """While somebody reads a writer is turned away and another reader is not."""
    lock = RWLock()
    reader = Holder(lock, "read")
    assert turned_away(lock, "write")
    assert not turned_away(lock, "read")
    reader.release()
    assert_free(lock)


def test_writers_and_readers_never_overlap_under_load() -> None:
    """Six writers that change two variables one after the other, and four readers that always find them equal."""
    lock = RWLock()
    pair = [0, 0]

    def write() -> None:
        for _ in range(300):
            with lock.write(PATIENCE):
                left = pair[0]
                pair[0] = left + 1
                pair[1] += 1

    def read() -> None:
        for _ in range(300):
            with lock.read(PATIENCE):
                assert pair[0] == pair[1]

    raise_any(run_together([write] * 6 + [read] * 4))
    assert pair == [1800, 1800]


def test_a_waiting_writer_goes_before_readers_that_come_later() -> None:
    """Readers that arrive while a writer waits are held back: however many come, the writer is the next one in."""
    lock = RWLock()
    order: list[str] = []
    first_reader = Holder(lock, "read")

    def write() -> None:
        with lock.write(PATIENCE):
            order.append("writer")

    def read() -> None:
        with lock.read(PATIENCE):
            order.append("reader")

    writer = start_thread(write)
    eventually(lambda: turned_away(lock, "read"))  # the writer waits now, and already keeps readers out
    late = [start_thread(read) for _ in range(5)]
    assert turned_away(lock, "read")
    assert order == []
    first_reader.release()
    join(writer, *late)
    assert order == ["writer"] + ["reader"] * 5


def test_a_stream_of_overlapping_readers_does_not_starve_a_writer() -> None:
    """Readers who hand over to each other, so that somebody always reads, cannot keep a writer out for good."""
    lock = RWLock()
    wrote = threading.Event()

    def stream() -> None:
        while not wrote.is_set():
            with lock.read(PATIENCE):
                pass

    def write() -> None:
        with lock.write(PATIENCE):
            wrote.set()

    raise_any(run_together([stream] * 6 + [write]))
    assert wrote.is_set()


@pytest.mark.parametrize(("held", "wanted"), [("read", "write"), ("write", "write"), ("write", "read")])
def test_asking_for_what_this_thread_could_never_get_raises_at_once(held: str, wanted: str) -> None:
    """Not a hang but LockUpgradeError, although the timeout is an hour; what is held stays held, and then goes back."""
    lock = RWLock()
    with getattr(lock, held)(0):
        for _ in range(2):
            with pytest.raises(LockUpgradeError), getattr(lock, wanted)(3600):
                pytest.fail("it was granted")
        assert run_together([lambda: turned_away(lock, "write")]) == [True]
        assert run_together([lambda: turned_away(lock, "read")]) == [held == "write"]
    assert_free(lock)


def test_upgrading_is_refused_within_a_nested_read_too() -> None:
    """Depth makes no difference: after the inner read is left the outer one still forbids writing."""
    lock = RWLock()
    with lock.read(0):
        with lock.read(0), pytest.raises(LockUpgradeError):
            lock.acquire_write(3600)
        with pytest.raises(LockUpgradeError):
            lock.acquire_write(3600)
    assert_free(lock)


def test_reading_again_does_not_hang_while_a_writer_waits() -> None:
    """The classic trap of fair locks: reader, waiting writer, same reader again. It gets in without any waiting."""
    lock = RWLock()
    with lock.read(0):
        wrote = threading.Event()

        def write() -> None:
            with lock.write(PATIENCE):
                wrote.set()

        thread = start_thread(write)
        eventually(lambda: run_together([lambda: turned_away(lock, "read")]) == [True])
        with lock.read(0), lock.read(0):
            assert not wrote.is_set()
        assert not wrote.is_set()  # the outer read still holds
    join(thread)
    assert wrote.is_set()
    assert_free(lock)


def test_a_reader_that_gave_up_waiting_holds_nothing() -> None:
    """A timeout while a writer holds: RoomBusy, and the lock is free once the writer has left."""
    lock = RWLock()
    writer = Holder(lock, "write")
    with pytest.raises(RoomBusy), lock.read(0.01):
        pytest.fail("it was granted")
    writer.release()
    assert_free(lock)


def test_a_writer_that_gave_up_waiting_holds_nothing() -> None:
    """A timeout while somebody reads: RoomBusy, and readers who were held back come in again at once."""
    lock = RWLock()
    reader = Holder(lock, "read")
    with pytest.raises(RoomBusy):
        lock.acquire_write(0.01)
    assert not turned_away(lock, "read")
    reader.release()
    assert_free(lock)


@pytest.mark.parametrize("mode", ["read", "write"])
def test_an_exception_in_the_block_gives_the_lock_back(mode: str) -> None:
    """However the block is left the lock is free afterwards."""
    lock = RWLock()
    with pytest.raises(KeyError), getattr(lock, mode)(0):
        raise KeyError("from the block")
    assert_free(lock)
