"""What must hold of all that was told in a storm, by what the store says itself. In words, what does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import fence
from people import CODES, Caller, Person
from stories import name_of, room_violations

Log = Sequence[dict[str, Any]]


def violations(
    people: Sequence[Person],
    callers: Sequence[Caller],
    logs: Mapping[str, Log | None],
    histories: Mapping[str, Sequence[fence.Seen]] | None,
) -> list[str]:
    """One history for each room, no two owners in one epoch of the fence, nothing acknowledged missing, nothing told
    twice, out of order or with a hole, nothing refused in the log, nothing carried out twice.

    Args:
        logs: each room's at the end. histories: what the store showed; None: it was not watched.
    """
    wrong: list[str] = []
    if histories is not None:
        for room_id, log in logs.items():
            wrong += fence.violations(room_id, histories.get(room_id, ()), log)
    wrong += [text for one in (*people, *callers) for text in one.wrong]
    for person in people:
        wrong += [f"{person.name} was closed with {code}" for code in sorted(person.codes - CODES)]
    for room_id, log in logs.items():
        wrong += room_violations(room_id, log, [person for person in people if person.room_id == room_id])
        if log is None:
            continue
        names = {name_of(event) for event in log}
        for one in (*people, *callers):
            wrong += [
                f"{name} was refused with {one.refused[name]} and is in the log" for name in names & set(one.refused)
            ]
        for caller in callers:
            wrong += [
                f"{name} was acknowledged and is not in the log of {room_id}"
                for name, where in caller.acked.items()
                if where == room_id and name not in names
            ]
    return wrong
