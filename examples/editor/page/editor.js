// The editor's page. The document is Yjs's; roomkit carries its changes, and one exchange mends whatever went missing.
import * as Y from 'yjs';
import { byId, clientFor, el, face, makeRoom, notice, roomInAddress } from '/shared/page.js';
import { bind } from '/binding.js';

const LARGE = 8192; // bytes of a change that goes by POST /sync instead of a message to all
const LOCAL = 'local';

const roomId = roomInAddress('notes');
const area = byId('text');
const doc = new Y.Doc();
const text = doc.getText('text');
const { receive } = bind(area, text, LOCAL);
const unsaved = new Set(); // changes of mine, by number, that the server has not confirmed
let changes = 0;
let syncing = null;
let again = false;
let client = null;

document.title = byId('title').textContent = roomId;

const encode = (bytes) => {
  let binary = '';
  for (let i = 0; i < bytes.length; i += 0x8000) binary += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(binary);
};
const decode = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

function apply(update) {
  receive(() => {
    try {
      Y.applyUpdate(doc, decode(update), 'room');
    } catch (error) {
      console.info('left out a change that is none', error); // as the server does
    }
  });
}

// Out: every change of mine, as it is made.

doc.on('update', (update, origin) => {
  if (origin === 'room') return;
  const number = ++changes;
  unsaved.add(number);
  showSaved();
  if (client.connection !== 'open') return; // the sync after the next welcome brings it
  if (update.length > LARGE) return sync();
  client.sendMessage({ update: encode(update) }).then(() => saved([number]), sync);
});

function saved(numbers) {
  for (const number of numbers) unsaved.delete(number);
  showSaved();
}

const showSaved = () => { byId('saved').textContent = unsaved.size === 0 ? 'Saved' : 'Not saved yet …'; };

// In: what the room relays. Mine comes back too, and changes nothing.

function onMessage({ data, player_id: from }) {
  if (typeof data.update === 'string') {
    apply(data.update);
  } else if (data.sync && from === null) {
    sync();
  } else if (data.line) {
    lines.set(from, Number(data.line));
    showPeople();
  }
}

/**
 * Asks the server for what this document lacks, and brings what the server lacks. Always right, whatever was lost or
 * came twice; one at a time, and once more if it is called meanwhile.
 */
function sync() {
  again = true;
  syncing ??= untilDone().finally(() => { syncing = null; });
}

async function untilDone() {
  while (again && client.connection === 'open') {
    again = false;
    try {
      await exchange();
    } catch (error) {
      console.info('the exchange with the server failed, and is tried again', error);
      again = true;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

async function exchange() {
  const answer = await post({ vector: encode(Y.encodeStateVector(doc)) });
  apply(answer.update);
  area.disabled = false;
  const mine = [...unsaved];
  if (mine.length === 0 && !lacks(decode(answer.vector))) return showSaved();
  const update = Y.encodeStateAsUpdate(doc, decode(answer.vector));
  if (update.length > LARGE) await post({ vector: encode(Y.encodeStateVector(doc)), update: encode(update) });
  else await client.sendMessage({ update: encode(update) });
  saved(mine);
}

/** Whether this document has something that a copy with that state vector has not. */
function lacks(vector) {
  const theirs = Y.decodeStateVector(vector);
  return [...Y.decodeStateVector(Y.encodeStateVector(doc))].some(([id, clock]) => clock > (theirs.get(id) ?? 0));
}

async function post(body) {
  const answer = await fetch('/sync', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ room: roomId, player_id: client.playerId, token: client.token, ...body }),
  });
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  return answer.json();
}

// Undo takes back what was typed here and nothing of the others'; the textarea's own would mix them.

const undo = new Y.UndoManager(text, { trackedOrigins: new Set([LOCAL]) });
area.addEventListener('beforeinput', (event) => {
  if (!event.inputType.startsWith('history')) return;
  event.preventDefault();
  if (event.inputType === 'historyUndo') undo.undo();
  else undo.redo();
});
area.addEventListener('keydown', (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
  const key = event.key.toLowerCase();
  if (key !== 'z' && key !== 'y') return;
  event.preventDefault();
  if (key === 'y' || event.shiftKey) undo.redo();
  else undo.undo();
});

// Who is here, and at which line: of each person only the newest such message waits in the room's queue (key).

const lines = new Map();
let toldLine = 0;

function showPeople() {
  byId('people').replaceChildren(...client.state.players.map((player) => {
    const line = lines.get(player.id);
    const where = player.id === client.playerId ? 'you' : !player.connected ? 'away' : line ? `line ${line}` : '';
    return el('li', {}, face(player), player.name, el('span', { className: 'soft' }, where));
  }));
}

document.addEventListener('selectionchange', () => {
  if (document.activeElement !== area || client.connection !== 'open') return;
  const line = area.value.slice(0, area.selectionStart).split('\n').length;
  if (line === toldLine) return;
  toldLine = line;
  client.sendMessage({ line }, { key: 'line' }).catch(() => {});
});

// The room.

async function enter() {
  client = await clientFor(roomId);
  client.on('message', ({ data }) => onMessage(data));
  client.on('state', showPeople);
  client.on('gap', sync); // the client fetches what it missed; should the history have lost it, this brings it
  client.on('welcome', () => {
    notice(null);
    showPeople();
    sync();
  });
  client.on('connection', ({ state }) => {
    if (state === 'waiting') notice('The connection is lost. Go on writing: it is merged when the connection is back.');
    if (state !== 'closed') return;
    // A server that was started anew knows nothing of the room: it is made again, and the text comes from the pages.
    if (client.closed.name === 'room_not_found') enter();
    else notice(`You are out: ${client.closed.reason || client.closed.name}. Reload to come in again.`);
  });
  try {
    await makeRoom(roomId);
    await client.connect();
  } catch (error) {
    if (client.closed?.name !== 'room_not_found') notice(error.message);
  }
}

enter();
