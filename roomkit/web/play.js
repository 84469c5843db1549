// The playing stage: keys and taps in, the road and the sound out, while a Round keeps the truth.

import { accuracy, Round } from './round.js';
import { Highway } from './highway.js';
import { sound } from './sound.js';
import { announce, ref, setText } from './ui.js';

const KEYS = { d: 0, f: 1, j: 2, k: 3, arrowleft: 0, arrowdown: 1, arrowup: 2, arrowright: 3 };
const PUMP_MS = 80;

const typing = (target) => target instanceof HTMLElement && target.closest('input, textarea, select, [contenteditable]');

export class Stage {
  #root;
  #highway;
  #frame = 0;
  #pump = 0;
  #counted = null;
  #stop = new AbortController();
  round = null;

  /** @param onTally called after each change of the round's tally */
  constructor(root, onTally) {
    this.#root = root;
    this.onTally = onTally;
    const lanes = ref(root, 'lanes');
    this.#highway = new Highway(ref(root, 'canvas'), (width) => lanes.style.setProperty('--road', `${width}px`));
    const { signal } = this.#stop;
    [...lanes.children].forEach((button, lane) => {
      button.addEventListener('pointerdown', (event) => {
        event.preventDefault();
        if (event.target.hasPointerCapture?.(event.pointerId)) event.target.releasePointerCapture(event.pointerId);
        this.#press(lane);
      }, { signal });
      for (const type of ['pointerup', 'pointerleave', 'pointercancel']) {
        button.addEventListener(type, () => this.#release(lane), { signal });
      }
      // A click without a pointer: Enter, Space or a screen reader.
      button.addEventListener('click', (event) => { if (event.detail === 0) { this.#press(lane); this.#release(lane); } }, { signal });
      button.addEventListener('contextmenu', (event) => event.preventDefault(), { signal });
    });
    document.addEventListener('keydown', (event) => {
      const lane = KEYS[event.key.toLowerCase()];
      if (!this.round || lane === undefined || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
      if (typing(event.target)) return;
      event.preventDefault();
      this.#press(lane);
    }, { signal });
    document.addEventListener('keyup', (event) => {
      const lane = KEYS[event.key.toLowerCase()];
      if (lane !== undefined) this.#release(lane);
    }, { signal });
    window.addEventListener('blur', () => [0, 1, 2, 3].forEach((lane) => this.#release(lane)), { signal });
  }

  destroy() {
    this.end();
    this.#stop.abort();
    this.#highway.destroy();
  }

  start(song, startedAt, clockOffset, saved) {
    this.end();
    this.round = new Round(song, startedAt, clockOffset, saved);
    this.#counted = null;
    setText(ref(this.#root, 'song'), song.title);
    this.#root.style.setProperty('--song', song.color);
    // Timers go on in a hidden tab, animation frames do not: what must happen happens in the timer.
    this.#pump = setInterval(() => this.#advance(), PUMP_MS);
    const draw = () => { this.#draw(); this.#frame = requestAnimationFrame(draw); };
    this.#advance();
    draw();
    announce(`Round starts: ${song.title}. Keys D F J K, or the arrow keys, or tap the lanes.`);
    document.activeElement?.blur?.();
  }

  end() {
    clearInterval(this.#pump);
    cancelAnimationFrame(this.#frame);
    if (this.round) sound.stop();
    this.round = null;
  }

  #press(lane) {
    sound.unlock();
    this.#highway.held[lane] = true;
    ref(this.#root, 'lanes').children[lane].classList.add('held');
    const verdict = this.round?.hit(lane);
    if (!verdict) return;
    this.#highway.strike(lane, verdict);
    sound.tick(verdict);
    this.#told();
  }

  #release(lane) {
    this.#highway.held[lane] = false;
    ref(this.#root, 'lanes').children[lane].classList.remove('held');
  }

  #advance() {
    const { round } = this;
    const { time } = round;
    this.#sweep(time);
    sound.pump(round.song, time);
    this.#countdown(time);
    const away = time - round.length;
    ref(this.#root, 'tallying').hidden = away < 1.2;
    ref(this.#root, 'progress').style.transform = `scaleX(${Math.min(1, Math.max(0, time / round.length))})`;
  }

  #sweep(time) {
    const before = this.round.tally;
    const missed = this.round.sweep(time);
    if (missed.length) this.#highway.strike(missed[0].lane, 'miss');
    if (this.round.tally !== before) this.#told();
  }

  #countdown(time) {
    const text = time < 0 ? String(Math.min(3, Math.ceil(-time))) : time < 0.6 ? 'GO' : '';
    if (text === this.#counted) return;
    this.#counted = text;
    const node = ref(this.#root, 'countdown');
    node.hidden = text === '';
    node.textContent = text;
    if (!text) return;
    node.classList.remove('pop');
    void node.offsetWidth;
    node.classList.add('pop');
    sound.count(text === 'GO');
  }

  #told() {
    const { tally } = this.round;
    setText(ref(this.#root, 'score'), tally.score.toLocaleString('en'));
    setText(ref(this.#root, 'accuracy'), `${accuracy(tally).toFixed(1)} %`);
    this.onTally(this.round);
  }

  #draw() {
    const { round } = this;
    if (!round) return;
    const { time } = round;
    this.#sweep(time);
    this.#countdown(time);
    this.#highway.draw({ time, notes: round.notes, bpm: round.song.bpm, color: round.song.color, combo: round.tally.combo });
  }
}
