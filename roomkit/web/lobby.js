// The lobby (who you are, the open rooms, a new room) and the gate that a shared link opens at.

import { songById, SONGS, chartOf } from './songs.js';
import { Highway } from './highway.js';
import { showLobbyConnection } from './connection.js';
import { sound } from './sound.js';
import { api, attempt, fallbackName, h, icon, keepSeat, nameField, randomId, reducedMotion, ref, roomTitle, savedName, setText, view } from './ui.js';

const REFRESH_MS = 2000;
const GAME = { game: 'rhythm' };
const JOINABLE = new Set(['waiting', 'preparing']);
const STATUS = {
  waiting: 'waiting for players', preparing: 'getting ready', ready: 'about to start',
  playing: 'playing',
};

/** Shows the lobby. enter(roomId, {name, playerId, token?}) opens a room. Returns a function that takes the lobby away. */
export function showLobby(main, enter) {
  const root = view('lobby');
  main.replaceChildren(root);
  const name = nameField(ref(root, 'name'));
  const stopAttract = attract(ref(root, 'attract'));

  const busy = (button, work) => async () => {
    sound.unlock();
    button.disabled = true;
    await attempt(work());
    button.disabled = false;
  };

  // A new room.
  const seats = stepper(ref(root, 'seats'), 2, 8, 4, () => least.limit(1, seats.value));
  const least = stepper(ref(root, 'least'), 1, 4, 2);
  const create = async (options) => {
    const mine = name();
    const room = await api('POST', '/api/rooms', { metadata: { ...GAME, title: `${mine}’s room` }, ...options });
    enter(room.id, { name: mine, playerId: randomId('p-') });
  };
  const createButton = ref(root, 'create');
  createButton.addEventListener('click', busy(createButton, () => create({
    max_players: seats.value, min_players: least.value, ...(ref(root, 'unlisted').checked ? { private: true } : {}),
  })));
  const soloButton = ref(root, 'solo');
  soloButton.addEventListener('click', busy(soloButton, () => create({ max_players: 4, min_players: 1, private: true })));

  // Any room.
  const quickButton = ref(root, 'quick');
  quickButton.addEventListener('click', busy(quickButton, async () => {
    const mine = name();
    const seat = await api('POST', '/api/rooms/join-or-create', {
      player_id: randomId('p-'), name: mine, max_players: 4, min_players: 2, metadata: GAME,
    });
    enter(seat.room.id, { name: mine, playerId: seat.player_id, token: seat.token });
  }));

  // The list, read again while somebody can see it.
  const list = ref(root, 'list');
  const open = (id) => { sound.unlock(); enter(id, { name: name(), playerId: randomId('p-') }); };
  let stopped = false;
  const refresh = async () => {
    if (document.hidden) return;
    try {
      const { rooms } = await api('GET', '/api/rooms?sort=-created_at&limit=50');
      if (stopped) return;
      paintRooms(list, rooms.filter((room) => room.status in STATUS), open);
      setText(ref(root, 'count'), rooms.length ? String(rooms.length) : '');
      showLobbyConnection(true);
    } catch {
      if (!stopped) showLobbyConnection(false);
    }
  };
  refresh();
  const timer = setInterval(refresh, REFRESH_MS);
  document.addEventListener('visibilitychange', refresh);

  return () => {
    stopped = true;
    clearInterval(timer);
    document.removeEventListener('visibilitychange', refresh);
    stopAttract();
  };
}

/** Rows are kept by room, so that the focus stays where it is. */
function paintRooms(list, rooms, open) {
  const rows = new Map([...list.querySelectorAll('[data-room]')].map((row) => [row.dataset.room, row]));
  list.querySelector('.empty')?.remove();
  const wanted = rooms.map((room) => {
    const row = rows.get(room.id) ?? roomRow(room, open);
    rows.delete(room.id);
    const full = room.player_count >= room.max_players;
    const closed = full || room.locked || !JOINABLE.has(room.status);
    row.classList.toggle('closed', closed);
    setText(ref(row, 'status'), room.locked ? 'locked' : full && JOINABLE.has(room.status) ? 'full' : STATUS[room.status]);
    setText(ref(row, 'song'), room.song_id ? songById(room.song_id).title : 'no song yet');
    setText(ref(row, 'players'), `${room.player_count}/${room.max_players}`);
    const dots = ref(row, 'dots');
    dots.replaceChildren(...Array.from({ length: Math.min(8, room.max_players) }, (_, i) => h('i', { class: i < room.player_count ? 'on' : '' })));
    const button = ref(row, 'join');
    button.disabled = closed;
    setText(button, !closed ? 'Join' : room.locked ? 'Locked' : full ? 'Full' : 'Busy');
    return row;
  });
  rows.forEach((row) => row.remove());
  wanted.forEach((row, i) => { if (list.children[i] !== row) list.insertBefore(row, list.children[i] ?? null); });
  if (!wanted.length) {
    list.append(h('li', { class: 'empty' }, h('strong', {}, 'Quiet in here.'), ' Make the first room, or let Quick join make one for you.'));
  }
}

function roomRow(room, open) {
  return h('li', { class: 'room-row', 'data-room': room.id, testid: `room-${room.id}` },
    h('span', { class: 'row-dots', ref: 'dots', 'aria-hidden': true }),
    h('span', { class: 'row-text' },
      h('strong', { class: 'row-id' }, h('span', {}, roomTitle(room.id, room.metadata)), room.has_password ? icon('lock') : null),
      h('span', { class: 'row-sub' }, h('span', { ref: 'status' }), ' · ', h('span', { ref: 'song' }))),
    h('span', { class: 'row-count', ref: 'players' }),
    h('button', { type: 'button', class: 'button small', ref: 'join', testid: `join-${room.id}`, 'aria-label': `Join ${roomTitle(room.id, room.metadata)}`, onclick: () => open(room.id) }, 'Join'));
}

/** A number with minus and plus. */
function stepper(root, from, to, start, changed = () => {}) {
  const output = ref(root, 'value');
  const control = {
    value: start,
    limit(low, high) { [from, to] = [low, high]; control.set(control.value); },
    set(value) {
      control.value = Math.max(from, Math.min(to, value));
      setText(output, control.value);
      ref(root, 'less').disabled = control.value <= from;
      ref(root, 'more').disabled = control.value >= to;
    },
  };
  ref(root, 'less').addEventListener('click', () => { control.set(control.value - 1); changed(); });
  ref(root, 'more').addEventListener('click', () => { control.set(control.value + 1); changed(); });
  control.set(start);
  return control;
}

/** The road plays by itself behind the lobby. */
function attract(canvas) {
  const highway = new Highway(canvas);
  const song = SONGS[1];
  const chart = chartOf(song).filter((note) => note.t > 3);
  const span = chart.at(-1).t - 2;
  const start = performance.now();
  let notes = [];
  let cycle = -1;
  let frame = 0;
  const draw = () => {
    const elapsed = reducedMotion.matches ? 4.2 : (performance.now() - start) / 1000;
    const time = 3 + (elapsed % span);
    if (Math.floor(elapsed / span) !== cycle) {
      cycle = Math.floor(elapsed / span);
      notes = chart.map((note) => ({ ...note, judged: null }));
    }
    for (const note of notes) {
      if (note.judged || note.t > time) continue;
      note.judged = 'perfect';
      if (time - note.t < 0.1) highway.strike(note.lane, 'perfect');
    }
    highway.draw({ time, notes, bpm: song.bpm, color: song.color, combo: 0, attract: true });
    frame = requestAnimationFrame(draw);
  };
  draw();
  return () => { cancelAnimationFrame(frame); highway.destroy(); };
}

/** A shared link: who is there, and a name to join with. Returns a function that takes the gate away. */
export function showGate(main, roomId, { enter, lobby }) {
  const root = view('gate');
  main.replaceChildren(root);
  const stopAttract = attract(ref(root, 'attract'));
  const input = ref(root, 'name');
  const name = nameField(input);
  setText(ref(root, 'room'), roomId);
  input.placeholder = fallbackName;
  if (!savedName()) input.focus();
  ref(root, 'lobby').addEventListener('click', lobby);
  ref(root, 'form').addEventListener('submit', (event) => {
    event.preventDefault();
    sound.unlock();
    const playerId = randomId('p-');
    keepSeat(roomId, playerId);
    enter(roomId, { name: name(), playerId, password: ref(root, 'password').value || undefined });
  });
  (async () => {
    try {
      const room = await api('GET', `/api/rooms/${encodeURIComponent(roomId)}`);
      ref(root, 'password-row').hidden = !room.has_password;
      const names = room.players.map((player) => player.name);
      setText(ref(root, 'who'), names.length ? `${names.join(', ')} ${names.length > 1 ? 'are' : 'is'} in · ${names.length} of ${room.max_players} seats taken` : `Nobody is in yet · ${room.max_players} seats`);
      showLobbyConnection(true);
    } catch (error) {
      setText(ref(root, 'who'), error.message);
      showLobbyConnection(error.code !== 'offline');
    }
  })();
  return stopAttract;
}
