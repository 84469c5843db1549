// Draws the four lanes as a road that comes towards the player. Knows geometry and effects; the game is in round.js.

import { reducedMotion, SEAT_COLORS } from './ui.js';

const TRAVEL = 1.7;         // seconds a note is in sight
const DEPTH = 3.1;          // how strongly the road narrows
const LANES = 4;
const COLORS = SEAT_COLORS.slice(0, LANES);
const VERDICTS = { perfect: '#d8ff3e', good: '#8fe3ff', miss: '#ff6b7d' };

const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(',');
const RGB = COLORS.map(channels);

export class Highway {
  #canvas;
  #g;
  #w = 0;
  #h = 0;
  #sparks = [];
  #rings = [];
  #flash = [0, 0, 0, 0];      // when each lane was last struck (ms)
  #verdict = null;
  #observer;
  held = [false, false, false, false];

  /** onLayout(width of the road where the keys are) is called whenever the size changes. */
  constructor(canvas, onLayout = () => {}) {
    this.#canvas = canvas;
    this.#g = canvas.getContext('2d');
    this.#observer = new ResizeObserver(() => {
      const ratio = Math.min(2, window.devicePixelRatio || 1);
      this.#w = canvas.clientWidth;
      this.#h = canvas.clientHeight;
      canvas.width = Math.round(this.#w * ratio);
      canvas.height = Math.round(this.#h * ratio);
      this.#g.setTransform(ratio, 0, 0, ratio, 0, 0);
      onLayout(2 * this.#half * ((this.#h - 38 - this.#horizon) / (this.#lineY - this.#horizon)));
    });
    this.#observer.observe(canvas);
  }

  destroy() { this.#observer.disconnect(); }

  get #lineY() { return this.#h - Math.max(96, this.#h * 0.17); }
  get #horizon() { return this.#h * 0.02; }
  get #half() { return Math.min(this.#w * 0.44, 330); }

  /** z is 0 at the line, 1 where notes appear, negative in front of the line. */
  #scale(z) { return 1 / (1 + Math.max(z, -0.24) * DEPTH); }
  #y(z) { return this.#horizon + (this.#lineY - this.#horizon) * this.#scale(z); }
  #x(edge, z) { return this.#w / 2 + (edge / (LANES / 2) - 1) * this.#half * this.#scale(z); }

  /** An effect for a hit or a miss. */
  strike(lane, verdict) {
    const now = performance.now();
    this.#verdict = { text: verdict, at: now };
    if (verdict === 'miss') return;
    this.#flash[lane] = now;
    this.#rings.push({ lane, at: now, big: verdict === 'perfect' });
    if (reducedMotion.matches) return;
    for (let i = 0; i < (verdict === 'perfect' ? 16 : 7); i += 1) {
      const angle = -Math.PI * (0.1 + 0.8 * Math.random());
      const speed = 120 + Math.random() * 320;
      this.#sparks.push({
        lane, at: now, vx: Math.cos(angle) * speed, vy: Math.sin(angle) * speed,
        x: this.#x(lane + 0.5, 0) + (Math.random() - 0.5) * 40, y: this.#lineY, life: 350 + Math.random() * 350,
      });
    }
  }

  /** @param frame {time, notes, bpm, color, combo, progress, attract} */
  draw(frame) {
    const g = this.#g;
    const now = performance.now();
    g.clearRect(0, 0, this.#w, this.#h);
    if (!this.#w) return;
    const beat = (frame.time * frame.bpm) / 60;
    const pulse = reducedMotion.matches ? 0.4 : Math.pow(1 - (((beat % 1) + 1) % 1), 2);

    this.#sky(g, frame.color, pulse);
    this.#road(g, now, frame);
    if (!frame.attract) this.#words(g, now, frame);         // on the road, under the notes
    this.#notes(g, frame);
    this.#line(g, now, pulse);
    this.#effects(g, now);
  }

  #quad(g, left, right, near, far) {
    g.beginPath();
    g.moveTo(this.#x(left, near), this.#y(near));
    g.lineTo(this.#x(left, far), this.#y(far));
    g.lineTo(this.#x(right, far), this.#y(far));
    g.lineTo(this.#x(right, near), this.#y(near));
    g.closePath();
  }

  #sky(g, color, pulse) {
    const y = this.#y(1);
    const radius = this.#half * (1.25 + 0.12 * pulse);
    const glow = g.createRadialGradient(this.#w / 2, y, 0, this.#w / 2, y, radius);
    glow.addColorStop(0, `rgba(${channels(color)},${0.5 + 0.25 * pulse})`);
    glow.addColorStop(0.35, `rgba(${channels(color)},${0.16 + 0.1 * pulse})`);
    glow.addColorStop(1, `rgba(${channels(color)},0)`);
    g.fillStyle = glow;
    g.fillRect(0, 0, this.#w, this.#h);
  }

  #road(g, now, { time, bpm }) {
    const top = this.#y(1);
    const floor = g.createLinearGradient(0, top, 0, this.#h);
    floor.addColorStop(0, 'rgba(12,11,18,0)');
    floor.addColorStop(0.18, 'rgba(12,11,18,.82)');
    floor.addColorStop(1, 'rgba(18,16,28,.96)');
    this.#quad(g, 0, LANES, -0.24, 1.15);
    g.fillStyle = floor;
    g.fill();

    for (let lane = 0; lane < LANES; lane += 1) {           // the light of a pressed lane
      const age = (now - this.#flash[lane]) / 260;
      const light = Math.max(this.held[lane] ? 0.34 : 0, age < 1 ? 0.55 * (1 - age) : 0);
      const beam = g.createLinearGradient(0, this.#y(-0.24), 0, this.#y(0.7));
      beam.addColorStop(0, `rgba(${RGB[lane]},${0.1 + light})`);
      beam.addColorStop(1, `rgba(${RGB[lane]},0)`);
      this.#quad(g, lane, lane + 1, -0.24, 0.7);
      g.fillStyle = beam;
      g.fill();
    }

    const beatSeconds = 60 / bpm;                            // the beats pass under the notes
    for (let k = Math.ceil((time - 0.24 * TRAVEL) / beatSeconds); k * beatSeconds < time + TRAVEL; k += 1) {
      const z = (k * beatSeconds - time) / TRAVEL;
      g.strokeStyle = `rgba(255,255,255,${(k % 4 ? 0.06 : 0.16) * (1 - Math.max(0, z))})`;
      g.lineWidth = 2 * this.#scale(z);
      g.beginPath();
      g.moveTo(this.#x(0, z), this.#y(z));
      g.lineTo(this.#x(LANES, z), this.#y(z));
      g.stroke();
    }

    for (let edge = 0; edge <= LANES; edge += 1) {
      const rail = g.createLinearGradient(0, top, 0, this.#h);
      rail.addColorStop(0, 'rgba(255,255,255,0)');
      rail.addColorStop(1, edge % LANES ? 'rgba(255,255,255,.16)' : 'rgba(255,255,255,.55)');
      g.strokeStyle = rail;
      g.lineWidth = edge % LANES ? 1 : 2.5;
      g.beginPath();
      g.moveTo(this.#x(edge, 1.1), this.#y(1.1));
      g.lineTo(this.#x(edge, -0.24), this.#y(-0.24));
      g.stroke();
    }
  }

  #notes(g, { notes, time }) {
    for (let i = notes.length - 1; i >= 0; i -= 1) {
      const { t, lane, judged } = notes[i];
      const z = (t - time) / TRAVEL;
      if (z > 1 || z < -0.22 || (judged && judged !== 'miss')) continue;
      const s = this.#scale(z);
      const width = (this.#half / 2) * s * 0.84;
      const height = Math.max(4, 30 * s * Math.min(1, this.#half / 220));
      const x = this.#x(lane + 0.5, z) - width / 2;
      const y = this.#y(z) - height / 2;
      const fade = Math.min(1, (1 - z) * 4) * (judged === 'miss' ? 0.25 : 1);
      g.globalAlpha = fade * 0.35;                           // a halo, the body, the shine
      g.fillStyle = COLORS[lane];
      this.#pill(g, x - 5 * s, y - 5 * s, width + 10 * s, height + 10 * s);
      g.globalAlpha = fade;
      this.#pill(g, x, y, width, height);
      g.fillStyle = 'rgba(255,255,255,.92)';
      this.#pill(g, x + width * 0.08, y + height * 0.2, width * 0.84, height * 0.24);
      g.globalAlpha = 1;
    }
  }

  #pill(g, x, y, width, height) {
    g.beginPath();
    if (g.roundRect) g.roundRect(x, y, width, height, height / 2);
    else g.rect(x, y, width, height);
    g.fill();
  }

  #line(g, now, pulse) {
    for (let lane = 0; lane < LANES; lane += 1) {
      const age = (now - this.#flash[lane]) / 260;
      const lit = age < 1 ? 1 - age : 0;
      const width = (this.#half / 2) * 0.9;
      const height = 34 * Math.min(1, this.#half / 220);
      const x = this.#x(lane + 0.5, 0) - width / 2;
      g.fillStyle = `rgba(${RGB[lane]},${0.1 + 0.1 * pulse + 0.6 * lit + (this.held[lane] ? 0.35 : 0)})`;
      this.#pill(g, x, this.#lineY - height / 2, width, height);
      g.strokeStyle = `rgba(${RGB[lane]},.95)`;
      g.lineWidth = 2.5 + 2 * lit;
      g.stroke();
    }
  }

  #effects(g, now) {
    g.globalCompositeOperation = 'lighter';
    this.#rings = this.#rings.filter(({ at }) => now - at < 380);
    for (const { lane, at, big } of this.#rings) {
      const age = (now - at) / 380;
      const radius = (this.#half / 4) * (0.7 + (big ? 0.6 : 0.35) * age);
      g.strokeStyle = `rgba(${RGB[lane]},${0.9 * (1 - age)})`;
      g.lineWidth = 6 * (1 - age);
      g.beginPath();
      g.ellipse(this.#x(lane + 0.5, 0), this.#lineY, radius, radius * 0.55, 0, 0, 7);
      g.stroke();
    }
    this.#sparks = this.#sparks.filter(({ at, life }) => now - at < life);
    for (const spark of this.#sparks) {
      const seconds = (now - spark.at) / 1000;
      const age = (now - spark.at) / spark.life;
      g.fillStyle = `rgba(${RGB[spark.lane]},${1 - age})`;
      g.beginPath();
      g.arc(spark.x + spark.vx * seconds, spark.y + spark.vy * seconds + 500 * seconds * seconds, 3.5 * (1 - age) + 0.5, 0, 7);
      g.fill();
    }
    g.globalCompositeOperation = 'source-over';
  }

  #words(g, now, { combo }) {
    g.textAlign = 'center';
    g.textBaseline = 'middle';
    const size = Math.min(96, this.#half * 0.4);
    const age = this.#verdict ? (now - this.#verdict.at) / 600 : 1;
    if (combo >= 5) {
      const kick = reducedMotion.matches ? 1 : 1 + 0.16 * Math.max(0, 1 - age * 4);
      g.fillStyle = 'rgba(255,255,255,.5)';
      g.font = `900 ${size * kick}px system-ui, sans-serif`;
      g.fillText(combo, this.#w / 2, this.#h * 0.42);
      g.fillStyle = 'rgba(255,255,255,.5)';
      g.font = `700 ${size * 0.2}px system-ui, sans-serif`;
      g.fillText('COMBO', this.#w / 2, this.#h * 0.42 + size * 0.66);
    }
    if (age < 1) {
      const { text } = this.#verdict;
      const grow = reducedMotion.matches ? 1 : 1 + 0.35 * Math.max(0, 1 - age * 6);
      g.globalAlpha = 1 - age * age;
      g.fillStyle = VERDICTS[text];
      g.font = `900 italic ${size * 0.42 * grow}px system-ui, sans-serif`;
      g.fillText(text.toUpperCase(), this.#w / 2, this.#lineY - Math.max(62, this.#h * 0.12));
      g.globalAlpha = 1;
    }
  }
}
