"""SIGTERM while everybody talks: what was acknowledged has been heard by all before they are sent away."""

from __future__ import annotations

import json
import re
import selectors
import signal
import time
from collections.abc import Callable

import pytest
from players import ADDRESS, make_room
from support.fakes import PATIENCE, Wire, run_together
from support.program import Running
from support.serve import ServeProcess
from support.ws import CLOSE, PING, PONG, TEXT, Closed, WsClient, frame

from roomkit import RoomBusy, RoomConfig, RoomManager
from roomkit.core.commands import SendMessage

ROOMS = 50
SEATS = 3


class Talker:
    """A player that asks for the next operation as soon as the last one is answered, until it is closed.

    Attributes:
        heard: the numbers of the events, in the order in which they came. acked: of the events of its own operations
        that were acknowledged, with what it had heard by then. code, reason: of the close frame.
    """

    def __init__(self, port: int, room_id: str, player_id: str) -> None:
        self.client = WsClient((ADDRESS, port), room_id=room_id, player_id=player_id)
        self.room_id = room_id
        self.heard: list[int] = []
        self.acked: list[tuple[int, int]] = []
        self.refused: list[str] = []
        self.code: int | None = None
        self.reason = ""
        self._asked = 0

    def ask(self) -> None:
        """A message, or a change of the ready flag, which must never be dropped."""
        self._asked += 1
        ready = {"ready": self._asked % 4 == 1}
        kind, data = ("message", {"n": self._asked}) if self._asked % 2 else ("ready", ready)
        try:
            self.client.send(kind, data, id=str(self._asked))
        except OSError:  # closed while it was written; what was sent to us before is read all the same
            pass

    def take(self) -> bool:
        """Read what there is; False: that was the end."""
        try:
            self.client._fill(time.monotonic() + PATIENCE)
        except Closed:
            return False
        while (found := self.client._take_frame()) is not None:
            opcode, payload, _, _ = found
            if opcode == CLOSE:
                self.code, self.reason = int.from_bytes(payload[:2], "big"), payload[2:].decode()
                self.client.send_raw(frame(CLOSE, payload[:2]))
            elif opcode == PING:
                self.client.send_raw(frame(PONG, payload))
            elif opcode == TEXT:
                assert self.code is None, "nothing comes behind a close frame"
                self._take_message(json.loads(payload))
        return True

    def _take_message(self, message: dict[str, object]) -> None:
        data = message["data"]
        assert isinstance(data, dict)
        if message["type"] == "ack":
            self.acked.append((data["seq"], self.heard[-1]))
            self.ask()
        elif message["type"] == "error":
            self.refused.append(data["code"])
        elif message["type"] == "welcome":
            self.heard.append(data["seq"])
        else:
            assert message["type"] != "gap", message
            seq = message["seq"]
            assert isinstance(seq, int)
            self.heard.append(seq)


def talk_until_closed(talkers: list[Talker], stop: Callable[[], None]) -> None:
    """Everybody talks; once each has had ten operations acknowledged, ``stop()`` is called; until all are closed."""
    with selectors.DefaultSelector() as selector:
        for talker in talkers:
            selector.register(talker.client.sock, selectors.EVENT_READ, talker)
            talker.ask()
        deadline = time.monotonic() + 2 * PATIENCE
        stopped = False
        while selector.get_map():
            ready = selector.select(deadline - time.monotonic())
            assert ready, [talker.room_id for talker in talkers if talker.code is None]
            for key, _ in ready:
                if not key.data.take():
                    selector.unregister(key.fileobj)
            if not stopped and min(len(talker.acked) for talker in talkers) >= 10:
                stopped = True
                stop()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_was_acknowledged_was_heard_by_everybody(serve: Callable[..., ServeProcess], workers: str) -> None:
    """Fifty rooms of three, all of whom send all the time: before its 1012 each has every event of its room up to the
    last one that was acknowledged to anybody in it, each once and in order; the times at which they are to come back
    are spread over the window; and the process ends well, and in time."""
    window, drain_timeout = 5.0, 8.0
    server = serve(
        "--workers", workers, "--drain-timeout", str(drain_timeout), "--message-rate", "0",
        "--max-connections-per-address", "0",
    )  # fmt: skip
    talkers: list[Talker] = []
    try:
        for n in range(ROOMS):
            make_room(server.port, f"room-{n}", max_players=SEATS)
            talkers += [Talker(server.port, f"room-{n}", f"p{seat}") for seat in range(SEATS)]
        asked_at: list[float] = []

        def stop() -> None:
            asked_at.append(time.monotonic())
            server._process.send_signal(signal.SIGTERM)

        talk_until_closed(talkers, stop)
        status = server._process.wait(PATIENCE)
        took = time.monotonic() - asked_at[0]
    finally:
        for talker in talkers:
            talker.client.close()
    assert (status, took < drain_timeout) == (0, True), (status, took, server.output)

    for talker in talkers:
        assert talker.heard == list(range(talker.heard[0], talker.heard[-1] + 1))
        assert all(heard >= seq for seq, heard in talker.acked), "its own event comes before its ack"
        assert set(talker.refused) <= {"invalid_transition"}, "once the room is closed it says so"
    for n in range(ROOMS):
        room = [talker for talker in talkers if talker.room_id == f"room-{n}"]
        acknowledged = max(seq for talker in room for seq, _ in talker.acked)
        assert [talker.heard[-1] >= acknowledged for talker in room] == [True] * SEATS, (n, acknowledged)
        assert len({talker.heard[-1] for talker in room}) == 1, "and all of them have heard the same"

    assert {talker.code for talker in talkers} == {1012}
    told = [re.fullmatch(r"restarting; come back in (\d\.\d) s", talker.reason) for talker in talkers]
    delays = [float(found[1]) for found in told if found]
    assert len(delays) == len(talkers)
    assert max(delays) <= window
    for second in range(int(window)):  # that none of 150 falls into one of five: once in 10 ** 14 times
        assert any(second <= delay <= second + 1 for delay in delays), sorted(delays)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_sigterm_ends_it_at_once(workers: str) -> None:
    """A client that does not answer its close frame keeps the drain waiting, for minutes; the second signal ends it
    with status 1, and leaves no process behind."""
    running = Running("serve", "--port", "0", "--workers", workers, "--drain-timeout", "600", "--close-timeout", "600")
    try:
        found = re.search(r"http://\S+:(\d+)", running.until("listens on")[-1])
        assert found
        port = int(found[1])
        make_room(port)
        with WsClient((ADDRESS, port), room_id="room", player_id="amy") as amy:
            amy.expect("welcome")
            running.process.terminate()
            while amy.recv_frame()[0] != CLOSE:  # and it says nothing
                pass
            assert running.process.poll() is None
            running.process.terminate()
            assert running.end() == 1
            amy.wait_eof()  # of the workers, too, none is left that would hold this socket
    finally:
        running.close()
    assert any("stopped before everything was drained" in line for line in running.err.queue)


def test_nothing_is_acknowledged_between_the_first_goodbye_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody operates at the worst moment, while the first of two connections is being told when to come back: either
    the operation fails, or both have heard of it."""
    rooms = RoomManager(RoomConfig(busy_timeout=0.05))
    room = rooms.create_room("room")
    wires = [Wire(), Wire()]
    for n, wire in enumerate(wires):
        room.join(f"p{n}", wire)
    outcomes: list[object] = []

    def worst_moment(low: float, high: float) -> float:
        outcomes.extend(run_together([lambda: room.execute(SendMessage(None, {"n": len(outcomes)}))]))
        return low

    monkeypatch.setattr("random.uniform", worst_moment)
    assert rooms.shutdown(PATIENCE)
    assert len(outcomes) == 2
    for outcome in outcomes:
        if not isinstance(outcome, RoomBusy):
            (event,) = outcome  # type: ignore[misc]
            assert [event.seq in wire.seqs for wire in wires] == [True, True]
    assert [wire.wait_closed() for wire in wires] == [1012, 1012]
