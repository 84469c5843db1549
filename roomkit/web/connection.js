// The pill that always says how the connection is, and the banner of a lost network.

import { announce, h, setText } from './ui.js';

const BANNER_AFTER_MS = 700;    // a move to another room, or a blink, shows no banner

const pill = () => document.getElementById('connection');

function show(state, text) {
  pill().dataset.state = state;
  setText(pill().querySelector('.pill-text'), text);
}

/** Outside a room: whether the server answers. */
export function showLobbyConnection(reachable) {
  pill().querySelector('button')?.remove();
  show('idle', reachable ? 'online' : 'server unreachable');
  pill().dataset.trouble = reachable ? '' : 'yes';
}

/** What to say and offer for a close code that means stay away. */
export function explainClose({ code, name, reason }) {
  const table = {
    4500: ['A round is on', 'You can sit down when the next one is prepared.', 'retry'],
    4501: ['That seat is taken', 'Somebody else holds it. Take a new one?', 'newcomer'],
    4502: ['A password is needed', 'This room lets in only those who know it.', 'newcomer'],
    4503: ['You were asked to leave', 'The host gave your seat away.', null],
    4504: ['No such room', 'It never was, or its time is over.', null],
    4505: ['The room is full', 'Every seat is taken. One may get free.', 'retry'],
    4506: ['The room is locked', 'The host takes no new players now.', 'retry'],
    4509: ['Open somewhere else', 'This seat was taken over by another tab or window of yours.', 'retry'],
    4510: ['The room is closed', 'Thanks for playing.', null],
    4529: ['Too much at once', 'The server limits connections. Wait a moment.', 'retry'],
  };
  const [title, text, remedy] = table[code] ?? ['The connection ended', 'The server said why below.', 'retry'];
  return { title, text, remedy, detail: [reason || name, code && `code ${code}`].filter(Boolean).join(' · ') };
}

/**
 * Follows a client. The pill's button makes a client that waits try at once; for a connection that has ended it calls
 * `retry`.
 * Returns a function that stops it.
 */
export function watchConnection(client, banner, retry) {
  let due = 0;          // when the next attempt is made, ms
  let bannerTimer = 0;
  let everOpen = false;
  let rtt = null;
  let last = null;

  const again = () => (client.connection === 'closed' ? retry() : client.retryNow());

  const paint = () => {
    const state = client.connection === 'idle' ? 'connecting' : client.connection;
    let text = 'connecting…';
    if (state === 'open') text = rtt === null ? 'connected' : `connected · ${Math.max(1, Math.round(rtt))} ms`;
    if (state === 'waiting') text = `next try in ${Math.max(0, Math.ceil((due - Date.now()) / 1000))} s`;
    if (state === 'connecting' && everOpen) text = 'reconnecting…';
    const ended = state === 'closed' ? explainClose(client.closed ?? {}) : null;
    if (ended) text = ended.title;
    pill().dataset.trouble = '';
    show(state, text);
    // It stays while an attempt is made: a button that comes and goes loses the focus, and cannot be hit.
    const button = pill().querySelector('button');
    const wanted = { waiting: true, connecting: button !== null, closed: ended?.remedy };
    if (!wanted[state]) button?.remove();
    else if (!button) {
      pill().append(h('button', { type: 'button', class: 'pill-retry', testid: 'retry-button', onclick: again }, 'Retry'));
    }
  };

  const changed = (change) => {
    const { connection } = client;
    if (connection === 'waiting') due = Date.now() + (change?.delay ?? 0) * 1000;
    if (connection === 'open') {
      if (everOpen && last !== 'open' && !banner.hidden) announce('Connected again.');
      everOpen = true;
    }
    const lost = everOpen && (connection === 'waiting' || connection === 'connecting');
    if (!lost) {
      clearTimeout(bannerTimer);
      bannerTimer = 0;
      banner.hidden = true;
    } else {
      bannerTimer ||= setTimeout(() => { banner.hidden = false; }, BANNER_AFTER_MS);
    }
    if (last !== connection) rtt = null;
    last = connection;
    paint();
  };

  const measure = async () => {
    if (client.connection !== 'open' || document.hidden) return;
    try { rtt = await client.ping(); } catch { return; }
    paint();
  };

  const stops = [client.on('connection', changed)];
  const ticker = setInterval(paint, 250);
  const meter = setInterval(measure, 5000);
  changed();
  return () => {
    stops.forEach((stop) => stop());
    clearInterval(ticker);
    clearInterval(meter);
    clearTimeout(bannerTimer);
    pill().querySelector('button')?.remove();
  };
}
