"""Prometheus metrics: read from the tally and the rooms when somebody scrapes, so they cost nothing in between.

Labels are bounded: statuses, operations, event types, limits. Never a room or a player.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from roomkit.server.app import Server

#: Counter name in the tally -> (metric, help, label name or "").
_COUNTERS = {
    "operations": ("roomkit_operations", "Operations carried out", "operation"),
    "refused": ("roomkit_refused_operations", "Operations refused, by error code", "code"),
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
        """See prometheus_client."""
        tally = self._server.tally
        for name, (metric, text, label) in _COUNTERS.items():
            if label:
                family = CounterMetricFamily(metric, text, labels=[label])
                for value, count in sorted(tally.by_label(name).items()):
                    family.add_metric([value], count)
            else:
                family = CounterMetricFamily(metric, text, value=tally.get(name))
            yield family
        stats = self._server.rooms.stats()
        dropped = CounterMetricFamily("roomkit_dropped_events", "Events not delivered live", labels=["type"])
        for kind, count in sorted(stats["dropped"].items()):
            dropped.add_metric([kind], count)
        yield dropped
        by_status = GaugeMetricFamily("roomkit_rooms", "Rooms, by status", labels=["status"])
        for status, count in sorted(stats["by_status"].items()):
            by_status.add_metric([status], count)
        yield by_status
        listener = self._server.listener
        for name, text, number in (
            ("roomkit_active_rooms", "Rooms with somebody connected", stats["active_rooms"]),
            ("roomkit_zombie_rooms", "Rooms that are closed or have nobody connected", stats["zombie_rooms"]),
            ("roomkit_players", "Seats taken", stats["players"]),
            ("roomkit_connections", "Open TCP connections", listener.connection_count),
            ("roomkit_websockets", "Open WebSockets", listener.websocket_count),
            ("roomkit_queue_depth", "Entries waiting in all rooms' queues", stats["queue_depth"]),
            ("roomkit_deepest_queue", "Entries waiting in the fullest queue", stats["deepest_queue"]),
            ("roomkit_last_sweep_seconds", "Time that the last sweep took", stats["last_sweep"]["seconds"]),
            ("roomkit_ready", "1 while new work is welcome", int(self._server.ready)),
        ):
            yield GaugeMetricFamily(name, text, value=number)
        for name, text, number in (
            ("roomkit_sent_bytes", "Bytes written to sockets", listener.bytes_sent),
            ("roomkit_received_bytes", "Bytes read from sockets", listener.bytes_received),
        ):
            yield CounterMetricFamily(name, text, value=number)


def make_registry(server: Server) -> CollectorRegistry:
    """A registry of the server's own, so that several servers in one process do not mix."""
    registry = CollectorRegistry()
    registry.register(RoomkitCollector(server))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
