"""RoomClient: what the users of a client see. The machine decides, the runner connects, the listeners are told."""

from __future__ import annotations

import random as _random
import secrets
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as _NotDone
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from roomkit.client._listeners import Listeners
from roomkit.client._machine import Machine, Options
from roomkit.client._mailbox import Letter, Mailbox
from roomkit.client._operations import Operation, Operations
from roomkit.client._runner import Network, Runner
from roomkit.client._types import Closed, Timeout, Welcome, WouldDeadlock
from roomkit.core.events import Event
from roomkit.core.ids import check_id, check_name
from roomkit.core.snapshot import Player, RoomState
from roomkit.errors import InvalidConfig

T = TypeVar("T")
Handler = Callable[[dict[str, Any], Event], object]

_FOR_WAITERS = frozenset({"event", "state"})
_FOR_ITERATORS = frozenset({"event"})


class RoomClient:
    """A player's place in a room on a server: connects, comes back, resumes, and keeps a copy of the room's state.

    ::

        with RoomClient("http://127.0.0.1:8000", "lobby", "amy", name="Amy") as room:
            room.on_player_joined = lambda data, event: print(data["player"]["name"], "is here")
            room.ready()
            room.wait_for(lambda state: state.status == "playing", timeout=60)

    Operations block until the server has answered; when one returns, ``state`` has its effect. They return the number
    of the last event that they caused (or what their docstring says), and raise

    * what the server refused with: the exception that the same operation of a ``Room`` raises (``NotHost``,
      ``InvalidTransition``, ...); nothing was changed;
    * :class:`Timeout`: no answer within ``ack_timeout`` seconds in the buffer, or again after it was sent;
    * :class:`ConnectionClosed`: the connection was lost before the answer, or the client has ended;
    * :class:`BufferFull`: ``max_buffer`` operations wait to be sent already.

    The last three have ``maybe_done``: True when it had been sent, so that the server may have done it all the same. An
    operation is never sent twice. While there is no connection, operations wait in the buffer for the next one.
    :attr:`submit` has the same operations in a form that does not block.

    Threads: ``roomkit-client-PLAYER`` from :meth:`start` to the end, and ``roomkit-client-PLAYER-callbacks`` while
    there are callbacks to be made. Both are daemons, for a client that was forgotten must not keep the process from
    ending; :meth:`close` joins them. Callbacks are made one after the other, in order; a callback may block, and may
    call any operation; what comes meanwhile waits for it (see ``max_events``).

    Args:
        url: the server's address: http, https, ws or wss; a path in it is a prefix.
        room_id, player_id: as in the room; :attr:`room_id` changes when the group moves to another room.
        name: what others see (default: the player id).
        token: the seat's secret, from an earlier client's :attr:`token` or from REST. Default: made here.
        password: for a room that has one.
        base_delay, max_delay: full jitter: the delay before an attempt is random in 0 to
            ``min(max_delay, base_delay * 2 ** n)`` seconds, n = the attempts that failed in a row. A draining server
            (1012) says itself when to come back.
        max_attempts: in a row, before the client ends; None: for ever.
        max_buffer: operations that wait to be sent.
        ack_timeout: seconds until an unanswered operation fails; also what an attempt to connect has until its welcome.
        ping_interval, ping_timeout: seconds of silence after which a ping is sent, and seconds to wait for a sign of
            life then. 0 turns it off.
        send_timeout: seconds for which the network may take nothing before the connection is given up.
        max_events: what may wait for the callbacks, and for each iterator; more is left out, counted, and told of by a
            ``dropped`` event in its place.
        max_message_size: characters; a longer message of the server's ends the client (1009).
        ssl_context: for https and wss; default: certificates as the system trusts them.
        clock, wall_clock, random: monotonic seconds, Unix seconds, 0 to 1; for tests.

    Raises:
        InvalidId, InvalidMessage, InvalidConfig: an id, the name, the address or a bound that cannot be.

    Thread safety: full.
    """

    # Set one to a function of (data, event), or define it in a subclass: called for events of its type.
    on_player_joined: Handler | None = None
    on_player_left: Handler | None = None
    on_player_dropped: Handler | None = None
    on_player_resumed: Handler | None = None
    on_player_ready: Handler | None = None
    on_song_selected: Handler | None = None
    on_settings_changed: Handler | None = None
    on_room_status: Handler | None = None
    on_host_changed: Handler | None = None
    on_message: Handler | None = None
    on_game_started: Handler | None = None
    on_game_finished: Handler | None = None
    on_room_updated: Handler | None = None
    on_room_transferred: Handler | None = None
    on_room_closed: Handler | None = None
    on_operation_performed: Handler | None = None

    def __init__(
        self,
        url: str,
        room_id: str,
        player_id: str,
        *,
        name: str | None = None,
        token: str | None = None,
        password: str | None = None,
        base_delay: float = 0.5,
        max_delay: float = 10.0,
        max_attempts: int | None = None,
        max_buffer: int = 64,
        ack_timeout: float = 15.0,
        ping_interval: float = 15.0,
        ping_timeout: float = 10.0,
        send_timeout: float = 10.0,
        max_events: int = 1000,
        max_message_size: int = 32 * 1024 * 1024,
        ssl_context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        random: Callable[[], float] = _random.random,
    ) -> None:
        check_id(room_id, "room_id")
        self.player_id = check_id(player_id, "player_id")
        check_name(name, player_id)
        may_be_zero = {"base_delay": base_delay, "max_delay": max_delay, "max_buffer": max_buffer}
        may_be_zero |= {"ping_interval": ping_interval, "ping_timeout": ping_timeout}
        above_zero = {"ack_timeout": ack_timeout, "send_timeout": send_timeout, "max_events": max_events}
        above_zero |= {"max_message_size": max_message_size}
        above_zero |= {} if max_attempts is None else {"max_attempts": max_attempts}
        for bound, value in (may_be_zero | above_zero).items():
            if not (value > 0 or (value == 0 and bound in may_be_zero)):
                raise InvalidConfig(f"{bound} cannot be {value!r}")
        self._base = _websocket_url(url)
        self._more_query = {key: value for key, value in (("name", name), ("password", password)) if value is not None}
        self._clock = clock
        #: The operations as futures: ``client.submit.ready()``.
        self.submit = Operations(self._submit)
        thread = f"roomkit-client-{player_id}"
        self._listeners = Listeners(f"{thread}-callbacks", max_events, lambda kind: getattr(self, f"on_{kind}", None))
        self._machine = Machine(
            room_id,
            player_id,
            token if token is not None else secrets.token_urlsafe(16),
            Options(
                base_delay=base_delay,
                max_delay=max_delay,
                max_attempts=float("inf") if max_attempts is None else max_attempts,
                max_buffer=max_buffer,
                ack_timeout=ack_timeout,
                ping_interval=ping_interval,
                ping_timeout=ping_timeout,
            ),
            random=random,
            wall_clock=wall_clock,
            emit=self._emit,
        )
        network = Network(self._url, ack_timeout, send_timeout, max_message_size, ssl_context)
        self._runner = Runner(thread, self._machine, network, clock)

    # What can be seen of it. Each is one read of what the client's thread has put there.

    @property
    def room_id(self) -> str:
        """The room; another one after ``room_transferred``."""
        return self._machine.room_id

    @property
    def token(self) -> str:
        """The seat's secret: given, or made here; the server's word in the welcome counts."""
        return self._machine.token

    @property
    def connection(self) -> str:
        """``idle``, ``connecting``, ``open``, ``waiting`` or ``closed``: see ConnectionChange."""
        return self._machine.connection

    @property
    def state(self) -> RoomState | None:
        """The copy of the room's state, kept by the events: of the type that ``Room.get_state()`` gives, immutable,
        another object after each change. None before the first welcome.

        In a callback it may be newer than the event that the callback is for; the ``state`` callback gets each state.
        """
        return self._machine.state

    @property
    def me(self) -> Player | None:
        """My own entry in ``state.players``."""
        state = self._machine.state
        return None if state is None else state.get_player(self.player_id)

    @property
    def is_host(self) -> bool:
        """Whether I am the host."""
        state = self._machine.state
        return state is not None and state.host == self.player_id

    @property
    def closed(self) -> Closed | None:
        """Why the client has ended; None while it has not."""
        return self._machine.closed

    @property
    def clock_offset(self) -> float:
        """The server's clock minus the local one, seconds, from the last welcome or ping."""
        return self._machine.clock_offset

    @property
    def dropped(self) -> int:
        """How many events and other notices had no place before the callbacks."""
        return self._listeners.dropped

    @property
    def callback_errors(self) -> int:
        """How many callbacks have raised; each was logged."""
        return self._listeners.errors

    def __repr__(self) -> str:
        return f"<RoomClient {self.player_id!r} in {self.room_id!r}, {self.connection}>"

    # Beginning and ending.

    def start(self) -> None:
        """Begin to connect, and return at once. Nothing when it was started before.

        Raises:
            ConnectionClosed: the client has ended.
        """
        self._runner.start()

    def connect(self, timeout: float | None = 30.0) -> Welcome:
        """:meth:`start`, and wait until the first welcome; called again it gives the same one.

        Raises:
            RoomFull, BadToken, RoomNotFound, ...: the server said stay away, and why; the client has ended.
            ConnectionClosed: it ended otherwise (``close``, ``max_attempts``).
            Timeout: not within ``timeout`` seconds; the client goes on trying until :meth:`close`.
            WouldDeadlock: called on the client's own thread.
        """
        self._must_not_block_here()
        self.start()
        try:
            return self._machine.connected.result(timeout)
        except _NotDone:
            if self._machine.connected.done():  # it is the error that it ended with
                raise
            raise Timeout(f"no welcome within {timeout} s{self._machine.why_not_connected()}") from None

    def retry_now(self) -> None:
        """While waiting: make the next attempt now. It counts like any other. Else nothing."""
        self._runner.post(lambda: self._machine.retry_now(self._clock()))

    def close(self, timeout: float = 5.0) -> bool:
        """End for good, without giving up the seat (the grace period runs); what is unanswered fails.

        Waits up to ``timeout`` seconds for the threads, and so for the callbacks that are still to be made; called by
        one of these threads it does not wait for that one.

        Returns:
            Whether the threads have ended; False: a callback, or a name server, still takes its time.
        """
        until = time.monotonic() + timeout
        self._runner.close()
        ended = self._runner.join(timeout)
        return self._listeners.stop(max(0.0, until - time.monotonic())) and ended

    def leave(self) -> None:
        """Give up the seat, then end; it ends also when that fails (the server then frees the seat after the grace
        period).

        Raises:
            Timeout, ConnectionClosed, BufferFull: see RoomClient. The client has ended all the same.
            WouldDeadlock: called on the client's own thread; nothing was done.
        """
        self._must_not_block_here()
        try:
            if self._runner.started:  # else it never took a seat
                self._submit("leave", None, lambda data: None).result()
        finally:
            self.close()

    def __enter__(self) -> RoomClient:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # Operations. See the class for what they return, raise, and how long they block.

    def ready(self, ready: bool = True) -> int:
        """Set my ready flag."""
        return self._done(self.submit.ready, ready)

    def select_song(self, song_id: str) -> int:
        """Select the song: 1 to 256 characters."""
        return self._done(self.submit.select_song, song_id)

    def update_settings(self, settings: Mapping[str, Any]) -> int:
        """Merge into the shared settings, key by key; None removes a key."""
        return self._done(self.submit.update_settings, settings)

    def start_game(self) -> int:
        """Start. Host only."""
        return self._done(self.submit.start_game)

    def finish_game(self, results: Mapping[str, Any] | None = None) -> int:
        """Finish; ``results`` become ``state.results``. Host only."""
        return self._done(self.submit.finish_game, results)

    def rematch(self) -> str:
        """All go on in a new room, this client too. Host only, in ``finished``. Returns the new room's id."""
        return self._done(self.submit.rematch)

    def send_message(self, data: Mapping[str, Any], *, key: str | None = None) -> int:
        """Relay ``data`` to all, me too. With a ``key`` it replaces an older one of mine that still waits in the room's
        queue.
        """
        return self._done(self.submit.send_message, data, key=key)

    def perform(self, operation: str, data: Mapping[str, Any] | None = None) -> int:
        """An operation of the room's own lifecycle."""
        return self._done(self.submit.perform, operation, data)

    def kick(self, player_id: str, *, ban: bool = False) -> int:
        """Take a player's seat away; with ``ban`` for good. Host only."""
        return self._done(self.submit.kick, player_id, ban=ban)

    def lock(self, locked: bool = True) -> int:
        """A locked room takes no new player. Host only."""
        return self._done(self.submit.lock, locked)

    def close_room(self, reason: str | None = None) -> int:
        """Close the room for everybody: this client ends too, with 4510. Host only."""
        return self._done(self.submit.close_room, reason)

    def refresh(self) -> RoomState:
        """A fresh copy of the state from the server. It also repairs the local copy; one that is newer leaves it to the
        events that are on their way.
        """
        return self._done(self.submit.refresh)

    def events_after(self, seq: int) -> list[Event] | None:
        """The events after ``seq``, in order, for showing what was before this client came (a chat's last messages);
        None when the server's history no longer has them all. They are not applied, and no callback is called.
        """
        return self._done(self.submit.events_after, seq)

    def ping(self) -> float:
        """The round-trip time in seconds. Also sets ``clock_offset``."""
        return self._done(self.submit.ping)

    # Listening.

    def on(self, event_type: str, function: Callable[[Any], object]) -> Callable[[], None]:
        """Have ``function`` called, on the callbacks' thread, with each of a type:

        * an event type of the protocol, or ``event`` for all of them: the ``Event``;
        * ``state``: the ``RoomState`` after each change of it;
        * ``connection``: a ConnectionChange; ``welcome``: a Welcome;
        * ``gap``: the server's notice (an ``Event``) that events were not sent; they are being asked for;
        * ``error``: a RoomkitError that answers no operation;
        * ``dropped``: an ``Event`` that tells what had no place here, since callbacks are too slow:
          ``{"after": seq, "dropped": n, "types": {...}}``;
        * ``*``: all of these: events as they are, the rest as Notice(type, data).

        A function that raises is logged and counted and stops nothing.

        Returns:
            A function that stops it.
        """
        self._listeners.on(event_type, function)
        return lambda: self.off(event_type, function)

    def off(self, event_type: str, function: Callable[[Any], object]) -> None:
        """Stop what :meth:`on` began; nothing when it is not there. A call that is under way goes on."""
        self._listeners.off(event_type, function)

    def events(self, timeout: float | None = None) -> Events:
        """The room's events from now on, one after the other, as an iterator.

        It ends when the client has ended and all were given, or when none came for ``timeout`` seconds (None: wait for
        ever; 0: give what is there). Call it before :meth:`connect` to miss nothing. What has no place, since the
        reader is too slow (``max_events``), is told of in its place by an event of type ``dropped``.
        """
        return Events(self._listeners.mailbox(_FOR_ITERATORS), timeout, self._must_not_block_here)

    def wait_for(self, predicate: Callable[[RoomState], object], timeout: float | None = None) -> RoomState:
        """Wait until ``predicate(state)`` holds; it is asked of the state now and of each one after an event, in order.

        Returns:
            The first state for which it holds.

        Raises:
            Timeout: it did not within ``timeout`` seconds (None: for ever).
            ConnectionClosed: the client ended before.
            WouldDeadlock: called on the client's own thread.
        """
        self._must_not_block_here()
        until = None if timeout is None else time.monotonic() + timeout
        mailbox = self._listeners.mailbox(_FOR_WAITERS)
        asked, state = None, self.state
        while True:
            if state is not None and state is not asked and predicate(state):
                return state
            asked = state
            letter = mailbox.take(None if until is None else max(0.0, until - time.monotonic()))
            if letter is not None:
                state = self.state if letter.kind == "dropped" else letter.state
            elif mailbox.ended:
                raise self._machine.ended_error()
            else:
                raise Timeout(f"the state did not become so within {timeout} s")

    def _emit(self, kind: str, payload: Any) -> None:
        """The machine tells something: it goes into the listeners' queues."""
        last = kind == "connection" and payload.state == "closed"
        self._listeners.tell(Letter(kind, payload, self._machine.state), last=last)

    # From the callers' threads to the client's.

    def _submit(
        self, kind: str, data: Mapping[str, Any] | None, value: Callable[[Any], T] | None, *, key: str | None = None
    ) -> Future[T]:
        machine = self._machine
        operation: Operation[Any] = Operation(kind, machine.new_id(), data, value or machine.refreshed, key=key)
        if kind == "ping":
            operation.value = lambda data: machine.ponged(data, operation.sent_at or 0.0)
            operation.passes_hold = True
        error = self._runner.post(lambda: machine.submit(operation, self._clock()))
        if error is not None:
            operation.failed(error)()
        return operation.future

    def _done(self, submit: Callable[..., Future[T]], *args: Any, **more: Any) -> T:
        self._must_not_block_here()
        return submit(*args, **more).result()

    def _must_not_block_here(self) -> None:
        if self._runner.is_current():
            raise WouldDeadlock("this is the client's own thread, which must not wait for itself: use client.submit")

    def _url(self) -> str:
        scheme, netloc, path, query = self._base
        return urlunsplit((scheme, netloc, path, urlencode(query | self._machine.query() | self._more_query), ""))


class Events(Iterator[Event]):
    """The iterator of :meth:`RoomClient.events`. Let go of it, or :meth:`close` it, to stop collecting.

    Thread safety: full; each event goes to one reader.
    """

    def __init__(self, mailbox: Mailbox, timeout: float | None, check: Callable[[], None]) -> None:
        self._mailbox = mailbox
        self._timeout = timeout
        self._check = check

    def __next__(self) -> Event:
        self._check()
        letter = self._mailbox.take(self._timeout)
        if letter is None:
            raise StopIteration
        event: Event = letter.payload
        return event

    @property
    def dropped(self) -> int:
        """How many events had no place."""
        return self._mailbox.dropped

    def close(self) -> None:
        """Collect nothing more; what is there can still be read."""
        self._mailbox.end()


def _websocket_url(url: str) -> tuple[str, str, str, dict[str, str]]:
    """Scheme, host and port, path, query. InvalidConfig: it is no such address."""
    try:
        parts = urlsplit(url)
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        known = scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except (ValueError, TypeError, AttributeError):
        known = False
    if not known:
        raise InvalidConfig(f"an address is http://HOST, https://, ws:// or wss:// (got {url!r})")
    path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~") + "/ws"
    return scheme, parts.netloc, path, dict(parse_qsl(parts.query))
