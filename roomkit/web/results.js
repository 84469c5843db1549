// The results of a round, from the room's state. They were made by another player's page, so nothing in them is trusted.

import { songById } from './songs.js';
import { h, ref, SEAT_COLORS, setText } from './ui.js';

const number = (value) => (Number.isFinite(value) ? value : 0);

/** @param fallback results of our own making, for a room whose results are of some other kind */
export function paintResults(root, state, fallback, me) {
  const given = state.results?.ranking;
  const ranking = (Array.isArray(given) && given.length ? given : fallback.ranking)
    .filter((entry) => entry && typeof entry === 'object').slice(0, 8);
  const list = ref(root, 'ranking');
  const key = JSON.stringify([state.id, state.started_at, ranking]);
  if (list.dataset.key === key) return;
  list.dataset.key = key;

  const place = ranking.findIndex((entry) => entry.player_id === me);
  const winner = String(ranking[0]?.name ?? 'Nobody').slice(0, 64);
  setText(ref(root, 'headline'), ranking.length < 2 ? 'Nicely done' : place === 0 ? 'You win!' : `${winner} wins`);
  setText(ref(root, 'results-song'), songById(state.song_id).title);
  const top = Math.max(1, ...ranking.map((entry) => number(entry.score)));
  list.replaceChildren(...ranking.map((entry, i) => {
    const seat = state.players.findIndex((player) => player.id === entry.player_id);
    const row = h('li', { class: entry.player_id === me ? 'rank mine' : 'rank', testid: `result-${String(entry.player_id)}` },
      h('span', { class: 'place' }, String(i + 1)),
      h('span', { class: 'rank-text' },
        h('strong', { class: 'rank-name' }, String(entry.name ?? entry.player_id).slice(0, 64)),
        h('span', { class: 'rank-facts' },
          h('span', {}, `${number(entry.accuracy).toFixed(1)} %`),
          h('span', {}, `combo ${number(entry.max_combo)}`),
          h('span', { class: 'hits' }, `${number(entry.perfect)} perfect · ${number(entry.good)} good · ${number(entry.miss)} missed`))),
      h('span', { class: 'rank-score' }, number(entry.score).toLocaleString('en')));
    row.style.setProperty('--seat', SEAT_COLORS[Math.max(0, seat) % SEAT_COLORS.length]);
    row.style.setProperty('--share', String(number(entry.score) / top));
    row.style.setProperty('--i', String(i));
    return row;
  }));
}
