"""What an instance asks all the others: which rooms they have, where a player could sit down, how they are doing."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec

from roomkit.backends.base import Backend
from roomkit.core.events import encode_json
from roomkit.core.snapshot import RoomState
from roomkit.errors import BackendUnavailable
from roomkit.listing import Wanted
from roomkit.sharing.following import Following

log = logging.getLogger("roomkit.sharing")

_ANSWER = 1.0  # seconds for which the others are waited for

#: How good a room is for who wants to join any, and its id: the smallest first.
Offer = tuple[int, float, str]


class Elsewhere:
    """See the module. Instances that are not alive are not asked; one that does not answer within a second is left out.

    Thread safety: full. Each method blocks for one answer of the store and a second at most.
    """

    def __init__(self, backend: Backend, following: Following) -> None:
        self._backend = backend
        self._following = following

    def names(self) -> list[str]:
        """The other instances that are alive, as far as the store can tell now."""
        try:
            return [one.name for one in self._backend.instances() if one.name != self._following.name]
        except BackendUnavailable as error:
            log.warning("the other instances are not asked: %s", error)
            return []

    def ask(self, what: str, data: dict[str, Any]) -> dict[str, Any]:
        """What each of the others says, by its name."""
        return self._following.call(self.names(), what, data, _ANSWER)

    def list_rooms(self, wanted: Wanted) -> list[RoomState]:
        """The others' rooms that fit."""
        states: list[RoomState] = []
        for name, rows in self.ask("list", msgspec.to_builtins(wanted)).items():
            try:
                for data, created_at, started_at in rows:
                    state = RoomState.from_dict(data)
                    # To the last digit: rooms are sorted by it.
                    states.append(msgspec.structs.replace(state, created_at=float(created_at), started_at=started_at))
            except (LookupError, TypeError, ValueError) as error:
                log.error("what instance %s lists makes no sense: %s", name, error)
        return states

    def open_rooms(self, player_id: str, metadata: Mapping[str, Any] | None, options: Mapping[str, Any]) -> list[Offer]:
        """Where a player could sit down at the others."""
        offers: list[Offer] = []
        wish = {"player_id": player_id, "metadata": metadata, "options": dict(options)}
        for name, rows in self.ask("open_rooms", wish).items():
            try:
                offers += msgspec.convert(rows, list[Offer])
            except msgspec.ValidationError as error:
                log.error("what instance %s offers makes no sense: %s", name, error)
        return offers

    def meet(self, wish: dict[str, Any], data: dict[str, Any]) -> dict[str, Any] | None:
        """Have the instance join or create to which this wish leads everybody; None: that is this one, or it did not
        answer.
        """
        text = encode_json(wish)
        mine = self._following.name
        name = max([mine, *self.names()], key=lambda one: (zlib.crc32(text + one.encode()), one))
        if name == mine:
            return None
        found = self._following.call([name], "join_or_create", data, _ANSWER).get(name)
        return found if isinstance(found, dict) and {"room_id", "name", "token"} <= found.keys() else None
