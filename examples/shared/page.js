// What the example pages have in common: who I am, the room in the address, the connection in the header.
import { RoomClient } from '/client/roomkit.js';

export const byId = (id) => document.getElementById(id);

/** el('b', { className: 'x' }, 'text', node). Text stays text, whatever people call themselves. */
export function el(tag, props = {}, ...children) {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
}

/** A person's first letter on a colour that follows from their id. */
export function face({ id, name, connected = true }) {
  const node = el('span', { className: connected ? 'face' : 'face away', title: name }, [...name][0].toUpperCase());
  node.style.setProperty('--hue', hueOf(id));
  return node;
}

export function hueOf(id) {
  let hue = 0;
  for (const letter of id) hue = (hue * 31 + letter.charCodeAt(0)) % 9973;
  return (hue * 137) % 360; // far apart, also for ids that differ little
}

/** A sentence above everything else; null takes it away. */
export function notice(text) {
  let node = byId('notice');
  if (!node) {
    node = el('p', { id: 'notice', className: 'notice' });
    node.setAttribute('role', 'alert');
    document.querySelector('main').prepend(node);
  }
  node.hidden = text === null;
  node.textContent = text ?? '';
}

/** The room in the address, ?room=NAME. */
export const roomInAddress = (fallback) => new URLSearchParams(location.search).get('room') || fallback;

/** Makes the room, unless it is there already. Only for servers that let their visitors make rooms. */
export async function makeRoom(id) {
  const answer = await fetch('/api/rooms', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ id }),
  });
  if (!answer.ok && answer.status !== 409) throw new Error((await answer.json()).error.message);
}

/**
 * A client for `roomId` that is not connected yet: add your callbacks, then call connect(). Asks for a name first.
 * A tab keeps its id and its seat over a reload; another tab is another person.
 */
export async function clientFor(roomId) {
  const name = sessionStorage.name ?? (await askName());
  sessionStorage.name = localStorage.name = name;
  sessionStorage.player ??= `p-${crypto.getRandomValues(new Uint32Array(2)).join('-')}`;
  const client = new RoomClient({ roomId, playerId: sessionStorage.player, name, storage: sessionStorage });
  showConnection(client);
  return client;
}

function askName() {
  const input = el('input', { name: 'name', maxLength: 40, required: true, pattern: '.*\\S.*', autocomplete: 'nickname' });
  input.value = localStorage.name ?? '';
  input.setAttribute('aria-label', 'Your name');
  const form = el('form', { method: 'dialog' }, input, el('button', {}, 'Come in'));
  const dialog = el('dialog', { className: 'card' }, el('h2', {}, 'What is your name?'),
    el('span', { className: 'soft' }, 'The others will see it.'), form);
  document.body.append(dialog);
  dialog.addEventListener('cancel', (event) => event.preventDefault()); // there is nothing behind it yet
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve(input.value.trim());
    });
  });
}

/** The connection as a pill (the element with the id `connection`); a click on it tries again at once. */
function showConnection(client) {
  const pill = byId('connection');
  const show = ({ state, delay, reason }) => {
    const texts = {
      idle: 'not connected',
      connecting: 'connecting',
      open: 'live',
      waiting: `offline, retry in ${Math.ceil(delay)} s`,
      closed: 'ended',
    };
    pill.dataset.state = state;
    pill.textContent = texts[state];
    pill.title = state === 'waiting' ? 'Try again now' : reason ?? '';
  };
  show({ state: client.connection });
  client.on('connection', show);
  pill.addEventListener('click', () => client.retryNow());
}
