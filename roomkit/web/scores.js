// Everybody's score in the round that is played, and who turns them into results.
//
// My score goes out as a message with the key "score" (at most one per SEND_MS, the newest counts) while connected, and again
// whenever somebody (re)appears, since messages are not part of the room's state. When the round is over the host,
// whoever that is by then, waits for the last scores and finishes the game.

import { accuracy, emptyTally } from './round.js';

const SEND_MS = 220;
const LAST_SCORES_MS = 2500;    // how long the host waits for players who have not said `done` ...
const AWAY_MS = 6000;           // ... and when one of them has lost the connection
const RETRY_MS = 1500;
const SAVED = 'roomkit-demo:round';

const whole = (value) => (Number.isFinite(value) ? Math.max(0, Math.min(1e7, Math.round(value))) : 0);

/** A tally out of what somebody sent. */
function readTally(data) {
  const tally = emptyTally();
  for (const key of ['score', 'combo', 'best', 'perfect', 'good', 'miss']) tally[key] = whole(data?.[key]);
  tally.done = data?.done === true;
  return tally;
}

export class Scores {
  #client;
  #onChange;
  #roundId = null;
  #mine = null;
  #upTo = -Infinity;
  #overAt = 0;
  #sentAt = 0;
  #timer = 0;
  #savedAt = 0;
  #finishing = false;
  #table = new Map();

  constructor(client, onChange) {
    this.#client = client;
    this.#onChange = onChange;
  }

  /** The tally of a player; null when none is known. */
  of(playerId) { return this.#table.get(playerId) ?? null; }
  get all() { return Object.fromEntries(this.#table); }

  /** Starts a round. Returns what this tab saved of the same round before a reload, or null. */
  begin(roundId) {
    this.#roundId = roundId;
    this.#table = new Map();
    this.#mine = null;
    this.#upTo = -Infinity;
    this.#overAt = 0;
    this.#finishing = false;
    let saved = null;
    try { saved = JSON.parse(sessionStorage.getItem(SAVED)); } catch { /* nothing that we wrote */ }
    if (saved?.room !== this.#client.roomId || saved?.round !== roundId) return null;
    for (const [id, tally] of Object.entries(saved.table ?? {})) this.#table.set(id, readTally(tally));
    this.#mine = readTally(saved.table?.[this.#client.playerId]);
    this.#upTo = Number.isFinite(saved.upTo) ? saved.upTo : -Infinity;
    this.#send();
    return { tally: this.#mine, upTo: this.#upTo };
  }

  /** My tally changed. */
  mine(round) {
    this.#mine = round.tally;
    this.#upTo = round.upTo;
    this.#table.set(this.#client.playerId, round.tally);
    this.#send();
    if (Date.now() - this.#savedAt > 250) this.save();
    this.#onChange();
  }

  /** A message of somebody. Returns whether it was a score. */
  receive(playerId, data) {
    if (data?.kind !== 'score') return false;
    if (playerId !== this.#client.playerId && data.round === this.#roundId) {
      this.#table.set(playerId, readTally(data));
      this.#onChange();
    }
    return true;
  }

  /** Somebody who may not know my score is there (again), or I am. */
  again() { if (this.#mine) this.#send(); }

  /** To be called every now and then while the game is on; `over` is whether the song has ended. */
  tick(over) {
    const { state, isHost, connection } = this.#client;
    const due = over && state?.status === 'playing' && state.started_at === this.#roundId;
    if (!due || !isHost || connection !== 'open') { this.#overAt = 0; return; }
    this.#overAt ||= Date.now();
    const awaited = state.players.filter(({ id }) => !this.of(id)?.done);
    const patience = awaited.some(({ connected }) => !connected) ? AWAY_MS : awaited.length ? LAST_SCORES_MS : 0;
    if (this.#finishing || Date.now() - this.#overAt < patience) return;
    this.#finishing = true;
    this.#client.finishGame(this.results()).catch(() => {
      // Refused (the status says why, and it will show) or not sent: looked at again later.
      setTimeout(() => { this.#finishing = false; }, RETRY_MS);
    });
  }

  results() {
    const { players, song_id } = this.#client.state;
    const ranking = players.map(({ id, name }) => {
      const { score, best, perfect, good, miss } = this.of(id) ?? emptyTally();
      return { player_id: id, name, score, accuracy: Number(accuracy({ perfect, good, miss }).toFixed(1)), max_combo: best, perfect, good, miss };
    });
    ranking.sort((a, b) => b.score - a.score);
    return { song_id, ranking };
  }

  /** Keeps the table for a reload of the page. */
  save() {
    if (!this.#roundId) return;
    this.#savedAt = Date.now();
    const upTo = Number.isFinite(this.#upTo) ? this.#upTo : null;
    sessionStorage.setItem(SAVED, JSON.stringify({ room: this.#client.roomId, round: this.#roundId, upTo, table: this.all }));
  }

  destroy() { clearTimeout(this.#timer); }

  #send() {
    clearTimeout(this.#timer);
    const wait = this.#sentAt + SEND_MS - Date.now();
    if (wait > 0) { this.#timer = setTimeout(() => this.#send(), wait); return; }
    if (this.#client.connection !== 'open' || !this.#mine) return;      // the next welcome calls again()
    this.#sentAt = Date.now();
    this.#client.sendMessage({ kind: 'score', round: this.#roundId, ...this.#mine }, { key: 'score' }).catch(() => {});
  }
}
