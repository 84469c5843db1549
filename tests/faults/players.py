"""Players as processes of their own, which a test can kill, stop and wake; and servers as processes."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from support.fakes import PATIENCE
from support.program import environment
from support.rest import request

PROGRAMS = Path(__file__).parent / "programs"
ADDRESS = "127.0.0.1"


class Player:
    """``programs/player.py`` as a process. ``seen``: every line that was read, in order.

    Args:
        within: words in front of the command (``ip netns exec ...``).
        options: for the ``RoomClient``.
    """

    def __init__(self, url: str, room_id: str, player_id: str, *, within: Sequence[str] = (), **options: Any) -> None:
        self.id = player_id
        self.seen: list[tuple[str, Any]] = []
        self._lines: queue.Queue[tuple[str, Any] | None] = queue.Queue()
        program = str(PROGRAMS / "player.py")
        self._process = subprocess.Popen(
            [*within, sys.executable, program, url, room_id, player_id, json.dumps(options)],
            env=environment(),
            encoding="utf-8",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, name=f"reads {player_id}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            kind, data = json.loads(line)
            self._lines.put((kind, data))
        self._lines.put(None)

    def until(self, kind: str, fits: Callable[[Any], object] = lambda data: True) -> Any:
        """Read up to the next line of this kind that fits; its data."""
        while True:
            line = self._lines.get(timeout=PATIENCE)
            assert line is not None, f"the process of {self.id} ended; it said {self.seen}"
            assert kind == "failed" or line[0] != "failed", line
            self.seen.append(line)
            if line[0] == kind and fits(line[1]):
                return line[1]

    def until_event(self, event_type: str, **data: object) -> Any:
        """Read up to the next event of this type whose data has these values."""
        return self.until("event", lambda e: e["type"] == event_type and data.items() <= e["data"].items())

    def until_seq(self, seq: int) -> None:
        """Read until the event with this number has been seen."""
        if not (self.seqs and self.seqs[-1] >= seq):
            self.until("event", lambda event: event["seq"] >= seq)

    def arrive(self) -> dict[str, Any]:
        """Until it is in: its token and the state that it was given."""
        arrived: dict[str, Any] = self.until("in")
        return arrived

    def ask(self, operation: str, *arguments: Any) -> None:
        """Have it do something, without waiting."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([operation, *arguments]) + "\n")
        self._process.stdin.flush()

    def do(self, operation: str, *arguments: Any) -> Any:
        """Have it do something; what that returned."""
        self.ask(operation, *arguments)
        return self.until("done")

    @property
    def seqs(self) -> list[int]:
        """The numbers of the events so far."""
        return [data["seq"] for kind, data in self.seen if kind == "event"]

    @property
    def connections(self) -> list[list[Any]]:
        """The changes of its connection so far: state and close code."""
        return [data for kind, data in self.seen if kind == "connection"]

    # What is done to it.

    def kill(self) -> None:
        """kill -9, at once. The system closes its sockets."""
        self._process.kill()
        self._process.wait(PATIENCE)

    def freeze(self) -> None:
        """It does nothing any more, until it is woken. Returns when it stands still."""
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def wake(self) -> None:
        """It goes on."""
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """Leave nothing behind."""
        self._process.kill()
        self._process.wait()
        self._reader.join(PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass


def metrics(port: int, host: str = ADDRESS) -> dict[str, float]:
    """Every sample of ``/metrics`` by name; those with labels added up, and as ``name{value}``."""
    answer = request((host, port), "GET", "/metrics")
    assert answer.status == 200, answer
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
            for label in sample.labels.values():
                name = f"{sample.name}{{{label}}}"
                found[name] = found.get(name, 0.0) + sample.value
    return found


def make_room(port: int, room_id: str = "room", **more: object) -> None:
    """Over REST."""
    answer = request((ADDRESS, port), "POST", "/api/rooms", {"id": room_id, **more})
    assert answer.status == 201, answer
