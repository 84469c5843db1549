"""Who listens to a client: callbacks, made one after the other on a thread on demand, and mailboxes."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

from roomkit.client._mailbox import Letter, Mailbox
from roomkit.client._types import Notice
from roomkit.concurrency.worker import Worker

log = logging.getLogger("roomkit.client")

Function = Callable[..., object]


class Listeners:
    """See the module.

    Args:
        name: of the callbacks' thread.
        limit: what may wait, for the callbacks and in each mailbox.
        attribute: gives the ``on_...`` attribute for an event type, or None.

    Thread safety: full. :meth:`tell` never blocks; :meth:`stop` waits.
    """

    def __init__(self, name: str, limit: int, attribute: Callable[[str], Function | None]) -> None:
        self.errors = 0  # of the callbacks' thread alone
        self._name = name
        self._limit = limit
        self._attribute = attribute
        self._waiting = Mailbox(limit)
        self._worker = Worker(name, self._call_back)
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._functions: dict[str, tuple[Function, ...]] = {}  # replaced as a whole, so that readers need no lock
        self._mailboxes: weakref.WeakSet[Mailbox] = weakref.WeakSet()
        self._ended = False

    @property
    def dropped(self) -> int:
        """What had no place before the callbacks."""
        return self._waiting.dropped

    def on(self, event_type: str, function: Function) -> None:
        """Have ``function`` called."""
        with self._lock:
            self._functions[event_type] = (*self._functions.get(event_type, ()), function)

    def off(self, event_type: str, function: Function) -> None:
        """No longer; nothing when it is not there."""
        with self._lock, contextlib.suppress(ValueError):
            kept = list(self._functions.get(event_type, ()))
            kept.remove(function)
            self._functions[event_type] = tuple(kept)

    def mailbox(self, kinds: frozenset[str]) -> Mailbox:
        """One that gets letters of these kinds from now on, for as long as somebody holds it."""
        mailbox = Mailbox(self._limit, kinds)
        with self._lock:
            if self._ended:
                mailbox.end()
            else:
                self._mailboxes.add(mailbox)
        return mailbox

    def tell(self, letter: Letter, *, last: bool) -> None:
        """Queue a letter for everybody; ``last``: nothing comes after it, and it has a place in any case."""
        with self._lock:
            mailboxes = list(self._mailboxes)
            self._ended = last
        for mailbox in mailboxes:
            mailbox.put(letter)
            if last:
                mailbox.end()
        if self._is_listened_to(letter):
            if self._waiting.put(letter, always=last) == 1:
                log.warning("%s: callbacks are too slow, %d wait; newer ones are dropped", self._name, self._limit)
            try:
                self._worker.wake()
            except RuntimeError:  # no thread could be started; the next letter tries again
                log.exception("%s: there is no thread for the callbacks", self._name)
        if last:
            self._worker.retire()

    def stop(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the callbacks that are still to be made; False: they take longer."""
        return self._worker.stop(timeout)

    def _is_listened_to(self, letter: Letter) -> bool:
        functions = self._functions
        if functions.get(letter.kind) or functions.get("*"):
            return True
        if letter.kind != "event":
            return False
        event_type = letter.payload.type
        return bool(functions.get(event_type)) or self._attribute(event_type) is not None

    def _call_back(self) -> None:
        while (letter := self._waiting.take()) is not None:
            payload = letter.payload
            types = [letter.kind]
            if letter.kind == "event":
                attribute = self._attribute(payload.type)
                if attribute is not None:
                    self._call(attribute, payload.data, payload)
                types.append(payload.type)
            for event_type in types:
                for function in self._functions.get(event_type, ()):
                    self._call(function, payload)
            for function in self._functions.get("*", ()):
                self._call(function, payload if letter.kind == "event" else Notice(letter.kind, payload))

    def _call(self, function: Function, *args: Any) -> None:
        try:
            function(*args)
        except BaseException:  # SystemExit too: those after it must have theirs
            self.errors += 1
            log.exception("%s: a callback failed", self._name)
