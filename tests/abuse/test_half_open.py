"""500 handshakes that never end, while a hundred players in 25 rooms go on as if nothing were."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from support.rest import request, status_of
from support.serve import ServeProcess
from support.ws import WsClient, dial, upgrade_request
from witness import Address, address_of, limited, memory

ROOMS, SEATS, HALF_OPEN = 25, 4, 500
TIMEOUT = 4.0  # the handshake timeout of this server


def seat_everybody(address: Address, stack: contextlib.ExitStack) -> list[WsClient]:
    """A hundred players; neighbours in the list are in different rooms."""
    for n in range(ROOMS):
        assert request(address, "POST", "/api/rooms", {"id": f"room-{n}"}).status == 201
    players = []
    for seat in range(SEATS):
        for n in range(ROOMS):
            player = stack.enter_context(WsClient(address, room_id=f"room-{n}", player_id=f"p{seat}"))
            player.expect("welcome")
            players.append(player)
    return players


def round_trips(players: list[WsClient], going_on: Callable[[int], bool]) -> list[float]:
    """Each player in turn sends a message to its room and waits for the event and the ack: sorted times, in seconds."""
    times = []
    while going_on(len(times)):
        for player in players:
            started = time.monotonic()
            player.do("message", {"at": started})
            times.append(time.monotonic() - started)
            assert player.events[-1]["data"]["data"] == {"at": started}
    return sorted(times)


class HalfOpen:
    """Connections whose handshake never ends: a third is silent, a third sends its request a byte a second, a third
    sends one header after another. ``ends``: how the server ended each: 0 without a word, else the HTTP status."""

    def __init__(self, address: Address) -> None:
        self.ends: list[int] = []
        self._socks: list[socket.socket] = [dial(address) for _ in range(HALF_OPEN)]
        self._began = time.monotonic()
        self.took = 0.0
        self._thread = threading.Thread(target=self._drip, name="half-open")
        self._thread.start()

    @property
    def open(self) -> bool:
        return self._thread.is_alive()

    def _drip(self) -> None:
        plain = upgrade_request("/ws?room_id=room-0&player_id=late")
        left = dict(enumerate(self._socks))
        second = 0
        while left and time.monotonic() < self._began + 5 * TIMEOUT:
            for n, sock in list(left.items()):
                piece = (b"", plain[second : second + 1], b"X: y\r\n" if second else plain[:-2])[n % 3]
                with contextlib.suppress(OSError):
                    sock.sendall(piece)
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    try:
                        answer = sock.recv(4096)
                    except ConnectionError:
                        answer = b""
                    self.ends.append(status_of(answer))
                    left.pop(n).close()
            second += 1
            threading.Event().wait(1.0)  # the pace of the attack
        self.took = time.monotonic() - self._began
        for sock in left.values():
            sock.close()

    def close(self) -> None:
        self._thread.join(60)
        for sock in self._socks:
            sock.close()


@contextlib.contextmanager
def attack(address: Address) -> Iterator[HalfOpen]:
    """Connect them all; at the end they are gone."""
    half_open = HalfOpen(address)
    try:
        yield half_open
    finally:
        half_open.close()


def test_half_open_handshakes_cost_the_players_nothing(
    serve: Callable[..., ServeProcess], tell: Callable[[str], None]
) -> None:
    """Every round trip is served, a newcomer is let in at once, the P99 stays about what it was a moment before in the
    same run; each of the 500 is ended by the handshake timeout and counted; and the memory is given back."""
    flags = ("--max-connections-per-address", "0", "--handshake-timeout", str(TIMEOUT), "--message-rate", "0")
    server = serve(*flags)
    address = address_of(server)
    with contextlib.ExitStack() as stack:
        players = seat_everybody(address, stack)
        before = round_trips(players, lambda count: count < 1500)
        memory_before = memory(server)
        with attack(address) as half_open:
            started = time.monotonic()
            with WsClient(address, room_id="room-0", player_id="late") as late:
                assert late.wait_closed() == 4505, "its room is full, and it is told so at once"
            assert request(address, "POST", "/api/rooms", {"id": "new"}).status == 201
            with WsClient(address, room_id="new", player_id="late") as late:
                late.expect("welcome")
            newcomer = time.monotonic() - started
            during = round_trips(players, lambda count: half_open.open)
            memory_during = memory(server)
        assert request(address, "GET", "/healthz").status == 200
        p99_before, p99_during = (times[int(len(times) * 0.99)] for times in (before, during))
        tell(
            f"half-open handshakes: {HALF_OPEN} for {half_open.took:.1f} s; round trip P99 {p99_before * 1000:.1f} ms "
            f"before ({len(before)}), {p99_during * 1000:.1f} ms during ({len(during)}); "
            f"newcomer {newcomer * 1000:.0f} ms; memory {memory_before >> 20} -> {memory_during >> 20} MiB"
        )
        assert p99_during < 3 * p99_before + 0.020
        assert newcomer < 2.0
        assert len(half_open.ends) == HALF_OPEN, "none is kept for ever"
        assert set(half_open.ends) <= {0, 408}
        assert half_open.ends.count(408) > HALF_OPEN // 3
        assert half_open.took < 3 * TIMEOUT
        assert limited(address) == {"handshake_timeout": HALF_OPEN}
        assert memory_during - memory_before < 32 << 20
