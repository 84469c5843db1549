"""The load: rooms over REST, players over WebSockets, messages at a rate, and everything closed at the end.

One thread and one epoll. Each phase is a method that runs the loop until it has what it wants or its time is up:
nothing here waits without a bound.
"""

from __future__ import annotations

import secrets
import select
import socket
from collections.abc import Callable
from time import perf_counter_ns, thread_time
from typing import Any

from roomkit.tools.bench.plan import Plan, need_files
from roomkit.tools.bench.player import IN, JOINING, Message, Player, frame
from roomkit.tools.bench.result import Result
from roomkit.tools.console import CommandFailed
from roomkit.tools.remote import Refused, Remote, Unreachable

_IN_FLIGHT = 100  # handshakes at one time
_CONNECT_TIMEOUT = 30.0  # seconds past the ramp
_SETTLE, _QUIET = 30.0, 1.5  # seconds for what is on its way when the last message was sent: in all; without any
_CLOSE = 5.0
#: In one turn: messages sent, and sockets read. A bound on each, so that neither keeps the other waiting for long.
_BURST, _MAX_READY = 512, 256
_SECOND = 1_000_000_000


class BenchRoom:
    """A room that the test made."""

    def __init__(self, room_id: str) -> None:
        self.id = room_id
        self.players: list[Player] = []
        self.inside = 0
        self.host: str | None = None
        self.closing = False


class Engine:
    """Runs one plan against one server. Thread safety: none; :meth:`run` blocks for the whole test.

    Args:
        progress: called some ten times a second with the phase and the result so far; must be quick.
        clock: nanoseconds that only go forward.
    """

    def __init__(
        self,
        server: Remote,
        plan: Plan,
        progress: Callable[[str, Result], None],
        clock: Callable[[], int] = perf_counter_ns,
    ) -> None:
        if not hasattr(select, "epoll"):
            raise CommandFailed("bench needs epoll, which only Linux has")
        if server.secure:
            raise CommandFailed("bench does not speak TLS: point it at the server itself, behind its proxy", 2)
        plan.check()
        self._server = server
        self._plan = plan
        self._progress = progress
        self._clock = clock
        self.result = Result(plan)
        self._poll = select.epoll()
        self._by_fd: dict[int, Player] = {}
        self._rooms: list[BenchRoom] = []
        self._players: list[Player] = []
        self._waiting = 0  # players on their way in
        self._started = 0
        self._load_began = 0
        self._told = 0
        self._phase = "rooms"

    def run(self) -> Result:
        """The whole test; closes what it opened, whatever happens. On Ctrl-C the result says so.

        Raises:
            CommandFailed: the server cannot be reached, or does not let the rooms or players in, and why.
        """
        need_files(self._plan.connections)
        address = self._resolve()
        try:
            try:
                self._make_rooms()
                self._server.close()  # it would be idle, and counts as one more from this address
                self._connect(address)
                self._load()
            except KeyboardInterrupt:
                self.result.interrupted = True
            self._count()
            self._close()
        finally:
            for player in self._players:
                player.closing = True
                player.end("")
            self._poll.close()
            self._remove_rooms()
        return self.result

    # Phases.

    def _resolve(self) -> tuple[int, tuple[Any, ...]]:
        try:
            found = socket.getaddrinfo(self._server.host, self._server.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Unreachable(f"cannot reach {self._server.address}: {reason}") from None
        for family, _, _, _, address in found:  # localhost may be two addresses, of which the server has one
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.settimeout(5)
                try:
                    probe.connect(address)
                except OSError as error:
                    failure = error
                else:
                    return family, address
        raise Unreachable(f"cannot reach {self._server.address}: {failure.strerror or failure}")

    def _make_rooms(self) -> None:
        run = secrets.token_hex(4)
        for n in range(self._plan.rooms):
            seats = self._plan.players
            body = {"id": f"bench-{run}-{n}", "max_players": seats, "private": True, "metadata": {"bench": True}}
            try:
                made = self._server.post("api", "rooms", body=body)
            except Refused as refused:
                if refused.http_status != 429:
                    raise
                raise CommandFailed(
                    f"the server made {n} of {self._plan.rooms} rooms and then refused ({refused.code}): "
                    "start it with a higher --max-rooms, or --max-rooms-per-owner 0"
                ) from None
            if not isinstance(made, dict) or made.get("id") != body["id"]:
                raise CommandFailed(f"{self._server.address} made no room; is it a roomkit server?")
            room = BenchRoom(str(body["id"]))
            room.players = [Player(self._poll, room, f"p{k}", self._on_message, self._on_lost) for k in range(seats)]
            self._rooms.append(room)
            self._tell(self._clock())
        # Every room gets its first player before any gets its second: that is what fills a server evenly.
        self._players = [room.players[k] for k in range(self._plan.players) for room in self._rooms]

    def _connect(self, address: tuple[int, tuple[Any, ...]]) -> None:
        self._phase = "connecting"
        plan, total = self._plan, len(self._players)
        began = self._clock()
        ramp = int(plan.ramp * _SECOND)
        deadline = began + ramp + int(_CONNECT_TIMEOUT * _SECOND)
        while self._started < total or self._waiting:
            now = self._clock()
            due = total if not ramp else min(total, 1 + (now - began) * total // ramp)
            while self._started < due and self._waiting < _IN_FLIGHT:
                player = self._players[self._started]
                self._started += 1
                self._waiting += 1
                try:
                    player.connect(*address, self._server.netloc, self._server.prefix, self._clock())
                except OSError as error:
                    self._on_lost(player, error.strerror or str(error))
                else:
                    self._by_fd[player.fd] = player
            if self.result.lost:
                break
            if now > deadline:
                self.result.lost[f"no welcome within {_CONNECT_TIMEOUT:g} s"] += self._waiting
                break
            self._turn(0.01)
        if self.result.lost:
            raise CommandFailed(_why_not_in(self.result, plan))

    def _load(self) -> None:
        self._phase = "load"
        plan, result, clock = self._plan, self.result, self._clock
        interval = _SECOND / (plan.rooms * plan.rate)
        total, sent = plan.messages, 0
        padding = "x" * plan.size
        cpu = thread_time()
        began = self._load_began = clock()
        try:
            while sent < total:
                now = clock()
                due = min(total, int((now - began) / interval) + 1, sent + _BURST)
                while sent < due:
                    result.lag.add(max(0, clock() - began - int(sent * interval)))
                    room = self._rooms[sent % plan.rooms]
                    self._send(room.players[sent // plan.rooms % plan.players], room, sent, padding)
                    sent += 1
                ahead = (began + sent * interval - clock()) / _SECOND
                self._turn(min(0.1, max(0.0, ahead)))
        finally:
            result.load_seconds = max(clock() - began, 1) / _SECOND
            result.cpu_seconds = thread_time() - cpu
            result.arrived_in_load = result.delivery.count
        self._phase = "settling"
        deadline = quiet = clock() + int(_SETTLE * _SECOND)
        come = -1
        while self._unsettled() and clock() < min(deadline, quiet):
            if come != result.delivery.count:
                come, quiet = result.delivery.count, clock() + int(_QUIET * _SECOND)
            self._turn(0.05)

    def _send(self, player: Player, room: BenchRoom, number: int, padding: str) -> None:
        result = self.result
        if self._plan.operation == "message":
            text = f'{{"type":"message","data":{{"n":{number},"padding":"{padding}"}},"id":"{number}"}}'
        else:
            text = f'{{"type":"select_song","data":{{"song_id":"bench-{number}-{padding}"}},"id":"{number}"}}'
        now = self._clock()
        members = room.inside if player.state == IN else 0  # a lost one's message is not sent at all
        result.sent_at.append(now)
        result.members.append(members)
        result.arrived.append(0)
        result.sent += player.state == IN
        self._expect(number, members)
        player.send(frame(text.encode()))

    def _expect(self, number: int, members: int) -> None:
        result = self.result
        result.expected += members
        result.expected_by_second[(result.sent_at[number] - self._load_began) // _SECOND] += members

    def _unsettled(self) -> bool:
        result = self.result
        return (
            result.answered + sum(result.refused.values()) < result.sent or result.delivery.count < result.expected
        ) and bool(self._by_fd)

    def _count(self) -> None:
        """What has come of what should have."""
        result = self.result
        for members, arrived in zip(result.members, result.arrived, strict=True):
            result.delivered += min(members, arrived)
            result.duplicates += max(0, arrived - members)

    def _close(self) -> None:
        """The hosts close their rooms, and the server closes the connections."""
        self._phase = "closing"
        for player in self._players:
            player.closing = True
        for room in self._rooms:
            host = next((player for player in room.players if player.state == IN and player.id == room.host), None)
            if host is not None:
                host.send(frame(b'{"type":"close","data":{"reason":"the load test is over"},"id":"close"}'))
                continue
            for player in room.players:  # nobody closes this one
                player.end("")
        deadline = self._clock() + int(_CLOSE * _SECOND)
        while self._by_fd and self._clock() < deadline:
            self._turn(0.05)

    def _remove_rooms(self) -> None:
        """Those that their hosts could not close; an administrator may."""
        for room in self._rooms:
            if room.closing:
                continue
            try:
                self._server.request("DELETE", "api", "rooms", room.id)
            except Refused as refused:
                self.result.rooms_left += refused.http_status != 404
            except Unreachable:
                self.result.rooms_left += 1

    # The loop.

    def _turn(self, timeout: float) -> None:
        for fd, mask in self._poll.poll(timeout, _MAX_READY):
            player = self._by_fd.get(fd)
            if player is not None:
                player.on_io(mask, self._clock)
        self._tell(self._clock())

    def _tell(self, now: int) -> None:
        if now - self._told > _SECOND // 10:
            self._told = now
            self._progress(self._phase, self.result)

    # What players tell.

    def _on_message(self, player: Player, message: Message, now: int) -> None:
        kind = message.type
        if kind == "message":
            if message.data.data is not None:
                self._delivered(message.data.data.n, now)
        elif kind == "song_selected":
            digits = message.data.song_id.removeprefix("bench-").partition("-")[0]
            self._delivered(int(digits) if digits.isdigit() else -1, now)
        elif kind == "ack":
            number = self._number(message)
            if number is not None:
                self.result.answered += 1
                self.result.answer.add(now - self.result.sent_at[number])
        elif kind == "error":
            self._refused(message)
        elif kind == "gap":
            self.result.dropped += message.data.dropped
        elif kind == "room_closed":
            player.room.closing = True
        elif kind == "welcome" and player.state == JOINING:
            player.state = IN
            player.joined = True
            player.room.inside += 1
            player.room.host = message.data.state.host if message.data.state is not None else None
            self._waiting -= 1
            self.result.connect.add(now - player.began)

    def _delivered(self, number: int, now: int) -> None:
        result = self.result
        if 0 <= number < len(result.sent_at):
            result.arrived[number] += 1
            result.delivery.add(now - result.sent_at[number])
            result.last_arrival = (now - self._load_began) / _SECOND
            result.delivered_by_second[(now - self._load_began) // _SECOND] += 1

    def _refused(self, message: Message) -> None:
        if message.id == "close":
            return
        self.result.refused[message.data.code] += 1
        number = self._number(message)
        if number is not None:
            self._expect(number, -self.result.members[number])
            self.result.members[number] = 0

    def _number(self, message: Message) -> int | None:
        """Which of our messages this answers."""
        number = int(message.id) if message.id.isdigit() else -1
        return number if 0 <= number < len(self.result.sent_at) else None

    def _on_lost(self, player: Player, reason: str) -> None:
        self._by_fd.pop(player.fd, None)
        if player.joined:
            player.room.inside -= 1
        else:
            self._waiting -= 1
        if not player.closing:
            self.result.lost[reason or "connection lost"] += 1


def _why_not_in(result: Result, plan: Plan) -> str:
    """Why not everybody could come in, and what helps."""
    reasons = ", ".join(f"{count} x {reason}" for reason, count in result.lost.most_common(3))
    sentence = f"only {result.connect.count} of {plan.connections} players came in ({reasons})"
    first = result.lost.most_common(1)[0][0]
    if first.startswith(("4529", "HTTP 429")):
        sentence += (
            ": all come from one address, so start the server with --max-connections-per-address 0 and with "
            f"--max-connections above {plan.connections}"
        )
    elif first.startswith(("HTTP 403", "HTTP 404")):
        sentence += ": is it a roomkit server?"
    return sentence
