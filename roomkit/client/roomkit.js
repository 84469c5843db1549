/**
 * roomkit's client: one ES module, no build step, no dependency. Browsers, and Node from 20 on (before 22 with
 * `--experimental-websocket`, or with a WebSocket class in the options). The wire is described in docs/protocol.md, the
 * types and options in roomkit.d.ts.
 *
 *                 connect()              welcome                  close(), leave(), a code that says stay away:
 *          idle ────────────▶ connecting ─────────▶ open          from every state ──▶ closed
 *                              ▲  │   ▲              │ │
 *           the delay is over, │  │   └──────────────┘ │          room_transferred, or a state that tells of it, leads
 *           'online',          │  ▼ lost          lost │          from open to connecting, with another room id
 *           or retryNow()      waiting ◀───────────────┘
 *
 * What holds at all times, and what the rest of this file is there to keep:
 *
 * 1. Every event is applied once, in the order of seq. One whose seq is not above the copy's own is ignored, so that a
 *    replay may overlap with live delivery. Between a `gap` and its answer everything else is held back, in order.
 * 2. Nothing is sent twice. An operation whose answer was lost with the connection is rejected, not repeated: the server
 *    may have done it. Only what never left the buffer is sent on the next connection.
 * 3. A socket that has been let go of can no longer do anything: every handler first asks whether it is still
 *    `_socket`. This is why a dead connection can be dropped without waiting for its close event, which on a dead
 *    network takes minutes.
 * 4. Each timer has a name or an operation's id and stands in one map; closing clears the map.
 *
 * Fields with an underscore are private. (Not `#private`: those break when a framework wraps the client in a Proxy.)
 */

const code = (name, comeBack) => Object.freeze({ name, comeBack });

/** The table in docs/protocol.md, compared with it by a test. */
export const CLOSE_CODES = Object.freeze({
  1000: code('normal', false),
  1001: code('going_away', true),
  1002: code('protocol_error', false),
  1003: code('unsupported_data', false),
  1007: code('invalid_payload', false),
  1008: code('policy_violation', false),
  1009: code('too_big', false),
  1011: code('internal_error', true),
  1012: code('service_restart', true),
  4001: code('heartbeat_lost', true),
  4008: code('too_slow', true),
  4013: code('busy', true),
  4500: code('refused', false),
  4501: code('bad_token', false),
  4502: code('bad_password', false),
  4503: code('kicked', false),
  4504: code('room_not_found', false),
  4505: code('room_full', false),
  4506: code('room_locked', false),
  4507: code('invalid_request', false),
  4508: code('unauthorized', false),
  4509: code('replaced', false),
  4510: code('room_closed', false),
  4529: code('over_limit', false),
});

const LOST = 1006; // what a WebSocket reports when no close frame came; also used for what this side gave up

/** Whether a connection closed with this code is to be resumed. */
export function shouldComeBack(number) {
  if (number in CLOSE_CODES) return CLOSE_CODES[number].comeBack;
  return number === 1005 || number === LOST || (number >= 4000 && number < 4500);
}

const closeName = (number) => CLOSE_CODES[number]?.name ?? (shouldComeBack(number) ? 'connection_lost' : 'unknown');

/** The codes after which the token is worth nothing: the seat or the room is gone. */
const SEAT_IS_GONE = new Set([4501, 4503, 4504, 4510]);

/** "... come back in 3.2 s": the seconds that a draining server asks for, so that not all come at once. */
function toldDelay(number, reason) {
  const told = number === 1012 ? /(\d+(?:\.\d+)?)\s*s\b/.exec(reason) : null;
  return told ? Math.min(Number(told[1]), 600) : null; // bounded: setTimeout takes a huge delay for none
}

/** Why an operation or connect() failed: `code` is stable, `maybeDone` says that the server may have done it all the same. */
export class RoomError extends Error {
  constructor(errorCode, message, maybeDone = false) {
    super(message);
    this.name = 'RoomError';
    this.code = errorCode;
    this.maybeDone = maybeDone;
  }
}

// How a copy of the state follows the events: event type -> (state, data, event) -> what changes. A type that is not
// here changes nothing but seq.

const withPlayer = (state, id, change) => ({ players: state.players.map((p) => (p.id === id ? { ...p, ...change } : p)) });
const clearReady = (state, cleared) => (cleared ? { players: state.players.map((p) => ({ ...p, ready: false })) } : {});

function withSettings(state, changes = {}) {
  // fromEntries and spread define keys, where assignment would run the setter of a key named __proto__.
  const entries = Object.entries({ ...state.settings, ...changes }).filter(([, value]) => value !== null);
  const settings = Object.fromEntries(entries);
  return { settings, song_id: settings.song_id ?? null }; // song_id is a view of the setting of that name
}

const ROOM_KEYS = ['locked', 'private', 'metadata'];

const FOLLOW = new Map(Object.entries({
  player_joined: (s, d) => ({ players: [...s.players.filter((p) => p.id !== d.player.id), d.player] }),
  player_left: (s, d) => ({ players: s.players.filter((p) => p.id !== d.player_id) }),
  player_dropped: (s, d) => withPlayer(s, d.player_id, { connected: false }),
  player_resumed: (s, d) => withPlayer(s, d.player_id, { connected: true }),
  player_ready: (s, d) => withPlayer(s, d.player_id, { ready: d.ready }),
  song_selected: (s, d) => ({ ...withSettings(s, { song_id: d.song_id }), ...clearReady(s, d.ready_cleared) }),
  settings_changed: (s, d) => ({ ...withSettings(s, d.settings), ...clearReady(s, d.ready_cleared) }),
  operation_performed: (s, d) => withSettings(s, d.settings),
  room_status: (s, d) => ({ status: d.status, ...clearReady(s, d.ready_cleared) }),
  host_changed: (s, d) => ({ host: d.player_id }),
  game_started: (s, d, event) => ({ started_at: event.timestamp, results: null }),
  game_finished: (s, d) => ({ results: d.results ?? null }),
  room_updated: (s, d) => Object.fromEntries(ROOM_KEYS.filter((key) => key in d).map((key) => [key, d[key]])),
  room_transferred: (s, d) => ({ transferred_to: d.room_id }),
}));

/** Where the group went on, when this state is of a room that has closed behind it; otherwise null. */
const successor = (state) => (state.status === 'closed' ? state.transferred_to ?? null : null);

/** player_ready -> onPlayerReady */
const callbackName = (type) => `on_${type}`.replace(/_+(.?)/g, (_, letter) => letter.toUpperCase());

/** Runs a user's function; what it throws is the page's to report and must not stop the client. */
function call(fn, self, ...args) {
  try {
    fn.apply(self, args);
  } catch (error) {
    if (typeof globalThis.reportError === 'function') globalThis.reportError(error);
    else console.error(error);
  }
}

const noop = () => {};

/** Time and chance, replaced by the tests. Milliseconds; `now` is monotonic, `date` is the wall clock. */
const SYSTEM = {
  now: () => performance.now(),
  date: () => Date.now(),
  random: () => Math.random(),
  setTimeout: (fn, ms) => setTimeout(fn, ms),
  clearTimeout: (timer) => clearTimeout(timer),
};

const DEFAULTS = {
  storage: null, baseDelay: 0.5, maxDelay: 10, maxAttempts: Infinity, maxBuffer: 64, ackTimeout: 15,
  pingInterval: 15, pingTimeout: 10,
};

export class RoomClient {
  /** @throws {TypeError} without roomId or playerId, with a url that is none, or where there is no WebSocket class. */
  constructor(options) {
    const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
    this._options = { WebSocket: globalThis.WebSocket, url: globalThis.location?.origin, ...DEFAULTS, ...given };
    const { roomId, playerId, url, WebSocket } = this._options;
    if (!roomId || !playerId) throw new TypeError('roomId and playerId are needed');
    if (!WebSocket) throw new TypeError('there is no WebSocket here: pass one as options.WebSocket');
    this._base = new URL(url);

    this.roomId = roomId;
    this.playerId = playerId;
    this.connection = 'idle';
    this.state = null;
    this.closed = null;
    this.clockOffset = 0;

    this._system = this._options._system ?? SYSTEM;
    this._window = this._options._window ?? (typeof globalThis.addEventListener === 'function' ? globalThis : null);
    this._listeners = new Map(); //    type -> Set of functions
    this._timers = new Map(); //       name or operation id -> timer
    this._socket = null;
    this._connected = null; //         what connect() promised: { promise, resolve, reject }
    this._attempts = 0; //             attempts begun since the last welcome
    this._epoch = ''; //               of the state that a resume would go on from; '' when there is none
    this._lastId = 0;
    this._buffer = []; //              operations never sent, oldest first
    this._pending = new Map(); //      id -> operation that was sent and is not answered
    this._held = null; //              messages held back until a gap is filled; null: nothing is missing
    this._heardAt = 0;
    this._pingedAt = -Infinity;
    this._online = () => this.retryNow();
    this._offline = () => this._socket && this._drop('the network is gone');
    // A secret of our own making: were the connection lost after the seat was taken and before the welcome told its
    // token, the seat could not be taken again.
    this.token = given.token ?? this._stored((storage, key) => storage.getItem(key)) ?? makeToken();
  }

  /** My own entry in state.players; null while I am not seated. */
  get me() {
    return this.state?.players.find((player) => player.id === this.playerId) ?? null;
  }

  get isHost() {
    return this.state !== null && this.state.host === this.playerId;
  }

  /**
   * Connects, and from then on stays connected. Calling it again gives the same promise.
   * @returns {Promise<object>} the first welcome.
   * @throws {RoomError} code = the close code's name: the server said stay away, or close() or maxAttempts ended it.
   */
  connect() {
    if (this.connection === 'closed') return Promise.reject(this._endedError(this.closed.name));
    if (this.connection === 'idle') {
      const connected = (this._connected = {});
      connected.promise = new Promise((resolve, reject) => Object.assign(connected, { resolve, reject }));
      connected.promise.catch(noop); // who follows 'connection' instead of the promise must not crash Node by it
      this._window?.addEventListener('online', this._online);
      this._window?.addEventListener('offline', this._offline);
      this._attempt();
    }
    return this._connected.promise;
  }

  /** While waiting: makes the next attempt now. It counts like any other. In every other state this does nothing. */
  retryNow() {
    if (this.connection === 'waiting') this._attempt();
  }

  /** Ends this client for good, without giving up the seat (the grace period runs). What is unanswered is rejected. */
  close() {
    this._end(1000, 'closed by this client');
  }

  /**
   * Gives up the seat, then ends; it ends also when that fails (the server then frees the seat after the grace period).
   * @throws {RoomError} timeout, connection_closed (the connection was lost before the answer), buffer_full.
   */
  leave() {
    if (this.connection === 'idle') return Promise.resolve(this.close()); // it never took a seat
    const left = this._operation('leave', undefined, { value: () => this._forget() });
    const ended = left.finally(() => this.close()); // settles after the end, so that `closed` is there to be read
    ended.catch(noop); // the caller may not care; this branch must not be reported as unhandled
    return ended;
  }

  // Operations. Each resolves with the ack's data and rejects with a RoomError: the server's code (nothing was changed),
  // buffer_full, timeout (after ackTimeout seconds in the buffer, or again after being sent), or connection_closed.
  // The last two have maybeDone = true when it had been sent: look at the state before doing it again.

  /** Sets my ready flag. */
  ready(ready = true) {
    return this._operation('ready', { ready });
  }

  /** @param {string} songId 1 to 256 characters. */
  selectSong(songId) {
    return this._operation('select_song', { song_id: songId });
  }

  /** Merges into the shared settings, key by key; null removes a key. */
  updateSettings(settings) {
    return this._operation('update_settings', { settings });
  }

  /** Host only. */
  startGame() {
    return this._operation('start_game');
  }

  /** Host only. @param {object} [results] any JSON object; it becomes state.results. */
  finishGame(results) {
    return this._operation('finish_game', results === undefined ? undefined : { results });
  }

  /** Host only, in `finished`: all go on in a new room. The ack's `room_id` names it; this client moves by itself. */
  rematch() {
    return this._operation('rematch');
  }

  /** Relays `data` to all, me too. With a `key` it replaces an older one of mine that still waits in the room's queue. */
  sendMessage(data, { key } = {}) {
    return this._operation('message', data, { key });
  }

  /** An operation of the room's own lifecycle. */
  perform(operation, data) {
    return this._operation('perform', { operation, data });
  }

  /** Host only. With `ban` the player cannot come back either. */
  kick(playerId, { ban = false } = {}) {
    return this._operation('kick', { player_id: playerId, ban });
  }

  /** Host only. A locked room takes no new player. */
  lock(locked = true) {
    return this._operation('lock', { locked });
  }

  /** Host only. Closes the room for everybody: this client ends too, with 4510. */
  closeRoom(reason) {
    return this._operation('close', reason === undefined ? undefined : { reason });
  }

  /** A fresh copy of the state. It also repairs the local copy, unless it is newer: then those events are on their way. */
  refresh() {
    return this._operation('state', undefined, {
      value: ({ state }) => {
        if (state.epoch === this._epoch && state.seq === this.state.seq) this._takeSnapshot(state);
        return state;
      },
    });
  }

  /** The events after `seq` that the server still has, for showing what was; null when it no longer has them all. */
  eventsAfter(seq) {
    return this._operation('state', { after: seq }, { value: ({ events }) => events ?? null });
  }

  /** Round-trip time, milliseconds. Also sets clockOffset. */
  ping() {
    return this._operation('ping', undefined, { value: (data, op) => this._pong(data, op), passesHold: true });
  }

  /** Calls `fn` for events of `type` (see roomkit.d.ts). @returns {() => void} the function that stops it. */
  on(type, fn) {
    if (!this._listeners.has(type)) this._listeners.set(type, new Set());
    this._listeners.get(type).add(fn);
    return () => this.off(type, fn);
  }

  off(type, fn) {
    this._listeners.get(type)?.delete(fn);
  }

  // The connection.

  _url() {
    const url = new URL(this._base);
    url.protocol = url.protocol.replace('http', 'ws');
    url.pathname = url.pathname.replace(/\/$/, '') + '/ws';
    const { name, password } = this._options;
    const query = { room_id: this.roomId, player_id: this.playerId, name, token: this.token, password };
    if (this._epoch) Object.assign(query, { epoch: this._epoch, seq: String(this.state.seq) });
    for (const [key, value] of Object.entries(query)) if (value != null) url.searchParams.set(key, value);
    return url.href;
  }

  _attempt() {
    this._clear('retry');
    this._attempts += 1;
    let socket;
    try {
      socket = new this._options.WebSocket(this._url());
    } catch (error) {
      return this._end(LOST, String(error)); // the page's own policy forbids it: trying again cannot help
    }
    this._socket = socket;
    const mine = (fn) => (event) => this._socket === socket && fn(event);
    socket.onmessage = mine((event) => this._receive(event.data));
    socket.onclose = mine((event) => this._lost(event.code, event.reason));
    // Browsers fire `close` right after `error`. Node before 22 fires no `close` when the connection cannot be made
    // (nodejs/undici#3546), so that the error alone has to do if nothing follows it.
    socket.onerror = mine(() => this._after('error', 0, () => this._lost(LOST, 'the connection failed')));
    this._after('attempt', this._options.ackTimeout, () => this._drop('no welcome came in time'));
    this._become('connecting', { attempt: this._attempts });
  }

  /** The socket is gone or no longer wanted. Comes back or ends, as the code says. */
  _lost(number, reason) {
    this._letGo(4000, number === 1000);
    if (this.connection === 'closed') return; // a callback did it
    const { maxAttempts, baseDelay, maxDelay } = this._options;
    if (!shouldComeBack(number) || this._attempts >= maxAttempts) return this._end(number, reason);
    // Full jitter: clients that were cut off together do not come back together.
    const jitter = () => this._system.random() * Math.min(maxDelay, baseDelay * 2 ** this._attempts);
    const delay = toldDelay(number, reason) ?? jitter();
    this._after('retry', delay, () => this._attempt());
    this._become('waiting', { code: number, reason, attempt: this._attempts + 1, delay });
  }

  /** Gives up a socket that still believes to be alive. */
  _drop(reason) {
    this._lost(LOST, reason);
  }

  _end(number, reason) {
    if (this.connection === 'closed') return;
    this._letGo(1000);
    for (const name of [...this._timers.keys()]) this._clear(name);
    this._window?.removeEventListener('online', this._online);
    this._window?.removeEventListener('offline', this._offline);
    if (SEAT_IS_GONE.has(number)) this._forget();
    this.connection = 'closed';
    this.closed = { code: number, name: closeName(number), reason };
    for (const op of this._buffer.splice(0)) op.failed(this._endedError('connection_closed'));
    this._connected?.reject(this._endedError(this.closed.name));
    this._become('closed', { code: number, reason });
  }

  _endedError(errorCode) {
    const { name, reason } = this.closed;
    return new RoomError(errorCode, `the client has ended: ${name}${reason && `, ${reason}`}`);
  }

  /** Forgets the socket and all that belongs to it. After this none of its events counts. `left`: it closed with 1000. */
  _letGo(closeWith, left = false) {
    const socket = this._socket;
    const held = this._held ?? [];
    this._socket = null;
    this._held = null;
    for (const name of ['attempt', 'error', 'watch', 'retry']) this._clear(name);
    for (const message of held) if (this._pending.has(message.id)) this._settle(message); // did arrive, behind a gap
    for (const { id, type } of [...this._pending.values()]) {
      const op = this._take(id);
      if (type === 'leave' && left) op.answered({}); // the server closes with 1000 after a leave: as good as the ack
      else op.failed(new RoomError('connection_closed', `the connection ended before ${type} was answered`, true));
    }
    try {
      socket?.close(closeWith);
    } catch {
      // It could not be closed in the state it is in; it is forgotten all the same.
    }
  }

  _welcome(data) {
    this._clear('attempt');
    const { epoch, state } = data;
    // A replay can only be applied to the copy it goes on from. Should the server's word and that copy not fit (another
    // epoch, a seq that went backwards), the snapshot is right and the replay, not above its seq, is ignored.
    const resumed = data.recovered === true && this._epoch === epoch && data.seq >= this.state.seq;
    this._attempts = 0;
    this._epoch = epoch;
    if (!resumed) this.state = state;
    this.token = data.token;
    this._stored((storage, key) => storage.setItem(key, this.token));
    this.clockOffset = Date.parse(data.time) - this._system.date();
    // What was asked for while away is for where the group is; a replay's room_transferred leads there as well.
    const next = successor(state);
    if (next && !resumed) return this._move(next);
    this.connection = 'open';
    if (!next) for (const op of this._buffer.splice(0)) this._send(op); // before any callback: asked first, sent first
    this._watch();
    this._connected.resolve(data);
    this._become('open');
    this._emit('welcome', data);
    if (!resumed) this._emit('state', this.state);
  }

  /** The group goes on in another room, where my seat and token are waiting. `event` told so, or else a snapshot did. */
  _move(roomId, event = null) {
    // The ack of rematch comes after this event, on the connection that is about to be let go of. The event tells as much.
    const rematch = [...this._pending.values()].find((op) => op.type === 'rematch');
    if (rematch) this._take(rematch.id).answered({ seq: this.state.seq, room_id: roomId });
    this._letGo(1000);
    this._forget();
    this.roomId = roomId;
    this._stored((storage, key) => storage.setItem(key, this.token));
    this._epoch = ''; // the old room's state stays in view until the welcome, but nothing resumes from it
    this._attempts = 0;
    this.connection = 'connecting'; // what a callback asks for from now on is for the new room
    if (event) this._deliver(event);
    if (this.connection === 'connecting') this._attempt(); // a callback may have ended it
  }

  /**
   * Notices a network that died without a word: after pingInterval seconds of silence a ping, and without a sign of life
   * for pingTimeout seconds more the socket is dropped. One timer that looks at the times, instead of one that is moved
   * with every message.
   */
  _watch() {
    const interval = this._options.pingInterval * 1000;
    const timeout = this._options.pingTimeout * 1000;
    if (!interval || !timeout) return;
    const now = this._system.now();
    let due = this._heardAt + interval;
    if (this._pingedAt > this._heardAt) {
      due = this._pingedAt + timeout;
      if (now >= due) return this._drop('no answer to a ping');
    } else if (now >= due) {
      this._pingedAt = now;
      due = now + timeout;
      this.ping().catch(noop);
    }
    this._after('watch', (due - now) / 1000, () => this._watch());
  }

  // Operations.

  _operation(type, data, { key, value = (answer) => answer, passesHold = false } = {}) {
    const id = `c${++this._lastId}`;
    const op = { id, type, passesHold, sentAt: null };
    let reject;
    const promise = new Promise((resolve, refuse) => {
      reject = refuse;
      op.answered = (answer) => resolve(value(answer, op));
      op.frame = JSON.stringify({ type, data, id, key }); // now: the caller may go on changing data
    });
    if (op.frame === undefined) return promise; // stringify threw: rejected with what it threw
    op.failed = (error, quiet = true) => {
      // Fire and forget must not crash Node whenever a connection is lost: 'connection' tells of that. What the server
      // refused stays loud, for nothing else tells it.
      if (quiet) promise.catch(noop);
      reject(error);
    };
    if (this.connection === 'closed') {
      op.failed(this._endedError('connection_closed'));
    } else if (this.connection === 'open') {
      this._send(op);
    } else if (this._buffer.length >= this._options.maxBuffer) {
      op.failed(new RoomError('buffer_full', `${this._buffer.length} operations are waiting for a connection`));
    } else {
      this._buffer.push(op);
      this._expire(op);
    }
    return promise;
  }

  _send(op) {
    op.sentAt = this._system.now();
    this._pending.set(op.id, op);
    this._expire(op);
    this._socket.send(op.frame);
  }

  _expire(op) {
    this._after(op.id, this._options.ackTimeout, () => {
      this._pending.delete(op.id);
      this._buffer = this._buffer.filter((other) => other !== op);
      op.failed(new RoomError('timeout', `no answer to ${op.type} in time`, op.sentAt !== null));
    });
  }

  /** Takes an operation out of those that wait for an answer; undefined when it no longer waits. */
  _take(id) {
    const op = this._pending.get(id);
    this._pending.delete(id);
    this._clear(id);
    return op;
  }

  _settle(message) {
    const op = this._take(message.id);
    const { data = {} } = message;
    if (message.type === 'ack') op?.answered(data);
    else if (op) op.failed(new RoomError(data.code, data.message), false);
    else if (message.id == null) this._emit('error', message);
  }

  _pong(data, op) {
    const roundTrip = this._system.now() - op.sentAt;
    this.clockOffset = Date.parse(data.time) + roundTrip / 2 - this._system.date();
    return roundTrip;
  }

  // Messages.

  _receive(text) {
    this._heardAt = this._system.now();
    let message;
    try {
      message = JSON.parse(text);
    } catch (error) {
      return console.error('roomkit: the server sent what is not JSON', error);
    }
    // Answers are held back too, so that an operation's promise never resolves before the state has its effect.
    if (this._held !== null && !this._pending.get(message.id)?.passesHold) this._held.push(message);
    else this._handle(message);
  }

  _handle(message) {
    if (message.type === 'welcome') this._welcome(message.data);
    else if (message.type === 'ack' || message.type === 'error') this._settle(message);
    else if (message.type === 'gap') this._fill(message, []);
    else if (Number.isInteger(message.seq)) this._apply(message);
    // What has no seq and is not known comes from a newer server; it is to be ignored.
  }

  _apply(event) {
    if (event.seq <= this.state.seq) return; // replayed and live, or already in a snapshot
    const change = FOLLOW.get(event.type)?.(this.state, event.data, event);
    this.state = { ...this.state, ...change, seq: event.seq };
    if (event.type === 'room_transferred') return this._move(event.data.room_id, event);
    this._deliver(event);
    if (change) this._emit('state', this.state);
  }

  _takeSnapshot(state) {
    this._epoch = state.epoch;
    this.state = state;
    const next = successor(state);
    if (next) return this._move(next);
    this._emit('state', state);
  }

  /** Events are missing: asks for them; `held` waits for the answer, and so does what comes until then. */
  _fill(gap, held) {
    const socket = this._socket;
    const id = `c${++this._lastId}`;
    this._held = held;
    this._send({
      id,
      type: 'state',
      passesHold: true,
      frame: JSON.stringify({ type: 'state', data: { after: this.state.seq }, id }),
      answered: (answer) => this._filled(answer),
      // No answer, no way on: the next connection's replay fills the gap as well.
      failed: () => this._socket === socket && this._drop('a gap could not be filled'),
    });
    this._emit('gap', gap);
  }

  _filled({ events, state }) {
    const socket = this._socket;
    const queue = [...(events ?? []), ...this._held];
    this._held = null;
    if (!events) this._takeSnapshot(state);
    for (let i = 0; i < queue.length && this._socket === socket; i++) {
      // A gap among what was held may be later than the answer, which cannot be told: asking again is cheap.
      if (queue[i].type === 'gap') return this._fill(queue[i], queue.slice(i + 1));
      this._handle(queue[i]);
    }
  }

  // Telling the page.

  _become(connection, details = {}) {
    this.connection = connection;
    this._emit('connection', { state: connection, ...details });
  }

  _deliver(event) {
    const callback = this[callbackName(event.type)];
    if (typeof callback === 'function') call(callback, this, event.data, event);
    this._emit('event', event, null);
    this._emit(event.type, event, event);
  }

  _emit(type, payload, forAll = { type, data: payload }) {
    for (const fn of [...(this._listeners.get(type) ?? [])]) call(fn, undefined, payload);
    if (forAll) for (const fn of [...(this._listeners.get('*') ?? [])]) call(fn, undefined, forAll);
  }

  // Small tools.

  _after(name, seconds, fn) {
    this._clear(name);
    const timer = this._system.setTimeout(() => {
      this._timers.delete(name);
      fn();
    }, seconds * 1000);
    this._timers.set(name, timer);
  }

  _clear(name) {
    this._system.clearTimeout(this._timers.get(name));
    this._timers.delete(name);
  }

  /** Storage may be full or forbidden; then the token lives as long as the page. */
  _stored(use) {
    const { storage } = this._options;
    try {
      return storage ? use(storage, `roomkit:${this.roomId}:${this.playerId}`) : null;
    } catch {
      return null;
    }
  }

  _forget() {
    this._stored((storage, key) => storage.removeItem(key));
  }
}

/** A seat's secret: 128 random bits, URL-safe. */
function makeToken() {
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
