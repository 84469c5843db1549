"""Prometheus metrics: read from the tally and the rooms when somebody scrapes, so they cost nothing in between.

Labels are bounded: statuses, operations, event types, error codes, limits. They come from the code, never from
clients, and never name a room or a player. What is known beforehand is there with 0 from the start, so that the first
one counts as an increase.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from roomkit._version import __version__
from roomkit.core.commands import Command
from roomkit.core.events import DROPPABLE_TYPES
from roomkit.errors import CLOSE, RoomkitError
from roomkit.server.reactor import TURN_BOUNDS
from roomkit.sharing.node import COUNTERS

if TYPE_CHECKING:
    from roomkit.server.app import Server

_ERRORS = sorted(kind.code for kind in RoomkitError.__subclasses__() if kind.__module__ == RoomkitError.__module__)

#: Label values that there are from the start, by counter name in the tally.
_KNOWN_LABELS = {
    "operations": [command.__name__ for command in get_args(Command)],
    "refused": _ERRORS,
    "refused_joins": [name for name, code in CLOSE.items() if code >= 4500 or name in ("busy", "service_restart")],
    "limited": [
        "body_size",
        "connections",
        "connections_closed",
        "connections_per_address",
        "fragments",
        "handshake_timeout",
        "head_lines",
        "head_size",
        "message_rate",
        "message_size",
        "rooms",
        "rooms_per_owner",
    ],
    "http_responses": ["2xx", "3xx", "4xx", "5xx"],
}

#: Counter name in the tally -> (metric, help, label name or "").
_COUNTERS = {
    "operations": ("roomkit_operations", "Operations carried out", "operation"),
    "refused": ("roomkit_refused_operations", "Operations refused, by error code", "code"),
    "refused_joins": ("roomkit_refused_joins", "WebSockets closed at once instead of seated, by close code", "code"),
    "deliveries": ("roomkit_deliveries", "Messages handed to connections", ""),
    "busy": ("roomkit_busy", "Operations that found no place in a room's queue in time", ""),
    "rooms_created": ("roomkit_rooms_created", "Rooms made", ""),
    "rooms_removed": ("roomkit_rooms_removed", "Rooms taken away", ""),
    "rooms_expired": ("roomkit_rooms_expired", "Rooms taken away by a sweep", ""),
    "sweeps": ("roomkit_sweeps", "Sweeps for expired rooms", ""),
    "watermarks": ("roomkit_queue_watermarks", "Times a room's queue passed its watermark", ""),
    "dropped_by_subscribers": ("roomkit_subscriber_dropped_events", "Events that slow subscribers missed", ""),
    "subscriber_errors": ("roomkit_subscriber_errors", "Subscriber callbacks that raised", ""),
    "hook_errors": ("roomkit_hook_errors", "Other hooks that raised", ""),
    "connection_errors": ("roomkit_connection_errors", "Connections dropped because delivery raised", ""),
    "delivery_errors": ("roomkit_delivery_errors", "Steps of a room's delivery that raised", ""),
    "session_errors": ("roomkit_session_errors", "Sessions closed with 1011", ""),
    "slow_connections": ("roomkit_slow_connections", "Connections closed with 4008", ""),
    "heartbeats_lost": ("roomkit_heartbeats_lost", "Connections closed with 4001", ""),
    "protocol_errors": ("roomkit_protocol_errors", "WebSocket protocol violations", ""),
    "limited": ("roomkit_limited", "Times a limit was reached", "limit"),
    "connections_accepted": ("roomkit_connections_accepted", "TCP connections accepted", ""),
    "connections_handed_over": (
        "roomkit_connections_handed_over",
        "TCP connections given to the worker process of their room",
        "",
    ),
    "connections_adopted": ("roomkit_connections_adopted", "TCP connections taken over from another web server", ""),
    "websockets_opened": ("roomkit_websockets_opened", "WebSockets opened", ""),
    "accept_pauses": ("roomkit_accept_pauses", "Pauses for lack of file descriptors", ""),
    "http_responses": ("roomkit_http_responses", "HTTP answers", "class"),
    "http_errors": ("roomkit_http_errors", "HTTP requests on which the server failed", ""),
}


class RoomkitCollector(Collector):
    """Everything about one server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client. Looks at every room and connection; with 10,000 rooms it takes some 50 ms."""
        yield from self._counters()
        yield from self._rooms()
        yield from self._connections()
        yield from self._sharing()
        server = self._server
        yield _gauge("roomkit_ready", "1 while new work is welcome", int(server.ready))
        yield _by_label(GaugeMetricFamily, "roomkit_build_info", "Always 1", "version", {__version__: 1})
        limits = {"rooms": server.settings.max_rooms, "connections": server.settings.max_connections}
        yield _by_label(
            GaugeMetricFamily, "roomkit_limit", "What is allowed at one time; 0: any number", "limit", limits
        )

    def _counters(self) -> Iterator[Metric]:
        tally = self._server.tally
        for name, (metric, text, label) in _COUNTERS.items():
            if label:
                counts = dict.fromkeys(_KNOWN_LABELS[name], 0) | tally.by_label(name)
                yield _by_label(CounterMetricFamily, metric, text, label, counts)
            else:
                yield CounterMetricFamily(metric, text, value=tally.get(name))

    def _rooms(self) -> Iterator[Metric]:
        rooms = self._server.rooms
        stats = rooms.stats()
        dropped = dict.fromkeys(DROPPABLE_TYPES, 0) | stats["dropped"]
        yield _by_label(CounterMetricFamily, "roomkit_dropped_events", "Events not delivered live", "type", dropped)
        by_status = dict.fromkeys(map(str, rooms.lifecycle.statuses), 0) | stats["by_status"]
        yield _by_label(GaugeMetricFamily, "roomkit_rooms", "Rooms, by status", "status", by_status)
        yield _gauge("roomkit_active_rooms", "Rooms with somebody connected", stats["active_rooms"])
        yield _gauge("roomkit_zombie_rooms", "Rooms that are closed or have nobody connected", stats["zombie_rooms"])
        yield _gauge("roomkit_players", "Seats taken", stats["players"])
        yield _gauge("roomkit_queue_depth", "Entries waiting in all rooms' queues", stats["queue_depth"])
        yield _gauge("roomkit_deepest_queue", "Entries waiting in the fullest queue", stats["deepest_queue"])
        yield _gauge("roomkit_last_sweep_seconds", "Time that the last sweep took", stats["last_sweep"]["seconds"])

    def _sharing(self) -> Iterator[Metric]:
        """Only where instances share rooms."""
        rooms = self._server.rooms
        if rooms.shares_rooms:
            for name, text in COUNTERS.items():
                yield CounterMetricFamily(f"roomkit_{name}", text, value=rooms.tally.get(name))
            yield _gauge("roomkit_store_up", "1 while the store of shared rooms answers", int(rooms.store_answers))
            now = rooms.stats()["sharing"]
            yield _gauge("roomkit_owned_rooms", "Shared rooms whose lease this instance has", now["owned_rooms"])
            yield _gauge("roomkit_followed_rooms", "Other instances' rooms that it follows", now["followed_rooms"])
            left = "Seconds for which it may go on as owner without hearing of the store: of the room with the fewest"
            yield _gauge(
                "roomkit_shortest_lease_seconds",
                left,
                math.nan if now["shortest_lease"] is None else now["shortest_lease"],
            )
            waiting = "Operations that were asked of rooms' owners and are not answered yet"
            yield _gauge("roomkit_waiting_forwards", waiting, now["waiting_for_owners"])
            behind = "Events by which the followed room that is furthest behind its owner is so"
            yield _gauge("roomkit_follow_lag_events", behind, now["lag_events"])

    def _connections(self) -> Iterator[Metric]:
        listener = self._server.listener
        yield _gauge("roomkit_connections", "Open TCP connections", listener.connection_count)
        yield _gauge("roomkit_websockets", "Open WebSockets", listener.websocket_count)
        stalled = "WebSockets whose client does not take what is sent to it"
        yield _gauge("roomkit_stalled_websockets", stalled, listener.count_stalled())
        yield CounterMetricFamily("roomkit_sent_bytes", "Bytes written to sockets", value=listener.bytes_sent)
        yield CounterMetricFamily("roomkit_received_bytes", "Bytes read from sockets", value=listener.bytes_received)
        yield _gauge("roomkit_io_threads", "I/O threads", len(listener.reactors))
        failed = sum(reactor.turn_errors for reactor in listener.reactors)
        yield CounterMetricFamily("roomkit_io_turn_errors", "Turns of the I/O threads that failed", value=failed)
        counts = [sum(column) for column in zip(*(r.turn_counts for r in listener.reactors), strict=True)]
        yield HistogramMetricFamily(
            "roomkit_io_turn_seconds",
            "Work of the I/O threads from one wait for sockets to the next; the sum by time is their load",
            buckets=list(zip([*map(str, TURN_BOUNDS), "+Inf"], accumulate(counts), strict=True)),
            sum_value=sum(reactor.turn_seconds for reactor in listener.reactors),
        )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _by_label(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    text: str,
    label: str,
    values: Mapping[str, float],
) -> Metric:
    family = kind(name, text, labels=[label])
    for value, number in sorted(values.items()):
        family.add_metric([value], number)
    return family


def make_registry(server: Server) -> CollectorRegistry:
    """A registry of the server's own, so that several servers in one process do not mix."""
    registry = CollectorRegistry()
    registry.register(RoomkitCollector(server))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
