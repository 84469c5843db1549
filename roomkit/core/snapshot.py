"""What a room looks like from outside: immutable snapshots, as the library gives them and as they go on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from roomkit.core.events import parse_rfc3339, rfc3339


class Player(msgspec.Struct, frozen=True):
    """A seat as seen from outside. ``joined_at`` is Unix seconds; ``token`` is there only for the one who sat down."""

    id: str
    name: str
    ready: bool = False
    connected: bool = False
    joined_at: float = 0.0
    token: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As on the wire: without the token, times as RFC 3339."""
        return {
            "id": self.id,
            "name": self.name,
            "ready": self.ready,
            "connected": self.connected,
            "joined_at": rfc3339(self.joined_at),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Player:
        """The inverse of :meth:`to_dict`. KeyError, TypeError, ValueError: it is no player."""
        return cls(data["id"], data["name"], data["ready"], data["connected"], parse_rfc3339(data["joined_at"]))

    def __repr__(self) -> str:  # a token is a secret and must not reach a log
        return f"Player(id={self.id!r}, name={self.name!r}, ready={self.ready}, connected={self.connected})"


class RoomState(msgspec.Struct, frozen=True, weakref=True):
    """An immutable snapshot of a room: one moment between two changes, never half of one.

    ``created_at`` and ``started_at`` are Unix seconds. ``players`` is in the order of sitting down.
    """

    id: str
    epoch: str
    seq: int
    lifecycle: str
    status: str
    host: str | None
    players: tuple[Player, ...]
    settings: Mapping[str, Any]
    results: Mapping[str, Any] | None
    max_players: int
    min_players: int
    locked: bool
    private: bool
    has_password: bool
    metadata: Mapping[str, Any]
    created_at: float
    started_at: float | None
    transferred_to: str | None

    @property
    def song_id(self) -> str | None:
        """The selected song, which is one of the settings."""
        return self.settings.get("song_id")

    @property
    def has_space(self) -> bool:
        """Whether a seat is free (the status and the lock may still refuse)."""
        return len(self.players) < self.max_players

    def get_player(self, player_id: str) -> Player | None:
        """The player with this id, or None."""
        return next((player for player in self.players if player.id == player_id), None)

    def to_dict(self) -> dict[str, Any]:
        """As on the wire (docs/protocol.md, State)."""
        return {
            "id": self.id,
            "epoch": self.epoch,
            "seq": self.seq,
            "lifecycle": self.lifecycle,
            "status": str(self.status),
            "host": self.host,
            "players": [player.to_dict() for player in self.players],
            "settings": dict(self.settings),
            "song_id": self.song_id,
            "results": None if self.results is None else dict(self.results),
            "max_players": self.max_players,
            "min_players": self.min_players,
            "locked": self.locked,
            "private": self.private,
            "has_password": self.has_password,
            "metadata": dict(self.metadata),
            "created_at": rfc3339(self.created_at),
            "started_at": None if self.started_at is None else rfc3339(self.started_at),
            "transferred_to": self.transferred_to,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RoomState:
        """The inverse of :meth:`to_dict`; what ``data`` has besides is ignored. It shares the values within settings,
        results and metadata with ``data``. KeyError, TypeError, ValueError: it is no room's state.
        """
        started_at, results = data["started_at"], data["results"]
        return cls(
            id=data["id"],
            epoch=data["epoch"],
            seq=data["seq"],
            lifecycle=data["lifecycle"],
            status=data["status"],
            host=data["host"],
            players=tuple([Player.from_dict(player) for player in data["players"]]),
            settings=MappingProxyType(dict(data["settings"])),
            results=None if results is None else MappingProxyType(dict(results)),
            max_players=data["max_players"],
            min_players=data["min_players"],
            locked=data["locked"],
            private=data["private"],
            has_password=data["has_password"],
            metadata=MappingProxyType(dict(data["metadata"])),
            created_at=parse_rfc3339(data["created_at"]),
            started_at=None if started_at is None else parse_rfc3339(started_at),
            transferred_to=data["transferred_to"],
        )
