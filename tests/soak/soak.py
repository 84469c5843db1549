"""A soak: warm up, look, churn, look again; what is there the second time and was not the first is left over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .churn import Churn

ROOT = Path(__file__).resolve().parents[2]
#: Seconds until everything that was going on must have ended by itself.
_SETTLE = 60.0
#: What may be more at the end than after the warm-up, whatever the length of the churn between: caches and counters.
_SLACK = {
    "traced bytes": 64 * 1024,
    "blocks": 1000,
    "objects": 300,
    "resident bytes": 24 * 2**20,  # pages with holes, which no allocator gives back; more is what tracemalloc misses
    "garbage in cycles": 100,  # far below one for each request, connection or room, whatever the length
}
#: What is nothing when nobody is there.
_NOTHING = ("rooms", "room timers", "connections", "websockets", "addresses")
#: What is as it was.
_SAME = ("connection timers", "handlers", "files")


class Report(NamedTuple):
    """What was done, and what there was before, after half of it, and at the end.

    The resident memory's height depends on what there was at one time at most, which comes later the longer it goes on:
    what it may not do is to rise in the second half as in the first.
    """

    seconds: float
    counts: Counter[str]
    wrong: list[str]
    before: dict[str, Any]
    middle: dict[str, Any]
    after: dict[str, Any]

    @property
    def leaks(self) -> list[str]:
        """A sentence for each thing that is left over."""
        found = [f"{name}: {self.after[name]}" for name in _NOTHING if self.after[name]]
        changed = (name for name in _SAME if self.after[name] != self.before[name])
        found += [f"{name}: {self.after[name]}, before {self.before[name]}" for name in changed]
        if new := set(self.after["threads"]) - set(self.before["threads"]):
            found.append(f"threads: {', '.join(sorted(new))}")
        for name, slack in _SLACK.items():
            more = _size(self.after[name]) - self._known(name)
            if more > slack:
                found.append(f"{name}: {more:,} more")
        if self.after["garbage in cycles"] > _SLACK["garbage in cycles"]:
            found.append(f"in cycles: {Counter(self.after['kinds in cycles']).most_common(8)}")
        if found:
            kinds = Counter(self.after["objects"]) - Counter(self.before["objects"])
            found.append(f"most of them: {kinds.most_common(8)}")
        return found

    def _known(self, name: str) -> int:
        if name == "garbage in cycles":
            return 0
        return _size((self.middle if name == "resident bytes" else self.before)[name])

    @property
    def good(self) -> bool:
        """Nothing left over, nothing wrong."""
        return not self.leaks and not self.wrong

    def table(self) -> str:
        """All figures."""
        lines = [f"{self.seconds:.0f} s of churn", ""]
        lines += [f"{count:>12,}  {name}" for name, count in sorted(self.counts.items())]
        lines += ["", "the server's own counters:"]
        lines += [f"{count:>12,}  {name}" for name, count in self.after["counters"].items()]
        lines += ["", f"{'before':>14} {'half-way':>14} {'after':>14}"]
        for name in (*_NOTHING, *_SAME, "threads", *_SLACK):
            sizes = [_size(found[name]) for found in (self.before, self.middle, self.after)]
            lines.append(f"{' '.join(f'{size:>14,}' for size in sizes)}  {name}")
        return "\n".join(lines)


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return sum(value.values())
    return len(value) if isinstance(value, list) else int(value)


class _Server:
    """tests.soak.server, asked by lines."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.server"],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith(("ROOMKIT_", "COVERAGE_"))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def look(self, how: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{how}\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def settle(self) -> dict[str, Any]:
        """Wait until nobody is there any more; then everything that there is."""
        deadline = time.monotonic() + _SETTLE
        while any(self.look("quick")[name] for name in _NOTHING) and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.look("look")

    def stop(self) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            return self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


def soak(seconds: float, connections: int, seed: int = 0, say: Callable[[str], None] = lambda line: None) -> Report:
    """Run one: a fifth of the time to warm up (a minute at most), then ``seconds`` of churn in two halves."""
    server = _Server()
    churn = Churn(server.port, connections, seed)
    try:
        churn.run(min(60.0, seconds / 5))
        churn.end()
        before = server.settle()
        say(f"warm: {churn.counts['connections']:,} connections, {churn.counts['events']:,} events")
        churn.counts.clear()
        churn.run(seconds / 2)
        churn.end()
        middle = server.settle()
        churn.run(seconds / 2)
        churn.end()
        after = server.settle()
    finally:
        churn.close()
        status = server.stop()
    assert status == 0, f"the server ended with {status}"
    return Report(seconds, churn.counts, churn.wrong, before, middle, after)
