"""Worker and WorkerPool: threads on demand that are started once, end when idle and can be stopped with a bound."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from support.fakes import PATIENCE, eventually, join, raise_any, run_together, start_thread

from roomkit.concurrency.worker import PoolFull, Worker, WorkerPool


class Work:
    """Counts its runs, remembers their threads, and blocks in each while ``gate`` is closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.ran = threading.Semaphore(0)  # released at the end of each run
        self.entered = threading.Semaphore(0)
        self.runs = 0
        self.threads: list[threading.Thread] = []
        self._inside = threading.Lock()

    def __call__(self) -> None:
        assert self._inside.acquire(blocking=False), "two threads at once"
        try:
            self.runs += 1
            self.threads.append(threading.current_thread())
            self.entered.release()
            assert self.gate.wait(PATIENCE)
        finally:
            self._inside.release()
            self.ran.release()

    def wait_runs(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.ran.acquire(timeout=PATIENCE)


def test_no_thread_before_the_first_wake() -> None:
    """An idle worker costs no thread; the first wake starts one with the worker's name, a daemon."""
    work = Work()
    worker = Worker("roomkit-test", work)
    assert not worker.running
    worker.wake()
    work.wait_runs()
    assert worker.running
    assert (work.threads[0].name, work.threads[0].daemon) == ("roomkit-test", True)
    assert worker.stop(PATIENCE)
    assert not worker.running


def test_wakes_during_a_run_are_one_more_run() -> None:
    """A hundred wakes while the work runs make it run exactly once more, on the same thread."""
    work = Work()
    work.gate.clear()
    worker = Worker("roomkit-test", work)
    worker.wake()
    assert work.entered.acquire(timeout=PATIENCE)
    for _ in range(100):
        worker.wake()
    work.gate.set()
    assert worker.stop(PATIENCE)
    assert work.runs == 2
    assert work.threads[0] is work.threads[1]


def test_the_work_is_never_run_by_two_threads_at_once() -> None:
    """Eight threads wake a worker that parks at once, so that threads end and start all the time; Work would object."""
    work = Work()
    worker = Worker("roomkit-test", work, linger=0)

    def wake() -> None:
        for _ in range(300):
            worker.wake()

    raise_any(run_together([wake] * 8))
    assert worker.stop(PATIENCE)
    assert 1 <= work.runs <= 2400


def test_the_thread_ends_after_its_linger_and_a_later_wake_starts_another() -> None:
    """Parked means: no thread. The next wake is served by a new one."""
    work = Work()
    worker = Worker("roomkit-test", work, linger=0)
    worker.wake()
    work.wait_runs()
    join(work.threads[0])
    assert not worker.running
    worker.wake()
    work.wait_runs()
    assert work.threads[1] is not work.threads[0]
    assert worker.stop(PATIENCE)


def test_a_lingering_thread_is_used_again() -> None:
    """Within its linger the same thread serves the next wake."""
    work = Work()
    worker = Worker("roomkit-test", work, linger=PATIENCE)
    worker.wake()
    work.wait_runs()
    worker.wake()
    work.wait_runs()
    assert work.threads[0] is work.threads[1]
    assert worker.stop(PATIENCE)


def test_no_wake_is_lost_to_a_thread_that_is_just_parking() -> None:
    """Five hundred times: wake, wait for the run, wake again while the thread is on its way out."""
    work = Work()
    worker = Worker("roomkit-test", work, linger=0)
    for _ in range(500):
        worker.wake()
        work.wait_runs()
    assert worker.stop(PATIENCE)
    assert work.runs == 500


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3)], ids=repr)
def test_an_exception_is_logged_and_the_worker_goes_on(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the work raises, even SystemExit, the next wake is served."""
    served = threading.Event()
    errors = [error]

    def work() -> None:
        if errors:
            raise errors.pop()
        served.set()

    worker = Worker("roomkit-test", work)
    worker.wake()
    eventually(lambda: not errors)
    worker.wake()
    assert served.wait(PATIENCE)
    assert worker.stop(PATIENCE)
    assert "roomkit-test failed" in caplog.text


def test_stop_waits_for_the_run_under_way_and_for_one_that_was_asked_for() -> None:
    """After stop has returned True everything that was asked for before it is done and the thread is gone."""
    work = Work()
    work.gate.clear()
    worker = Worker("roomkit-test", work)
    worker.wake()
    assert work.entered.acquire(timeout=PATIENCE)
    worker.wake()
    stopped: list[bool] = []
    stopper = start_thread(lambda: stopped.append(worker.stop(PATIENCE)))
    eventually(lambda: worker._stopping)
    assert stopped == []
    work.gate.set()
    join(stopper)
    assert (stopped, work.runs, worker.running) == ([True], 2, False)


def test_stop_gives_up_within_its_bound() -> None:
    """Work that never returns makes stop answer False; once it does return the thread ends by itself."""
    work = Work()
    work.gate.clear()
    worker = Worker("roomkit-test", work)
    worker.wake()
    assert work.entered.acquire(timeout=PATIENCE)
    assert worker.stop(0.01) is False
    work.gate.set()
    join(work.threads[0])
    assert worker.stop(0)


def test_a_stopped_worker_does_nothing_more() -> None:
    """A wake after the stop starts no thread; stopping again, or before any start, is fine."""
    work = Work()
    worker = Worker("roomkit-test", work)
    assert worker.stop(0)
    worker.wake()
    assert not worker.running
    assert work.runs == 0
    assert worker.stop(0)


def test_a_retired_worker_keeps_no_thread_but_serves_a_wake() -> None:
    """Its lingering thread ends at once; a later wake is served by a thread that ends at once, too."""
    work = Work()
    worker = Worker("roomkit-test", work, linger=PATIENCE)
    worker.wake()
    work.wait_runs()
    worker.retire()
    join(work.threads[0])
    assert not worker.running
    worker.wake()
    work.wait_runs()
    join(work.threads[1])
    assert not worker.running
    assert worker.stop(0)


def test_a_worker_may_stop_itself() -> None:
    """Called by its own thread stop does not wait for itself."""
    answers: list[bool] = []
    worker = Worker("roomkit-test", lambda: answers.append(worker.is_current() and worker.stop(PATIENCE)))
    assert not worker.is_current()
    worker.wake()
    eventually(lambda: not worker.running)
    assert answers == [True]


@pytest.fixture
def no_threads_left(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The operating system has no thread to give, until the returned function is called."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return monkeypatch.undo


def test_a_thread_that_could_not_be_started_is_tried_again(no_threads_left: Callable[[], None]) -> None:
    """A wake that fails for want of a thread does not leave a worker that believes to have one."""
    work = Work()
    worker = Worker("roomkit-test", work)
    with pytest.raises(RuntimeError):
        worker.wake()
    assert not worker.running
    no_threads_left()
    worker.wake()
    work.wait_runs()
    assert worker.stop(PATIENCE)


def test_a_pool_thread_that_could_not_be_started_is_tried_again(no_threads_left: Callable[[], None]) -> None:
    """The same for the pool: the job is refused, a later one runs, and stop has nothing to stumble over."""
    work = Work()
    pool = WorkerPool("roomkit-pool", 1, 5)
    with pytest.raises(RuntimeError):
        pool.submit(work)
    no_threads_left()
    pool.submit(work)
    work.wait_runs()
    assert pool.stop(PATIENCE)
    assert work.runs == 1


def test_a_pool_starts_no_more_threads_than_its_size() -> None:
    """Three jobs that wait for each other need three threads; a pool of three has them, and named."""
    pool = WorkerPool("roomkit-pool", 3, 10)
    together = threading.Barrier(4)
    names: set[str] = set()

    def job() -> None:
        names.add(threading.current_thread().name)
        together.wait(PATIENCE)

    for _ in range(3):
        pool.submit(job)
    together.wait(PATIENCE)
    for _ in range(3):
        pool.submit(job)
    together.wait(PATIENCE)
    assert pool.stop(PATIENCE)
    assert names == {"roomkit-pool-0", "roomkit-pool-1", "roomkit-pool-2"}


def busy_pool(threads: int, backlog: int) -> tuple[WorkerPool, threading.Event]:
    """A pool whose threads all stand in a job until the returned event is set."""
    pool, gate = WorkerPool("roomkit-pool", threads, backlog), threading.Event()
    entered = threading.Semaphore(0)

    def block() -> None:
        entered.release()
        gate.wait(PATIENCE)

    for _ in range(threads):
        pool.submit(block)
        assert entered.acquire(timeout=PATIENCE)
    return pool, gate


def test_a_full_backlog_refuses_the_job_at_once() -> None:
    """Past the bound submit raises PoolFull, the job never runs, and those that were taken run in order."""
    pool, gate = busy_pool(1, 2)
    ran: list[int] = []
    pool.submit(lambda: ran.append(1))
    done = threading.Event()
    pool.submit(lambda: (ran.append(2), done.set()))
    with pytest.raises(PoolFull):
        pool.submit(lambda: ran.append(3))
    gate.set()
    assert done.wait(PATIENCE)
    assert pool.stop(PATIENCE)
    assert ran == [1, 2]


@pytest.mark.parametrize(("threads", "backlog"), [(1, 1), (3, 1), (3, 3), (2, 10)])
def test_stop_with_a_full_backlog_drops_it_and_ends_every_thread(threads: int, backlog: int) -> None:
    """Also with fewer places than threads: what has begun ends, what has not is dropped, nobody is left waiting."""
    pool, gate = busy_pool(threads, backlog)
    ran: list[int] = []
    for index in range(backlog):
        pool.submit(lambda index=index: ran.append(index))  # type: ignore[misc]
    assert pool.stop(0) is False
    gate.set()
    assert pool.stop(PATIENCE)
    assert ran == []
    with pytest.raises(PoolFull):
        pool.submit(lambda: ran.append(-1))


def test_a_job_that_blocks_bounds_the_stop() -> None:
    """stop answers False after its timeout although the job goes on."""
    pool, gate = busy_pool(2, 5)
    assert pool.stop(0.01) is False
    gate.set()
    assert pool.stop(PATIENCE)


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3)], ids=repr)
def test_a_job_that_raises_harms_no_other(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, its thread goes on with the next job."""

    def fail() -> None:
        raise error

    pool = WorkerPool("roomkit-pool", 1, 5)
    done = threading.Event()
    pool.submit(fail)
    pool.submit(done.set)
    assert done.wait(PATIENCE)
    assert pool.stop(PATIENCE)
    assert "a job of roomkit-pool failed" in caplog.text


def test_a_pool_that_was_never_used_stops_at_once() -> None:
    """No job, no thread, nothing to wait for."""
    pool = WorkerPool("roomkit-pool", 4, 5)
    assert pool.stop(0)
    assert pool.stop(0)


def test_a_thread_that_dies_as_it_is_woken_is_replaced_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """There is something to do, and the thread that was to do it could not even wake up: another one does it."""

    class Deadly(threading.Condition):
        """Whoever was asleep dies of waking up, once."""

        armed = True

        def wait(self, timeout: float | None = None) -> bool:
            woken = super().wait(timeout)
            if self.armed:
                self.armed = False
                raise MemoryError
            return woken

    runs: list[str] = []
    ran = threading.Semaphore(0)

    def work() -> None:
        runs.append(threading.current_thread().name)
        ran.release()

    worker = Worker("roomkit-test", work, linger=PATIENCE)
    condition = worker._condition = Deadly(worker._lock)
    worker.wake()
    assert ran.acquire(timeout=PATIENCE)
    eventually(lambda: condition._waiters)  # type: ignore[attr-defined]
    worker.wake()
    assert ran.acquire(timeout=PATIENCE)
    assert worker.stop(PATIENCE)
    assert len(runs) == 2
    assert "roomkit-test died; it is started again now" in caplog.text
