// Small tools for the page. Text always goes in through textContent, and styles through the CSSOM (the page runs
// under a policy that allows neither inline scripts nor inline style attributes).

import { h } from './dom.js';

export { h, ref, setText } from './dom.js';

const SVG = 'http://www.w3.org/2000/svg';

/** The colours of the seats; the first four are the lanes' too. */
export const SEAT_COLORS = ['#ff4f6d', '#ffb627', '#27e0a3', '#4aa8ff', '#c58bff', '#ff8a3d', '#b9f24a', '#ff7ad9'];

export const reducedMotion = window.matchMedia('(prefers-reduced-motion: reduce)');

/** An icon of the sprite in index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  const use = document.createElementNS(SVG, 'use');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  use.setAttribute('href', `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A fresh copy of <template id="view-NAME">. */
export function view(name) {
  return document.getElementById(`view-${name}`).content.firstElementChild.cloneNode(true);
}

let toastTimer = 0;

/** One short sentence at the foot of the page. kind: 'error' or 'info'. */
export function toast(text, kind = 'error') {
  const node = document.getElementById('toast');
  node.textContent = text;
  node.dataset.kind = kind;
  node.hidden = false;
  node.classList.remove('pop');
  void node.offsetWidth;      // restarts the animation
  node.classList.add('pop');
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { node.hidden = true; }, 5000);
}

/** Says something to a screen reader only. */
export function announce(text) {
  document.getElementById('announcer').textContent = text;
}

/** The sentence to show for an error of the client, of REST, or of the network. */
export function sentence(error) {
  const own = {
    timeout: 'The server did not answer in time. Please try again.',
    buffer_full: 'Too much is waiting to be sent. It goes on when the connection is back.',
    connection_closed: 'The connection ended before that was done.',
  };
  return own[error?.code] ?? (error?.message || 'Something went wrong.');
}

/** Awaits an operation; shows a toast when it fails. Resolves to undefined then. */
export async function attempt(promise) {
  try {
    return await promise;
  } catch (error) {
    toast(sentence(error));
    return undefined;
  }
}

/** A REST call. Throws an Error with `code` and `status`. */
export async function api(method, path, body) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: body ? { 'Content-Type': 'application/json' } : {},
      body: body ? JSON.stringify(body) : undefined,
      cache: 'no-store',
    });
  } catch {
    throw Object.assign(new Error('The server cannot be reached.'), { code: 'offline', status: 0 });
  }
  const answer = await response.json().catch(() => null);
  if (response.ok) return answer;
  const { code = 'error', message = `The server answered ${response.status}.` } = answer?.error ?? {};
  throw Object.assign(new Error(message), { code, status: response.status });
}

/** Copies text; works without a secure context too. Resolves to whether it did. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h('textarea', { class: 'visually-hidden', readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  }
}

export function randomId(prefix) {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return prefix + [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

// --- the person ----------------------------------------------------------------------------------------------------

const NAME_KEY = 'roomkit-demo:name';
const ADJECTIVES = ['Neon', 'Velvet', 'Turbo', 'Midnight', 'Electric', 'Lucky', 'Cosmic', 'Sugar'];
const ANIMALS = ['Otter', 'Panda', 'Gecko', 'Heron', 'Lynx', 'Mantis', 'Koi', 'Magpie'];
const pick = (list) => list[Math.floor(Math.random() * list.length)];

/** What a person is called who types no name. */
export const fallbackName = `${pick(ADJECTIVES)} ${pick(ANIMALS)}`;

export const savedName = () => localStorage.getItem(NAME_KEY) ?? '';

/** Wires a name field: filled from the last visit, kept as it is typed. Returns a function giving the name to use. */
export function nameField(input) {
  input.value = savedName();
  input.placeholder = fallbackName;
  const keep = () => localStorage.setItem(NAME_KEY, input.value.trim().slice(0, 32));
  input.addEventListener('input', keep);
  return () => {
    if (!input.value.trim()) input.value = fallbackName;
    keep();
    return input.value.trim();
  };
}

/** The seat this tab holds in a room, if any. */
export const seatIn = (roomId) => sessionStorage.getItem(`roomkit-demo:seat:${roomId}`);
export const keepSeat = (roomId, playerId) => sessionStorage.setItem(`roomkit-demo:seat:${roomId}`, playerId);
export function forgetSeat(roomId, playerId) {
  sessionStorage.removeItem(`roomkit-demo:seat:${roomId}`);
  sessionStorage.removeItem(`roomkit:${roomId}:${playerId}`);      // the client's token
}

/** What a room is called: its title in the metadata (text from others), or else its id. */
export function roomTitle(id, metadata) {
  const title = metadata?.title;
  return typeof title === 'string' && title.trim() ? title.trim().slice(0, 80) : id;
}
