"""The connection layer's bounds, and what happened to them."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the connection layer; seconds, bytes, messages; 0 turns a bound off.

    The defaults are those of the servers people trust (docs: Settings).
    """

    max_connections: int = 10_000
    max_connections_per_address: int = 64
    max_head_size: int = 8192
    max_head_lines: int = 100
    max_message_size: int = 65_536
    max_fragments: int = 1024
    message_rate: float = 60.0
    message_burst: int = 120
    outbox_messages: int = 256
    outbox_bytes: int = 1_048_576
    handshake_timeout: float = 10.0
    write_timeout: float = 5.0
    close_timeout: float = 2.0
    ping_interval: float = 50.0
    pong_timeout: float = 60.0
    compression: bool = False
