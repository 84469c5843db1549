// The chat: lines of people and of the room. Kept in sessionStorage, so that a reload of the page does not empty it.

import { attempt, h, ref } from './ui.js';

const KEPT = 60;
const LONGEST = 300;

export class Chat {
  #client;
  #log;
  #lines = [];

  constructor(root, client) {
    this.#client = client;
    this.#log = ref(root, 'chat-log');
    const input = ref(root, 'chat-input');
    ref(root, 'chat-form').addEventListener('submit', (event) => {
      event.preventDefault();
      const text = input.value.trim();
      if (!text) return;
      input.value = '';
      if (document.body.dataset.phase === 'play') input.blur();      // the keys are the lanes' again
      this.#say(text);
    });
    try {
      for (const line of JSON.parse(sessionStorage.getItem(this.#key)) ?? []) this.#append(line);
    } catch { /* nothing that we wrote */ }
  }

  get #key() { return `roomkit-demo:chat:${this.#client.roomId}`; }

  /** A message of somebody. Returns whether it was chat. */
  receive(name, color, mine, data) {
    if (data?.kind !== 'chat' || typeof data.text !== 'string' || !data.text.trim()) return false;
    this.#append({ name, color, mine, text: data.text.slice(0, LONGEST) });
    this.keep();
    return true;
  }

  /** A line of the room itself: who came, who went. */
  note(text) {
    this.#append({ text });
    this.keep();
  }

  keep() { sessionStorage.setItem(this.#key, JSON.stringify(this.#lines)); }

  async #say(text) {
    // While the network is away the client keeps the message; it is shown pale until the server has it.
    const pending = this.#client.connection === 'open' ? null : this.#line({ name: this.#client.me?.name ?? 'You', mine: true, text });
    if (pending) {
      pending.classList.add('pending');
      this.#log.append(pending);
      this.#scroll(true);
    }
    await attempt(this.#client.sendMessage({ kind: 'chat', text: text.slice(0, LONGEST) }));
    pending?.remove();
  }

  #append(line) {
    const atEnd = this.#log.scrollHeight - this.#log.scrollTop - this.#log.clientHeight < 60;
    this.#lines.push(line);
    this.#lines.splice(0, this.#lines.length - KEPT);
    this.#log.append(this.#line(line));
    while (this.#log.children.length > KEPT) this.#log.firstElementChild.remove();
    this.#scroll(atEnd || line.mine);
  }

  #line({ name, color, mine, text }) {
    if (!name) return h('p', { class: 'line system' }, text);
    const who = h('b', { class: 'who' }, name);
    if (color) who.style.color = color;
    return h('p', { class: mine ? 'line mine' : 'line' }, who, ' ', h('span', { class: 'said' }, text));
  }

  #scroll(wanted) { if (wanted) this.#log.scrollTop = this.#log.scrollHeight; }
}
