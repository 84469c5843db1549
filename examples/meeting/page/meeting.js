// The meeting's page: one tile and one Peer for everybody else in the room.
import { byId, clientFor, el, face, makeRoom, notice, roomInAddress } from '/shared/page.js';
import { Peer } from '/peer.js';

const roomId = roomInAddress('table');
const session = crypto.getRandomValues(new Uint32Array(3)).join('-'); // of this page; a reload is somebody new to a Peer
const peers = new Map(); // player id -> { peer, session }
const tiles = new Map(); // player id -> the parts of a tile
const status = { mic: false, camera: false };
let stream = null;

document.title = byId('title').textContent = roomId;

const client = await clientFor(roomId); // first of all: whatever the browser tells below finds it
const iceServers = await (await fetch('/ice')).json();

// Tiles.

function tileOf(player) {
  let tile = tiles.get(player.id);
  if (tile) return tile;
  const me = player.id === client.playerId;
  const video = el('video', { autoplay: true, playsInline: true, muted: me, hidden: true });
  const state = el('span', { className: 'status' });
  const label = el('span', { className: 'label' }, me ? `${player.name} (you)` : player.name, ' ', state);
  const node = el('li', { className: me ? 'tile me' : 'tile' }, face(player), video, label);
  node.dataset.player = player.id;
  tile = { node, video, state, status: { mic: false, camera: false }, connection: me ? 'connected' : 'new' };
  tiles.set(player.id, tile);
  return tile;
}

function show({ players }) {
  const there = new Set(players.map((player) => player.id));
  for (const id of [...tiles.keys()]) if (!there.has(id)) remove(id);
  for (const player of players) {
    const { node, video, state, status: can, connection } = tileOf(player);
    const texts = {
      new: '· coming', connecting: '· connecting', disconnected: '· connection lost', failed: '· trying again',
    };
    state.textContent = texts[connection] ?? (can.mic ? '' : '· muted');
    node.dataset.connection = connection;
    video.hidden = !can.camera;
    if (node.parentNode === null) byId('tiles').append(node);
  }
  const count = players.length;
  const wide = innerWidth > innerHeight;
  byId('tiles').style.setProperty('--columns', count === 1 ? 1 : count === 2 ? (wide ? 2 : 1) : count <= 4 || !wide ? 2 : 3);
  byId('people').textContent = count === 1 ? 'Nobody else is here yet' : `${count} people`;
}

function remove(id) {
  peers.get(id)?.peer.close();
  peers.delete(id);
  tiles.get(id)?.node.remove();
  tiles.delete(id);
}

// Signalling: who comes in says hello to all, each of them says hello to the newcomer; then both make a Peer.

const send = (data) => client.sendMessage(data).catch(() => {}); // lost with the connection: see 'welcome'

function meet(id, theirSession) {
  peers.get(id)?.peer.close(); // of a page that was reloaded
  const tile = tileOf(client.state.players.find((player) => player.id === id));
  const seats = client.state.players.map((player) => player.id);
  const change = (what) => {
    if (peers.get(id)?.peer !== peer) return; // closed meanwhile
    Object.assign(tile, what);
    show(client.state);
  };
  const peer = new Peer({
    polite: seats.indexOf(client.playerId) > seats.indexOf(id), // both know the same order of seats
    iceServers,
    stream,
    send: (signal) => send({ ...signal, to: id, from: session, for: theirSession }),
    onStream: (theirs) => { tile.video.srcObject = theirs; },
    onData: ({ mic, camera }) => change({ status: { mic: mic === true, camera: camera === true } }),
    onState: (connection) => change({ connection }),
    onTrouble: (error) => console.error('the negotiation failed', error),
  });
  peers.set(id, { peer, session: theirSession });
  tile.connection = 'new';
  peer.tell(status);
}

function onMessage({ player_id: id, data }) {
  if (id === null || id === client.playerId || (data.to && data.to !== client.playerId)) return;
  const known = peers.get(id);
  if (typeof data.hello === 'string') {
    const fresh = known?.session !== data.hello;
    if (!data.to && fresh) send({ hello: session, to: id });
    if (fresh && client.state.players.some((player) => player.id === id)) meet(id, data.hello);
  } else if (known && data.from === known.session && data.for === session) {
    known.peer.receive(data);
  }
}

// What I show of myself.

async function openCamera() {
  const wanted = [{ video: true, audio: true }, { audio: true }, { video: true }];
  for (const what of wanted) {
    try {
      return await navigator.mediaDevices.getUserMedia(what);
    } catch (error) {
      console.info(`no ${Object.keys(what).join(' and ')}: ${error.name}`);
    }
  }
  return null; // one may still look on
}

function tell() {
  tileOf(client.me).status = { ...status };
  for (const [name, words] of [['mic', ['Mute', 'Unmute']], ['camera', ['Camera off', 'Camera on']]]) {
    byId(name).textContent = words[status[name] ? 0 : 1];
    byId(name).setAttribute('aria-pressed', String(!status[name]));
  }
  for (const { peer } of peers.values()) peer.tell({ ...status });
  show(client.state);
}

for (const [name, kind] of [['mic', 'audio'], ['camera', 'video']]) {
  byId(name).addEventListener('click', () => {
    status[name] = !status[name];
    for (const track of stream.getTracks()) if (track.kind === kind) track.enabled = status[name];
    tell();
  });
}

byId('link').addEventListener('click', async () => {
  const address = new URL(`?room=${roomId}`, location.href).href;
  await navigator.clipboard.writeText(address).catch(() => prompt('The link to this meeting:', address));
});
byId('leave').addEventListener('click', () => client.leave().catch(() => {}));
addEventListener('resize', () => client.state && show(client.state));

// The room.

stream = await openCamera();
for (const track of stream?.getTracks() ?? []) {
  const name = track.kind === 'audio' ? 'mic' : 'camera';
  status[name] = true;
  byId(name).disabled = false;
}
client.on('state', show);
client.on('message', ({ data }) => onMessage(data));
client.on('welcome', ({ recovered }) => {
  notice(null);
  tileOf(client.me).video.srcObject = stream;
  tell();
  if (!recovered) send({ hello: session }); // a replay brings the signals that were missed by itself
});
client.on('connection', ({ state }) => {
  if (state === 'waiting') notice('The connection to the server is lost. Who is here still sees you; nobody can come in.');
  if (state !== 'closed') return;
  for (const id of [...tiles.keys()]) remove(id);
  for (const track of stream?.getTracks() ?? []) track.stop();
  for (const button of document.querySelectorAll('footer button')) button.disabled = true;
  const { name, reason } = client.closed;
  notice(name === 'normal' ? 'You have left. Reload to come in again.' : `You are out: ${reason || name}.`);
});
// A closed tab gives its seat up at once, instead of after the grace period.
addEventListener('pagehide', () => client.leave().catch(() => {}));
addEventListener('pageshow', ({ persisted }) => persisted && location.reload());
try {
  await makeRoom(roomId);
  await client.connect();
  if (!stream) notice('There is no camera and no microphone here, or they are not allowed. You can look on.');
} catch (error) {
  notice(error.message);
}
