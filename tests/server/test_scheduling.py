"""Threads of a server's process that do not take the core from whoever wakes them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fakes import run_together
from support.serve import ServeProcess

from roomkit.server.scheduling import PatientThreads

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux has it")


@pytest.fixture(autouse=True)
def as_usual() -> Iterator[None]:
    """Whatever the tests are run as."""
    before = policy_of(0)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    yield
    os.sched_setscheduler(0, before, os.sched_param(0))


def policy_of(task: int) -> int:
    return os.sched_getscheduler(task)


def test_what_is_started_in_it_is_patient_and_nothing_else_is() -> None:
    found: list[int] = []
    with PatientThreads():
        run_together([lambda: found.append(policy_of(0))])
        assert policy_of(0) == os.SCHED_BATCH
    assert found == [os.SCHED_BATCH]
    assert policy_of(0) == os.SCHED_OTHER
    run_together([lambda: found.append(policy_of(0))])
    assert found[1:] == [os.SCHED_OTHER]


def test_a_policy_that_somebody_chose_is_left_alone() -> None:
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with PatientThreads():
        assert policy_of(0) == os.SCHED_BATCH
    assert policy_of(0) == os.SCHED_BATCH


def test_where_it_is_not_allowed_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(1, "not here")

    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_setscheduler", refuse)
        with PatientThreads():
            assert policy_of(0) == os.SCHED_OTHER


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_is_run_as_a_program_is(workers: int) -> None:
    """All threads that have to do with connections and rooms."""
    server = ServeProcess("--workers", str(workers))
    try:
        processes = [server.pid, *children_of(server.pid)] if workers > 1 else [server.pid]
        serving = processes[1:] or processes
        tasks = [int(task.name) for pid in serving for task in Path(f"/proc/{pid}/task").iterdir()]
        assert len(tasks) > 2 * len(serving)
        assert {policy_of(task) for task in tasks} == {os.SCHED_BATCH}
    finally:
        server.stop()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
