// roomkit.js against a scripted WebSocket and manual time: no network, no waiting.
//   node --test tests/client/roomkit.test.mjs
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test, describe, mock } from 'node:test';

import { CLOSE_CODES, RoomClient, RoomError, shouldComeBack } from '../../roomkit/client/roomkit.js';
import { chat, event, gap, player, refusal, roomState, scripted, welcome } from './support.mjs';

describe('close codes', () => {
  test('the table is the one in docs/protocol.md', () => {
    const page = readFileSync(new URL('../../docs/protocol.md', import.meta.url), 'utf8');
    const section = page.split('## Close codes')[1].split('\n## ')[0];
    const rows = [...section.matchAll(/^\| (\d{4}) \| (\w+) \| (yes|no) \|/gm)];
    assert.ok(rows.length > 20, 'the table was found');
    const documented = Object.fromEntries(rows.map(([, code, name, comeBack]) => [code, { name, comeBack: comeBack === 'yes' }]));
    assert.deepEqual({ ...CLOSE_CODES }, documented);
  });

  test('the ranges hold, for known codes and unknown ones', () => {
    for (const code of Object.keys(CLOSE_CODES).map(Number).filter((n) => n >= 4000)) {
      assert.equal(shouldComeBack(code), code < 4500, String(code));
    }
    for (const code of [1005, 1006, 4000, 4444, 4499]) assert.equal(shouldComeBack(code), true, String(code));
    for (const code of [1000, 1010, 3000, 4500, 4555, 4999]) assert.equal(shouldComeBack(code), false, String(code));
  });
});

describe('connecting', () => {
  test('the address carries who, and on http becomes ws; a path prefix stays', () => {
    const { client, socket } = ((t) => (t.client.connect(), t))(
      scripted({ url: 'https://games.test/rooms/', name: 'Amy É', token: 'old', password: 'p&q' }));
    assert.equal(socket.url.origin + socket.url.pathname, 'wss://games.test/rooms/ws');
    assert.deepEqual(socket.query, { room_id: 'room-1', player_id: 'amy', name: 'Amy É', token: 'old', password: 'p&q' });
    client.close();
  });

  test('without a token it makes a secret of its own, the same in every attempt', () => {
    const t = scripted();
    t.client.connect();
    const { token } = t.socket.query;
    assert.match(token, /^[0-9a-f]{32}$/);
    assert.notEqual(scripted().client.token, token);
    t.socket.drop(1006); // before the welcome: the seat may be taken already
    t.client.retryNow();
    assert.equal(t.socket.query.token, token);
    t.client.close();
  });

  test('connect() resolves with the first welcome and is the same promise when called twice', async () => {
    const t = scripted();
    const first = t.client.connect();
    assert.equal(t.client.connect(), first);
    assert.equal(t.sockets.length, 1);
    t.socket.tell(welcome());
    assert.equal((await first).token, 'secret');
    assert.equal(await t.client.connect(), await first);
    assert.equal(t.sockets.length, 1);
    assert.deepEqual(t.states, ['connecting', 'open']);
    assert.equal(t.client.me.id, 'amy');
    assert.equal(t.client.isHost, true);
    t.client.close();
  });

  test('a code that says stay away rejects connect() with its name, and ends', async () => {
    const t = scripted();
    const connected = t.client.connect();
    t.socket.drop(4505, 'room room-1 is full');
    const error = await refusal(connected);
    assert.ok(error instanceof RoomError);
    assert.equal(error.code, 'room_full');
    assert.deepEqual(t.client.closed, { code: 4505, name: 'room_full', reason: 'room room-1 is full' });
    assert.equal((await refusal(t.client.connect())).code, 'room_full');
    assert.equal(t.system.timers.size, 0);
  });

  test('close() while connecting rejects connect(), closes the socket and leaves no timer', async () => {
    const t = scripted();
    const connected = t.client.connect();
    const waiting = t.client.ready();
    t.client.close();
    assert.equal((await refusal(connected)).code, 'normal');
    assert.equal((await refusal(waiting)).code, 'connection_closed');
    assert.equal(t.socket.closedWith, 1000);
    assert.equal(t.system.timers.size, 0);
    t.socket.tell(welcome()); // too late: it changes nothing
    assert.equal(t.client.connection, 'closed');
    assert.equal(t.client.state, null);
    t.client.close();
    assert.deepEqual(t.states, ['connecting', 'closed']);
  });

  test('an attempt that brings no welcome is given up after ackTimeout', () => {
    const t = scripted({ ackTimeout: 4 });
    t.client.connect();
    t.system.advance(3999);
    assert.equal(t.client.connection, 'connecting');
    t.system.advance(1);
    assert.equal(t.client.connection, 'waiting');
    assert.notEqual(t.socket.closedWith, null);
    t.client.close();
  });

  test('an error that no close event follows counts as a lost connection (Node 20)', () => {
    const t = scripted();
    t.client.connect();
    t.socket.onerror({});
    t.system.advance(0);
    assert.equal(t.client.connection, 'waiting');
    t.client.close();
  });

  test('a WebSocket class that throws ends the client', async () => {
    const t = scripted({ WebSocket: function () { throw new Error('insecure'); } });
    assert.match((await refusal(t.client.connect())).message, /insecure/);
    assert.equal(t.client.connection, 'closed');
  });

  test('what cannot work is refused by the constructor', () => {
    const good = { roomId: 'r', playerId: 'p', url: 'http://h', WebSocket: class {} };
    for (const bad of [{ roomId: '' }, { playerId: '' }, { url: 'nonsense' }, { WebSocket: null }]) {
      assert.throws(() => new RoomClient({ ...good, ...bad }), TypeError);
    }
  });
});

describe('coming back', () => {
  test('delays are within full jitter of an exponential back-off with a ceiling', () => {
    for (const chance of [0, 0.37, 0.999]) {
      const t = scripted({ baseDelay: 0.5, maxDelay: 10 });
      t.system.chance = chance;
      t.open();
      const delays = [];
      for (let n = 0; n < 2000; n++) {
        t.socket.drop();
        delays.push(t.changes.at(-1).delay);
        t.system.advance(delays.at(-1) * 1000);
        assert.equal(t.client.connection, 'connecting', `attempt ${n} starts when its delay is over`);
      }
      const ceilings = delays.map((_, n) => Math.min(10, 0.5 * 2 ** n));
      assert.deepEqual(delays, ceilings.map((ceiling) => chance * ceiling));
      t.client.close();
    }
  });

  test('a welcome starts the back-off anew', () => {
    const t = scripted();
    t.open();
    for (const _ of [1, 2, 3]) (t.socket.drop(), t.system.advance(10_000));
    t.socket.tell(welcome(roomState(), { recovered: true }));
    t.socket.drop();
    assert.deepEqual([t.changes.at(-1).delay, t.changes.at(-1).attempt], [0.25, 1]);
    t.client.close();
  });

  test('maxAttempts in a row end it', async () => {
    const t = scripted({ maxAttempts: 3 });
    const connected = t.client.connect();
    for (const _ of [1, 2, 3]) (t.socket.drop(), t.system.advance(10_000));
    assert.equal(t.sockets.length, 3);
    assert.equal((await refusal(connected)).code, 'connection_lost');
    assert.deepEqual(t.client.closed, { code: 1006, name: 'connection_lost', reason: '' });
  });

  test('on 1012 the server says when to come back', () => {
    const t = scripted();
    t.open();
    t.socket.drop(1012, 'worker 7 restarts, come back in 3.2 s');
    assert.equal(t.changes.at(-1).delay, 3.2);
    t.system.advance(3199);
    assert.equal(t.sockets.length, 1);
    t.system.advance(1);
    assert.equal(t.sockets.length, 2);
    t.socket.drop(1012, 'no number here');
    assert.ok(t.changes.at(-1).delay <= 1);
    t.system.advance(1000);
    t.socket.drop(1012, 'come back in 99999999999 s');
    assert.equal(t.changes.at(-1).delay, 600, 'more than a timer can hold is bounded');
    t.client.close();
    assert.equal(t.system.timers.size, 0);
  });

  test('it resumes with token, epoch and the last seq that it applied', () => {
    const t = scripted();
    t.open().tell(chat(11));
    t.socket.drop();
    t.system.advance(1000);
    const { token, epoch, seq } = t.socket.query;
    assert.deepEqual({ token, epoch, seq }, { token: 'secret', epoch: 'e1', seq: '11' });
    t.client.close();
  });

  test('recovered: the missed events are applied to the own copy, once, and overlap is ignored', () => {
    const t = scripted();
    const snapshots = [];
    t.open().tell(chat(11));
    t.client.on('state', (state) => snapshots.push(state));
    t.socket.drop();
    t.system.advance(1000);
    t.socket.tell(welcome(roomState({ seq: 13 }), { recovered: true }));
    assert.equal(t.client.state.seq, 11, 'the copy is what the replay goes on from');
    t.socket.tell(event(12, 'player_ready', { player_id: 'bob', ready: true }));
    t.socket.tell(chat(13));
    t.socket.tell(event(12, 'player_ready', { player_id: 'bob', ready: false }));
    t.socket.tell(chat(13));
    t.socket.tell(chat(14));
    assert.deepEqual(t.seqs(), [11, 12, 13, 14]);
    assert.equal(t.client.state.players[1].ready, true);
    assert.equal(snapshots.length, 1, "only bob's ready flag changed the state");
    t.client.close();
  });

  for (const [what, message, more] of [
    ['recovered is false', roomState({ seq: 20, status: 'playing' }), { recovered: false }],
    ['the seat is new', roomState({ seq: 20, status: 'playing' }), { recovered: null }],
    ['the epoch is another', roomState({ seq: 20, epoch: 'e2', status: 'playing' }), { recovered: true }],
    ['seq went backwards', roomState({ seq: 3, status: 'playing' }), { recovered: true }],
  ]) {
    test(`${what}: the snapshot is taken, 'state' is fired, and older events are ignored`, () => {
      const t = scripted();
      t.open().tell(chat(11));
      const snapshots = [];
      t.client.on('state', (state) => snapshots.push(state));
      t.socket.drop();
      t.system.advance(1000);
      t.socket.tell(welcome(message, more));
      assert.deepEqual(t.client.state, message);
      assert.deepEqual(snapshots, [message]);
      t.socket.tell(chat(message.seq));
      t.socket.tell(chat(message.seq + 1));
      assert.deepEqual(t.seqs(), [11, message.seq + 1]);
      t.client.close();
    });
  }

  test('replaced by a newer connection: it ends, rejects what is unanswered, and keeps the stored token', async () => {
    const storage = new MapStorage();
    const t = scripted({ storage });
    t.open();
    const unanswered = t.client.ready();
    t.socket.drop(4509, 'replaced');
    const error = await refusal(unanswered);
    assert.equal(error.code, 'connection_closed');
    assert.equal(error.maybeDone, true);
    assert.equal(t.client.closed.name, 'replaced');
    assert.equal((await refusal(t.client.ready())).code, 'connection_closed');
    assert.equal(storage.getItem('roomkit:room-1:amy'), 'secret');
    assert.equal(t.system.timers.size, 0);
  });

  test("window 'online' retries at once, 'offline' drops the dead socket at once", () => {
    const page = new EventTarget();
    const t = scripted({ _window: page });
    t.open();
    page.dispatchEvent(new Event('offline'));
    assert.equal(t.client.connection, 'waiting');
    assert.notEqual(t.sockets[0].closedWith, null);
    page.dispatchEvent(new Event('online'));
    assert.equal(t.client.connection, 'connecting');
    page.dispatchEvent(new Event('online'));
    t.system.advance(9000);
    assert.equal(t.sockets.length, 2, 'one attempt at a time');
    t.sockets[0].onclose({ code: 4510, reason: 'long after' });
    assert.equal(t.client.connection, 'connecting', 'the old socket has no say');
    t.client.close();
    page.dispatchEvent(new Event('online'));
    assert.equal(t.sockets.length, 2);
  });

  test('retryNow() makes a waiting client try at once; in every other state it does nothing', () => {
    const t = scripted();
    t.client.retryNow();
    assert.equal(t.sockets.length, 0, 'idle: connect() begins');
    t.client.connect();
    t.client.retryNow();
    assert.equal(t.sockets.length, 1, 'an attempt is under way');
    t.socket.tell(welcome());
    t.client.retryNow();
    assert.equal(t.sockets.length, 1, 'open');
    t.socket.drop(1012, 'come back in 60 s');
    t.client.retryNow();
    assert.deepEqual([t.sockets.length, t.client.connection], [2, 'connecting'], 'even when a server asked for patience');
    t.socket.drop();
    assert.equal(t.changes.at(-1).attempt, 2, 'it counted as the first attempt');
    t.client.retryNow();
    t.socket.tell(welcome(roomState(), { recovered: true }));
    t.system.advance(120_000);
    assert.equal(t.sockets.length, 3, 'no timer of the skipped waits is left');
    t.client.close();
    t.client.retryNow();
    assert.deepEqual([t.sockets.length, t.client.connection, t.system.timers.size], [3, 'closed', 0]);
  });

  test('a silent network is noticed by ping, and any message counts as a sign of life', () => {
    const t = scripted({ pingInterval: 15, pingTimeout: 10 });
    t.open();
    t.system.advance(10_000);
    t.socket.tell(chat(11));
    t.system.advance(14_999);
    assert.equal(t.socket.asked('ping'), undefined);
    t.system.advance(1);
    assert.ok(t.socket.asked('ping'));
    t.system.advance(9_000);
    t.socket.tell(chat(12));
    t.system.advance(2_000);
    assert.equal(t.client.connection, 'open');
    t.system.advance(30_000);
    assert.notEqual(t.states.indexOf('waiting'), -1);
    assert.equal(t.changes.find((change) => change.state === 'waiting').reason, 'no answer to a ping');
    t.client.close();
    assert.equal(t.system.timers.size, 0);
  });
});

describe('the copy of the state', () => {
  test('every event type of the page is followed, by a new object each time', () => {
    const cases = JSON.parse(readFileSync(new URL('follow.json', import.meta.url), 'utf8')); // the Python client's too
    const t = scripted();
    t.open(welcome(cases.state));
    let expected = cases.state;
    for (const { event: message, changes } of cases.steps) {
      const before = t.client.state;
      const frozen = JSON.stringify(before);
      t.socket.tell(message);
      assert.notEqual(t.client.state, before, message.type);
      assert.equal(JSON.stringify(before), frozen, `${message.type} must not change the old object`);
      expected = { ...expected, ...changes, seq: message.seq };
      assert.deepEqual(t.client.state, expected, message.type);
    }
    assert.equal(t.client.me, null);
    t.client.close();
  });

  test('a hole in seq is no gap: a conflated event leaves one', () => {
    const t = scripted();
    t.open().tell({ ...chat(14), conflated: 3 });
    t.socket.tell(chat(15));
    assert.deepEqual(t.seqs(), [14, 15]);
    assert.equal(t.socket.sent.length, 0);
    t.client.close();
  });

  test('settings cannot reach the prototype', () => {
    const t = scripted();
    t.open().tell('{"type":"settings_changed","seq":11,"data":{"settings":{"__proto__":{"polluted":1}},"ready_cleared":false}}');
    assert.equal({}.polluted, undefined);
    assert.equal(Object.getPrototypeOf(t.client.state.settings), Object.prototype);
    t.client.close();
  });

  test('refresh() gives the server state and repairs the copy, unless events are still on their way', async () => {
    const t = scripted();
    t.open();
    const same = t.client.refresh();
    t.socket.ack('state', { state: roomState({ status: 'playing' }) });
    assert.equal((await same).status, 'playing');
    assert.equal(t.client.state.status, 'playing');
    const newer = t.client.refresh();
    t.socket.ack('state', { state: roomState({ seq: 12, status: 'finished' }) });
    assert.equal((await newer).status, 'finished');
    assert.equal(t.client.state.seq, 10);
    t.socket.tell(chat(11));
    assert.deepEqual(t.seqs(), [11], 'an event below the newer seq is not lost');
    t.client.close();
  });

  test('clockOffset is the server clock minus the local one, from the welcome and from a ping', async () => {
    const t = scripted();
    t.open(welcome(roomState(), { time: new Date(1_005_000).toISOString() }));
    assert.equal(t.client.clockOffset, 5000);
    const ping = t.client.ping();
    t.system.advance(80);
    t.socket.ack('ping', { time: new Date(1_007_040).toISOString() });
    assert.equal(await ping, 80);
    assert.equal(t.client.clockOffset, 7000, 'half of the round trip is taken off');
    t.client.close();
  });
});

describe('gaps', () => {
  test('what comes meanwhile waits for the missing events, which come first; overlap counts once', () => {
    const t = scripted();
    const gaps = [];
    t.client.on('gap', (notice) => gaps.push(notice.data.dropped));
    t.open();
    t.socket.tell(chat(11));
    t.socket.tell(gap(11, 2));
    assert.deepEqual(t.socket.asked('state').data, { after: 11 });
    t.socket.tell(chat(14));
    t.socket.tell(chat(15));
    assert.deepEqual(t.seqs(), [11], 'live events are held');
    t.socket.ack('state', { events: [chat(12), event(13, 'player_ready', { player_id: 'bob', ready: true }), chat(14)] });
    assert.deepEqual(t.seqs(), [11, 12, 13, 14, 15]);
    t.socket.tell(chat(16));
    assert.deepEqual(t.seqs(), [11, 12, 13, 14, 15, 16]);
    assert.deepEqual(gaps, [2]);
    assert.equal(t.client.state.players[1].ready, true);
    t.client.close();
  });

  test('when the history does not have them the snapshot is taken, and held events above it follow', () => {
    const t = scripted();
    const snapshots = [];
    t.open().tell(gap(10, 300));
    t.client.on('state', (state) => snapshots.push(state.seq));
    for (const seq of [311, 312, 313]) t.socket.tell(chat(seq));
    t.socket.ack('state', { state: roomState({ seq: 312, status: 'playing' }) });
    assert.deepEqual(t.seqs(), [313]);
    assert.deepEqual(snapshots, [312]);
    assert.equal(t.client.state.status, 'playing');
    t.client.close();
  });

  test('a second gap while the first is being filled is filled too, in order', () => {
    const t = scripted();
    t.open().tell(gap(10));
    t.socket.tell(chat(12));
    t.socket.tell(gap(12));
    t.socket.tell(chat(14));
    assert.equal(t.socket.sent.length, 1);
    t.socket.ack('state', { events: [chat(11), chat(12)] });
    assert.deepEqual(t.seqs(), [11, 12]);
    assert.deepEqual(t.socket.asked('state').data, { after: 12 });
    t.socket.tell(chat(15));
    t.socket.ack('state', { events: [chat(13), chat(14)] });
    assert.deepEqual(t.seqs(), [11, 12, 13, 14, 15]);
    t.client.close();
  });

  test("an operation's answer waits behind the gap, so that its promise finds its effect in the state", async () => {
    const t = scripted();
    t.open();
    let answered = false;
    const done = t.client.ready().then(() => (answered = true));
    t.socket.tell(gap(10));
    t.socket.ack('ready', { seq: 11 });
    await Promise.resolve();
    assert.equal(answered, false);
    t.socket.ack('state', { events: [event(11, 'player_ready', { player_id: 'amy', ready: true })] });
    await done;
    assert.equal(t.client.me.ready, true);
    t.client.close();
  });

  test('a ping is answered in spite of a gap', async () => {
    const t = scripted();
    t.open().tell(gap(10));
    const ping = t.client.ping();
    t.socket.ack('ping', { time: new Date(1_000_000).toISOString() });
    assert.equal(await ping, 0);
    t.client.close();
  });

  for (const [what, happen] of [
    ['is refused', (t) => t.socket.tell({ type: 'error', id: t.socket.asked('state').id, data: { code: 'limit_exceeded', message: '' } })],
    ['gets no answer', (t) => t.system.advance(15_000)],
    ['is cut off', (t) => t.socket.drop()],
  ]) {
    test(`when the question ${what}, a new connection resumes from the last applied event`, async () => {
      const t = scripted();
      t.open();
      const held = t.client.ready();
      t.socket.tell(gap(10));
      t.socket.tell(chat(12));
      t.socket.ack('ready', { seq: 12 });
      happen(t);
      assert.equal(t.client.connection, 'waiting');
      assert.deepEqual(await held.catch((error) => error.code), what === 'gets no answer' ? 'timeout' : { seq: 12 });
      t.system.advance(500);
      assert.equal(t.socket.query.seq, '10');
      t.socket.tell(welcome(roomState({ seq: 12 }), { recovered: true }));
      t.socket.tell(chat(11));
      t.socket.tell(chat(12));
      assert.deepEqual(t.seqs(), [11, 12]);
      t.client.close();
    });
  }

  test('close() from a callback while a lost connection is being cleared away stays the end', () => {
    const t = scripted();
    t.open();
    t.client.refresh();
    const id = t.socket.asked('state').id;
    t.socket.tell(gap(10));
    t.socket.tell({ type: 'ack', id, data: { state: roomState() } }); // held; taken when the connection is lost
    t.client.on('state', () => t.client.close());
    t.socket.drop();
    assert.deepEqual(t.states, ['connecting', 'open', 'closed']);
    assert.equal(t.system.timers.size, 0);
  });

  test('close() from a callback in the middle of a fill stops it', () => {
    const t = scripted();
    t.open().tell(gap(10));
    t.client.onMessage = () => t.client.close();
    t.socket.ack('state', { events: [chat(11), chat(12)] });
    assert.deepEqual(t.seqs(), [11]);
    assert.equal(t.system.timers.size, 0);
  });
});

describe('operations', () => {
  test('each is the message of the page', () => {
    const t = scripted();
    t.open();
    const c = t.client;
    const calls = [
      [c.ready(), 'ready', { ready: true }], [c.ready(false), 'ready', { ready: false }],
      [c.selectSong('s1'), 'select_song', { song_id: 's1' }],
      [c.updateSettings({ speed: 2 }), 'update_settings', { settings: { speed: 2 } }],
      [c.startGame(), 'start_game', undefined], [c.finishGame(), 'finish_game', undefined],
      [c.finishGame({ amy: 1 }), 'finish_game', { results: { amy: 1 } }], [c.rematch(), 'rematch', undefined],
      [c.sendMessage({ text: 'hi' }), 'message', { text: 'hi' }],
      [c.perform('bid', { price: 5 }), 'perform', { operation: 'bid', data: { price: 5 } }],
      [c.kick('bob'), 'kick', { player_id: 'bob', ban: false }],
      [c.kick('bob', { ban: true }), 'kick', { player_id: 'bob', ban: true }],
      [c.lock(), 'lock', { locked: true }], [c.lock(false), 'lock', { locked: false }],
      [c.closeRoom(), 'close', undefined], [c.closeRoom('over'), 'close', { reason: 'over' }],
      [c.refresh(), 'state', undefined], [c.ping(), 'ping', undefined],
    ];
    assert.deepEqual(t.socket.sent.map(({ type, data }) => [type, data]), calls.map(([, type, data]) => [type, data]));
    assert.equal(new Set(t.socket.sent.map(({ id }) => id)).size, calls.length, 'no id twice');
    c.sendMessage({ x: 1 }, { key: 'pos' });
    assert.deepEqual(t.socket.sent.at(-1), { type: 'message', data: { x: 1 }, key: 'pos', id: `c${calls.length + 1}` });
    c.close();
  });

  test('an ack resolves, an error rejects with its code, each the right one', async () => {
    const t = scripted();
    t.open();
    const [a, b] = [t.client.ready(), t.client.startGame()];
    t.socket.tell({ type: 'error', id: t.socket.asked('start_game').id, data: { code: 'not_host', message: 'only the host' } });
    t.socket.ack('ready', { seq: 11 });
    assert.deepEqual(await a, { seq: 11 });
    const error = await refusal(b);
    assert.deepEqual([error.name, error.code, error.message, error.maybeDone], ['RoomError', 'not_host', 'only the host', false]);
    assert.equal(t.system.timers.size, 0, 'no timeout is left behind');
    t.client.close();
  });

  test('an error without an id is an event; an answer nobody waits for is nothing', () => {
    const t = scripted();
    const errors = [];
    t.client.on('error', (message) => errors.push(message.data.code));
    t.open().tell({ type: 'error', data: { code: 'invalid_message', message: '' } });
    t.socket.tell({ type: 'error', id: 'c99', data: { code: 'not_host', message: '' } });
    t.socket.tell({ type: 'ack', id: 'c99', data: {} });
    assert.deepEqual(errors, ['invalid_message']);
    t.client.close();
  });

  test('an unanswered one is rejected after ackTimeout, and a late answer is nothing', async () => {
    const t = scripted({ ackTimeout: 5 });
    t.open();
    const late = t.client.ready();
    t.system.advance(5000);
    const error = await refusal(late);
    assert.deepEqual([error.code, error.maybeDone], ['timeout', true]);
    t.socket.ack('ready');
    assert.equal(t.client.connection, 'open');
    t.client.close();
  });

  test('called while not connected they are sent after the welcome, in order and before what its callbacks ask', async () => {
    const t = scripted();
    const early = t.client.ready();
    t.client.connect();
    t.client.selectSong('s1');
    t.client.on('welcome', () => t.client.sendMessage({ text: 'hello' }));
    assert.equal(t.socket.sent.length, 0);
    t.socket.tell(welcome());
    assert.deepEqual(t.socket.sent.map((m) => m.type), ['ready', 'select_song', 'message']);
    t.socket.ack('ready', { seq: 11 });
    assert.deepEqual(await early, { seq: 11 });
    t.client.close();
  });

  test('the buffer has a bound; what is over it is rejected and never sent', async () => {
    const t = scripted({ maxBuffer: 3 });
    t.open();
    t.socket.drop();
    const calls = [1, 2, 3, 4].map((n) => t.client.sendMessage({ n }));
    const error = await refusal(calls[3]);
    assert.deepEqual([error.code, error.maybeDone], ['buffer_full', false]);
    t.system.advance(500);
    t.socket.tell(welcome(roomState(), { recovered: true }));
    assert.deepEqual(t.socket.sent.map((m) => m.data.n), [1, 2, 3]);
    t.client.close();
  });

  test('one that waits too long in the buffer is rejected and never sent', async () => {
    const t = scripted({ ackTimeout: 5, baseDelay: 100, maxDelay: 100 });
    t.open();
    t.socket.drop();
    const stale = t.client.ready();
    t.system.advance(5000);
    assert.deepEqual([(await refusal(stale)).code, (await refusal(stale)).maybeDone], ['timeout', false]);
    t.system.advance(45_000);
    t.socket.tell(welcome(roomState(), { recovered: true }));
    assert.equal(t.socket.sent.length, 0);
    t.client.close();
  });

  test('one whose answer was lost is rejected as connection_closed and not sent again', async () => {
    const t = scripted();
    t.open();
    const lost = t.client.sendMessage({ text: 'once' });
    t.socket.drop();
    const error = await refusal(lost);
    assert.deepEqual([error.code, error.maybeDone], ['connection_closed', true]);
    t.system.advance(500);
    t.socket.tell(welcome(roomState(), { recovered: true }));
    assert.deepEqual(t.socket.sent, []);
    t.client.close();
  });

  test('data is taken as it is at the call', () => {
    const t = scripted();
    const data = { text: 'before' };
    t.client.sendMessage(data);
    data.text = 'after';
    assert.equal(t.open().sent[0].data.text, 'before');
    t.client.close();
  });

  test('data without a JSON form is rejected and nothing is sent', async () => {
    const t = scripted();
    t.open();
    const loop = {};
    loop.loop = loop;
    assert.ok(await refusal(t.client.sendMessage(loop)) instanceof TypeError);
    assert.deepEqual([t.socket.sent, t.system.timers.size], [[], 0]);
    t.client.close();
  });

  test('leave() gives up the seat, forgets the token and ends; the 1000 that follows is as good as the ack', async () => {
    for (const end of [(t) => t.socket.ack('leave'), (t) => t.socket.drop(1000, 'left')]) {
      const storage = new MapStorage();
      const t = scripted({ storage });
      t.open();
      const left = t.client.leave();
      end(t);
      assert.equal(await left, undefined);
      await Promise.resolve();
      assert.equal(t.client.closed.name, 'normal');
      assert.equal(storage.size, 0);
      assert.equal(t.system.timers.size, 0);
    }
  });

  test('leave() ends the client even when the connection is lost: it must not take the seat again', async () => {
    const t = scripted();
    t.open();
    const left = t.client.leave();
    t.socket.drop();
    assert.equal((await refusal(left)).code, 'connection_closed');
    await Promise.resolve();
    assert.equal(t.client.connection, 'closed');
    assert.equal(t.system.timers.size, 0);
  });
});

describe('moving to another room', () => {
  const transferred = event(11, 'room_transferred', { room_id: 'room-2' });

  test('it connects there with the same id and token, an empty epoch, and takes the new snapshot', async () => {
    const storage = new MapStorage();
    const t = scripted({ storage });
    t.open();
    const rematch = t.client.rematch();
    const other = t.client.sendMessage({ text: 'in flight' });
    let during;
    t.client.onRoomTransferred = (data) => {
      during = [data.room_id, t.client.roomId, t.client.connection];
      t.client.ready();
    };
    t.socket.tell(transferred);
    assert.deepEqual(during, ['room-2', 'room-2', 'connecting']);
    assert.deepEqual(await rematch, { seq: 11, room_id: 'room-2' }, 'its ack comes after the event');
    assert.equal((await refusal(other)).code, 'connection_closed');
    assert.equal(t.sockets.length, 2);
    assert.deepEqual(t.socket.query, { room_id: 'room-2', player_id: 'amy', token: 'secret' });
    assert.equal(t.sockets[0].closedWith, 1000);
    t.sockets[0].drop(4510, 'the old room closes');
    assert.equal(t.client.connection, 'connecting');

    const fresh = roomState({ id: 'room-2', epoch: 'e9', seq: 2 });
    t.socket.tell(welcome(fresh));
    assert.deepEqual(t.client.state, fresh);
    assert.deepEqual(t.socket.sent.map((m) => m.type), ['ready'], 'what the callback asked for goes to the new room');
    t.socket.tell(chat(3));
    assert.deepEqual(t.seqs(), [11, 3]);
    assert.deepEqual(t.states, ['connecting', 'open', 'connecting', 'open']);
    assert.deepEqual([...storage.keys()], ['roomkit:room-2:amy']);
    t.client.close();
    assert.equal(t.system.timers.size, 0);
  });

  test('also when it happened while this client was away', () => {
    const t = scripted();
    t.open();
    t.socket.drop();
    t.system.advance(500);
    t.socket.tell(welcome(roomState({ seq: 11 }), { recovered: true }));
    t.socket.tell(transferred);
    assert.equal(t.socket.query.room_id, 'room-2');
    assert.equal(t.socket.query.epoch, undefined);
    t.client.close();
  });

  test('also out of a gap; the rest of the old room is dropped', () => {
    const t = scripted();
    t.open().tell(gap(10));
    t.socket.tell(event(12, 'room_closed', { reason: '' }));
    t.socket.ack('state', { events: [transferred] });
    assert.equal(t.socket.query.room_id, 'room-2');
    assert.deepEqual(t.seqs(), [11]);
    t.client.close();
  });

  const gone = roomState({ seq: 40, status: 'closed', transferred_to: 'room-2' });

  for (const recovered of [false, null]) {
    test(`also when only the snapshot tells (recovered: ${recovered}); what was asked meanwhile is asked there`, async () => {
      const storage = new MapStorage();
      const t = scripted({ storage });
      if (recovered === null) t.client.connect(); // a page that was loaded anew
      else t.open().drop();
      const asked = t.client.sendMessage({ text: 'on my way' });
      t.system.advance(1000);
      t.socket.tell(welcome(gone, { recovered, token: 'newer' }));
      assert.deepEqual(t.socket.query, { room_id: 'room-2', player_id: 'amy', token: 'newer' });
      assert.equal(t.client.roomId, 'room-2');
      assert.equal(t.client.connection, 'connecting');
      t.sockets.at(-2).onclose({ code: 4510, reason: 'of the room that it has left' });
      assert.deepEqual(t.sockets.at(-2).sent, []);
      t.socket.tell(welcome(roomState({ id: 'room-2', epoch: 'e9', seq: 2 }), { token: 'newer' }));
      t.socket.ack('message', { seq: 3 });
      assert.deepEqual(await asked, { seq: 3 });
      assert.equal((await t.client.connect()).state.id, recovered === null ? 'room-2' : 'room-1', 'the first room it was open in');
      assert.deepEqual([t.client.state.id, t.seqs()], ['room-2', []]);
      assert.deepEqual([...storage], [['roomkit:room-2:amy', 'newer']]);
      t.client.close();
      assert.equal(t.system.timers.size, 0);
    });
  }

  test('what was asked while away is kept for the new room also when the replay leads there', () => {
    const t = scripted();
    t.open().drop();
    t.client.sendMessage({ text: 'on my way' });
    t.system.advance(1000);
    t.socket.tell(welcome({ ...gone, seq: 13 }, { recovered: true }));
    t.socket.tell(transferred);
    assert.deepEqual(t.sockets.at(-2).sent, []);
    t.socket.tell(welcome(roomState({ id: 'room-2', epoch: 'e9', seq: 2 })));
    assert.deepEqual(t.socket.sent.map((m) => m.data), [{ text: 'on my way' }]);
    t.client.close();
  });

  test('also out of a gap that only a snapshot could fill, or out of refresh()', () => {
    for (const ask of [(t) => t.socket.tell(gap(10)), (t) => t.client.refresh()]) {
      const t = scripted();
      t.open();
      ask(t);
      t.socket.ack('state', { seq: 10, state: { ...gone, seq: 10 } });
      assert.equal(t.socket.query.room_id, 'room-2');
      t.client.close();
    }
  });

  test('a transfer that is told before the room has closed, or a closed room without one, moves nobody', () => {
    for (const state of [{ ...gone, status: 'finished' }, { ...gone, transferred_to: null }]) {
      const t = scripted();
      t.open(welcome(state));
      assert.deepEqual([t.sockets.length, t.client.connection], [1, 'open']);
      t.client.close();
    }
  });

  test('a new room that refuses ends it', () => {
    const t = scripted();
    t.open().tell(transferred);
    t.socket.drop(4504, 'gone');
    assert.equal(t.client.closed.name, 'room_not_found');
  });

  test('close() from the callback stops the move', () => {
    const t = scripted();
    t.client.onRoomTransferred = () => t.client.close();
    t.open().tell(transferred);
    assert.equal(t.sockets.length, 1);
    assert.equal(t.system.timers.size, 0);
  });
});

describe('callbacks', () => {
  test("on<Event>, on(type), 'event' and '*' each get it, and can be stopped", () => {
    const t = scripted();
    t.open();
    const got = [];
    t.client.onPlayerReady = function (data, e) { got.push(['onPlayerReady', this === t.client, data.ready, e.seq]); };
    const stop = t.client.on('player_ready', (e) => got.push(['player_ready', e.seq]));
    const all = (e) => got.push(['*', e.type, e.seq]);
    t.client.on('*', all);
    t.socket.tell(event(11, 'player_ready', { player_id: 'bob', ready: true }));
    assert.deepEqual(got, [
      ['onPlayerReady', true, true, 11], ['player_ready', 11], ['*', 'player_ready', 11], ['*', 'state', undefined],
    ]);
    assert.deepEqual(t.seqs(), [11]);
    stop();
    t.client.off('*', all);
    t.client.onPlayerReady = undefined;
    t.socket.tell(event(12, 'player_ready', { player_id: 'bob', ready: false }));
    assert.equal(got.length, 4);
    t.client.close();
  });

  test('one that throws is reported and stops nothing', () => {
    const report = mock.method(console, 'error', () => {});
    const t = scripted();
    for (const type of ['connection', 'welcome', 'state', 'player_ready', 'event', '*']) {
      t.client.on(type, () => { throw new Error(type); });
    }
    t.client.onPlayerReady = () => { throw new Error('onPlayerReady'); };
    t.open().tell(event(11, 'player_ready', { player_id: 'bob', ready: true }));
    t.socket.tell('not json');
    t.socket.tell(chat(12));
    assert.deepEqual(t.seqs(), [11, 12]);
    assert.equal(t.client.connection, 'open');
    t.client.close();
    assert.ok(report.mock.callCount() >= 8);
    report.mock.restore();
  });

  test('messages without seq that are not known are ignored', () => {
    const t = scripted();
    t.open().tell({ type: 'from_the_future', data: {} });
    assert.deepEqual(t.seen, []);
    t.client.close();
  });
});

test('storage keeps the token for the next page, drops it when the seat is gone, and may fail', () => {
  const storage = new MapStorage();
  scripted({ storage }).open();
  const next = scripted({ storage });
  next.client.connect();
  assert.equal(next.client.token, 'secret');
  assert.deepEqual(next.socket.query, { room_id: 'room-1', player_id: 'amy', token: 'secret' });
  next.socket.drop(4501, 'wrong token');
  assert.equal(storage.size, 0);

  const broken = { getItem() { throw new Error('forbidden'); }, setItem() { throw new Error('full'); }, removeItem() {} };
  const t = scripted({ storage: broken });
  t.open();
  assert.equal(t.client.connection, 'open');
  t.client.close();
});

test('nobody who forgets a promise is punished for a lost connection, and after close() nothing keeps Node alive', () => {
  const script = `
    import { RoomClient } from ${JSON.stringify(new URL('../../roomkit/client/roomkit.js', import.meta.url).href)};
    class Dead { send() {} close() {} }
    const client = new RoomClient({ roomId: 'r', playerId: 'p', url: 'http://h.test', WebSocket: Dead });
    client.connect(); client.ready(); client.ping(); client.refresh(); client.leave();
    client._socket.onmessage({ data: ${JSON.stringify(JSON.stringify(welcome()))} });
    client.sendMessage({});
    client._socket.onclose({ code: 1006, reason: '' });
    client.ready();
    client.close();
    console.log('end');`;
  const run = spawnSync(process.execPath, ['--input-type=module', '--eval', script], { encoding: 'utf8', timeout: 10_000 });
  assert.deepEqual([run.status, run.stdout, run.stderr], [0, 'end\n', '']);
});

test('a client that drops, misses and resumes sees what one that never dropped sees (random histories)', () => {
  for (let seed = 1; seed <= 300; seed++) {
    const random = mulberry32(seed);
    const pick = (n) => Math.floor(random() * n);
    const steady = scripted();
    const shaky = scripted();
    steady.open();
    shaky.open();
    const history = [];
    const last = () => 10 + history.length;
    const after = (seq) => history.filter((e) => e.seq > seq);
    const makeEvent = (seq) => [
      () => chat(seq),
      () => event(seq, 'player_ready', { player_id: ['amy', 'bob'][pick(2)], ready: pick(2) === 1 }),
      () => event(seq, 'settings_changed', { player_id: 'bob', settings: { [`k${pick(3)}`]: pick(2) || null }, ready_cleared: pick(2) === 1 }),
      () => event(seq, 'host_changed', { player_id: ['amy', 'bob'][pick(2)] }),
    ][pick(4)]();
    const comeBack = () => {
      if (shaky.client.connection === 'open') return;
      shaky.system.advance(10_000);
      const overlap = Number(shaky.socket.query.seq) - pick(2);
      shaky.socket.tell(welcome({ ...steady.client.state, seq: last() }, { recovered: true }));
      for (const e of after(overlap)) shaky.socket.tell(e);
    };
    const answer = () => {
      const question = shaky.client.connection === 'open' && shaky.socket.asked('state');
      if (question && !question.answered) {
        question.answered = true;
        shaky.socket.tell({ type: 'ack', id: question.id, data: { events: after(question.data.after) } });
      }
    };
    let missed = null; // the seq after which live events are being dropped
    for (let step = 0; step < 60; step++) {
      switch (pick(6)) {
        case 0: case 1: case 2: {
          const e = makeEvent(last() + 1);
          history.push(e);
          steady.socket.tell(e);
          if (shaky.client.connection !== 'open') break;
          if (pick(4) === 0) {
            missed ??= e.seq - 1;
          } else {
            if (missed !== null) shaky.socket.tell(gap(missed));
            missed = null;
            shaky.socket.tell(e);
          }
          break;
        }
        case 3: answer(); break;
        case 4: if (shaky.client.connection === 'open') (shaky.socket.drop(), (missed = null)); break;
        case 5: comeBack(); break;
      }
    }
    comeBack();
    if (missed !== null) shaky.socket.tell(gap(missed));
    for (let i = 0; i < 20; i++) answer();
    assert.deepEqual(shaky.seen, history, `events, seed ${seed}`);
    assert.deepEqual(shaky.client.state, steady.client.state, `state, seed ${seed}`);
    steady.client.close();
    shaky.client.close();
  }
});

class MapStorage extends Map {
  getItem(key) { return this.get(key) ?? null; }
  setItem(key, value) { this.set(key, String(value)); }
  removeItem(key) { this.delete(key); }
}

function mulberry32(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
