"""A player in a room of its own who keeps a round trip going while others do harm, and what a server process shows."""

from __future__ import annotations

import re
import threading
import time
from types import TracebackType

from support.rest import request
from support.serve import ServeProcess
from support.ws import WsClient

Address = tuple[str, int]

_PAUSE = 0.03  # between two messages: 33 a second, half of what a connection may send
#: The longest round trip of a witness. The tests' own process works as hard as the server, on the same cores.
LONGEST = 3.0


class Witness:
    """``with Witness(address):`` a message to the witness's own room and its ack, again and again, on a thread.

    At the end it must have been served all the time: no error, no close, no event missing, no trip over LONGEST.
    ``trips``: how long each took, in seconds.
    """

    def __init__(self, address: Address, room_id: str = "elsewhere") -> None:
        request(address, "POST", "/api/rooms", {"id": room_id})  # 409: it is there
        self.trips: list[float] = []
        self._client = WsClient(address, room_id=room_id, player_id="witness")
        self._client.expect("welcome")
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="witness")

    def _run(self) -> None:
        try:
            while True:
                started = time.monotonic()
                self._client.do("message", {"n": len(self.trips)})
                self.trips.append(time.monotonic() - started)
                if self._stop.wait(_PAUSE):
                    break
            self._client.do("leave")
        except BaseException as failure:
            self._failure = failure

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(60)
        self._client.close()
        if error is not None:
            return
        assert self._failure is None, repr(self._failure)
        assert self.trips
        assert max(self.trips) < LONGEST, f"the witness waited {max(self.trips):.2f} s"
        said = [e["data"]["data"]["n"] for e in self._client.events if e["type"] == "message"]
        assert said == list(range(len(self.trips))), "each of its messages once and in order"


def address_of(server: ServeProcess) -> Address:
    """Where the process listens."""
    return "127.0.0.1", server.port


def limited(address: Address) -> dict[str, int]:
    """``roomkit_limited_total`` by limit, where it is not 0."""
    text = request(address, "GET", "/metrics").body.decode()
    found = re.findall(r'^roomkit_limited_total\{limit="(\w+)"\} (\S+)', text, re.MULTILINE)
    return {name: int(float(value)) for name, value in found if float(value)}


def metric(address: Address, name: str) -> float:
    """One sample of /metrics that has no label."""
    found = re.search(rf"^{name} (\S+)", request(address, "GET", "/metrics").body.decode(), re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def memory(server: ServeProcess) -> int:
    """The process's resident memory in bytes."""
    with open(f"/proc/{server.pid}/status") as file:
        found = re.search(r"VmRSS:\s+(\d+) kB", file.read())
    assert found is not None
    return int(found[1]) * 1024
