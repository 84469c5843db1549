"""The processes of a load test: each on cores of its own, looked at through /proc, and always ended."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
_START = 30.0  # seconds until a server has printed its address
_END = 15.0  # seconds until one that was asked to end is killed
_SPARE_FILES = 200  # open files that a process needs besides its connections


class LoadFailed(Exception):
    """A load could not be measured; the text says why. Every process that was started for it has ended."""


# Cores.


class Cores(NamedTuple):
    """Who runs where. The same core for both where there is only one."""

    server: frozenset[int]
    generator: frozenset[int]
    all: frozenset[int]


def share_out() -> Cores:
    """The first core that this process may use is the server's, the last one the generator's."""
    cores = sorted(os.sched_getaffinity(0))
    return Cores(frozenset(cores[:1]), frozenset(cores[-1:]), frozenset(cores))


@contextlib.contextmanager
def running_on(cores: Iterable[int]) -> Iterator[None]:
    """This thread runs on these cores, and so does what it starts meanwhile, from its first instruction on."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def allow_connections(wanted: int) -> int:
    """Raise this process's limit on open files, which its children inherit, for so many connections.

    Returns:
        How many there can be: fewer, when the hard limit does not allow more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(0, min(wanted, soft - _SPARE_FILES))


# What they use.


class Usage(NamedTuple):
    """What processes have used since they began, and what they hold.

    Attributes:
        cpu: seconds. waited: seconds in which a thread of theirs could have run, but others had the core.
        memory: bytes.
    """

    cpu: float
    waited: float
    memory: int
    threads: int


_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat behind the command's name: the first is the third of proc(5)."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()


def _waited(pid: int) -> float:
    """Seconds that its threads had to wait for a core; 0 where the kernel does not tell."""
    total = 0
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat", "rb") as file:
                total += int(file.read().split()[1])
    return total / 1e9


def usage(pids: Iterable[int]) -> Usage:
    """Of these processes together, in user and in system mode.

    Raises:
        OSError: one of them has ended.
    """
    pids = list(pids)
    stats = [_stat(pid) for pid in pids]
    return Usage(
        sum(int(one[11]) + int(one[12]) for one in stats) / _TICK,
        sum(_waited(pid) for pid in pids),
        sum(int(one[21]) for one in stats) * _PAGE,
        sum(int(one[17]) for one in stats),
    )


def busy(cores: Iterable[int]) -> float:
    """Seconds for which these cores together have run anything, since the machine began; 0 where it is not told."""
    wanted = {b"cpu%d" % core for core in cores}
    total = 0
    with contextlib.suppress(OSError), open("/proc/stat", "rb") as file:
        for line in file:
            name, *ticks = line.split()
            if name in wanted:  # user, nice, system, idle, iowait, irq, softirq, steal; guests are in the first two
                total += sum(map(int, ticks[:8])) - sum(map(int, ticks[3:5]))
    return total / _TICK


def family(pid: int) -> list[int]:
    """A process and its children, and theirs."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                parents[int(name)] = int(_stat(int(name))[1])
    found = [pid]
    for member in found:  # which grows meanwhile
        found += [child for child, parent in parents.items() if parent == member]
    return found


# Starting and ending.


def environment() -> dict[str, str]:
    """This process's, without the settings of whoever runs it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("ROOMKIT_", "PYTHON"))}


class Server:
    """A server as a process of its own, in a ``with`` block. It prints its address when it serves.

    It is in a session of its own: Ctrl-C reaches only whoever started it, who then ends it.

    Args:
        words: what stands behind the program, which is Python unless it is said.

    Attributes:
        port: on 127.0.0.1.

    Raises:
        LoadFailed: it printed no address; the text is what it said instead.
    """

    def __init__(self, *words: str, cores: Iterable[int], program: str = sys.executable) -> None:
        self._words = words
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._family: list[int] = []
        with running_on(cores):
            self._process = subprocess.Popen(
                [program, *words],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        try:
            self.port = self._read_port()
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    @property
    def pids(self) -> list[int]:
        """Its process's and its workers'."""
        self._family = family(self._process.pid)
        return self._family

    @property
    def said(self) -> str:
        """The last of what it logged."""
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace")

    def _read_port(self) -> int:
        assert self._process.stdout is not None
        printed, deadline = b"", time.monotonic() + _START
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                found = re.search(rb"http://127\.0\.0\.1:(\d+)\s", printed)
                if found:
                    return int(found[1])
                data = b""
                if selector.select(max(0.0, deadline - time.monotonic())):
                    data = os.read(self._process.stdout.fileno(), 4096)
                if not data:
                    raise LoadFailed(f"{' '.join(self._words)} printed no address:\n{self.said}")
                printed += data

    def _end(self) -> None:
        """Ask it to end, and kill what is left of it after some seconds."""
        process = self._process
        try:
            process.terminate()
            process.wait(_END)
        except subprocess.TimeoutExpired:
            pass
        finally:
            left = [] if process.returncode is not None else family(process.pid)
            process.kill()
            process.wait()
            for pid in left[1:]:  # workers, whose supervisor could not end them
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            self._log.close()


def run_module(module: str, orders: str, cores: Iterable[int], timeout: float) -> str:
    """Run ``python -m MODULE`` with this on its standard input; what it printed.

    Raises:
        LoadFailed: it failed, or took longer than ``timeout`` seconds and was killed.
    """
    with running_on(cores):
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    try:
        said, complaint = process.communicate(orders, timeout)
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"{module} took longer than {timeout:g} s") from None
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
    if process.returncode:
        raise LoadFailed(f"{module} failed:\n{complaint[-2000:]}")
    return said
