"""The opening handshake (RFC 6455, section 4.2), with the checks that wsproto leaves to the server."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import h11
import msgspec
from wsproto.extensions import Extension
from wsproto.handshake import server_extensions_handshake
from wsproto.utilities import generate_accept_token

from roomkit.server.websocket import BoundedDeflate


class HandshakeRefused(Exception):
    """An upgrade that is answered with a 4xx before any WebSocket is opened."""

    def __init__(self, status: int, code: str, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers


class UpgradeRequest(msgspec.Struct, frozen=True):
    """A well-formed request to open a WebSocket.

    Attributes:
        path: without the query. query: its parameters, decoded; a name given twice is refused.
        headers: names in lower case; several lines of one name joined by a comma and a space.
        address: the peer's IP address.
    """

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    address: str


def is_upgrade(request: h11.Request) -> bool:
    """Whether the request wants a WebSocket, well-formed or not."""
    return any(name == b"upgrade" and b"websocket" in value.lower() for name, value in request.headers)


def check_upgrade(request: h11.Request, address: str, origins: Sequence[str]) -> UpgradeRequest:
    """Check an upgrade request.

    Raises:
        HandshakeRefused: malformed (400), another version (426), another method (405), a foreign Origin (403).
    """
    if request.method != b"GET":
        raise HandshakeRefused(405, "method_not_allowed", "a WebSocket is opened with GET", [("Allow", "GET")])
    if request.http_version != b"1.1":
        raise HandshakeRefused(400, "bad_request", "a WebSocket needs HTTP/1.1")
    headers = header_dict(request)
    if "upgrade" not in _tokens(headers.get("connection", "")):
        raise HandshakeRefused(400, "bad_request", "the Connection header must contain upgrade")
    if _tokens(headers.get("upgrade", "")) != ["websocket"]:
        raise HandshakeRefused(400, "bad_request", "the Upgrade header must be websocket")
    if headers.get("sec-websocket-version") != "13":
        version = [("Sec-WebSocket-Version", "13")]
        raise HandshakeRefused(426, "upgrade_required", "only WebSocket version 13 is spoken", version)
    _check_key(headers.get("sec-websocket-key", ""))
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise HandshakeRefused(400, "bad_request", "an upgrade has no body")
    check_origin(headers, origins)
    path, query = split_target(request.target)
    return UpgradeRequest(path, query, headers, address)


def _check_key(key: str) -> None:
    try:
        nonce = base64.b64decode(key.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeError):
        nonce = b""
    if len(nonce) != 16 or len(key) != 24:
        raise HandshakeRefused(400, "bad_request", "Sec-WebSocket-Key must be 16 bytes in base64, once")


def check_origin(headers: Mapping[str, str], origins: Sequence[str]) -> None:
    """Refuse a page of another site (cross-site WebSocket hijacking). No Origin: not a browser.

    Args:
        origins: those that are allowed besides the own, in lower case; ``*``: all.

    Raises:
        HandshakeRefused: 403.
    """
    origin = headers.get("origin")
    if origin is None or "*" in origins or origin.lower() in origins:
        return
    scheme, _, site = origin.partition("://")
    try:
        own = _host_port(headers.get("host", ""), scheme.lower())
        same = _SITE.fullmatch(site) is not None and _host_port(site, scheme.lower()) == own
    except ValueError:
        same = False
    if not same:
        raise HandshakeRefused(403, "foreign_origin", "this Origin is not allowed (see the setting origin)")


_SITE = re.compile(r"[^\s/?#@\\,]+")  # as a browser writes it: no user, path or list, which would be read differently


def _host_port(netloc: str, scheme: str) -> tuple[str | None, int]:
    """ValueError: there is no such scheme or port."""
    default_port = {"http": 80, "https": 443}.get(scheme)
    if default_port is None:
        raise ValueError(scheme)
    parts = urlsplit(f"//{netloc}")
    return parts.hostname, parts.port or default_port


def header_dict(request: h11.Request) -> dict[str, str]:
    """Headers by lower-case name; several lines of one name joined by ``, ``.

    Raises:
        HandshakeRefused: a second line of a header that is only allowed once, or a value that is not Latin-1 text.
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in request.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        if name in headers:
            if name in ("host", "origin", "sec-websocket-key", "sec-websocket-version", "content-length", "upgrade"):
                raise HandshakeRefused(400, "bad_request", f"more than one {name} header")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def split_target(target: bytes) -> tuple[str, dict[str, str]]:
    """Path and query parameters of a request target.

    Raises:
        HandshakeRefused: not UTF-8, or a parameter given twice.
    """
    try:
        path, _, text = target.decode("ascii").partition("?")  # as HTTP takes it: a host in the target is none of ours
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=False, errors="strict", max_num_fields=32)
    except (ValueError, UnicodeError):
        raise HandshakeRefused(400, "bad_request", "the request target is malformed") from None
    query: dict[str, str] = {}
    for name, value in pairs:
        if name in query:
            raise HandshakeRefused(400, "bad_request", "a query parameter is given twice")
        query[name] = value
    return path, query


def accept(headers: Mapping[str, str], *, compression: bool, max_message_size: int) -> tuple[bytes, list[Extension]]:
    """The 101 answer, and the extensions that were agreed on (permessage-deflate, when ``compression`` is on)."""
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + generate_accept_token(headers["sec-websocket-key"].encode("ascii")),
    ]
    agreed: list[Extension] = []
    offered = headers.get("sec-websocket-extensions")
    if compression and offered:
        deflate = BoundedDeflate(max_message_size)
        supported: list[Any] = [deflate]
        try:
            accepted = server_extensions_handshake([part.strip() for part in offered.split(",")], supported)
        except (ValueError, UnicodeError):  # a parameter that is no number: decline the offer (RFC 7692, section 5.1)
            accepted = None
        if accepted and deflate.enabled():
            lines.append(b"Sec-WebSocket-Extensions: " + accepted)
            agreed.append(deflate)
    return b"\r\n".join(lines) + b"\r\n\r\n", agreed


def _tokens(value: str) -> list[str]:
    return [token.strip().lower() for token in value.split(",")]
