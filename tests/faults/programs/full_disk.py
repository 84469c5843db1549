"""``roomkit serve`` whose log goes to a full disk: to a file that may grow to FAULTS_DISK_BYTES, or (0) to /dev/full.

A player's ``ping`` fails in it, so that there is something to be logged.
"""

from __future__ import annotations

import os
import resource
import sys
from typing import NoReturn

from roomkit.cli import main
from roomkit.server import messages, session


def fail(*arguments: object) -> NoReturn:
    raise ValueError("made on purpose")


session._HANDLERS[messages.Ping] = fail
size = int(os.environ["FAULTS_DISK_BYTES"])
if size:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    log = os.open(os.environ["FAULTS_DISK_FILE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
else:
    log = os.open("/dev/full", os.O_WRONLY)
os.dup2(log, 2)
sys.exit(main(["serve", *sys.argv[1:]]))
