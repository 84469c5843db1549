// What the tests of roomkit.js share: a scripted WebSocket, time that stands still until it is told to move, and for the
// end-to-end tests a record of what a client saw that can be waited on with a deadline, and a network that can fail.
import net from 'node:net';

import { RoomClient } from '../../roomkit/client/roomkit.js';

/** Manual time and chance; `timers` are those still set, so that a test can show that none is left. */
export class FakeSystem {
  time = 0;
  chance = 0.5;
  timers = new Map();
  #lastTimer = 0;

  now = () => this.time;
  date = () => 1_000_000 + this.time;
  random = () => this.chance;
  setTimeout = (fn, ms) => {
    this.timers.set(++this.#lastTimer, { fn, at: this.time + ms });
    return this.#lastTimer;
  };
  clearTimeout = (timer) => this.timers.delete(timer);

  /** Moves time on by `ms`, running what falls due on the way, each at its own moment. */
  advance(ms) {
    const until = this.time + ms;
    for (;;) {
      const [next] = [...this.timers].filter(([, { at }]) => at <= until).sort(([, a], [, b]) => a.at - b.at);
      if (!next) break;
      this.timers.delete(next[0]);
      this.time = Math.max(this.time, next[1].at);
      next[1].fn();
    }
    this.time = until;
  }
}

/** A WebSocket whose other end is the test. Closing it fires nothing: as on a dead network, no close event comes. */
class FakeSocket {
  readyState = 0;
  sent = [];
  closedWith = null;

  constructor(url, sockets) {
    this.url = new URL(url);
    this.query = Object.fromEntries(this.url.searchParams);
    sockets.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close(code) {
    this.closedWith ??= code;
    this.readyState = 3;
  }

  // The test's side.

  tell(message) {
    this.readyState = 1;
    this.onmessage({ data: typeof message === 'string' ? message : JSON.stringify(message) });
  }

  drop(code = 1006, reason = '') {
    this.readyState = 3;
    this.onclose({ code, reason });
  }

  /** The last thing that the client sent of this type. */
  asked(type) {
    return this.sent.findLast((message) => message.type === type);
  }

  ack(type, data = { seq: 0 }) {
    this.tell({ type: 'ack', id: this.asked(type).id, data });
  }
}

export const player = (id, more = {}) => ({
  id, name: id, ready: false, connected: true, joined_at: '2024-03-27T20:00:00.000Z', ...more,
});

export const roomState = (more = {}) => ({
  id: 'room-1', epoch: 'e1', seq: 10, lifecycle: 'game', status: 'preparing', host: 'amy',
  players: [player('amy'), player('bob')], settings: {}, song_id: null, results: null, max_players: 4, min_players: 2,
  locked: false, private: false, has_password: false, metadata: {}, created_at: '2024-03-27T19:59:00.000Z',
  started_at: null, ...more,
});

export function welcome(state = roomState(), more = {}) {
  const data = {
    player_id: 'amy', token: 'secret', epoch: state.epoch, seq: state.seq, recovered: null, state,
    time: new Date(1_000_000).toISOString(), ping_interval: 50, pong_timeout: 60, ...more,
  };
  return { type: 'welcome', data };
}

export const event = (seq, type, data, more = {}) => ({ type, seq, timestamp: '2024-03-27T20:00:01.000Z', data, ...more });
export const chat = (seq, text = `m${seq}`) => event(seq, 'message', { player_id: 'bob', data: { text } });
export const gap = (after, dropped = 1) => ({ type: 'gap', data: { after, dropped, types: { message: dropped } } });

/** A client on a scripted network. `socket` is the newest one; `seen` every event and `changes` every connection change. */
export function scripted(options = {}) {
  const system = new FakeSystem();
  const sockets = [];
  const client = new RoomClient({
    roomId: 'room-1', playerId: 'amy', url: 'http://server.test:8000', pingInterval: 0, _system: system,
    WebSocket: function (url) { return new FakeSocket(url, sockets); },
    ...options,
  });
  const seen = [];
  const changes = [];
  client.on('event', (e) => seen.push(e));
  client.on('connection', (change) => changes.push(change));
  return {
    client, system, sockets, seen, changes,
    get socket() { return sockets.at(-1); },
    get states() { return changes.map((change) => change.state); },
    seqs: () => seen.map((e) => e.seq),
    /** Connects and is welcomed. */
    open(message = welcome()) {
      client.connect();
      sockets.at(-1).tell(message);
      return sockets.at(-1);
    },
  };
}

/** The RoomError with which a promise is rejected; fails when it is not. */
export async function refusal(promise) {
  const value = await promise.then((answer) => ({ answer }), (error) => ({ error }));
  if (!value.error) throw new Error(`expected a rejection, got ${JSON.stringify(value.answer)}`);
  return value.error;
}

/** Fails instead of hanging. The timer is no synchronisation: it only bounds how long a broken test lasts. */
export function within(promise, what, ms = 15_000) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${ms} ms: ${typeof what === 'function' ? what() : what}`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** All that a client tells, in order, and a way to wait until something has been told (before or after the asking). */
export class Record {
  entries = [];
  #waiters = new Set();

  constructor(client) {
    this.client = client;
    client.on('*', (entry) => {
      this.entries.push(entry);
      for (const look of [...this.#waiters]) look();
    });
  }

  /** Room events only: what every member of the room must have seen alike. */
  get events() {
    return this.entries.filter((entry) => Number.isInteger(entry.seq));
  }

  until(test, what = test) {
    const found = new Promise((resolve) => {
      const look = () => {
        const entry = this.entries.find(test);
        if (!entry) return;
        this.#waiters.delete(look);
        resolve(entry);
      };
      this.#waiters.add(look);
      look();
    });
    return within(found, () => `${what}; seen by ${this.client.playerId}: ${this.entries.map((e) => JSON.stringify(e)).join('\n')}`);
  }

  /** Waits until the client's copy of the state passes the test. */
  untilState(test) {
    return this.until(() => this.client.state !== null && test(this.client.state), `state: ${test}`);
  }

  untilConnection(state) {
    return this.until((entry) => entry.type === 'connection' && entry.data.state === state, `connection ${state}`);
  }

}

/** A TCP proxy: the network between client and server, and its failures. */
export class Network {
  #pairs = new Set();
  #up = true;

  static async to(port) {
    const network = new Network();
    network.port = port; // of the server; may be changed: new connections go there
    network.server = net.createServer((near) => network.#connect(near));
    await new Promise((resolve) => network.server.listen(0, '127.0.0.1', resolve));
    network.url = `http://127.0.0.1:${network.server.address().port}`;
    return network;
  }

  #connect(near) {
    near.on('error', () => {});
    if (!this.#up) return near.resetAndDestroy();
    const far = net.connect(this.port, '127.0.0.1');
    const pair = { near, far };
    this.#pairs.add(pair);
    far.on('error', () => near.destroy());
    near.on('close', () => (this.#pairs.delete(pair), far.destroy()));
    far.on('close', () => near.destroy());
    near.pipe(far);
    far.pipe(near);
  }

  /** Every connection is lost, and no new one is possible until `restore`. */
  cut() {
    this.#up = false;
    for (const { near, far } of this.#pairs) {
      near.resetAndDestroy();
      far.resetAndDestroy();
    }
  }

  restore() {
    this.#up = true;
  }

  /** The connections of this moment go dead without a word: nothing passes, nothing is closed. New ones work. */
  freeze() {
    for (const { near, far } of this.#pairs) {
      near.unpipe(far);
      far.unpipe(near);
      near.pause();
      far.pause();
    }
  }

  async close() {
    this.cut();
    await new Promise((resolve) => this.server.close(resolve));
  }
}
