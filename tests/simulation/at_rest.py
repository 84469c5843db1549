"""What must hold of shared rooms before the clock jumps, when everything has come to rest, and after the end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from roomkit.sharing.journal import Journal
from roomkit.sharing.letters import Present
from roomkit.sharing.owned import Remote

if TYPE_CHECKING:
    from .guests import Guest
    from .sharing import Instance, SharedWorld

_NODE = "condition of leaf lock (node)"
_WORKER = "condition of leaf lock (worker)"


# Before the clock jumps: what is to be done has somebody who does it. No switch points.


def check_idle(world: SharedWorld) -> None:
    for room in world.rooms:
        fanout = room._fanout
        given_up = id(room._runtime) in world.given_up
        if fanout._held and not given_up:
            world._check_at_work(fanout.broadcaster, f"what is stored of room {room.id}, {list(fanout._held)},")
        if fanout._held is None and fanout.queue.queue and not given_up:
            world._check_at_work(fanout.broadcaster, f"the queue of room {room.id}")
        for subscription in fanout._subscriptions:
            told_to_end = id(room) in world.broken_off and subscription._worker._stopping
            if subscription._outbox and not subscription._ended and not told_to_end:
                world._check_at_work(subscription._worker, f"the outbox of {subscription._worker.name}")
    for instance in world.everyone:
        _check_desk(world, instance)
        thread: Any = instance.node._thread
        if thread is not None and thread.waits_for(_NODE):
            _check_sleeper(world, instance, thread)


def _check_desk(world: SharedWorld, instance: Instance) -> None:
    desk = instance.node._desk
    for letters, worker in zip(desk._letters, desk._workers, strict=True):
        thread: Any = worker._thread
        idle = thread is None or thread.waits_for(_WORKER)
        if letters and idle and not worker._wanted and not worker._stopping:
            world.scheduler.fail("a wake is lost", f"{worker.name} of {instance} sleeps, with {list(letters)}")


def _check_sleeper(world: SharedWorld, instance: Instance, thread: Any) -> None:
    """Its node's thread sleeps."""
    node, scheduler = instance.node, world.scheduler
    following = node.following
    if node._marked:
        scheduler.fail("a wake is lost", f"{instance} sleeps, {list(node._marked)} are to be stored")
    for journal in node._journals.values():
        due = journal.changed or journal.step is not None or journal._waiters or _queued(journal)
        if due and journal not in node._locked and not journal.lost:
            text = f"changed {journal.changed}, step {journal.step}, {len(journal._waiters)} wait"
            scheduler.fail("a mark is lost", f"{instance} sleeps: {journal.room}, {text}")
    if following.pressing:
        text = f"{dict(following._out)} to send, {list(following._behind)} behind"
        scheduler.fail("a wake is lost", f"{instance} sleeps, with {text}")
    for room in following.rooms.values():
        copy = room.copy_of
        if copy.heard and room.id not in following.stuck:
            scheduler.fail("a wake is lost", f"{instance} sleeps, and has not worked off {list(copy.heard)} of {room}")
    wakes = scheduler.wakes_at(thread._task)
    due_at = min(node._renew_at, node._scan_at, following.next_look())
    if node._locked or following.stuck:
        due_at = min(due_at, scheduler.now + 0.05)
    due_at = max(scheduler.now, due_at)
    if not world.late and node._stop_by is None and (wakes is None or wakes > due_at + 0.01):
        scheduler.fail("the node oversleeps", f"{instance} until {wakes}, due at {due_at}")


def _queued(journal: Journal) -> bool:
    """Whether something of a room that is this instance's waits to be taken out."""
    return journal.room is not None and bool(journal.room._fanout.queue.queue)


# When nothing is under way.


def check_rooms(world: SharedWorld) -> None:
    """Every room that is stored is somebody's, and one's alone; who follows it has what the owner has; nothing is left
    to be stored, told, asked or heard.
    """
    owners: dict[str, Instance] = {}
    for instance in world.instances:
        _check_instance(world, instance)
        for room_id, journal in instance.node._journals.items():
            _check_owned(world, instance, room_id, journal)
            if room_id in owners:
                world.scheduler.fail("two owners", f"{room_id}: {instance} and {owners[room_id]}")
            owners[room_id] = instance
    if set(owners) != set(world.store.rooms):
        world.scheduler.fail("nobody's room", f"{list(world.store.rooms)} are stored, owned are {list(owners)}")
    for instance in world.instances:
        for room_id, room in instance.node.following.rooms.items():
            _check_followed(world, instance, room_id, room, owners)
    for room_id, owner in owners.items():
        _check_seats(world, owner, room_id)
    for guest in world.guests:
        _check_guest(world, guest)


def _check_instance(world: SharedWorld, instance: Instance) -> None:
    node, manager = instance.node, instance.manager
    following = node.following
    if node._marked or node._locked or node._busy or node._undo or node._unopened:
        left = (list(node._marked), len(node._locked), node._busy, node._undo, list(node._unopened))
        world.scheduler.fail("left to be done", f"{instance}: %s marked, %d locked, %s, %s, %s" % left)
    calls = list(following._calls)
    to_send = {to: some for to, letters in following._out.items() if (some := _pressing(letters))}
    if to_send or following._behind or following.stuck or calls:
        left_over = (to_send, list(following._behind), list(following.stuck), calls)
        world.scheduler.fail("left to be done", f"{instance}: %s to send, %s behind, %s stuck, %s" % left_over)
    if any(_pressing(letters) for letters in node._desk._letters):
        world.scheduler.fail("left to be done", f"{instance}: {node._desk._letters}")
    if set(node._journals) & set(following.rooms):
        world.scheduler.fail("owned and followed", f"{instance}: {set(node._journals) & set(following.rooms)}")
    if {**node._journals, **following.rooms}.keys() != manager._rooms.keys():
        known = list(node._journals), list(following.rooms), list(manager._rooms)
        world.scheduler.fail("room and journal", f"{instance}: %s, %s followed, of %s" % known)


def _pressing(letters: Iterable[Any]) -> list[Any]:
    """Without those that are written all the time."""
    return [letter for letter in letters if not isinstance(letter, Present)]


def _check_owned(world: SharedWorld, instance: Instance, room_id: str, journal: Journal) -> None:
    room: Any = instance.manager._rooms[room_id]
    fail = world.scheduler.fail
    if journal.room is not room or room._journal is not journal or journal.refusal is not None:
        fail("room and journal", f"{instance}: {room_id}")
    if journal.step is not None or journal.changed or journal._waiters or journal.removing or _queued(journal):
        fail("left to be stored", f"{instance}: {room_id}")
    if journal.lease.token != world.store.scopes[room_id].token:
        fail("two owners", f"{instance} has an old lease of {room_id}")
    if world.ledger.length(room_id, room._machine.epoch) != room._machine.seq:
        fail("left to be stored", f"{instance}: {room_id}, {room._machine.seq}")
    if room.copy is not None:  # it was followed
        _check_copy(world, instance, room)


def _check_copy(world: SharedWorld, instance: Instance, room: Any) -> None:
    copy = room.copy
    left = {"waiting": list(copy.waiting), "coming": dict(copy.coming), "later": copy.later, "heard": list(copy.heard)}
    if any(left.values()):
        world.scheduler.fail("left to be asked", f"{instance}: {room.id}, {left}")


def _check_followed(
    world: SharedWorld, instance: Instance, room_id: str, room: Any, owners: dict[str, Instance]
) -> None:
    fail, copy = world.scheduler.fail, room.copy
    if instance.manager._rooms[room_id] is not room or not room.followed or copy.ended is not None:
        fail("room and journal", f"{instance}: {room_id} is followed")
    _check_copy(world, instance, room)
    if room_id not in owners:
        fail("follows what is gone", f"{instance}: {room_id}")
    if copy.hole or copy.broken:
        fail("left behind", f"{instance}: {room_id} has a hole: {copy.hole}, is broken: {copy.broken}")
    original: Any = owners[room_id].manager._rooms[room_id]
    if copy.owner != owners[room_id].node.instance.name:
        fail("follows another", f"{instance}: {room_id}, {copy.owner} instead of {owners[room_id]}")
    state, own = original._machine.snapshot(), room._machine.snapshot()
    if not copy.state.to_dict() == own.to_dict() == state.to_dict():
        fail("another state", f"{instance}: {room_id} is {copy.state} and {own}, at its owner {state}")
    if room._history.last_seq != original._history.last_seq:
        fail("history", f"{instance}: {room_id} ends with {room._history.last_seq}")


def _check_seats(world: SharedWorld, owner: Instance, room_id: str) -> None:
    """Who is connected at any instance is so by the owner, and nobody else."""
    room: Any = owner.manager._rooms[room_id]
    if room._machine.closed:
        return
    connected = {seat.id for seat in room._machine.seats.values() if seat.connected}
    known = {
        player_id: (link.connection.instance, link.number)
        if isinstance(link.connection, Remote)
        else (owner.node.instance.name, 0)
        for player_id, link in room._fanout._links.items()
    }
    there: dict[str, tuple[str, int]] = {}
    for instance in world.instances:
        here: Any = instance.manager._rooms.get(room_id)
        for player_id, link in {} if here is None else dict(here._fanout._links).items():
            if not isinstance(link.connection, Remote):
                guest: Any = link.connection
                if guest.hung_up:
                    world.scheduler.fail("gone and attached", str(guest))
                if player_id in there:
                    world.scheduler.fail("two connections", f"of {player_id}: {instance} and {there[player_id]}")
                there[player_id] = instance.node.instance.name, link.number if instance is not owner else 0
    if not connected == known.keys() == there.keys() or known != there:
        text = f"connected {sorted(connected)}, {owner} knows {known}, there are {there}"
        world.scheduler.fail("seat and connection", f"{room_id}: {text}")


def _check_guest(world: SharedWorld, guest: Guest) -> None:
    if guest.over or id(guest.room._runtime) in world.given_up:
        return
    link = guest.room._fanout._links.get(guest.client.name)
    if link is None or link.connection is not guest:
        world.scheduler.fail("forgotten", f"{guest} is attached no more, and was neither closed nor refused")
    elif guest.last != guest.room._machine.seq:
        world.scheduler.fail("not told", f"{guest} is at {guest.last} of {guest.room._machine.seq}")


# After the end.


def check_gone(world: SharedWorld) -> None:
    fail = world.scheduler.fail
    names = [task.name for task in world.scheduler.alive() if task.name != "main"]
    if names:
        fail("threads left", ", ".join(names))
    for instance in world.everyone:
        node, manager = instance.node, instance.manager
        if node._journals or node._marked or node.following.rooms or manager._rooms or len(manager._heap):
            left = f"{list(node._journals)}, {list(node._marked)}, {list(node.following.rooms)}, {list(manager._rooms)}"
            fail("left behind", f"{instance}: {left}")
    if world.store.ears or world.store.followers:
        fail("ears left", f"{world.store.ears}, {world.store.followers}")
    now = world.scheduler.now
    leases = [(name, scope.instance) for name, scope in world.store.scopes.items() if scope.until > now]
    if leases:
        fail("leases left", str(leases))
    for guest in world.guests:
        if not guest.over and id(guest.room._runtime) not in world.given_up:
            fail("left open", str(guest))
    if world.scheduler.pending_timers():
        fail("timers left", str(world.scheduler.pending_timers()))
