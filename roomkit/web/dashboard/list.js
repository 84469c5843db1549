// The room list: search, status, sort, pages. The server searches and sorts; a page is all that ever comes here.

import { ask, Poller, trouble } from './server.js';
import { age, byId, count, h, Keyed, plural, secondsBetween, setText, statusColor } from './ui.js';

const EVERY_MS = 3000;
const TYPING_MS = 250;
const PAGE = 50;

export const roomAddress = (id) => `#/rooms/${encodeURIComponent(id)}`;

export class RoomList {
  #poller;
  #rows = new Keyed(makeRow, paintRow);
  #sort = '-created_at';
  #cursors = [null];          // of the pages up to the one that is shown
  #next = null;
  #typing = 0;
  #total = 0;
  #onRefused;

  constructor({ onRefused }) {
    this.#onRefused = onRefused;
    this.#poller = new Poller((signal) => this.#load(signal), EVERY_MS, (error, seconds) => this.#say(error, seconds));
    byId('search').addEventListener('input', () => {
      clearTimeout(this.#typing);
      this.#typing = setTimeout(() => this.#restart(), TYPING_MS);
    });
    byId('status').addEventListener('change', () => this.#restart());
    byId('previous').addEventListener('click', () => this.#turn(-1));
    byId('next').addEventListener('click', () => this.#turn(1));
    document.addEventListener('keydown', (event) => {
      const typing = event.target.closest('input, select, textarea');
      if (event.key === '/' && !typing && !byId('overview').hidden) {
        event.preventDefault();
        byId('search').focus();
      }
    });
    for (const head of this.#heads()) {
      head.firstElementChild.addEventListener('click', () => {
        const name = head.dataset.sort;
        this.#sort = this.#sort === `-${name}` ? name : `-${name}`;
        this.#paintSort();
        this.#restart();
      });
    }
    this.#paintSort();
  }

  start() { this.#poller.start(); }

  stop() {
    clearTimeout(this.#typing);
    this.#poller.stop();
  }

  /** Shows the rooms of one status. */
  filter(status) {
    this.#option(status);
    byId('status').value = status;
    this.#restart();
    byId('list-title').scrollIntoView({ block: 'nearest' });
  }

  /** The newest stats: which statuses there are, and how many rooms. */
  know(stats) {
    this.#total = stats.total_rooms;
    Object.keys(stats.by_status).forEach((status) => this.#option(status));
  }

  #heads() { return byId('rooms').tHead.querySelectorAll('[data-sort]'); }

  #option(status) {
    const select = byId('status');
    if (![...select.options].some(({ value }) => value === status)) select.append(h('option', { value: status }, status));
  }

  #restart() {
    this.#cursors = [null];
    this.#poller.now();
  }

  #turn(step) {
    if (step < 0 && this.#cursors.length > 1) this.#cursors.pop();
    else if (step > 0 && this.#next !== null) this.#cursors.push(this.#next);
    else return;
    this.#poller.now();
    byId('list-title').scrollIntoView({ block: 'nearest' });
  }

  #paintSort() {
    for (const head of this.#heads()) {
      const { sort, turned } = head.dataset;                        // turned: made last is of the least age
      const down = turned === undefined ? `-${sort}` : sort;
      const up = turned === undefined ? sort : `-${sort}`;
      head.setAttribute('aria-sort', this.#sort === down ? 'descending' : this.#sort === up ? 'ascending' : 'none');
    }
  }

  async #load(signal) {
    const search = byId('search').value.trim();
    const status = byId('status').value;
    const query = new URLSearchParams({ sort: this.#sort, limit: PAGE });
    if (search) query.set('search', search);
    if (status) query.set('status', status);
    const cursor = this.#cursors.at(-1);
    if (cursor !== null) query.set('cursor', cursor);
    const answer = await ask('GET', `/api/admin/rooms?${query}`, { signal });
    if (!answer.rooms.length && this.#cursors.length > 1) {        // the rooms of this page have gone
      this.#cursors.pop();
      return this.#load(signal);
    }
    this.#next = answer.next_cursor;
    const now = answer.time;
    this.#rows.show(byId('rooms').tBodies[0], answer.rooms.map((room) => ({ ...room, now })), ({ id }) => id);
    const everything = !search && !status;
    setText(byId('list-count'), everything ? count(answer.matches) : `${count(answer.matches)} of ${count(Math.max(this.#total, answer.matches))}`);
    byId('list-empty').hidden = answer.rooms.length > 0;
    setText(byId('list-empty'), everything ? 'There is no room at the moment.' : 'No room fits the search.');
    byId('rooms').hidden = answer.rooms.length === 0;
    const pages = Math.max(1, Math.ceil(answer.matches / PAGE));
    const page = this.#cursors.length;
    setText(byId('page'), `Page ${count(page)} of ${count(Math.max(page, pages))}`);
    byId('previous').disabled = this.#cursors.length === 1;
    byId('next').disabled = this.#next === null;
    return undefined;
  }

  #say(error, seconds) {
    if (error && (error.status === 401 || error.status === 403)) this.#onRefused(error);
    byId('list-notice').hidden = !error;
    if (error) setText(byId('list-notice'), trouble(error, seconds));
  }
}

function makeRow(room) {
  return h('tr', { testid: `row-${room.id}` },
    h('td', {}, h('a', { href: roomAddress(room.id) }, room.id), h('span', { class: 'flags' }), h('span', { class: 'about' }),
      h('span', { class: 'status on-phones' })),
    h('td', { class: 'w-status' }, h('span', { class: 'status' })),
    h('td', { class: 'number' }), h('td', { class: 'number' }), h('td', { class: 'number' }),
    h('td', { class: 'w-host' }), h('td', { class: 'number' }));
}

function paintRow(row, room) {
  const [name, status, seats, queue, drops, host, made] = row.children;
  paintFlags(name.children[1], room);
  setText(name.children[2], room.metadata_text);
  paintStatus(status.firstElementChild, room.status);
  paintStatus(name.children[3], room.status, ' on-phones');
  setText(seats, `${room.player_count}/${room.max_players}`);
  seats.title = `${plural(room.player_count, 'player')}, ${room.connected_count} connected`;
  seats.classList.toggle('away', room.connected_count < room.player_count);
  setText(queue, count(room.queue_depth));
  queue.classList.toggle('warn', room.queue_depth > 0);
  setText(drops, count(room.dropped));
  drops.classList.toggle('bad', room.dropped > 0);
  setText(host, room.host ?? '–');
  setText(made, age(secondsBetween(room.created_at, room.now)));
}

export function paintStatus(node, status, more = '') {
  setText(node, status);
  node.className = `status c-${statusColor(status)}${more}`;
}

export function paintFlags(node, room) {
  const flags = [room.private && 'private', room.locked && 'locked', room.has_password && 'password'].filter(Boolean);
  if (node.textContent !== flags.join('')) node.replaceChildren(...flags.map((flag) => h('span', { class: 'flag' }, flag)));
}
