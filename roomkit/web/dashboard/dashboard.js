// The dashboard: the header, the gate for those who need a token, and which of the two views is shown.

import { RoomList } from './list.js';
import { Overview } from './overview.js';
import { RoomView } from './room.js';
import { ask, forgetToken, keepToken, Poller, savedToken, trouble } from './server.js';
import { byId, count, duration, ref, setText } from './ui.js';

const EVERY_MS = 1000;

const list = new RoomList({ onRefused: refused });
const overview = new Overview({ onStatus: (status) => list.filter(status) });
const stats = new Poller(loadStats, EVERY_MS, say);
let room = null;               // the view of one room, while it is shown
let inside = false;            // whether the server lets us in

async function loadStats(signal) {
  const answer = await ask('GET', '/api/admin/stats', { signal });
  overview.take(answer);
  list.know(answer);
  paintHeader(answer);
  if (!inside) enter();
  if (!room) overview.paint();
}

function paintHeader({ version, uptime, workers, instances, ready }) {
  const facts = byId('facts');
  facts.hidden = false;
  setText(ref(facts, 'version'), version);
  setText(ref(facts, 'uptime'), duration(uptime));
  setText(ref(facts, 'workers'), count(workers));
  ref(facts, 'workers-box').hidden = workers < 2 || instances > 0;
  setText(ref(facts, 'instances'), count(instances));
  ref(facts, 'instances-box').hidden = !instances;
  setText(ref(facts, 'ready'), ready ? 'ready' : 'draining');
  ref(facts, 'ready').dataset.ready = ready;
  link('live', 'live');
}

function link(state, text) {
  byId('link').dataset.state = state;
  setText(byId('link').lastElementChild, text);
}

function say(error, seconds) {
  if (!error) return;                                  // paintHeader has said so
  if (error.status === 401 || error.status === 403) refused(error);
  else link('waiting', trouble(error, seconds));
}

// --- the gate ---------------------------------------------------------------------------------------------------------

function refused(error) {
  const wrong = error.status === 401 && savedToken() !== null;
  inside = false;
  forgetToken();
  stats.stop();
  list.stop();
  show(null);
  byId('overview').hidden = true;
  byId('facts').hidden = true;
  byId('gate').hidden = false;
  const useless = error.status === 403;
  byId('gate-field').hidden = byId('gate-button').hidden = byId('gate-hint').hidden = useless;
  if (useless) setText(byId('gate-text'), 'It can be opened on the machine of the server only, unless the server is given an admin token.');
  else if (wrong) setText(byId('gate-text'), 'The server does not accept that token.');
  else setText(byId('gate-text'), 'From this machine it needs the server’s admin token.');
  link('closed', 'locked');
  byId('token').value = '';
  if (!useless) byId('token').focus();
}

byId('gate-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const token = byId('token').value.trim();
  if (!/^[\x20-\x7e]+$/.test(token)) {                 // a header could not carry it
    setText(byId('gate-text'), 'A token has no letters beyond ASCII.');
    return;
  }
  keepToken(token);
  link('connecting', 'connecting');
  stats.start();
});

function enter() {
  inside = true;
  byId('gate').hidden = true;
  route();
}

// --- views ------------------------------------------------------------------------------------------------------------

function route() {
  if (!inside) return;
  const match = /^#\/rooms\/([^/]+)$/.exec(location.hash);
  let id = null;
  try {
    id = match && decodeURIComponent(match[1]);
  } catch { /* not an address of ours: the list */ }
  if (id !== null) {
    list.stop();
    show(id);
  } else {
    show(null);
    byId('overview').hidden = false;
    overview.paint();
    list.start();
  }
  document.title = id === null ? 'roomkit dashboard' : `${id} · roomkit dashboard`;
}

let scrolled = 0;

function show(id) {
  room?.stop();
  const before = room;
  room = id === null ? null : new RoomView(id, { onRefused: refused });
  if (room) {
    if (!before) scrolled = window.scrollY;
    byId('overview').hidden = true;
    byId('room-place').replaceChildren(room.node);
    window.scrollTo(0, 0);
    room.start();
  } else if (before) {
    byId('room-place').replaceChildren();
    requestAnimationFrame(() => window.scrollTo(0, scrolled));
  }
}

window.addEventListener('hashchange', route);
stats.start();
