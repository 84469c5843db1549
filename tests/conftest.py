"""What every test gets: no leaked thread of roomkit's, and Hypothesis settings that cannot flake."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

#: How long a thread that was told to stop may take to end.
JOIN_TIMEOUT = 10.0

# The same examples in every run and no deadlines: a slow machine is no failure.
settings.register_profile(
    "roomkit", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
# By hand, to look for more: HYPOTHESIS_PROFILE=explore pytest ...
settings.register_profile("explore", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "roomkit"))


# A shell without job control starts what it puts into the background with SIGINT ignored, which the programs that tests
# start would inherit: no Ctrl-C would ever reach them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def roomkit_threads() -> set[threading.Thread]:
    """Threads of roomkit's that are alive; all of them have names that start with roomkit."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("roomkit")}


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """Fail a test after which a thread of roomkit's is still alive that was not there before."""
    before = roomkit_threads()
    yield
    deadline = time.monotonic() + JOIN_TIMEOUT
    started = roomkit_threads() - before
    for thread in started:
        thread.join(max(0.0, deadline - time.monotonic()))
    leaked = sorted(thread.name for thread in started if thread.is_alive())
    if leaked:
        pytest.fail(f"threads left behind: {', '.join(leaked)}")


@pytest.fixture(autouse=True)
def no_changed_logging() -> Iterator[None]:
    """Fail a test that leaves roomkit's logger changed: all later ones would log, and keep what they logged."""
    logger = logging.getLogger("roomkit")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    assert (logger.handlers, logger.level, logger.propagate) == before, "use the fixture roomkit_logger"


@pytest.fixture
def roomkit_logger(no_changed_logging: None) -> Iterator[logging.Logger]:
    """The logger "roomkit", put back afterwards as it was."""
    logger = logging.getLogger("roomkit")
    before = (logger.handlers[:], logger.level, logger.propagate)
    logger.handlers = []
    yield logger
    logger.handlers, level, logger.propagate = before
    logger.setLevel(level)


_TOLD = pytest.StashKey[list[str]]()


@pytest.fixture
def tell(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Say something in the run's summary: figures that a reader of the log should see."""
    return pytestconfig.stash.setdefault(_TOLD, []).append


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With pytest-xdist: hand what was told here to the process that writes the summary."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["told"] = session.config.stash.get(_TOLD, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """That process: take it."""
    told = getattr(node, "workeroutput", {}).get("told", [])
    node.config.stash.setdefault(_TOLD, []).extend(told)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What the tests told."""
    for line in config.stash.get(_TOLD, []):
        terminalreporter.write_line(line)
