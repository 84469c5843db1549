"""A real network between client and server, made of the kernel's own parts, that loses every packet and is mended."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from players import Player, make_room, metrics
from support.fakes import PATIENCE
from support.needs import absent, need_program
from support.serve import ServeProcess
from support.ws import WsClient

#: Of TEST-NET-3 (RFC 5737), which nobody uses. Each process of the tests has its own four addresses.
_NET = f"203.0.113.{os.getpid() % 62 * 4}"


class Cable(NamedTuple):
    """Two ends of a virtual cable: ``here``, an address of this network namespace, and another namespace."""

    here: str
    namespace: str
    far_end: str

    def within(self) -> list[str]:
        """The words that run a command at the far end."""
        return ["ip", "netns", "exec", self.namespace]

    def cut(self) -> None:
        """Every packet is lost, in both directions, and nobody is told."""
        ip("-n", self.namespace, "link", "set", self.far_end, "down")

    def mend(self) -> None:
        """Packets pass again."""
        ip("-n", self.namespace, "link", "set", self.far_end, "up")


def ip(*words: str) -> None:
    """Run ``ip``; skip the test where the kernel, or who runs it, may not."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        absent(f"the right to make a network namespace (ip {' '.join(words)}: {done.stderr.strip()})")


@pytest.fixture
def cable() -> Iterator[Cable]:
    """See Cable. Taken away after the test, with its namespace."""
    need_program("ip")
    if os.geteuid() != 0:
        absent("the right to make a network namespace (not root)")
    base, last = _NET.rsplit(".", 1)
    here, there = f"{base}.{int(last) + 1}", f"{base}.{int(last) + 2}"
    near, far = f"rkn{os.getpid()}", f"rkf{os.getpid()}"
    made = Cable(here, f"roomkit-{os.getpid()}", far)
    ip("netns", "add", made.namespace)
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", made.namespace)
        ip("addr", "add", f"{here}/30", "dev", near)
        ip("-n", made.namespace, "addr", "add", f"{there}/30", "dev", far)
        ip("link", "set", near, "up")
        made.mend()
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", made.namespace], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", near], capture_output=True, check=False)


def test_a_network_that_loses_every_packet_and_comes_back(
    cable: Cable, serve: Callable[..., ServeProcess], player: Callable[..., Player]
) -> None:
    """The server notices within ping_interval and pong_timeout, holds the seat, and tells the others; the client
    notices too, and tries in vain; when packets pass again it resumes and has missed nothing."""
    server = serve("--host", "0.0.0.0", "--ping-interval", "0.5", "--pong-timeout", "2")
    make_room(server.port)
    amy = player(
        f"http://{cable.here}:{server.port}",
        "room",
        "amy",
        within=cable.within(),
        ping_interval=0.5,
        ping_timeout=3.0,
        ack_timeout=1.0,
    )
    amy.arrive()
    with WsClient(("127.0.0.1", server.port), room_id="room", player_id="bob") as bob:
        bob.expect("welcome")
        heard = bob.do("message", {"before": 1})["seq"]
        amy.until_seq(heard)
        cable.cut()
        cut_at = time.monotonic()
        assert bob.until("player_dropped")["data"] == {"player_id": "amy"}
        assert 1.4 <= time.monotonic() - cut_at < PATIENCE / 2
        assert metrics(server.port)["roomkit_heartbeats_lost_total"] == 1
        missed = bob.do("message", {"missed": "by amy"})["seq"]
        amy.until("connection", lambda change: change[0] == "waiting")
        cable.mend()
        bob.until("player_resumed")
        last = bob.do("message", {"after": 1})["seq"]
        amy.until_seq(last)
        assert missed in amy.seqs
        assert amy.seqs == list(range(amy.seqs[0], last + 1))
