"""HTTP for the server's tests: requests by http.client, and bytes by hand where a client would not send such."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

from support.ws import PATIENCE, dial


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The error's code; it has a sentence too."""
        error = self.json["error"]
        assert set(error) == {"code", "message"}, error
        assert error["message"], error
        code: str = error["code"]
        return code


def request(
    address: tuple[str, int],
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    *,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """One request on a connection of its own. ``body``: bytes as they are, anything else as JSON."""
    if tls is not None:
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(*address, timeout=PATIENCE, context=tls)
    else:
        connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
    try:
        return ask(connection, method, path, body, headers)
    finally:
        connection.close()


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request on a connection that is kept."""
    headers = dict(headers or {})
    if body is not None:
        headers.setdefault("Content-Type", "application/json")
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read())


def read_all(sock: socket.socket) -> bytes:
    """What comes until the server ends the connection."""
    sock.settimeout(PATIENCE)
    data = b""
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionError:
            return data
        if not piece:
            return data
        data += piece


def exchange(address: tuple[str, int], *pieces: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """Send bytes as they are, and read until the server ends the connection."""
    with dial(address, tls=tls) as sock:
        for piece in pieces:
            sock.sendall(piece)
        return read_all(sock)


def status_of(answer: bytes) -> int:
    """The status of raw bytes; 0 when there are none."""
    return int(answer.split(b" ", 2)[1]) if answer else 0
