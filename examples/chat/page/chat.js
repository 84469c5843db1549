// The chat's page. Every message, my own too, is shown when the room says it: so all see the same order.
import { byId, clientFor, el, face, makeRoom, notice, roomInAddress } from '/shared/page.js';

const LATELY = 200; // events that a newcomer asks for
const TYPING = 3000; // ms: how often it is told, and a bit less than how long it is believed

const roomId = roomInAddress('main');
const log = byId('log');
const pending = new Map(); // nonce -> the row of a message of mine that the room has not told yet
const typists = new Map(); // player id -> the timer that forgets that they are typing
const names = new Map(); // of everybody who was ever here
let shown = 0; // seq of the newest event that is shown
let unread = 0;

document.title = byId('room').textContent = `#${roomId}`;

const client = await clientFor(roomId); // first of all: whatever the browser tells below finds it

// Showing.

const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 60;
const seen = () => document.visibilityState === 'visible' && atEnd();

function add(row, counts = false) {
  const follow = atEnd();
  if (counts && !seen()) markUnread(++unread);
  log.append(row);
  for (const waiting of pending.values()) log.append(waiting); // they come behind all that has been told
  if (follow) log.scrollTop = log.scrollHeight;
}

function markUnread(count) {
  if (count === 1) log.append(el('li', { className: 'note new' }, 'New messages'));
  byId('unread').hidden = count === 0;
  byId('unread').textContent = count === 1 ? '1 new message' : `${count} new messages`;
  document.title = count ? `(${count}) #${roomId}` : `#${roomId}`;
}

function markRead() {
  if (!unread || !seen()) return;
  unread = 0;
  markUnread(0);
}

function bubble(id, text, at) {
  const name = names.get(id) ?? id;
  const time = at.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });
  const said = el('div', { className: 'said' }, el('b', {}, name), el('p', {}, text, el('time', {}, time)));
  const row = el('li', { className: id === client.playerId ? 'mine' : '' }, face({ id, name }), said);
  row.dataset.from = id;
  const before = [...log.children].findLast((other) => !other.classList.contains('pending'));
  row.classList.toggle('first', before?.dataset.from !== id);
  return row;
}

const note = (text) => el('li', { className: 'note' }, text);

/** One event of the room, whether it happens now, was missed, or was before my time. */
function tell({ type, seq, timestamp, data }, old = false) {
  if (seq <= shown) return;
  shown = seq;
  if (type === 'player_joined') {
    names.set(data.player.id, data.player.name);
    add(note(`${data.player.name} came in`));
  } else if (type === 'player_left') {
    add(note(`${names.get(data.player_id) ?? data.player_id} left`));
    stopTyping(data.player_id);
  } else if (type === 'message' && typeof data.data.text === 'string') {
    pending.get(data.data.nonce)?.remove();
    pending.delete(data.data.nonce);
    stopTyping(data.player_id);
    add(bubble(data.player_id, data.data.text, new Date(timestamp)), !old && data.player_id !== client.playerId);
  } else if (type === 'message' && data.data.typing && !old && data.player_id !== client.playerId) {
    startTyping(data.player_id);
  }
}

/** Begins anew: at the first welcome, and when I was away for longer than the room remembers. */
async function showHistory(state) {
  for (const player of state.players) names.set(player.id, player.name);
  const events = (await client.eventsAfter(Math.max(0, state.seq - LATELY)).catch(() => null)) ?? [];
  for (const { type, data } of events) if (type === 'player_joined') names.set(data.player.id, data.player.name);
  log.replaceChildren();
  shown = 0;
  for (const event of events) tell(event, true);
  for (const row of pending.values()) log.append(row);
  log.scrollTop = log.scrollHeight;
}

// Typing: at most one such message per person waits in the room's queue, whatever the load (key).

let toldAt = -Infinity;

function iAmTyping() {
  if (client.connection !== 'open' || performance.now() - toldAt < TYPING) return;
  toldAt = performance.now();
  client.sendMessage({ typing: true }, { key: 'typing' }).catch(() => {});
}

function startTyping(id) {
  clearTimeout(typists.get(id));
  typists.set(id, setTimeout(() => stopTyping(id), TYPING + 1500));
  showTyping();
}

function stopTyping(id) {
  clearTimeout(typists.get(id));
  if (typists.delete(id)) showTyping();
}

function showTyping() {
  const who = [...typists.keys()].map((id) => names.get(id) ?? id);
  const few = who.length === 1 ? `${who[0]} is typing …` : `${who.join(' and ')} are typing …`;
  byId('typing').textContent = who.length === 0 ? '\u00a0' : who.length > 3 ? 'Many are typing …' : few;
}

// Saying.

async function say(text, nonce = crypto.getRandomValues(new Uint32Array(3)).join('-')) {
  const row = bubble(client.playerId, text, new Date());
  row.classList.add('pending');
  pending.set(nonce, row);
  add(row);
  log.scrollTop = log.scrollHeight;
  toldAt = -Infinity;
  try {
    await client.sendMessage({ text, nonce });
  } catch (error) {
    // It may have been said all the same; then the room tells it after the reconnect, and this row goes.
    if (!pending.has(nonce)) return;
    row.classList.add('failed');
    row.title = `${error.message}. Click to say it again.`;
    row.addEventListener('click', () => {
      if (!pending.delete(nonce)) return;
      row.remove();
      say(text);
    });
  }
}

byId('form').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = byId('text').value.trim();
  if (text) say(text);
  byId('text').value = '';
});
byId('text').addEventListener('input', iAmTyping);
byId('unread').addEventListener('click', () => log.lastElementChild.scrollIntoView());
log.addEventListener('scroll', markRead);
document.addEventListener('visibilitychange', markRead);

// The room.

let loading = Promise.resolve();
client.on('event', (event) => loading.then(() => tell(event)));
client.on('welcome', ({ recovered, state }) => {
  if (!recovered) loading = showHistory(state);
});
client.on('state', ({ players }) => {
  const here = players.filter((player) => player.connected).map((player) => player.name);
  byId('people').textContent = `${here.length} here: ${here.join(', ')}`;
});
client.on('connection', ({ state }) => {
  if (state === 'open') notice(null);
  if (state === 'waiting') notice('The connection is lost. What you write now is said when it is back.');
  if (state === 'closed') notice(`You are out: ${client.closed.reason || client.closed.name}. Reload to come in again.`);
});
try {
  await makeRoom(roomId);
  await client.connect();
} catch (error) {
  notice(error.message);
}
byId('text').focus();
