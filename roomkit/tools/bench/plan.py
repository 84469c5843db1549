"""What a load test is to do, within bounds, and how many files that takes."""

from __future__ import annotations

import dataclasses
import resource

from roomkit.tools.console import CommandFailed

OPERATIONS = ("message", "select_song")

MAX_CONNECTIONS = 20_000
MAX_MESSAGES = 5_000_000
_SPARE_FILES = 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """One load test.

    Attributes:
        rooms, players: how many, and how many in each.
        rate: messages a second in each room, from its players in turn.
        seconds: for how long. ramp: seconds over which the connections are opened; 0: as fast as they are taken.
        size: characters of padding in each message.
    """

    rooms: int = 10
    players: int = 4
    rate: float = 5.0
    seconds: float = 10.0
    ramp: float = 0.0
    size: int = 64
    operation: str = "message"

    @property
    def connections(self) -> int:
        """In all."""
        return self.rooms * self.players

    @property
    def messages(self) -> int:
        """In all."""
        return int(self.rooms * self.rate * self.seconds)

    def check(self) -> None:
        """Raises CommandFailed (status 2): it asks for nothing, or for more than this tool is made for."""
        for name, low, high in (
            ("rooms", 1, 10_000),
            ("players", 1, 1000),
            ("rate", 0.01, 10_000),
            ("seconds", 0.1, 3600),
            ("ramp", 0, 3600),
            ("size", 0, 60_000),
        ):
            if not low <= getattr(self, name) <= high:
                raise CommandFailed(f"--{name} must be from {low:g} to {high:g}", 2)
        if self.operation == "select_song" and self.size > 200:
            raise CommandFailed(
                "--size must be at most 200 with --operation select_song: it goes into the song's id", 2
            )
        if self.connections > MAX_CONNECTIONS:
            raise CommandFailed(
                f"{self.rooms} rooms of {self.players} are {self.connections} connections; "
                f"one generator opens at most {MAX_CONNECTIONS}",
                2,
            )
        if not 1 <= self.messages <= MAX_MESSAGES:
            raise CommandFailed(f"that is {self.messages} messages in all; it must be from 1 to {MAX_MESSAGES}", 2)


def need_files(count: int) -> None:
    """Have the process open ``count`` sockets, raising its limit as far as it may.

    Raises:
        CommandFailed: it may not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise CommandFailed(
            f"{count} connections need {wanted} open files, and this process may have {hard} (ulimit -n)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
