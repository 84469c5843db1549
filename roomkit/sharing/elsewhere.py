"""What an instance asks all the others: which rooms they have, where a player could sit down, how they are doing."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from roomkit.backends.base import Backend
from roomkit.core.ids import check_id
from roomkit.core.snapshot import RoomState
from roomkit.errors import BackendUnavailable, ShuttingDown
from roomkit.listing import Wanted
from roomkit.sharing.following import Following

log = logging.getLogger("roomkit.sharing")

_ANSWER = 1.0  # seconds for which the others are waited for

_ROUNDED = 0.01  # seconds by which a time that people see may differ from the exact one

#: A room's state as people see it, with its exact times.
_Row = tuple[dict[str, Any], float, float | None]

#: How good a room is for who wants to join any, and its id: the smallest first.
Offer = tuple[int, float, str]


class Elsewhere:
    """See the module. Instances that are not alive are not asked; one that does not answer within a second is left out.

    Thread safety: full. Each method blocks for one answer of the store and a second at most.
    """

    def __init__(self, backend: Backend, following: Following, start: Callable[[], None]) -> None:
        self._backend = backend
        self._start = start  # the node: else nobody would send what is asked, nor hear the answers
        self._following = following

    def names(self) -> list[str]:
        """The other instances that are alive, as far as the store can tell now."""
        try:
            self._start()
            return [one.name for one in self._backend.instances() if one.name != self._following.name]
        except ShuttingDown:
            return []
        except BackendUnavailable as error:
            log.warning("the other instances are not asked: %s", error)
            return []

    def ask(self, what: str, data: dict[str, Any]) -> dict[str, Any]:
        """What each of the others says, by its name."""
        return self._following.call(self.names(), what, data, _ANSWER)

    def list_rooms(self, wanted: Wanted) -> list[RoomState]:
        """The others' rooms that fit."""
        states: dict[str, RoomState] = {}  # a room that is just being handed over may be told of twice
        for name, rows in self.ask("list", msgspec.to_builtins(wanted)).items():
            try:
                for data, created_at, started_at in msgspec.convert(rows, list[_Row]):
                    state = RoomState.from_dict(data)
                    if abs(state.created_at - created_at) > _ROUNDED:
                        raise ValueError("its two times differ")
                    # To the last digit: rooms are sorted by it.
                    state = msgspec.structs.replace(state, created_at=created_at, started_at=started_at)
                    states[check_id(state.id, "a room id")] = state
            except (LookupError, TypeError, ValueError) as error:
                log.error("what instance %s lists makes no sense: %.200r", name, str(error))
        return list(states.values())

    def open_rooms(self, player_id: str, metadata: Mapping[str, Any] | None, options: Mapping[str, Any]) -> list[Offer]:
        """Where a player could sit down at the others."""
        offers: list[Offer] = []
        wish = {"player_id": player_id, "metadata": metadata, "options": dict(options)}
        for name, rows in self.ask("open_rooms", wish).items():
            try:
                offers += msgspec.convert(rows, list[Offer])
            except msgspec.ValidationError as error:
                log.error("what instance %s offers makes no sense: %.200r", name, str(error))
        return offers

    def meet(self, wish: dict[str, Any], data: dict[str, Any]) -> dict[str, Any] | None:
        """Have the instance join or create to which this wish leads everybody; None: that is this one, or it did not
        answer.
        """
        text = msgspec.json.encode(wish, order="deterministic")  # whoever has the same wish has the same text
        mine = self._following.name
        name = max([mine, *self.names()], key=lambda one: (zlib.crc32(text + one.encode()), one))
        if name == mine:
            return None
        found = self._following.call([name], "join_or_create", data, _ANSWER).get(name)
        if found is None:
            return None
        try:
            check_id(msgspec.convert(found, dict[str, str])["room_id"], "a room id")
            return {key: found[key] for key in ("room_id", "name", "token")}
        except (LookupError, ValueError) as error:
            log.error("where instance %s seated somebody makes no sense: %.200r", name, str(error))
            return None
