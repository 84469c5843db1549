"""A full disk under the log: what cannot be logged is left out and counted, and the server serves."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from players import ADDRESS, make_room, metrics
from support.serve import ServeProcess
from support.ws import WsClient

PROGRAM = "tests/faults/programs/full_disk.py"
FAULTS = 20


def fail_and_come_back(port: int, number: int) -> None:
    """A player whose message the server fails on, which is logged with a traceback of some 1,500 characters."""
    with WsClient((ADDRESS, port), room_id="room", player_id="cat", token="t" * 22) as cat:
        cat.expect("welcome")
        cat.send("ping", id=str(number))
        assert cat.wait_closed() == 1011


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("size", [0, 4000], ids=["full", "fills up"])
def test_the_server_goes_on_without_its_log(
    serve: Callable[..., ServeProcess], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int
) -> None:
    """Twenty faults whose tracebacks have no place: each costs its own connection and nothing else; the others play
    on, the metrics count, the process does not spin, and it ends well. (The fixture looks at its status.)"""
    log = tmp_path / "log"
    monkeypatch.setenv("FAULTS_DISK_BYTES", str(size))
    monkeypatch.setenv("FAULTS_DISK_FILE", str(log))
    server = serve(program=PROGRAM)
    make_room(server.port)
    with WsClient((ADDRESS, server.port), room_id="room", player_id="bob") as bob:
        bob.expect("welcome")
        for n in range(FAULTS):
            fail_and_come_back(server.port, n)
            bob.do("message", {"n": n})
        bob.until_seq(bob.do("message", {"last": True})["seq"])
        assert bob.seqs == list(range(bob.seqs[0], bob.seqs[-1] + 1))
        assert metrics(server.port)["roomkit_session_errors_total"] == FAULTS
        used = cpu_seconds(server.pid)
        for n in range(5):
            bob.do("message", {"n": n})
        assert cpu_seconds(server.pid) - used < 1.0
        if size:
            assert log.stat().st_size == size
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            fail_and_come_back(server.port, FAULTS)
    assert server.stop() == 0
    if size:  # there is room again, and the log says what is missing
        text = log.read_text()
        lost = FAULTS - text[:size].count("ValueError: made on purpose\n")  # which ends a whole record; one is cut off
        assert f"WARNING roomkit.log: {lost} records before this one could not be written" in text, (lost, text[size:])
        assert text.count("made on purpose") >= 2
        assert "draining for at most" in text
