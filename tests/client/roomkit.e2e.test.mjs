// roomkit.js against the real server, over real sockets and a network that can be cut.
//   PYTHON=/path/to/python node --experimental-websocket --test tests/client/roomkit.e2e.test.mjs
// PYTHON: an interpreter with roomkit's dependencies, default python3. Node 22 and later need no flag.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { RoomClient, RoomError } from '../../roomkit/client/roomkit.js';
import { Network, Record, refusal, within } from './support.mjs';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

class Server {
  output = '';

  static async start(...flags) {
    const server = new Server();
    const command = ['-m', 'roomkit', 'serve', '--host', '127.0.0.1', '--port', '0', ...flags];
    const child = spawn(process.env.PYTHON ?? 'python3', command, { cwd: ROOT, stdio: ['ignore', 'pipe', 'pipe'] });
    server.child = child;
    server.exited = new Promise((resolve) => child.on('exit', (code, signal) => resolve(code ?? signal)));
    child.stderr.on('data', (data) => (server.output += data));
    const address = new Promise((resolve, reject) => {
      child.on('error', reject);
      server.exited.then((code) => reject(new Error(`the server ended with ${code}:\n${server.output}`)));
      createInterface(child.stdout).on('line', (line) => {
        server.output += `${line}\n`;
        const found = /http:\/\/127\.0\.0\.1:(\d+)/.exec(line);
        if (found) resolve(found);
      });
    });
    try {
      [server.url, server.port] = await within(address, () => `the server's address:\n${server.output}`);
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
    server.port = Number(server.port);
    return server;
  }

  /** Asks it to drain; gives the exit code. */
  async stop() {
    this.child.kill('SIGTERM');
    try {
      return await within(this.exited, () => `the server's end:\n${this.output}`);
    } finally {
      this.child.kill('SIGKILL'); // no-op for a process that has ended
    }
  }

  async api(method, path, body) {
    const answer = await fetch(this.url + path, {
      method, body: body && JSON.stringify(body), headers: { 'content-type': 'application/json' },
    });
    const text = await answer.text();
    assert.ok(answer.ok, `${method} ${path}: ${answer.status} ${text}`);
    return text ? JSON.parse(text) : null;
  }

  /** A new room; its id. */
  async room(options = {}) {
    return (await this.api('POST', '/api/rooms', options)).id;
  }
}

/** A client with a record of what it sees, closed when the test ends. Fast to retry, so that the tests are. */
function player(t, url, roomId, playerId, options = {}) {
  const client = new RoomClient({ url, roomId, playerId, baseDelay: 0.02, maxDelay: 0.1, ...options });
  client.record = new Record(client);
  t.after(() => client.close());
  return client;
}

/** Seats the players one after the other, so that the first is host. */
async function seat(t, url, roomId, ...playerIds) {
  const clients = playerIds.map((playerId) => player(t, url, roomId, playerId));
  for (const client of clients) await within(client.connect(), `${client.playerId}'s welcome`);
  return clients;
}

async function network(t, server) {
  const wires = await Network.to(server.port);
  t.after(() => wires.close());
  return wires;
}

const everybody = (clients, test) => Promise.all(clients.map((client) => client.record.untilState(test)));

/** Waits until all copies are at the newest seq, and shows that they are one and the same state. */
async function agree(clients) {
  for (;;) {
    const newest = Math.max(...clients.map((client) => client.state.seq));
    await everybody(clients, (state) => state.seq >= newest);
    if (clients.every((client) => client.state.seq === newest)) break;
  }
  for (const client of clients) assert.deepEqual(client.state, clients[0].state, client.playerId);
  return clients[0].state;
}

/** Shows that `shaky` saw, from its first event on, exactly what `steady` saw: nothing lost, nothing twice, in order. */
function sawTheSame(shaky, steady) {
  const first = shaky.record.events[0].seq;
  assert.deepEqual(shaky.record.events, steady.record.events.filter((event) => event.seq >= first));
  const seqs = shaky.record.events.map((event) => event.seq);
  assert.deepEqual(seqs, seqs.map((_, i) => first + i), 'no hole');
}

const texts = (client) => client.record.events.filter((event) => event.type === 'message').map((event) => event.data.data.text);

async function play(host, clients) {
  await everybody(clients, (state) => state.status === 'preparing');
  await host.selectSong('song-7');
  await Promise.all(clients.map((client) => client.ready()));
  await everybody(clients, (state) => state.status === 'ready' && state.song_id === 'song-7');
  await host.startGame();
  await everybody(clients, (state) => state.status === 'playing');
}

describe('with a server', () => {
  let server;
  before(async () => (server = await Server.start()));
  after(async () => server && assert.equal(await server.stop(), 0, server.output));

  test('a whole game of four, one of them in a tunnel', async (t) => {
    const wires = await network(t, server);
    const roomId = await server.room({ max_players: 4 });
    const [amy, cat, dan] = await seat(t, server.url, roomId, 'amy', 'cat', 'dan');
    const bob = player(t, wires.url, roomId, 'bob', { name: 'Bob B.' });
    const hello = await within(bob.connect(), "bob's welcome");
    assert.equal(hello.recovered, null);
    assert.equal(bob.me.name, 'Bob B.');
    const all = [amy, bob, cat, dan];
    assert.ok(amy.isHost && !bob.isHost);

    const error = await refusal(bob.startGame());
    assert.ok(error instanceof RoomError && !error.maybeDone, String(error));
    await play(amy, all);
    assert.ok(bob.state.started_at);
    assert.equal((await refusal(bob.finishGame())).code, 'not_host');
    for (const client of all) await client.sendMessage({ text: `${client.playerId} plays` });

    wires.cut();
    await bob.record.untilConnection('waiting');
    await amy.record.until((event) => event.type === 'player_dropped' && event.data.player_id === 'bob');
    const queued = bob.sendMessage({ text: 'bob from the tunnel' });
    for (let n = 1; n <= 20; n++) await amy.sendMessage({ text: `amy ${n}` });
    await dan.leave();
    assert.equal(dan.closed.name, 'normal');
    await bob.record.until((entry) => entry.type === 'connection' && entry.data.attempt >= 3, 'bob tries in vain');

    wires.restore();
    const back = await bob.record.until((entry) => entry.type === 'welcome' && entry.data.recovered !== null, 'bob is back');
    assert.equal(back.data.recovered, true);
    await within(queued, "bob's queued message");
    await amy.finishGame({ winner: 'bob' });
    await everybody([amy, bob, cat], (state) => state.status === 'finished' && state.results?.winner === 'bob');

    const state = await agree([amy, bob, cat]);
    assert.deepEqual(state, await server.api('GET', `/api/rooms/${roomId}`));
    assert.deepEqual(state, await bob.refresh());
    assert.deepEqual(state.players.map((p) => [p.id, p.connected]), [['amy', true], ['cat', true], ['bob', true]]);
    sawTheSame(bob, amy);
    sawTheSame(cat, amy);
    assert.equal(texts(bob).filter((text) => text === 'bob from the tunnel').length, 1);
    assert.ok(!bob.record.entries.some((entry) => entry.type === 'connection' && entry.data.state === 'closed'));
  });

  test('cut off again and again while others talk, nothing is lost and nothing comes twice', async (t) => {
    const wires = await network(t, server);
    const roomId = await server.room({ max_players: 2 });
    const [amy] = await seat(t, server.url, roomId, 'amy');
    const bob = player(t, wires.url, roomId, 'bob');
    await bob.connect();
    const talk = [];
    for (let round = 1; round <= 5; round++) {
      for (let n = 1; n <= 5; n++) talk.push(amy.sendMessage({ text: `${round}.${n}` }));
      wires.cut(); // while those are under way
      await within(Promise.all(talk), 'acks');
      wires.restore();
      await bob.record.untilState((state) => state.seq >= amy.state.seq);
    }
    await bob.record.until(() => bob.connection === 'open', 'bob is open');
    await agree([amy, bob]);
    sawTheSame(bob, amy);
    assert.equal(texts(bob).length, 25);
  });

  test('a network that died without a word is noticed by ping, and the old connection is replaced', async (t) => {
    const wires = await network(t, server);
    const roomId = await server.room({ max_players: 2 });
    const [amy] = await seat(t, server.url, roomId, 'amy');
    const bob = player(t, wires.url, roomId, 'bob', { pingInterval: 0.2, pingTimeout: 0.3 });
    await bob.connect();
    await amy.sendMessage({ text: 'before' });
    await bob.record.until((event) => event.type === 'message');
    wires.freeze();
    await amy.sendMessage({ text: 'into the void' });
    const lost = await bob.record.until((entry) => entry.type === 'connection' && entry.data.state === 'waiting', 'bob notices');
    assert.equal(lost.data.reason, 'no answer to a ping');
    await bob.record.until((entry) => entry.type === 'welcome' && entry.data.recovered === true, 'bob is back');
    await amy.sendMessage({ text: 'after' });
    await agree([amy, bob]);
    sawTheSame(bob, amy);
    assert.deepEqual(texts(bob), ['before', 'into the void', 'after']);
  });

  test('operations: settings, lock, messages with a key, ping, and what is refused', async (t) => {
    const roomId = await server.room({ max_players: 3, min_players: 2 });
    const [amy, bob] = await seat(t, server.url, roomId, 'amy', 'bob');
    await bob.updateSettings({ speed: 2, mode: 'duel' });
    assert.deepEqual(bob.state.settings, { speed: 2, mode: 'duel' }, 'the effect is there when the promise resolves');
    await bob.updateSettings({ mode: null, song_id: 's1' });
    assert.deepEqual([bob.state.settings, bob.state.song_id], [{ speed: 2, song_id: 's1' }, 's1']);
    await amy.lock();
    assert.equal(amy.state.locked, true);
    assert.equal((await refusal(player(t, server.url, roomId, 'cat').connect())).code, 'room_locked');
    await amy.lock(false);
    await amy.sendMessage({ x: 1 }, { key: 'pos' });
    assert.equal((await refusal(bob.kick('amy'))).code, 'not_host');
    assert.equal((await refusal(bob.perform('no_such_operation'))).code, 'invalid_transition');
    assert.ok(await bob.ping() >= 0);
    assert.ok(Math.abs(bob.clockOffset) < 5000, `the same machine's clock: ${bob.clockOffset} ms`);
    assert.deepEqual(await agree([amy, bob]), await amy.refresh());
  });

  test('kicked: it ends and is free to come back; banned: it is not', async (t) => {
    const roomId = await server.room({ max_players: 3 });
    const [amy, bob] = await seat(t, server.url, roomId, 'amy', 'bob');
    await amy.kick('bob');
    await bob.record.untilConnection('closed');
    assert.deepEqual([bob.closed.code, bob.closed.name], [4503, 'kicked']);
    assert.equal((await refusal(bob.ready())).code, 'connection_closed');
    assert.deepEqual(amy.state.players.map((p) => p.id), ['amy']);
    const again = player(t, server.url, roomId, 'bob');
    await within(again.connect(), 'bob comes back');
    await amy.kick('bob', { ban: true });
    await again.record.untilConnection('closed');
    assert.equal((await refusal(player(t, server.url, roomId, 'bob').connect())).code, 'kicked');
  });

  test('replaced by a second page with the token; it stays away', async (t) => {
    const roomId = await server.room();
    const [first] = await seat(t, server.url, roomId, 'amy');
    const second = player(t, server.url, roomId, 'amy', { token: first.token });
    await within(second.connect(), 'the second page');
    await first.record.untilConnection('closed');
    assert.deepEqual([first.closed.code, first.closed.name], [4509, 'replaced']);
    await second.sendMessage({ text: 'mine' });
    assert.equal(second.state.players.length, 1);
  });

  test('a seat reserved over REST is taken with its token', async (t) => {
    const { room, token, player_id } = await server.api('POST', '/api/rooms/join-or-create', { player_id: 'amy', max_players: 2 });
    const amy = player(t, server.url, room.id, player_id, { token });
    await within(amy.connect(), 'welcome');
    assert.equal(amy.state.players.length, 1);
  });

  describe('turned away', () => {
    for (const [code, attempt] of [
      ['room_full', async (t) => {
        const roomId = await server.room({ max_players: 2 });
        await seat(t, server.url, roomId, 'amy', 'bob');
        return player(t, server.url, roomId, 'cat');
      }],
      ['bad_token', async (t) => {
        const roomId = await server.room();
        await seat(t, server.url, roomId, 'amy');
        return player(t, server.url, roomId, 'amy', { token: 'guessed' });
      }],
      ['bad_token', async (t) => { // the seat is held, and there is no token at all
        const roomId = await server.room();
        await seat(t, server.url, roomId, 'amy');
        return player(t, server.url, roomId, 'amy');
      }],
      ['bad_password', async (t) => player(t, server.url, await server.room({ password: 'open sesame' }), 'amy')],
      ['room_not_found', async (t) => player(t, server.url, 'no-such-room', 'amy')],
      ['invalid_request', async (t) => player(t, server.url, await server.room(), 'not an id!')],
    ]) {
      test(code, async (t) => {
        const client = await attempt(t);
        assert.equal((await refusal(within(client.connect(), 'an answer'))).code, code);
        assert.equal(client.connection, 'closed');
      });
    }

    test('but the right password opens', async (t) => {
      const amy = player(t, server.url, await server.room({ password: 'open sesame' }), 'amy', { password: 'open sesame' });
      await within(amy.connect(), 'welcome');
      assert.equal(amy.state.has_password, true);
    });
  });

  test('rematch: all move to the new room, also one who was away, and play goes on there', async (t) => {
    const wires = await network(t, server);
    const roomId = await server.room({ max_players: 3 });
    const [amy, bob] = await seat(t, server.url, roomId, 'amy', 'bob');
    const cat = player(t, wires.url, roomId, 'cat');
    await cat.connect();
    const all = [amy, bob, cat];
    await play(amy, all);
    await amy.finishGame();
    wires.cut();
    await amy.record.until((event) => event.type === 'player_dropped');
    const { room_id } = await within(amy.rematch(), 'the ack of rematch');
    assert.notEqual(room_id, roomId);
    wires.restore();
    await everybody(all, (state) => state.id === room_id && state.players.length === 3 && state.players.every((p) => p.connected));
    for (const client of all) {
      assert.equal(client.roomId, room_id);
      assert.ok(client.record.entries.some((entry) => entry.type === 'room_transferred'));
      assert.ok(!client.record.entries.some((entry) => entry.type === 'connection' && entry.data.state === 'closed'));
    }
    const host = all.find((client) => client.isHost);
    assert.equal(host, amy);
    await play(host, all);
    await agree(all);
  });

  test('rematch: who was away longer than the history reaches, and who loaded the page anew, land in the new room too', async (t) => {
    const small = await Server.start('--history-size', '4');
    t.after(() => small.stop());
    const wires = await network(t, small);
    const roomId = await small.room({ max_players: 3 });
    const [amy] = await seat(t, small.url, roomId, 'amy');
    const [bob, cat] = await seat(t, wires.url, roomId, 'bob', 'cat');
    await play(amy, [amy, bob, cat]);
    wires.cut();
    cat.close(); // her page is closed; what it stored is the token
    const isAway = (playerId) => amy.record.until((event) => event.type === 'player_dropped' && event.data.player_id === playerId);
    await Promise.all([bob.record.untilConnection('waiting'), ...['bob', 'cat'].map(isAway)]);
    const asked = bob.sendMessage({ text: 'bob from the tunnel' });
    await amy.finishGame({ winner: 'amy' });
    for (let n = 1; n <= 10; n++) await amy.sendMessage({ text: `amy ${n}` });
    const { room_id } = await within(amy.rematch(), 'the ack of rematch');
    wires.restore();
    const again = player(t, wires.url, roomId, 'cat', { token: cat.token });
    const hello = await within(again.connect(), "cat's welcome");
    assert.deepEqual([hello.state.id, again.roomId], [room_id, room_id]);
    await within(asked, "bob's queued message");
    const all = [amy, bob, again];
    await everybody(all, (state) => state.id === room_id && state.players.length === 3 && state.players.every((p) => p.connected));
    assert.ok(!bob.record.entries.some((entry) => entry.type === 'room_transferred'), 'the history no longer had it');
    assert.ok(!bob.record.entries.some((entry) => entry.type === 'connection' && entry.data.state === 'closed'));
    assert.deepEqual(texts(bob), ['bob from the tunnel']);
    await play(amy, all);
    assert.deepEqual(await agree(all), await small.api('GET', `/api/rooms/${room_id}`));
  });

  test('closing the room ends everybody with 4510', async (t) => {
    const roomId = await server.room();
    const [amy, bob] = await seat(t, server.url, roomId, 'amy', 'bob');
    await amy.closeRoom('good night');
    await Promise.all([amy, bob].map((client) => client.record.untilConnection('closed')));
    assert.deepEqual([amy, bob].map((client) => client.closed.code), [4510, 4510]);
    assert.equal(bob.state.status, 'closed');
    const told = bob.record.events.find((event) => event.type === 'room_closed');
    assert.equal(told.data.reason, 'good night');
  });
});

test('more messages than the room can queue: the gaps are filled, in order', async (t) => {
  const server = await Server.start('--queue-size', '4', '--message-rate', '0', '--history-size', '2000');
  t.after(() => server.stop());
  const roomId = await server.room({ max_players: 2 });
  const clients = await seat(t, server.url, roomId, 'amy', 'bob');
  const [amy, bob] = clients;
  await agree(clients);
  const sent = [];
  for (let n = 0; n < 150; n++) for (const client of clients) sent.push(client.sendMessage({ text: `${client.playerId} ${n}` }));
  await within(Promise.all(sent), 'acks', 30_000);
  await agree(clients);
  sawTheSame(bob, amy);
  assert.equal(new Set(texts(bob)).size, 300);
  assert.equal(texts(bob).length, 300);
  t.diagnostic(`gaps: ${clients.map((client) => client.record.entries.filter((entry) => entry.type === 'gap').length)}`);
});

test('a server that restarts says when to come back; the client does, and takes the new room as it is', async (t) => {
  const old = await Server.start('--drain-timeout', '5');
  t.after(() => old.child.kill('SIGKILL'));
  const wires = await network(t, old);
  await old.room({ id: 'arena', max_players: 2 });
  const amy = player(t, wires.url, 'arena', 'amy');
  const first = await within(amy.connect(), 'welcome');
  const stopped = old.stop();
  const { data } = await amy.record.until((entry) => entry.type === 'connection' && entry.data.state === 'waiting', 'amy is told');
  assert.equal(data.code, 1012);
  const told = /(\d+(?:\.\d+)?)\s*s\b/.exec(data.reason);
  assert.ok(told, `the reason says after how many seconds: ${data.reason}`);
  assert.equal(data.delay, Number(told[1]));
  assert.equal(await stopped, 0, old.output);

  const next = await Server.start();
  t.after(() => next.stop());
  await next.room({ id: 'arena', max_players: 2 });
  wires.port = next.port;
  const again = await amy.record.until((entry) => entry.type === 'welcome' && entry.data.epoch !== first.epoch, 'amy is back');
  assert.notEqual(again.data.recovered, true);
  await amy.sendMessage({ text: 'here again' });
  assert.deepEqual(amy.state, await amy.refresh());
});
