"""The least that a room server in plain Python can do: ``python -m benchmarks.relay`` prints its address and serves.

One epoll loop. It answers the handshake of any WebSocket client, and forwards the payload of each text frame to all
who are in the same room. It validates nothing, keeps no state and no history, knows no seats and sends no pings. What
a server costs more than this is what it does; what this costs is Python's and the system's.

It ends with SIGTERM, or when its standard input does, and so with whoever started it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import select
import socket
import sys
from collections.abc import Callable

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_WELCOME = b'\x81\x1c{"type":"welcome","data":{}}'  # so that a client sees that it is in, as with roomkit
_TEXT, _CLOSE = 1, 8
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_RECEIVE = 16_384
_MAX_UNSENT = 1 << 20  # bytes; who lets more wait is dropped


class Member:
    """One connection."""

    __slots__ = ("fd", "receive", "room", "send", "sock", "unread", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.receive = sock.recv
        self.send = sock.send
        self.room: list[Member] | None = None  # before the handshake
        self.unread = b""  # the beginning of a frame, or of the handshake
        self.unsent = b""


class Relay:
    """The loop. ``port``: where it listens."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self._epoll = select.epoll()
        self._members: dict[int, Member] = {}
        self._rooms: dict[bytes, list[Member]] = {}

    def run(self, until: int) -> None:
        """Serve until something is to be read from the descriptor ``until``, or it is at its end."""
        self._epoll.register(until, _IN)
        listening = self._listening.fileno()
        self._epoll.register(listening, _IN)
        members = self._members
        while True:
            for fd, mask in self._epoll.poll():
                member = members.get(fd)
                if member is not None:
                    if mask & _OUT:
                        self._send_rest(member)
                    if mask != _OUT:
                        self._receive(member)
                elif fd == listening:
                    self._accept()
                elif fd == until:
                    return

    def close(self) -> None:
        """Close everything; after :meth:`run`."""
        for member in list(self._members.values()):
            self._drop(member)
        self._listening.close()
        self._epoll.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._members[sock.fileno()] = Member(sock)
        self._epoll.register(sock.fileno(), _IN)

    def _receive(self, member: Member) -> None:
        try:
            data = member.receive(_RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(member)
            return
        if member.unread:
            data = member.unread + data
        if member.room is None:
            head, gap, data = data.partition(b"\r\n\r\n")
            if not gap:
                member.unread = head
                return
            self._welcome(member, head)
        member.unread = self._forward(member, data)

    def _welcome(self, member: Member, head: bytes) -> None:
        key = re.search(rb"(?i)\r\nsec-websocket-key: *(\S+)", head)
        room_id = re.search(rb"[?&]room_id=([^& ]+)", head)
        if key is None or room_id is None:
            self._drop(member)
            return
        accept = base64.b64encode(hashlib.sha1(key[1] + _GUID).digest())
        lines = (b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade")
        self._send(member, b"\r\n".join([*lines, b"Sec-WebSocket-Accept: " + accept, b"", _WELCOME]))
        member.room = self._rooms.setdefault(room_id[1], [])
        member.room.append(member)

    def _forward(self, member: Member, data: bytes) -> bytes:
        """Send on each frame that is whole; the rest."""
        at, send = 0, self._send
        while len(data) - at >= 6:
            length, start = data[at + 1] & 127, at + 6
            if length == 126:
                length, start = _number(data[at + 2 : at + 4], "big"), at + 8
            elif length == 127:  # nobody here sends 64 KiB in one frame
                self._drop(member)
                return b""
            end = start + length
            if end > len(data):
                break
            opcode = data[at] & 15
            if opcode == _TEXT:
                frame = _frame(_unmasked(data[start:end], data[start - 4 : start]))
                for one in member.room or ():
                    send(one, frame)
            elif opcode == _CLOSE:
                self._drop(member)
                return b""
            at = end
        return data[at:]

    def _send(self, member: Member, frame: bytes) -> None:
        if member.unsent:
            member.unsent += frame
            if len(member.unsent) > _MAX_UNSENT:
                with contextlib.suppress(OSError):
                    member.sock.shutdown(socket.SHUT_RDWR)  # the loop then reads its end, and drops it
            return
        try:
            sent = member.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:  # the loop reads its end
            return
        if sent < len(frame):
            member.unsent = frame[sent:]
            self._epoll.modify(member.fd, _IN | _OUT)

    def _send_rest(self, member: Member) -> None:
        rest, member.unsent = member.unsent, b""
        self._epoll.modify(member.fd, _IN)
        self._send(member, rest)

    def _drop(self, member: Member) -> None:
        if self._members.pop(member.fd, None) is not None:
            self._epoll.unregister(member.fd)
            if member.room is not None:
                member.room.remove(member)
            member.sock.close()


def _frame(payload: bytes) -> bytes:
    if len(payload) < 126:
        return bytes((0x81, len(payload))) + payload
    return b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload


def _unmasked(payload: bytes, key: bytes) -> bytes:
    mask = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (_number(payload, "little") ^ _number(mask, "little")).to_bytes(len(payload), "little")


_number: Callable[..., int] = int.from_bytes


def main() -> int:
    """The command."""
    relay = Relay()
    print(f"http://127.0.0.1:{relay.port} ", flush=True)
    relay.run(sys.stdin.fileno())
    relay.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
