// One round of one player: what is due when, how a hit is judged, the tally. No DOM, no sound, no network.
//
// Time. The server stamps `started_at` when the host starts. Everybody's song begins LEAD_IN seconds after that instant
// on the *server's* clock (client.clockOffset places it on ours), so that all play together, and a page that was
// reloaded, or heard of the start late, finds itself at the right place in the song. The instant is placed once per
// round on performance.now(), which no clock adjustment moves.

import { chartOf, songLength } from './songs.js';

export const LEAD_IN = 3;       // seconds of countdown
export const TAIL = 0.7;        // seconds after the song until the round counts as over
export const PERFECT = 0.06;    // seconds either side
export const GOOD = 0.14;

const POINTS = { perfect: 300, good: 120, miss: 0 };

export const emptyTally = () => ({ score: 0, combo: 0, best: 0, perfect: 0, good: 0, miss: 0, done: false });

/** 0 to 100: a perfect counts whole, a good half. */
export function accuracy({ perfect, good, miss }) {
  const judged = perfect + good + miss;
  return judged ? (100 * (perfect + good / 2)) / judged : 0;
}

export class Round {
  /**
   * @param song       one of SONGS
   * @param startedAt  the state's started_at
   * @param clockOffset server clock minus ours, milliseconds
   * @param saved      {tally, upTo} of this same round from before a reload, or null
   */
  constructor(song, startedAt, clockOffset, saved = null) {
    this.song = song;
    this.id = startedAt;
    this.length = songLength(song);
    const age = Math.max(0, Date.now() + clockOffset - Date.parse(startedAt));
    this.zero = performance.now() - age + LEAD_IN * 1000;   // performance.now() at the song's start
    this.notes = chartOf(song).map((note) => ({ ...note, judged: null }));
    this.tally = saved ? { ...emptyTally(), ...saved.tally } : emptyTally();
    if (saved) for (const note of this.notes) if (note.t <= saved.upTo) note.judged = 'before';
    this.next = 0;                                          // no note before this index is open
    this.#advance();
  }

  /** Seconds since the song's start; negative in the countdown. */
  get time() { return (performance.now() - this.zero) / 1000; }
  get over() { return this.time >= this.length + TAIL; }

  /** Up to where all notes are judged (for a reload). */
  get upTo() { return this.next > 0 ? this.notes[this.next - 1].t : -Infinity; }

  /** A key or a tap. Returns 'perfect', 'good' or null when no note is near (which costs nothing). */
  hit(lane, time = this.time) {
    let found = null;
    for (let i = this.next; i < this.notes.length && this.notes[i].t <= time + GOOD; i += 1) {
      const note = this.notes[i];
      if (note.lane === lane && !note.judged && Math.abs(note.t - time) <= GOOD) { found = note; break; }
    }
    if (!found) return null;
    return this.#judge(found, Math.abs(found.t - time) <= PERFECT ? 'perfect' : 'good');
  }

  /** Notes that have passed are misses. Returns them. */
  sweep(time = this.time) {
    const missed = [];
    for (let i = this.next; i < this.notes.length && this.notes[i].t < time - GOOD; i += 1) {
      if (this.notes[i].judged) continue;
      this.#judge(this.notes[i], 'miss');
      missed.push(this.notes[i]);
    }
    if (!this.tally.done && this.next === this.notes.length && time >= this.length) {
      this.tally = { ...this.tally, done: true };
    }
    return missed;
  }

  #judge(note, verdict) {
    note.judged = verdict;
    const t = { ...this.tally };
    t[verdict] += 1;
    t.combo = verdict === 'miss' ? 0 : t.combo + 1;
    t.best = Math.max(t.best, t.combo);
    t.score += POINTS[verdict] + (verdict === 'miss' ? 0 : 30 * Math.min(4, Math.floor(t.combo / 10)));
    this.tally = t;
    this.#advance();
    return verdict;
  }

  #advance() {
    while (this.next < this.notes.length && this.notes[this.next].judged) this.next += 1;
  }
}
