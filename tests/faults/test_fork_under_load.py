"""os.fork() in a process whose server is at work (the refusals themselves: tests/embed/test_forks.py)."""

from __future__ import annotations

import subprocess
import sys

from support.fakes import PATIENCE
from support.program import environment
from support.serve import ROOT

_PROGRAM = """
import os, signal, sys, threading
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from roomkit import UsedAfterFork
from roomkit.server import Server
from roomkit.settings import Settings
from support.ws import WsClient

server = Server(settings=Settings(port=0, close_timeout=0.2)).start()
room = server.rooms.create_room("room")
bob = WsClient(server.listener.address, room_id="room", player_id="bob")
bob.expect("welcome")
stop, sent = threading.Event(), []

def talk():
    with WsClient(server.listener.address, room_id="room", player_id="amy") as amy:
        while not stop.is_set():
            sent.append(amy.do("message", {{"n": len(sent)}})["seq"])

talker = threading.Thread(target=talk)
talker.start()
while len(sent) < 20:
    bob.until("message")
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        refused = 0
        for use in (lambda: room.send_message(None, {{}}), lambda: server.rooms.create_room("other")):
            try:
                use()
            except UsedAfterFork:
                refused += 1
        os._exit(0 if refused == 2 and server.rooms.shutdown() else 1)
    assert os.waitpid(pid, 0)[1] == 0, "the child"
    bob.until("message")
stop.set()
talker.join(10)
bob.until_seq(bob.do("message", {{"last": True}})["seq"])
assert bob.seqs == list(range(bob.seqs[0], bob.seqs[-1] + 1)), bob.seqs
bob.close()
assert server.stop()
print("unharmed", flush=True)
"""


def test_the_parent_is_unharmed() -> None:
    """Five children, each of which tries the room and the manager and gets UsedAfterFork; meanwhile, and after them,
    the parent's players talk, and every event comes once and in order."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _PROGRAM.format(root=str(ROOT))]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (0, "unharmed\n"), done.stderr
