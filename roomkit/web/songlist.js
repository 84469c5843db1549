// The choice of a song: one row each, with a picture of its chart.

import { chartOf, DEFAULT_SONG, SONGS, songLength } from './songs.js';
import { h } from './ui.js';

const SVG = 'http://www.w3.org/2000/svg';

/** The chart as a strip: time to the right, a row per lane. */
function strip(song) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('class', 'strip');
  svg.setAttribute('viewBox', '0 0 240 32');
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('aria-hidden', 'true');
  const length = songLength(song);
  for (const { t, lane } of chartOf(song)) {
    const mark = document.createElementNS(SVG, 'rect');
    mark.setAttribute('x', ((t / length) * 240).toFixed(1));
    mark.setAttribute('y', String(lane * 8 + 1));
    mark.setAttribute('width', '2.6');
    mark.setAttribute('height', '6');
    mark.setAttribute('rx', '1.3');
    svg.append(mark);
  }
  return svg;
}

export class SongList {
  #rows = new Map();

  constructor(root, choose) {
    for (const song of SONGS) {
      const row = h('button', { type: 'button', class: 'song', testid: song.id, 'aria-pressed': 'false', onclick: () => choose(song.id) },
        h('span', { class: 'song-text' },
          h('span', { class: 'song-title' }, song.title, ' ', h('span', { class: 'native', lang: 'zh-Hant' }, song.native)),
          h('span', { class: 'song-facts' }, `${song.bpm} bpm · ${Math.round(songLength(song))} s`,
            h('span', { class: 'level', role: 'img', 'aria-label': `level ${song.level} of 5` },
              ...Array.from({ length: 5 }, (_, i) => h('i', { class: i < song.level ? 'on' : '' }))))),
        strip(song));
      row.style.setProperty('--song', song.color);
      this.#rows.set(song.id, row);
      root.append(row);
    }
  }

  /** Without a choice the default song is what would be played. */
  paint(songId) {
    const chosen = this.#rows.has(songId) ? songId : DEFAULT_SONG.id;
    for (const [id, row] of this.#rows) row.setAttribute('aria-pressed', String(id === chosen));
  }
}
