"""``roomkit serve`` on a machine whose wall clock can be set: the file FAULTS_CLOCK says by how many seconds it is off.

The monotonic clock cannot be set, on a real machine neither.
"""

from __future__ import annotations

import os
import sys
import time

_file = os.open(os.environ["FAULTS_CLOCK"], os.O_RDONLY)
_time, _time_ns = time.time, time.time_ns


def _off() -> int:
    return int(os.pread(_file, 32, 0))


time.time = lambda: _time() + _off()
time.time_ns = lambda: _time_ns() + _off() * 10**9

from roomkit.cli import main  # noqa: E402 - it takes the clock while it is imported

sys.exit(main(["serve", *sys.argv[1:]]))
