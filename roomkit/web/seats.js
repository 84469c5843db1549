// The seats: who sits where, who is ready, away, host, and, in a round, how everybody is doing.

import { h, icon, ref, SEAT_COLORS, setText } from './ui.js';

const SURE_MS = 3000;

export class Seats {
  #list;
  #kick;
  #invite;
  #rows = new Map();
  #names = new Map();

  constructor(list, { kick, invite }) {
    this.#list = list;
    this.#kick = kick;
    this.#invite = invite;
  }

  /** The name of somebody who sits or sat here. */
  nameOf(id) { return this.#names.get(id) ?? 'Somebody'; }

  paint(state, client, scores, phase) {
    const scored = phase === 'play' || phase === 'results';
    const top = Math.max(1, ...state.players.map(({ id }) => scores.of(id)?.score ?? 0));
    const gone = new Set(this.#rows.keys());
    const nodes = state.players.map((player, i) => {
      gone.delete(player.id);
      this.#names.set(player.id, player.name);
      if (!this.#rows.has(player.id)) this.#rows.set(player.id, this.#make(player.id));
      const row = this.#rows.get(player.id);
      const host = player.id === state.host;
      const mine = player.id === client.playerId;
      const tally = scores.of(player.id);
      row.style.setProperty('--seat', SEAT_COLORS[i % SEAT_COLORS.length]);
      row.style.setProperty('--share', scored ? String((tally?.score ?? 0) / top) : '0');
      row.dataset.ready = player.ready;
      row.dataset.connected = player.connected;
      row.dataset.host = host;
      row.classList.toggle('mine', mine);
      setText(ref(row, 'initial'), [...player.name][0]?.toUpperCase() ?? '?');
      setText(ref(row, 'name'), player.name);
      ref(row, 'crown').hidden = !host;
      ref(row, 'you').hidden = !mine;
      setText(ref(row, 'status'), this.#status(player, tally, state, scored));
      ref(row, 'tick').hidden = scored || !player.ready;
      ref(row, 'score').hidden = !scored;
      setText(ref(row, 'score'), (tally?.score ?? 0).toLocaleString('en'));
      ref(row, 'kick').hidden = mine || !client.isHost || phase === 'ended';
      ref(row, 'kick').setAttribute('aria-label', `Remove ${player.name}`);
      return row;
    });
    gone.forEach((id) => this.#rows.delete(id));
    for (let i = nodes.length; i < state.max_players; i += 1) nodes.push(this.#empty(i, state, phase));
    if (nodes.length !== this.#list.children.length || nodes.some((node, i) => node !== this.#list.children[i])) {
      this.#list.replaceChildren(...nodes);
    }
    this.#list.dataset.size = state.max_players > 4 ? 'many' : 'few';
  }

  #status(player, tally, state, scored) {
    if (!player.connected) return 'away, seat kept';
    if (scored && tally) return tally.done ? `best combo ${tally.best}` : tally.combo > 1 ? `combo ${tally.combo}` : 'playing';
    if (scored) return 'get set';
    if (player.ready) return 'ready';
    return state.status === 'waiting' ? 'here' : 'not ready';
  }

  #empties = [];
  #empty(i, state, phase) {
    this.#empties[i] ??= h('li', { class: 'seat empty' },
      h('button', { type: 'button', class: 'invite', onclick: this.#invite }, h('span', { class: 'avatar', 'aria-hidden': true }, '+'), 'Invite'));
    this.#empties[i].hidden = phase !== 'setup';
    return this.#empties[i];
  }

  #make(id) {
    const kick = h('button', { type: 'button', class: 'kick', ref: 'kick', testid: `kick-${id}` }, icon('close'));
    let sure = 0;
    kick.addEventListener('click', () => {
      if (!sure) {                                        // the first press asks, the second does it
        kick.replaceChildren('Kick?');
        sure = setTimeout(() => { sure = 0; kick.replaceChildren(icon('close')); }, SURE_MS);
        return;
      }
      clearTimeout(sure);
      sure = 0;
      kick.replaceChildren(icon('close'));
      this.#kick(id);
    });
    return h('li', { class: 'seat', testid: `seat-${id}` },
      h('span', { class: 'avatar', 'aria-hidden': true }, h('span', { ref: 'initial' })),
      h('span', { class: 'seat-text' },
        h('span', { class: 'seat-name' },
          h('span', { class: 'seat-who', ref: 'name' }),
          h('span', { class: 'crown', ref: 'crown', title: 'Host' }, icon('crown'), h('span', { class: 'visually-hidden' }, 'host')),
          h('span', { class: 'you', ref: 'you' }, 'you')),
        h('span', { class: 'seat-status', ref: 'status' })),
      h('span', { class: 'tick', ref: 'tick' }, icon('check')),
      h('span', { class: 'score', ref: 'score', testid: `score-${id}` }, '0'),
      kick);
  }
}
