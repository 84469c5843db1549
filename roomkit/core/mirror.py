"""A room's machine that follows another's events instead of carrying out commands.

It shows what the other shows: status, seats (without their tokens), host, settings. What nobody sees from outside, a
deadline or a ban, it does not know.
"""

from __future__ import annotations

from roomkit.core.events import Event
from roomkit.core.follow import changes_state, follow
from roomkit.core.snapshot import Player, RoomState
from roomkit.core.state import RoomMachine, Seat


def advance(machine: RoomMachine, state: RoomState, event: Event) -> RoomState:
    """Have ``machine``, which looks like ``state``, follow the next event; the state after it.

    Raises:
        KeyError, TypeError, ValueError: the event's data is not that of its type; nothing changed.

    Thread safety: the caller holds the machine's lock.
    """
    after = follow(state, event)
    if changes_state(event.type):
        status = next((status for status in machine.lifecycle.statuses if status == after.status), None)
        if status is None:
            raise ValueError(f"lifecycle {machine.lifecycle.name!r} has no status {after.status!r}")
        if after.players is not state.players:  # first: what somebody made up may be no players
            seats = {player.id: _seat(player) for player in after.players}
            machine.connected_count = sum(player.connected for player in after.players)
            machine.seats = seats
        if status != machine.status:
            machine.put_into(status)
        machine.host = after.host
        machine.settings = dict(after.settings)
        machine.metadata = dict(after.metadata)
        machine.results = None if after.results is None else dict(after.results)
        machine.locked = after.locked
        machine.private = after.private
        machine.started_at = after.started_at
        machine.transferred_to = after.transferred_to
    machine.seq = event.seq
    return after


def _seat(player: Player) -> Seat:
    seat = Seat(player.id, player.name, "", player.joined_at)
    seat.ready = player.ready
    seat.connected = player.connected
    return seat
