// All sound is synthesised here with WebAudio. A browser lets a page sound only after a gesture, so `unlock` is called from
// every press; until then the song plays silently and the round is not held up.

import { barOf, songLength, stepSeconds } from './songs.js';

const AHEAD = 0.3;      // seconds scheduled in advance
const MUTED_KEY = 'roomkit-demo:muted';

const hertz = (midi) => 440 * 2 ** ((midi - 69) / 12);

export class Sound {
  #context = null;
  #master = null;
  #noise = null;
  #cursor = 0;          // the next step of the song to schedule
  #bus = null;          // the song's own gain, so that a song can be stopped at once
  muted = localStorage.getItem(MUTED_KEY) === '1';

  /** Makes or wakes the audio context; to be called in a user's gesture. */
  unlock() {
    const AudioContext = window.AudioContext ?? window.webkitAudioContext;
    if (!AudioContext) return;
    if (!this.#context) {
      this.#context = new AudioContext({ latencyHint: 'interactive' });
      const squash = this.#context.createDynamicsCompressor();
      this.#master = this.#context.createGain();
      this.#master.gain.value = this.muted ? 0 : 0.7;
      this.#master.connect(squash).connect(this.#context.destination);
      this.#noise = this.#makeNoise();
    }
    if (this.#context.state === 'suspended') this.#context.resume().catch(() => {});
  }

  setMuted(muted) {
    this.muted = muted;
    localStorage.setItem(MUTED_KEY, muted ? '1' : '0');
    if (this.#master) this.#master.gain.setTargetAtTime(muted ? 0 : 0.7, this.#context.currentTime, 0.02);
  }

  /** Schedules what is due soon. `time` is the song's time now; call it at least every 200 ms. */
  pump(song, time) {
    if (this.#context?.state !== 'running') return;
    if (!this.#bus) { this.#bus = this.#context.createGain(); this.#bus.connect(this.#master); }
    const step = stepSeconds(song);
    const origin = this.#context.currentTime - time - (this.#context.outputLatency || 0);
    this.#cursor = Math.max(this.#cursor, Math.ceil((time + 0.005) / step), 0);
    const last = song.bars * 16;
    for (; this.#cursor < last && this.#cursor * step < time + AHEAD; this.#cursor += 1) {
      this.#playStep(song, this.#cursor, Math.max(this.#context.currentTime, origin + this.#cursor * step), step);
    }
    if (this.#cursor === last && time < songLength(song)) {
      this.#cursor += 1;
      this.#chord(song, song.chords[0], origin + last * step, 0.6);
    }
  }

  stop() {
    this.#cursor = 0;
    if (!this.#bus) return;
    const bus = this.#bus;
    this.#bus = null;
    bus.gain.setTargetAtTime(0, this.#context.currentTime, 0.05);
    setTimeout(() => bus.disconnect(), 400);
  }

  tick(verdict) {
    if (this.#context?.state !== 'running') return;
    const high = { perfect: 1568, good: 1047 }[verdict] ?? 180;
    this.#tone(this.#context.currentTime, high, verdict === 'miss' ? 'sawtooth' : 'triangle', 0.09, 0.07, this.#master);
  }

  count(last) {
    if (this.#context?.state !== 'running') return;
    this.#tone(this.#context.currentTime, last ? 1320 : 660, 'square', last ? 0.3 : 0.12, 0.08, this.#master);
  }

  #playStep(song, index, at, step) {
    const bar = Math.floor(index / 16);
    const i = index % 16;
    const chord = barOf(song.chords, bar);
    if (barOf(song.kick, bar)[i] === 'x') this.#kick(at);
    if (barOf(song.snare, bar)[i] === 'x') this.#hiss(at, 1800, 0.16, 0.28);
    if (barOf(song.hat, bar)[i] === 'x') this.#hiss(at, 8000, 0.04, 0.1);
    if (barOf(song.bass, bar)[i] === 'x') this.#tone(at, hertz(song.root - 24 + chord[0]), 'sawtooth', step * 1.6, 0.2, this.#bus, 420);
    const lead = barOf(song.lead, bar)[i];
    if (lead !== '.') {
      const pitch = song.scale[parseInt(lead, 36) % song.scale.length];
      this.#tone(at, hertz(song.root + 12 + pitch), song.wave, step * 2.4, song.wave === 'sine' ? 0.2 : 0.1, this.#bus, 3200);
    }
    if (i === 0) this.#chord(song, chord, at, step * 15);
  }

  #chord(song, chord, at, seconds) {
    for (const semitones of chord) this.#tone(at, hertz(song.root + semitones), 'triangle', seconds, 0.06, this.#bus, 1400);
  }

  #envelope(at, seconds, level, target) {
    const gain = this.#context.createGain();
    gain.gain.setValueAtTime(0.0001, at);
    gain.gain.exponentialRampToValueAtTime(level, at + 0.006);
    gain.gain.exponentialRampToValueAtTime(0.0001, at + seconds);
    gain.connect(target ?? this.#master);
    return gain;
  }

  #tone(at, frequency, type, seconds, level, target, cutoff = 6000) {
    const oscillator = this.#context.createOscillator();
    const filter = this.#context.createBiquadFilter();
    filter.frequency.value = cutoff;
    oscillator.type = type;
    oscillator.frequency.value = frequency;
    oscillator.connect(filter).connect(this.#envelope(at, seconds, level, target));
    oscillator.start(at);
    oscillator.stop(at + seconds + 0.02);
  }

  #kick(at) {
    const oscillator = this.#context.createOscillator();
    oscillator.frequency.setValueAtTime(150, at);
    oscillator.frequency.exponentialRampToValueAtTime(42, at + 0.12);
    oscillator.connect(this.#envelope(at, 0.22, 0.7, this.#bus));
    oscillator.start(at);
    oscillator.stop(at + 0.24);
  }

  #hiss(at, cutoff, seconds, level) {
    const source = this.#context.createBufferSource();
    const filter = this.#context.createBiquadFilter();
    source.buffer = this.#noise;
    filter.type = 'highpass';
    filter.frequency.value = cutoff;
    source.connect(filter).connect(this.#envelope(at, seconds, level, this.#bus));
    source.start(at);
    source.stop(at + seconds + 0.02);
  }

  #makeNoise() {
    const buffer = this.#context.createBuffer(1, this.#context.sampleRate * 0.3, this.#context.sampleRate);
    const samples = buffer.getChannelData(0);
    for (let i = 0; i < samples.length; i += 1) samples[i] = Math.random() * 2 - 1;
    return buffer;
  }
}

export const sound = new Sound();
