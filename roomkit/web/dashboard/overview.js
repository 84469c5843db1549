// The live numbers of the whole server: tiles with their charts, rooms by status, drops by type.

import { Chart, SPAN } from './chart.js';
import { amount, byId, byLife, clock, count, duration, h, Keyed, plural, secondsBetween, setText, statusColor } from './ui.js';

const sum = (counts) => Object.values(counts).reduce((total, value) => total + value, 0);

/** What each tile shows: a sample's number, how it is written, and the line below for the newest stats. */
const TILES = [
  { id: 'rooms', title: 'Rooms', color: 'blue', of: (s) => s.rooms, text: count,
    more: (stats) => `${count(stats.active_rooms)} with somebody connected` },
  { id: 'connections', title: 'Connections', color: 'violet', of: (s) => s.websockets, text: count,
    more: (stats) => `${plural(stats.players, 'seat')} taken` },
  { id: 'operations', title: 'Operations /s', color: 'teal', of: (s) => s.operations, text: amount,
    more: (stats) => `${count(sum(stats.refused))} refused, ${count(stats.busy)} busy so far` },
  { id: 'deliveries', title: 'Deliveries /s', color: 'green', of: (s) => s.deliveries, text: amount,
    more: (stats, sample) => (sample.sent === null ? 'events handed to connections' : `${amount(sample.sent / 1024)} KiB/s sent`) },
  { id: 'queue', title: 'Queue depth', color: 'amber', of: (s) => s.queue, text: count,
    more: (stats) => `${count(stats.deepest_queue)} in the fullest room` },
  { id: 'drops', title: 'Drops /s', color: 'red', of: (s) => s.drops, text: amount,
    more: (stats) => `${count(sum(stats.dropped))} so far` },
  { id: 'slow', title: 'Slow connections', color: 'orange', of: (s) => s.stalled, text: count,
    more: (stats) => `${count(stats.slow_connections)} closed with 4008 so far` },
  { id: 'sweep', title: 'Last sweep, ms', color: 'pink', of: (s) => s.sweep, text: amount, more: sweepLine },
];

function sweepLine(stats) {
  const { at, taken_away: gone } = stats.last_sweep;
  if (at === null) return 'none yet';
  return `took ${count(gone)} ${gone === 1 ? 'room' : 'rooms'}, ${duration(secondsBetween(at, stats.time))} ago`;
}

export class Overview {
  #samples = [];
  #stats = null;
  #tiles = [];
  #picked = null;
  #onStatus;
  #legend;
  #drops;
  #dropRates = {};

  /** onStatus(status): somebody wants to see the rooms of this status. */
  constructor({ onStatus }) {
    this.#onStatus = onStatus;
    for (const tile of TILES) {
      const value = h('span', { class: 'value', testid: `tile-${tile.id}` }, '–');
      const more = h('span', { class: 'more' }, ' ');
      const canvas = h('canvas', { tabindex: '0', role: 'img', testid: `chart-${tile.id}` });
      const box = h('div', { class: 'tile' }, h('h2', {}, tile.title), value, more, canvas);
      byId('tiles').append(box);
      const chart = new Chart(canvas, tile.color, tile.of, (time) => this.#pick(time));
      this.#tiles.push({ ...tile, value, moreLine: more, canvas, chart });
    }
    this.#legend = new Keyed(
      ([status]) => h('li', {}, h('button', { type: 'button', testid: `status-${status}`, onclick: () => this.#onStatus(status) },
        h('i', { class: `dot c-${statusColor(status)}`, 'aria-hidden': true }), h('span', {}, status), h('b', {}))),
      (node, [, n]) => setText(node.querySelector('b'), count(n)));
    this.#drops = new Keyed(
      ([type]) => h('tr', {}, h('th', { scope: 'row' }, type), h('td', { class: 'number' }), h('td', { class: 'number' })),
      (node, [type, n]) => {
        setText(node.children[1], count(n));
        setText(node.children[2], amount(this.#dropRates[type] ?? 0));
      });
  }

  /** Takes a new answer of /api/admin/stats. Rates are made here, of two answers and the server's time between them. */
  take(stats) {
    const before = this.#stats;
    if (before && stats.uptime === before.uptime) return;        // the same numbers once more
    const since = before ? stats.uptime - before.uptime : 0;
    if (since < 0) this.#samples = [];                           // another server, or the same one anew
    const rate = (now, then) => (since > 0 ? Math.max(0, now - then) / since : null);
    this.#samples.push({
      t: stats.uptime,
      time: stats.time,
      rooms: stats.total_rooms,
      websockets: stats.websockets,
      operations: rate(sum(stats.operations), before && sum(before.operations)),
      deliveries: rate(stats.deliveries, before?.deliveries),
      sent: rate(stats.bytes_sent, before?.bytes_sent),
      queue: stats.queue_depth,
      drops: rate(sum(stats.dropped), before && sum(before.dropped)),
      stalled: stats.stalled,
      sweep: stats.last_sweep.at === null ? null : stats.last_sweep.seconds * 1000,
    });
    while (this.#samples[0].t < stats.uptime - SPAN) this.#samples.shift();
    this.#dropRates = Object.fromEntries(
      Object.entries(stats.dropped).map(([type, n]) => [type, rate(n, before?.dropped[type] ?? 0)]));
    this.#stats = stats;
  }

  paint() {
    const stats = this.#stats;
    if (!stats) return;
    if (this.#picked !== null && !this.#samples.some(({ t }) => t === this.#picked)) this.#picked = null;
    this.#paintTiles();
    const statuses = Object.entries(stats.by_status).sort(([a], [b]) => byLife(a, b));
    this.#legend.show(byId('status-legend'), statuses, ([status]) => status);
    this.#paintBar(statuses, stats.total_rooms);
    const drops = Object.entries(stats.dropped).sort((a, b) => b[1] - a[1]);
    byId('drops').hidden = !drops.length;
    byId('drops-none').hidden = drops.length > 0;
    setText(byId('drops-sum'), drops.length ? count(sum(stats.dropped)) : '');
    this.#drops.show(byId('drops').tBodies[0], drops, ([type]) => type);
  }

  #paintTiles() {
    const newest = this.#samples.at(-1);
    const shown = this.#samples.find(({ t }) => t === this.#picked) ?? newest;
    for (const tile of this.#tiles) {
      const value = tile.of(shown);
      setText(tile.value, value === null ? '–' : tile.text(value));
      setText(tile.moreLine, shown === newest ? tile.more(this.#stats, newest) : `at ${clock(shown.time)}`);
      tile.canvas.setAttribute('aria-label', `${tile.title}, the last five minutes: now ${tile.of(newest) === null ? 'unknown' : tile.text(tile.of(newest))}`);
      tile.chart.show(this.#samples);
    }
    byId('tiles').classList.toggle('picked', shown !== newest);
  }

  #paintBar(statuses, total) {
    const bar = byId('status-bar');
    while (bar.children.length > statuses.length) bar.lastElementChild.remove();
    statuses.forEach(([status, n], i) => {
      const part = bar.children[i] ?? bar.appendChild(h('i'));
      part.className = `c-${statusColor(status)}`;
      part.style.flexGrow = String(n / (total || 1));
      part.title = `${status}: ${count(n)}`;
    });
  }

  #pick(time) {
    this.#picked = time;
    this.#tiles.forEach(({ chart }) => chart.pick(time));
    if (this.#stats) this.#paintTiles();
  }
}
