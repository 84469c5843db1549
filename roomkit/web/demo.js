// The demo page of roomkit: which view is shown, and the few things that stand above all views.
//
// For tests, `window.roomkitDemo` is a read-only look inside:
//   client      the RoomClient of the room that is open, or null
//   state       its copy of the room's state, or null
//   view        'lobby', 'gate' or 'room'
//   phase       in a room: 'connecting', 'setup', 'play', 'results' or 'ended'
//   scores      {playerId: {score, combo, best, perfect, good, miss, done}} of the round, as known here
//   round       null, or {id, song, time, length, over, tally, notes: [{t, lane, judged}]}; time in seconds from the song's start
//   songs       [{id, title, length}]

import { showGate, showLobby } from './lobby.js';
import { RoomView } from './room.js';
import { SONGS, songLength } from './songs.js';
import { sound } from './sound.js';
import { attempt, savedName, fallbackName, keepSeat, seatIn } from './ui.js';

const main = document.getElementById('main');
let room = null;            // the RoomView
let takeDown = () => {};    // of the view that is shown
let current = 'lobby';

function swap(name, show) {
  takeDown();
  room = null;
  current = name;
  document.body.dataset.view = name;
  takeDown = show() ?? (() => {});
}

function goLobby(push = true) {
  if (push && location.search) history.pushState(null, '', '/');
  document.title = 'roomkit';
  swap('lobby', () => showLobby(main, enter));
}

/** Opens a room with a seat of this tab's. */
function enter(roomId, seat) {
  keepSeat(roomId, seat.playerId);
  const path = `/?room=${encodeURIComponent(roomId)}`;
  if (location.pathname + location.search !== path) history.pushState(null, '', path);
  document.title = `${roomId} · roomkit`;
  swap('room', () => {
    const shown = new RoomView(main, roomId, seat, {
      lobby: () => goLobby(),
      retry: (asNewcomer) => (asNewcomer ? goGate(room.client.roomId) : enter(room.client.roomId, { ...seat, token: undefined })),
      moved: (id) => {
        history.replaceState(null, '', `/?room=${encodeURIComponent(id)}`);
        document.title = `${id} · roomkit`;
      },
    });
    room = shown;
    return () => shown.destroy();
  });
}

function goGate(roomId) {
  document.title = `${roomId} · roomkit`;
  swap('gate', () => showGate(main, roomId, { enter, lobby: () => goLobby() }));
}

/** Shows what the address says. A tab that has a seat in the room takes it again. */
function route() {
  const roomId = new URLSearchParams(location.search).get('room');
  if (!roomId) { goLobby(false); return; }
  const playerId = seatIn(roomId);
  if (playerId) enter(roomId, { name: savedName() || fallbackName, playerId });
  else goGate(roomId);
}

/** Back, forward, or the name of the house: out of a room means giving up the seat. */
function goOut() {
  if (room && room.client.connection !== 'closed') {
    const leaving = room;
    attempt(leaving.leave());
  } else route();
}
window.addEventListener('popstate', goOut);

document.getElementById('home').addEventListener('click', (event) => {
  event.preventDefault();
  if (room) goOut();
  else if (location.search) goLobby();
});

const mute = document.getElementById('mute');
const paintMute = () => {
  mute.setAttribute('aria-pressed', String(sound.muted));
  mute.setAttribute('aria-label', sound.muted ? 'Turn the sound on' : 'Turn the sound off');
  mute.querySelector('use').setAttribute('href', sound.muted ? '#icon-muted' : '#icon-sound');
};
mute.addEventListener('click', () => { sound.unlock(); sound.setMuted(!sound.muted); paintMute(); });
paintMute();
document.addEventListener('pointerdown', () => sound.unlock());
document.addEventListener('keydown', () => sound.unlock());

/** Whether this machine has glyphs for the songs' own names: two missing glyphs look the same. */
function drawsChinese() {
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [24, 24];
  const g = canvas.getContext('2d', { willReadFrequently: true });
  const picture = (text) => {
    g.clearRect(0, 0, 24, 24);
    g.font = '20px system-ui, sans-serif';
    g.fillText(text, 1, 20);
    return g.getImageData(0, 0, 24, 24).data.join();
  };
  return picture('節') !== picture('奏');
}
document.documentElement.classList.toggle('no-native', !drawsChinese());

window.roomkitDemo = Object.freeze({
  get client() { return room?.client ?? null; },
  get state() { return room?.client.state ?? null; },
  get view() { return current; },
  get phase() { return room ? document.body.dataset.phase ?? null : null; },
  get scores() { return room ? structuredClone(room.scores.all) : {}; },
  get round() {
    const round = room?.stage.round;
    if (!round) return null;
    const { id, song, time, length, over, tally, notes } = round;
    return { id, song: song.id, time, length, over, tally: { ...tally }, notes: notes.map((note) => ({ ...note })) };
  },
  songs: Object.freeze(SONGS.map((song) => Object.freeze({ id: song.id, title: song.title, length: songLength(song) }))),
});

route();
