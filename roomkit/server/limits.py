"""The connection layer's bounds, and what happened to them."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address

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


def counted_as(address: str) -> str:
    """What an address counts as where addresses are limited: IPv6, the network of 64 bits that one subscriber has at
    least (RFC 6177); IPv4, also within IPv6, itself.
    """
    return address if ":" not in address else _network(address)


@lru_cache(4096)
def _network(address: str) -> str:
    try:
        parsed = IPv6Address(address)
    except ValueError:  # none that we know of
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
