"""What fork(2) does to a manager.

A manager that has no threads when the process forks works in the child as in the parent: a WSGI server may import the
application, make its workers, and each has rooms of its own. Threads, however, stay behind in the parent, and what they
held at that moment nobody will ever release. So in the child such a manager raises ``UsedAfterFork`` at its first use,
instead of rooms whose events reach nobody and locks that are never free. Looked at when a process forks, by a hook:
operations pay nothing for it.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, NoReturn

from roomkit.errors import UsedAfterFork

if TYPE_CHECKING:
    from roomkit.manager import RoomManager

_managers: weakref.WeakSet[RoomManager] = weakref.WeakSet()


def watch(manager: RoomManager) -> None:
    """Look after this manager in children of this process."""
    _managers.add(manager)


class _Refusal:
    """Stands where a manager or a room had its lock and its contents: every use of it raises ``UsedAfterFork``."""

    def __init__(self, parent: int) -> None:
        self._parent = parent

    def _refuse(self, *args: object) -> NoReturn:
        raise UsedAfterFork(
            f"this RoomManager had threads in process {self._parent} when that forked process {os.getpid()}, where "
            "they do not exist: make the manager after the fork, or start nothing before it (no start_cleanup(), no "
            "`with`, no subscriber or connection that has got an event); a server that embeds it starts what it needs"
        )

    __enter__ = __exit__ = __len__ = __contains__ = __iter__ = __getitem__ = __setitem__ = __bool__ = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        self._refuse()


def _in_child() -> None:
    refusal = _Refusal(os.getppid())
    for manager in list(_managers):
        if manager.has_threads:
            manager.refuse_after_fork(refusal)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
