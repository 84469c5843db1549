// A room: seats, song choice, the round, results and chat, painted from the client's copy of the state.

import { RoomClient } from '/client/roomkit.js';
import { Chat } from './chat.js';
import { explainClose, watchConnection } from './connection.js';
import { Stage } from './play.js';
import { Scores } from './scores.js';
import { Seats } from './seats.js';
import { paintResults } from './results.js';
import { SongList } from './songlist.js';
import { songById } from './songs.js';
import { sound } from './sound.js';
import { announce, attempt, copy, forgetSeat, keepSeat, ref, roomTitle, SEAT_COLORS, setText, toast, view } from './ui.js';

const TICK_MS = 200;
const LEFT = { left: 'left', kicked: 'was asked to leave', banned: 'was banned', expired: 'did not come back' };

export class RoomView {
  #root;
  #main;
  #onLobby;
  #onRetry;
  #onMoved;
  #roomId;
  #song = null;           // the last song, proposed again after a rematch
  #painting = false;
  #stops = [];
  #left = false;

  /**
   * @param seat      {name, playerId, token?, password?}
   * @param handlers  {lobby(): back to the lobby, retry(asNewcomer): open this room again, moved(roomId): a rematch's room}
   */
  constructor(main, roomId, seat, { lobby, retry, moved }) {
    this.#main = main;
    this.#roomId = roomId;
    this.#onLobby = lobby;
    this.#onRetry = retry;
    this.#onMoved = moved;
    this.#root = view('room');
    main.replaceChildren(this.#root);
    keepSeat(roomId, seat.playerId);
    this.client = new RoomClient({
      roomId, playerId: seat.playerId, name: seat.name, token: seat.token, password: seat.password,
      storage: sessionStorage, pingInterval: 5, pingTimeout: 5, maxDelay: 6,
    });
    this.scores = new Scores(this.client, () => this.#schedule());
    this.chat = new Chat(this.#root, this.client);
    this.seats = new Seats(ref(this.#root, 'seats'), {
      kick: (id) => attempt(this.client.kick(id)),
      invite: (event) => this.#share(event),
    });
    this.songs = new SongList(ref(this.#root, 'songs'), (id) => { sound.unlock(); attempt(this.client.selectSong(id)); });
    this.stage = new Stage(ref(this.#root, 'play'), (round) => this.scores.mine(round));
    this.#listen();
    this.#buttons();
    this.#stops.push(watchConnection(this.client, ref(this.#root, 'banner'), () => this.#retry()));
    const timer = setInterval(() => this.scores.tick(this.stage.round?.over ?? false), TICK_MS);
    const hide = () => this.scores.save();
    window.addEventListener('pagehide', hide);
    this.#stops.push(() => clearInterval(timer), () => window.removeEventListener('pagehide', hide));
    this.#link();
    this.#paint();
    this.client.connect().catch(() => this.#paint());       // why it ended stands in client.closed
  }

  /** Takes the view away without giving up the seat. */
  destroy() {
    this.#left = true;
    this.#stops.forEach((stop) => stop());
    this.stage.destroy();
    this.scores.destroy();
    if (this.client.connection !== 'closed') this.client.close();
    document.body.removeAttribute('data-phase');
  }

  /** Gives up the seat and goes to the lobby; does not wait for a network that is away. */
  async leave() {
    if (this.#left) return;
    this.#left = true;
    forgetSeat(this.#roomId, this.client.playerId);
    if (this.client.connection === 'open') {
      await Promise.race([this.client.leave().catch(() => {}), new Promise((done) => { setTimeout(done, 1500); })]);
    }
    this.#onLobby();
  }

  #retry() {
    const asNewcomer = explainClose(this.client.closed ?? {}).remedy === 'newcomer';
    if (asNewcomer) forgetSeat(this.#roomId, this.client.playerId);
    this.#onRetry(asNewcomer);
  }

  #name(id) { return this.client.state?.players.find((player) => player.id === id)?.name ?? 'Somebody'; }

  #color(id) {
    const i = this.client.state?.players.findIndex((player) => player.id === id) ?? -1;
    return i < 0 ? '#a49fb8' : SEAT_COLORS[i % SEAT_COLORS.length];
  }

  #listen() {
    const { client } = this;
    const on = (type, fn) => this.#stops.push(client.on(type, fn));
    on('state', () => this.#schedule());
    on('connection', () => this.#schedule());
    on('welcome', () => { this.#schedule(); this.scores.again(); });
    on('error', (event) => toast(event?.data?.message ?? 'The server refused that.'));
    on('message', ({ data: { player_id: id, data } }) => {
      if (this.scores.receive(id, data)) return;
      const mine = id === client.playerId;
      this.chat.receive(id === null ? 'server' : this.#name(id), this.#color(id), mine, data);
    });
    on('player_joined', ({ data }) => { this.chat.note(`${data.player.name} sat down`); this.scores.again(); });
    const away = new Set();         // whose loss was told, so that coming back is told as well
    on('player_dropped', ({ data }) => { away.add(data.player_id); this.chat.note(`${this.#name(data.player_id)} lost the connection; the seat is kept`); });
    on('player_resumed', ({ data }) => {
      if (away.delete(data.player_id) && data.player_id !== client.playerId) this.chat.note(`${this.#name(data.player_id)} is back`);
      this.scores.again();
    });
    // By the time a handler runs, who left may be out of the state already: the seats know the name.
    on('player_left', ({ data }) => this.chat.note(`${this.seats.nameOf(data.player_id)} ${LEFT[data.reason] ?? 'left'}`));
    on('host_changed', ({ data }) => { if (data.player_id && data.previous) this.chat.note(`${this.#name(data.player_id)} is the host now`); });
    on('song_selected', ({ data }) => this.chat.note(`${this.#name(data.player_id)} chose ${songById(data.song_id).title}`));
    on('player_ready', ({ data }) => announce(`${this.#name(data.player_id)} is ${data.ready ? 'ready' : 'not ready'}`));
    on('room_status', ({ data }) => { if (data.status === 'ready') announce('Everybody is ready.'); });
    on('game_finished', () => announce('The round is over. Results are shown.'));
  }

  #buttons() {
    const { client } = this;
    const button = (name, fn) => ref(this.#root, name).addEventListener('click', fn);
    button('ready', () => { sound.unlock(); attempt(client.ready(!client.me?.ready)); });
    button('start', () => { sound.unlock(); attempt(client.startGame()); });
    button('rematch', async () => {
      ref(this.#root, 'rematch').disabled = true;
      await attempt(client.rematch());
      ref(this.#root, 'rematch').disabled = false;
    });
    button('leave', () => this.leave());
    button('end-lobby', () => { forgetSeat(this.#roomId, client.playerId); this.#onLobby(); });
    button('end-retry', () => this.#retry());
    button('copy', (event) => this.#share(event));
    button('link', (event) => this.#share(event));
  }

  async #share(event) {
    event.preventDefault();
    const link = ref(this.#root, 'link').href;
    toast(await copy(link) ? 'Link copied. Send it to a friend.' : link, 'info');
  }

  #link() {
    const link = ref(this.#root, 'link');
    link.href = `/?room=${encodeURIComponent(this.#roomId)}`;
    setText(link, roomTitle(this.#roomId, this.client?.state?.metadata));
  }

  /** Many events of one turn make one paint. */
  #schedule() {
    if (this.#painting) return;
    this.#painting = true;
    queueMicrotask(() => { this.#painting = false; if (!this.#left) this.#paint(); });
  }

  #paint() {
    const { client } = this;
    const { state } = client;
    if (state && state.id !== this.#roomId) this.#move(state.id);
    this.#link();
    const ended = client.connection === 'closed';
    const phase = ended ? 'ended' : !state ? 'connecting' : { playing: 'play', finished: 'results', closed: 'ended' }[state.status] ?? 'setup';
    document.body.dataset.phase = phase;
    this.#root.dataset.phase = phase;
    for (const name of ['setup', 'play', 'results', 'ended', 'connecting']) ref(this.#root, name).hidden = name !== phase;
    ref(this.#root, 'actions').hidden = phase !== 'setup';
    if (phase === 'ended') this.#paintEnd();
    if (!state) return;

    this.#round(state);
    this.seats.paint(state, client, this.scores, phase);
    if (phase === 'setup') this.#paintSetup(state);
    if (phase === 'play') this.#paintTallying(state);
    if (phase === 'results') {
      paintResults(ref(this.#root, 'results'), state, this.scores.results(), client.playerId);
      ref(this.#root, 'rematch').hidden = !client.isHost;
      ref(this.#root, 'rematch-hint').hidden = client.isHost;
      setText(ref(this.#root, 'rematch-hint'), `${this.#name(state.host)} can call a rematch.`);
    }
  }

  /** Starts or ends the round as the state says. */
  #round(state) {
    const playing = state.status === 'playing' && state.started_at && this.client.connection !== 'closed';
    if (!playing) { this.stage.end(); return; }
    if (this.stage.round?.id === state.started_at) return;
    const saved = this.scores.begin(state.started_at);
    this.#song = state.song_id;
    this.stage.start(songById(state.song_id), state.started_at, this.client.clockOffset, saved);
  }

  /** A rematch: the client is in the new room already. */
  #move(roomId) {
    this.#roomId = roomId;
    keepSeat(roomId, this.client.playerId);
    this.chat.keep();
    this.#link();
    this.#onMoved(roomId);
    this.chat.note('A new room for the rematch');
    const { state, isHost } = this.client;
    if (isHost && this.#song && !state.song_id) attempt(this.client.selectSong(this.#song));
  }

  #paintSetup(state) {
    const { client } = this;
    const ready = state.players.filter((player) => player.ready).length;
    const missing = state.min_players - state.players.length;
    const button = ref(this.#root, 'ready');
    button.disabled = state.status === 'waiting' || !client.me;
    button.setAttribute('aria-pressed', String(Boolean(client.me?.ready)));
    setText(ref(this.#root, 'ready-text'), client.me?.ready ? 'Ready!' : 'I’m ready');
    const start = ref(this.#root, 'start');
    start.hidden = !client.isHost;
    start.disabled = state.status !== 'ready';
    this.songs.paint(state.song_id);
    ref(this.#root, 'actions').style.setProperty('--song', songById(state.song_id).color);

    let hint = '';
    if (state.status === 'waiting') hint = `Waiting for ${missing} more ${missing === 1 ? 'player' : 'players'}. Share the link above.`;
    else if (state.status === 'ready') hint = client.isHost ? 'Everybody is ready. Go!' : `Everybody is ready. ${this.#name(state.host)} starts.`;
    else if (!client.me?.ready) hint = 'Pick a song, then say that you are ready.';
    else {
      const late = state.players.filter((player) => !player.ready).map((player) => player.name);
      hint = late.length > 2 ? `${ready} of ${state.players.length} are ready` : `Waiting for ${late.join(' and ')}`;
    }
    setText(ref(this.#root, 'hint'), hint);
  }

  #paintTallying(state) {
    const host = state.players.find((player) => player.id === state.host);
    const text = this.client.connection !== 'open' ? 'Your score goes in when the connection is back.'
      : host && !host.connected ? `Waiting for ${host.name}, the host, to come back. The seat is kept.`
        : 'Counting the scores…';
    setText(ref(this.#root, 'tallying-text'), text);
  }

  #paintEnd() {
    const { closed, state } = this.client;
    const { title, text, remedy, detail } = explainClose(closed ?? { code: state?.status === 'closed' ? 4510 : 0, name: '', reason: '' });
    setText(ref(this.#root, 'end-title'), title);
    setText(ref(this.#root, 'end-text'), text);
    setText(ref(this.#root, 'end-detail'), detail);
    const retry = ref(this.#root, 'end-retry');
    retry.hidden = !remedy;
    setText(retry, remedy === 'newcomer' ? 'Join as somebody new' : 'Try again');
  }
}
