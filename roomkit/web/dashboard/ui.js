// Small tools for the page. What comes from players goes in through textContent and attributes only, never as markup.

import { h, setText } from './dom.js';

export { h, ref, setText } from './dom.js';

export const byId = (id) => document.getElementById(id);

/** Makes the children of `parent` these, touching only what differs, so that the focus and the hover stay. */
export function setChildren(parent, nodes) {
  nodes.forEach((node, i) => {
    if (parent.children[i] !== node) parent.insertBefore(node, parent.children[i] ?? null);
  });
  while (parent.children.length > nodes.length) parent.lastElementChild.remove();
}

/** The nodes for `items`, one for each key, made once by `make(item)` and brought up to date by `paint(node, item)`. */
export class Keyed {
  #nodes = new Map();
  #make;
  #paint;

  constructor(make, paint) {
    this.#make = make;
    this.#paint = paint;
  }

  show(parent, items, keyOf) {
    const before = this.#nodes;
    this.#nodes = new Map();
    for (const item of items) {
      const key = keyOf(item);
      const node = before.get(key) ?? this.#make(item);
      this.#paint(node, item);
      this.#nodes.set(key, node);
    }
    setChildren(parent, [...this.#nodes.values()]);
  }
}

/** A <dl> of [term, description, testid?] rows. */
export function setTerms(list, rows) {
  const shown = [...list.children].map((box) => box.firstElementChild.textContent);
  if (shown.length !== rows.length || rows.some(([term], i) => term !== shown[i])) {
    list.replaceChildren(...rows.map(([term, , testid]) => h('div', {}, h('dt', {}, term), h('dd', { testid }))));
  }
  rows.forEach(([, text], i) => setText(list.children[i].lastElementChild, text));
}

const SURE_MS = 4000;

/** A button of which the first press asks, and a second one soon after does it. */
export function sureButton(label, question, props, action) {
  let asked = 0;
  const spoken = props['aria-label'];
  const button = h('button', { type: 'button', class: 'button small', ...props }, label);
  const calm = () => {
    clearTimeout(asked);
    asked = 0;
    button.textContent = label;
    button.classList.remove('asking');
    if (spoken) button.setAttribute('aria-label', spoken);
  };
  button.addEventListener('click', () => {
    if (asked) {
      calm();
      action();
      return;
    }
    asked = setTimeout(calm, SURE_MS);
    button.textContent = question;
    button.classList.add('asking');
    if (spoken) button.setAttribute('aria-label', `${spoken}? Press again to do it.`);
  });
  return button;
}

let toastTimer = 0;

/** One short sentence that goes away by itself. kind: 'error' or 'info'. */
export function toast(text, kind = 'error') {
  const node = byId('toast');
  node.textContent = text;
  node.dataset.kind = kind;
  node.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { node.hidden = true; }, 6000);
}

// --- how things are written ----------------------------------------------------------------------------------------

const WHOLE = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const TENTHS = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
const SMALL = new Intl.NumberFormat('en', { maximumSignificantDigits: 2 });

export const count = (value) => WHOLE.format(value);

/** A rate or another number that need not be whole; null: there is none yet. */
export function amount(value) {
  if (value === null || value === undefined) return '–';
  if (value < 1) return SMALL.format(value);
  return value < 10 ? TENTHS.format(value) : WHOLE.format(value);
}

export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

export function bytes(value) {
  if (value < 1024) return `${value} B`;
  const kib = value / 1024;
  return kib < 1024 ? `${amount(kib)} KiB` : `${amount(kib / 1024)} MiB`;
}

/** 42 s, 3 min 5 s, 2 h 14 min, 5 d 3 h */
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** One unit only, for a narrow column. */
export function age(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  return s < 86400 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} d`;
}

/** Seconds from one RFC 3339 text to another, both by the server's clock. */
export const secondsBetween = (from, to) => (Date.parse(to) - Date.parse(from)) / 1000;

const CLOCK = new Intl.DateTimeFormat('en-GB', { timeStyle: 'medium' });

/** The time of day here. */
export const clock = (text) => CLOCK.format(new Date(text));

/** JSON to read; nothing is written as {}. */
export const pretty = (value) => JSON.stringify(value ?? {}, null, 2);

// --- statuses --------------------------------------------------------------------------------------------------------

const COLORS = { waiting: 'blue', preparing: 'amber', ready: 'green', playing: 'violet', finished: 'teal', closed: 'gray' };
const OTHERS = ['pink', 'lime', 'orange', 'sky'];
const given = new Map();

const order = Object.keys(COLORS);
const place = (status) => (order.includes(status) ? order.indexOf(status) : order.length);

/** In the order of a room's life; those of a lifecycle of one's own by name. */
export const byLife = (a, b) => place(a) - place(b) || a.localeCompare(b);

/** The colour of a status; a lifecycle of one's own gets some, the same ones until the page is loaded again. */
export function statusColor(status) {
  if (status in COLORS) return COLORS[status];
  if (!given.has(status)) given.set(status, OTHERS[given.size % OTHERS.length]);
  return given.get(status);
}
