// The songs: data only. Each is a synthesised pattern (read by sound.js) and a chart (read by round.js).
//
// A bar has 16 steps. In `lead` a character is a degree of `scale` (base 36), in drums and bass an x is a hit, and in
// `chart` 0-3 is a lane and A-D are two lanes at once. Lists of bars repeat until `bars` are full.

const CHORD_LANES = { A: [0, 3], B: [1, 2], C: [0, 2], D: [1, 3] };

const PENTATONIC_MINOR = [0, 3, 5, 7, 10, 12, 15, 17, 19, 22, 24];
const PENTATONIC_MAJOR = [0, 2, 4, 7, 9, 12, 14, 16, 19, 21, 24];
const MINOR = [0, 2, 3, 5, 7, 8, 10, 12, 14, 15, 17, 19, 20, 22, 24];

export const SONGS = [
  {
    id: 'song-short', title: 'Warm-up', native: '暖身', level: 1, color: '#d8ff3e',
    bpm: 120, bars: 3, root: 57, scale: PENTATONIC_MAJOR, wave: 'triangle',
    chords: [[0, 4, 7], [5, 9, 12], [7, 11, 14]],
    kick: ['x...x...x...x...'], snare: ['....x.......x...'], hat: ['..x...x...x...x.'], bass: ['x.....x.x.......'],
    lead: ['0...2...4...5...', '4...5...7...5...', '7...5...4...0...'],
    chart: ['........0...1...', '2...3...1...2...', '0...3...A.......'],
  },
  {
    id: 'song-1', title: 'Neon Rain', native: '霓虹雨', level: 2, color: '#4aa8ff',
    bpm: 112, bars: 11, root: 57, scale: PENTATONIC_MINOR, wave: 'sawtooth',
    chords: [[0, 3, 7], [-4, 0, 3], [3, 7, 10], [-2, 2, 5]],
    kick: ['x...x...x...x...'], snare: ['....x.......x...', '....x.......x..x'], hat: ['..x...x...x...x.'],
    bass: ['x..x..x.x..x..x.'],
    lead: ['0...3..4..3.....', '2...4..5..4.....', '5...4..3..2.....', '4.3.2.3.0.......'],
    chart: ['........0...2...', '1.....3.0.....2.', '3...2...1...0...', '0.1.2...3...2...',
      '0...2.3.1...3...', '2.1.0...1.2.3...', '0..2..3.1..3..0.', 'A.......B.......',
      '0.1.2.3.2.1.0...', '3..1..2.0..2..1.', '0...1...2...A...'],
  },
  {
    id: 'song-2', title: 'Night Market', native: '夜市', level: 3, color: '#ffb627',
    bpm: 128, bars: 13, root: 60, scale: PENTATONIC_MAJOR, wave: 'square',
    chords: [[0, 4, 7], [-3, 0, 4], [5, 9, 12], [7, 11, 14]],
    kick: ['x...x...x...x...', 'x...x...x...x.x.'], snare: ['....x.......x...'], hat: ['x.x.x.x.x.x.x.x.'],
    bass: ['x.x...x.x.x...x.'],
    lead: ['0.2.4...5.4.2...', '4.5.7...9.7.5...', '7.5.4.5.4.2.0...', '2...4...2.......'],
    chart: ['........1...2...', '0.1.2...3.2.1...', '2.3.0...1.0.3...', '3.2.1.2.1.0.2...',
      '0...3...1..2..3.', '0.2.1.3.0.2.1...', 'C...D...C...D...', '1.0.1.2.3...2...',
      '0..1..2..3..2.1.', '3.1.2.0.3.1.2...', 'A.1.2...B.0.3...', '0.1.2.3.3.2.1.0.', 'A...B...A.......'],
  },
  {
    id: 'song-3', title: 'Two in the Morning', native: '凌晨兩點', level: 2, color: '#27e0a3',
    bpm: 92, bars: 10, root: 53, scale: MINOR, wave: 'sine',
    chords: [[0, 3, 7, 10], [-5, -2, 2, 5], [-4, 0, 3, 7], [-2, 2, 5, 9]],
    kick: ['x.....x...x.....'], snare: ['....x.......x...'], hat: ['x.x.x.xxx.x.x.x.'], bass: ['x.....x...x...x.'],
    lead: ['4...7..8..7...4.', '..6...4...3.....', '2...4..7..4.....', '....6.4.3.2.....'],
    chart: ['........0.....2.', '1...2..3..2...1.', '..3...1...0.....', '0...1..2..1..3..',
      '..0.2.1.3.2.....', '0..3..1.2..0..3.', '2...1...0.1.2.3.', 'A.....1...B.....',
      '0.2.1...3.1.2...', '0...1...2...A...'],
  },
  {
    id: 'song-4', title: 'STREAMER-001', native: '五百人的房間', level: 5, color: '#ff4f6d',
    bpm: 150, bars: 16, root: 52, scale: MINOR, wave: 'sawtooth',
    chords: [[0, 3, 7], [0, 3, 7], [-4, 0, 3], [-2, 2, 5]],
    kick: ['x...x...x...x...', 'x..xx...x..xx.x.'], snare: ['....x.......x...', '....x.......x.xx'],
    hat: ['x.xxx.xxx.xxx.xx'], bass: ['x.xxx.xxx.xxx.xx'],
    lead: ['0.4.7.4.9.7.4.2.', '0.4.7.4.b.9.7.4.', '2.4.9.4.7.4.2.0.', '6.4.6.8.9.8.6.4.'],
    chart: ['........0.1.2.3.', '0.2.1.3.2.0.1.3.', '3.1.2.0.1.3.0.2.', '0.1.2.3.2.1.2.3.',
      'A...1.2.B...0.3.', '0.1.0.2.0.3.0.2.', '3.2.3.1.3.0.3.1.', '0.1.2.1.3.2.1.0.',
      'A.B.A...C.D.C...', '012.321.012.321.', '0.3.1.2.0.3.1.2.', '0.2.1.3.0123....',
      '3.1.3.1.2.0.2.0.', '012.3.2.321.0.1.', 'A.1.2.B.0.3.A.B.', '0.1.2.3.A.......'],
  },
];

export const DEFAULT_SONG = SONGS[0];

/** The song of that id; the first one for an id this page does not know (another program may choose any). */
export function songById(id) {
  return SONGS.find((song) => song.id === id) ?? DEFAULT_SONG;
}

export const stepSeconds = (song) => 60 / song.bpm / 4;
export const barOf = (list, bar) => list[bar % list.length];

/** Length in seconds. */
export function songLength(song) {
  return song.bars * 16 * stepSeconds(song);
}

/** The chart: [{t, lane}] in the order of time, t in seconds from the start of the song. */
export function chartOf(song) {
  const notes = [];
  const step = stepSeconds(song);
  for (let bar = 0; bar < song.bars; bar += 1) {
    [...barOf(song.chart, bar)].forEach((mark, i) => {
      if (mark === '.') return;
      for (const lane of CHORD_LANES[mark] ?? [Number(mark)]) notes.push({ t: (bar * 16 + i) * step, lane });
    });
  }
  return notes;
}
