// One room, live: who is seated, what happens, what it is set to; with kick, ban and close.

import { paintFlags, paintStatus } from './list.js';
import { ask, Poller, trouble } from './server.js';
import { byId, bytes, clock, count, duration, h, Keyed, plural, pretty, ref, secondsBetween, setTerms, setText, sureButton, toast } from './ui.js';

const EVERY_MS = 1000;
const KEPT_EVENTS = 500;
const SHORT = 160;         // characters of an event's data in its line
const REASON = 'closed by an administrator';

const RULES = {
  closed: 'taken away in', lifetime: 'end of its lifetime in', empty: 'closes, since nobody is connected, in', finished: 'closes, since finished, in',
};

export class RoomView {
  #id;
  #node;
  #poller;
  #onRefused;
  #after = null;
  #epoch = null;
  #answer = null;
  #waiting = [];             // events that came while paused
  #paused = false;
  #players = new Keyed((player) => this.#makePlayer(player), (node, player) => this.#paintPlayer(node, player));

  constructor(id, { onRefused }) {
    this.#id = id;
    this.#onRefused = onRefused;
    this.#node = byId('view-room').content.firstElementChild.cloneNode(true);
    this.#poller = new Poller((signal) => this.#load(signal), EVERY_MS, (error, seconds) => this.#say(error, seconds));
    setText(this.#ref('id'), id);
    this.#ref('reason').value = REASON;
    this.#ref('close').addEventListener('click', () => this.#askToClose(true));
    this.#ref('cancel').addEventListener('click', () => this.#askToClose(false));
    this.#ref('confirm').addEventListener('keydown', (event) => { if (event.key === 'Escape') this.#askToClose(false); });
    this.#ref('confirm').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#close();
    });
    this.#ref('pause').addEventListener('click', () => this.#pause());
  }

  get node() { return this.#node; }

  start() { this.#poller.start(); }

  stop() { this.#poller.stop(); }

  #ref(name) { return ref(this.#node, name); }

  get #path() { return `/api/admin/rooms/${encodeURIComponent(this.#id)}`; }

  async #load(signal) {
    const query = this.#after === null ? '' : `?after=${this.#after}`;
    const answer = await ask('GET', this.#path + query, { signal });
    if (this.#epoch !== null && answer.state.epoch !== this.#epoch) {      // another room of the same name
      this.#epoch = this.#after = null;
      this.#ref('events').replaceChildren();
      this.#waiting = [];
      return this.#load(signal);
    }
    this.#epoch = answer.state.epoch;
    this.#after = answer.state.seq;
    this.#answer = answer;
    if (answer.missed) this.#waiting.push({ missed: answer.missed });
    this.#waiting.push(...answer.events);
    this.#waiting.splice(0, this.#waiting.length - KEPT_EVENTS);
    this.#paint();
    return undefined;
  }

  // --- what is shown ---

  #paint() {
    const { state, closed, ...answer } = this.#answer;
    paintStatus(this.#ref('status'), state.status);
    paintFlags(this.#ref('flags'), state);
    this.#ref('close').disabled = closed;
    if (closed) this.#askToClose(false);
    const dropped = Object.entries(answer.dropped);
    const next = answer.deadlines.length ? Math.min(...answer.deadlines.map(({ seconds }) => seconds)) : null;
    setTerms(this.#ref('strip'), [
      ...(answer.instance ? [['Instance', answer.instance, 'fact-instance']] : []),
      ['Seats', `${state.players.length} of ${state.max_players}`, 'fact-seats'],
      ['Connected', count(answer.connections.length), 'fact-connected'],
      ['Queue', `${count(answer.queue_depth)} of ${count(answer.config.queue_size)}`, 'fact-queue'],
      ['Dropped', dropped.length ? dropped.map(([type, n]) => `${count(n)} ${type}`).join(', ') : '0', 'fact-dropped'],
      ['Conflated', count(answer.conflated)],
      ['Events', count(state.seq), 'fact-seq'],
      ['Made', `${duration(secondsBetween(state.created_at, answer.time))} ago`],
      ['Started', state.started_at ? `${duration(secondsBetween(state.started_at, answer.time))} ago` : '–'],
      ['Next deadline', next === null ? 'none' : `in ${duration(next)}`],
    ]);
    this.#paintPlayers();
    setText(this.#ref('settings'), pretty(state.settings));
    setText(this.#ref('metadata'), pretty(state.metadata));
    this.#ref('results-box').hidden = state.results === null;
    setText(this.#ref('results'), pretty(state.results));
    setTerms(this.#ref('deadlines'), answer.deadlines.filter(({ rule }) => rule !== 'seat').map(({ rule, seconds }) => [RULES[rule] ?? rule, duration(seconds)]));
    const { epoch, lifecycle, min_players, transferred_to } = state;
    const bounds = { epoch, lifecycle, ...answer.config, min_players, ...(transferred_to && { transferred_to }) };
    setTerms(this.#ref('bounds'), Object.entries(bounds).map(([name, value]) => [name, value === null ? '–' : String(value)]));
    if (!this.#paused) this.#release();
    this.#paintPause();
  }

  #paintPlayers() {
    const { state, connections, deadlines, bans } = this.#answer;
    const byPlayer = new Map(connections.map((connection) => [connection.player_id, connection]));
    const kept = new Map(deadlines.filter(({ rule }) => rule === 'seat').map(({ player_id: id, seconds }) => [id, seconds]));
    setText(this.#ref('player-count'), `${state.players.length} of ${state.max_players}`);
    this.#ref('nobody').hidden = state.players.length > 0;
    this.#players.show(
      this.#ref('players'),
      state.players.map((player) => ({ ...player, host: player.id === state.host, connection: byPlayer.get(player.id), kept: kept.get(player.id) })),
      ({ id }) => id);
    this.#ref('bans').hidden = !bans.length;
    setText(this.#ref('bans'), `Banned: ${bans.join(', ')}`);
  }

  #makePlayer({ id }) {
    return h('li', { class: 'player', testid: `player-${id}` },
      h('span', { class: 'who' }, h('b', { ref: 'name' }), h('span', { class: 'dim', ref: 'player-id' }, id)),
      h('span', { class: 'flags', ref: 'marks' }),
      h('span', { class: 'line', ref: 'line', testid: `line-${id}` }),
      h('span', { class: 'acts' },
        sureButton('Kick', 'Kick?', { testid: `kick-${id}`, 'aria-label': `Kick ${id}` }, () => this.#kick(id, false)),
        sureButton('Ban', 'Ban?', { testid: `ban-${id}`, 'aria-label': `Ban ${id}` }, () => this.#kick(id, true))));
  }

  #paintPlayer(node, player) {
    setText(ref(node, 'name'), player.name);
    ref(node, 'player-id').hidden = player.name === player.id;
    const marks = [player.host && 'host', player.ready && 'ready'].filter(Boolean);
    const place = ref(node, 'marks');
    if (place.textContent !== marks.join('')) place.replaceChildren(...marks.map((mark) => h('span', { class: 'flag' }, mark)));
    setText(ref(node, 'line'), this.#playerLine(player));
    node.dataset.state = !player.connected ? 'away' : player.connection?.stalled ? 'slow' : 'here';
    for (const button of node.querySelectorAll('button')) button.disabled = this.#answer.closed;
  }

  #playerLine({ connected, connection, kept, joined_at: joined }) {
    const parts = [];
    if (!connected) parts.push(kept === undefined ? 'away' : `away, seat kept for ${duration(kept)}`);
    else if (connection?.stalled) parts.push(`slow: ${bytes(connection.outbox_bytes)} wait for it`);
    else parts.push('connected');
    if (connection?.address) parts.push(`from ${connection.address}`);
    parts.push(`seated ${duration(secondsBetween(joined, this.#answer.time))}`);
    return parts.join(' · ');
  }

  // --- the feed ---

  #release() {
    const list = this.#ref('events');
    for (const event of this.#waiting) list.prepend(event.missed ? missedLine(event.missed) : eventLine(event));
    this.#waiting = [];
    while (list.children.length > KEPT_EVENTS) list.lastElementChild.remove();
    this.#ref('no-events').hidden = list.children.length > 0;
  }

  #pause() {
    this.#paused = !this.#paused;
    if (!this.#paused) this.#release();
    this.#paintPause();
  }

  #paintPause() {
    const more = this.#waiting.length ? ` (${this.#waiting.length} new)` : '';
    setText(this.#ref('pause'), this.#paused ? `Go on${more}` : 'Pause');
    this.#ref('pause').setAttribute('aria-pressed', String(this.#paused));
  }

  // --- what an admin does ---

  #askToClose(ask) {
    const form = this.#ref('confirm');
    if (form.hidden === !ask) return;
    form.hidden = !ask;
    if (ask) this.#ref('reason').select();
    else this.#ref('close').focus();
  }

  async #close() {
    const reason = this.#ref('reason').value.trim() || REASON;
    await this.#do(`${this.#path}/close`, { reason }, `Room ${this.#id} is closed.`);
    this.#askToClose(false);
  }

  #kick(id, ban) {
    return this.#do(`${this.#path}/kick`, { player_id: id, ban }, `${id} is ${ban ? 'banned' : 'kicked'}.`);
  }

  async #do(path, body, done) {
    try {
      await ask('POST', path, { body });
      toast(done, 'info');
    } catch (error) {
      if (error.status === 401) this.#onRefused(error);
      else toast(error.status === 0 ? 'The server did not answer; nothing is known of it.' : error.message);
    }
    this.#poller.now();
  }

  #say(error, seconds) {
    const notice = this.#ref('notice');
    notice.hidden = !error;
    if (!error) return;
    if (error.status === 401 || error.status === 403) this.#onRefused(error);
    if (error.status === 404) {
      this.#poller.stop();
      this.#node.classList.add('gone');
      this.#node.querySelectorAll('button').forEach((button) => { button.disabled = true; });
      this.#askToClose(false);
      setText(notice, this.#answer ? 'This room is gone. What is shown is how it was.' : 'There is no room of this name.');
    } else {
      setText(notice, trouble(error, seconds));
    }
  }
}

function missedLine(missed) {
  return h('li', { class: 'missed' }, `${plural(missed, 'older event')} not shown`);
}

function eventLine({ seq, type, timestamp, data, conflated }) {
  const text = JSON.stringify(data);
  const head = [
    h('span', { class: 'seq' }, count(seq)),
    h('time', { datetime: timestamp }, clock(timestamp)),
    h('b', {}, type),
    h('code', {}, text.length > SHORT ? `${text.slice(0, SHORT)}…` : text),
  ];
  if (conflated) head.push(h('span', { class: 'dim' }, `stands for ${conflated} older`));
  if (text.length <= 60) return h('li', { testid: `event-${seq}` }, h('div', { class: 'event' }, ...head));
  return h('li', { testid: `event-${seq}` }, h('details', {}, h('summary', { class: 'event' }, ...head), h('pre', {}, pretty(data))));
}
