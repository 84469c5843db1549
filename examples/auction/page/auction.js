// The auction's page. It decides nothing: what it shows follows from the room's state, and its clock is the server's.
import { byId, clientFor, el, face, notice } from '/shared/page.js';

const money = (amount) => amount.toLocaleString('en', { maximumFractionDigits: 0 });
let client = null;
let outbid = false;
let longest = 1; // what the bar shows as full

const lotOfNow = async () => (await (await fetch('/lot')).json()).room;

async function attend(room) {
  client?.close();
  client = await clientFor(room);
  outbid = false;
  longest = 1;
  byId('answer').textContent = '\u00a0';
  client.on('state', show);
  client.on('operation_performed', ({ data }) => {
    if (data.operation === 'bid') addBid(data);
  });
  client.on('welcome', ({ seq, recovered }) => {
    if (!recovered) showBids(seq); // a replay brings the bids that were missed by itself
  });
  client.on('connection', ({ state }) => {
    if (state === 'closed' && client.closed.code !== 1000) over();
  });
  await client.connect();
}

/** The bids so far, from the room's history. */
async function showBids(seq) {
  const events = (await client.eventsAfter(Math.max(0, seq - 200)).catch(() => null)) ?? [];
  byId('bids').replaceChildren(el('li', { className: 'none' }, 'No bid yet'));
  for (const { type, data } of events) if (type === 'operation_performed' && data.operation === 'bid') addBid(data);
}

function addBid({ player_id: id, data, settings }) {
  byId('bids').querySelector('.none')?.remove();
  const name = id === client.playerId ? 'You' : settings.bidder_name;
  if (id === client.playerId) outbid = false;
  else if (byId('bids').firstElementChild?.dataset.bidder === client.playerId) {
    outbid = true;
    byId('answer').textContent = `${name} bids more.`;
  }
  const row = el('li', {}, face({ id, name: settings.bidder_name }), el('span', { className: 'who' }, name),
    el('span', { className: 'amount' }, money(data.amount)));
  row.dataset.bidder = id;
  byId('bids').prepend(row);
}

function show(state) {
  const { title, amount, start, step, bidder, bidder_name: name } = state.settings;
  const [mine, sold] = [bidder === client.playerId, state.status === 'sold' || (state.status === 'closed' && bidder)];
  byId('lot').dataset.status = state.status;
  byId('title').textContent = title;
  byId('price').textContent = money(amount ?? start);
  const there = state.players.filter((player) => player.connected).length;
  byId('people').textContent = there === 1 ? 'You are the only one here' : `${there} people are here`;
  const who = mine ? 'you' : name;
  byId('leader').textContent = sold ? `Sold to ${who}` : bidder ? `The highest bid is ${mine ? 'yours' : `${name}'s`}`
    : state.status === 'closed' ? 'Nobody bid: it was taken back' : 'Who makes the first bid?';
  byId('leader').dataset.mine = mine ? 'yes' : outbid ? 'lost' : 'no';
  const least = bidder ? amount + step : start;
  const input = byId('amount');
  if (!(Number(input.value) >= least) || input !== document.activeElement) input.value = least; // keeps what is typed
  input.min = least;
  byId('bid').disabled = input.disabled = mine || !['open', 'closing'].includes(state.status);
  if (sold || state.status === 'closed') over();
}

byId('form').addEventListener('submit', async (event) => {
  event.preventDefault();
  const answer = byId('answer');
  try {
    await client.perform('bid', { amount: Number(byId('amount').value) });
    answer.textContent = 'Your bid counts.';
  } catch (error) {
    answer.textContent = error.code === 'invalid_transition' ? 'Too late: the hammer has fallen.'
      : error.maybeDone ? 'The connection was lost; the list shows whether your bid counts.' : `${error.message}.`;
  }
});

function tick() {
  const { status, settings } = client?.state ?? {};
  if (!settings?.ends_at) return;
  const left = Math.max(0, settings.ends_at - Date.now() - client.clockOffset);
  const open = status === 'open' || status === 'closing';
  byId('left').textContent = open ? `${(left / 1000).toFixed(left < 10_000 ? 1 : 0)} s` : '';
  byId('call').textContent = status !== 'closing' ? '' : left > settings.extension / 2 ? 'Going once …' : 'Going twice …';
  longest = Math.max(longest, left);
  byId('bar').style.transform = `scaleX(${open ? left / (status === 'closing' ? settings.extension : longest) : 0})`;
}

let waiting = false;

/** The lot is gone: goes on with the next one as soon as there is one. */
async function over() {
  if (waiting) return;
  waiting = true;
  byId('call').textContent = '';
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const room = await lotOfNow().catch(() => client.roomId);
    if (room !== client.roomId) {
      waiting = false;
      return attend(room).catch((error) => notice(error.message));
    }
  }
}

setInterval(tick, 100);
attend(await lotOfNow()).catch((error) => notice(error.message));
