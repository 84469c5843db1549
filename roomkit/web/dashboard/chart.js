// A small line chart on a canvas: the last five minutes, with a readout under the pointer or the arrow keys.

/** Seconds that a chart shows. */
export const SPAN = 300;
/** A hole in the line: the page was hidden, or the server was away. */
const HOLE = 6;
const PAD = { top: 6, right: 1, bottom: 3, left: 1 };

const charts = new Set();
const dark = window.matchMedia('(prefers-color-scheme: dark)');
dark.addEventListener('change', () => charts.forEach((chart) => chart.draw()));

/** The next round number that is not below. */
export function niceTop(value) {
  if (value <= 1) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((top) => top >= value);
}

export class Chart {
  #canvas;
  #color;
  #onPick;
  #samples = [];
  #of;
  #picked = null;       // time of the sample that is read out

  /**
   * @param canvas where
   * @param color the name of a custom property, without the dashes
   * @param of sample -> number or null
   * @param onPick called with a time when one is pointed at, with null when none is; for all charts at once
   */
  constructor(canvas, color, of, onPick) {
    this.#canvas = canvas;
    this.#color = color;
    this.#of = of;
    this.#onPick = onPick;
    canvas.addEventListener('pointermove', (event) => this.#point(event));
    canvas.addEventListener('pointerleave', () => this.#onPick(null));
    canvas.addEventListener('blur', () => this.#onPick(null));
    canvas.addEventListener('keydown', (event) => this.#key(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
    charts.add(this);
  }

  show(samples) {
    this.#samples = samples;
    this.draw();
  }

  /** Marks the sample of this time; null: none. */
  pick(time) {
    this.#picked = time;
    this.draw();
  }

  #end() { return this.#samples.at(-1)?.t ?? 0; }

  #point(event) {
    const box = this.#canvas.getBoundingClientRect();
    const time = this.#end() - SPAN * (1 - (event.clientX - box.left) / box.width);
    let best = null;
    for (const { t } of this.#samples) if (best === null || Math.abs(t - time) < Math.abs(best - time)) best = t;
    this.#onPick(best);
  }

  #key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30 }[event.key];
    if (event.key === 'Escape') this.#onPick(null);
    if (!step || !this.#samples.length) return;
    event.preventDefault();
    const last = this.#samples.length - 1;
    const at = this.#picked === null ? last : this.#samples.findIndex(({ t }) => t === this.#picked);
    this.#onPick(this.#samples[Math.max(0, Math.min(last, at + step))].t);
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    if (!width || !height) return;                       // not to be seen now
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.#canvas.width !== w) this.#canvas.width = w;
    if (this.#canvas.height !== h) this.#canvas.height = h;
    const style = getComputedStyle(this.#canvas);
    const color = style.getPropertyValue(`--${this.#color}`).trim();
    const grid = style.getPropertyValue('--grid').trim();
    const pen = this.#canvas.getContext('2d');
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);

    const end = this.#end();
    const points = this.#samples.map((sample) => ({ t: sample.t, v: this.#of(sample) })).filter(({ v }) => v !== null);
    const top = niceTop(Math.max(0, ...points.map(({ v }) => v)));
    const x = (t) => PAD.left + (width - PAD.left - PAD.right) * (1 - (end - t) / SPAN);
    const y = (v) => height - PAD.bottom - (height - PAD.top - PAD.bottom) * (v / top);

    pen.strokeStyle = grid;
    pen.lineWidth = 1;
    pen.beginPath();
    for (const share of [0, 0.5, 1]) {
      const level = Math.round(y(top * share)) + 0.5;
      pen.moveTo(0, level);
      pen.lineTo(width, level);
    }
    pen.stroke();

    for (const run of runs(points)) {
      pen.beginPath();
      run.forEach(({ t, v }, i) => (i ? pen.lineTo(x(t), y(v)) : pen.moveTo(x(t), y(v))));
      if (run.length === 1) pen.lineTo(x(run[0].t) + 1, y(run[0].v));
      pen.strokeStyle = color;
      pen.lineWidth = 1.5;
      pen.lineJoin = 'round';
      pen.stroke();
      pen.lineTo(x(run.at(-1).t), y(0));
      pen.lineTo(x(run[0].t), y(0));
      pen.globalAlpha = 0.13;
      pen.fillStyle = color;
      pen.fill();
      pen.globalAlpha = 1;
    }

    pen.fillStyle = style.getPropertyValue('--dim').trim();
    pen.font = `10px ${style.fontFamily}`;
    pen.textBaseline = 'top';
    pen.fillText(label(top), 2, PAD.top + 2);

    const marked = this.#picked === null ? null : points.find(({ t }) => t === this.#picked);
    if (marked) {
      pen.strokeStyle = style.getPropertyValue('--dim').trim();
      pen.beginPath();
      pen.moveTo(Math.round(x(marked.t)) + 0.5, 0);
      pen.lineTo(Math.round(x(marked.t)) + 0.5, height);
      pen.stroke();
      pen.fillStyle = color;
      pen.beginPath();
      pen.arc(x(marked.t), y(marked.v), 3.5, 0, 7);
      pen.fill();
    }
  }
}

/** The points in pieces, cut where nothing was heard for a while. */
function runs(points) {
  const pieces = [];
  for (const point of points) {
    const piece = pieces.at(-1);
    if (piece && point.t - piece.at(-1).t <= HOLE) piece.push(point);
    else pieces.push([point]);
  }
  return pieces;
}

function label(top) {
  if (top >= 1e6) return `${top / 1e6} M`;
  return top >= 1e4 ? `${top / 1e3} k` : String(top);
}
