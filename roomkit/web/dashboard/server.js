// Asking the server: with the token if there is one, again and again while the page is seen, and less often in trouble.

const TOKEN_KEY = 'roomkit-dashboard:token';
const TIMEOUT_MS = 10_000;
const LONGEST_WAIT = 15;       // seconds

/** For this tab, until it is closed; it travels in a header, never in an address. */
export const savedToken = () => sessionStorage.getItem(TOKEN_KEY);
export const keepToken = (token) => sessionStorage.setItem(TOKEN_KEY, token);
export const forgetToken = () => sessionStorage.removeItem(TOKEN_KEY);

/** An answer of JSON. Throws an Error with `code` and `status` (0: there was no answer). */
export async function ask(method, path, { body, signal } = {}) {
  const headers = {};
  const token = savedToken();
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body) headers['Content-Type'] = 'application/json';
  const timeout = new AbortController();
  const timer = setTimeout(() => timeout.abort(), TIMEOUT_MS);
  const cancel = () => timeout.abort();
  signal?.addEventListener('abort', cancel);
  let response;
  let answer;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: 'no-store', signal: timeout.signal });
    answer = await response.json().catch(() => null);
  } catch {
    throw Object.assign(new Error('server unreachable'), { code: 'offline', status: 0 });
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', cancel);
  }
  if (response.ok && answer !== null) return answer;
  const { code = 'error', message = `the server answered ${response.status}` } = answer?.error ?? {};
  throw Object.assign(new Error(message), { code, status: response.status });
}

const running = new Set();

document.addEventListener('visibilitychange', () => {
  for (const poller of running) {
    if (document.hidden) poller.pause();
    else poller.now();
  }
});

/**
 * Runs `task(signal)` now and then `every` milliseconds after it has ended, between start() and stop(), while the page is
 * seen. When the task throws, the next time is 1, 2, 4 ... 15 seconds later, and `onTrouble(error, seconds)` is called
 * every second until then; with `null` when it works again.
 */
export class Poller {
  #task;
  #every;
  #onTrouble;
  #timer = 0;
  #abort = null;
  #failures = 0;

  constructor(task, every, onTrouble = () => {}) {
    this.#task = task;
    this.#every = every;
    this.#onTrouble = onTrouble;
  }

  start() {
    running.add(this);
    if (!document.hidden) this.now();
  }

  stop() {
    running.delete(this);
    this.#failures = 0;
    this.pause();
  }

  /** Not until now() is called. */
  pause() {
    clearTimeout(this.#timer);
    this.#abort?.abort();
    this.#abort = null;
  }

  /** At once, whatever is under way; unless it is stopped. */
  async now() {
    if (!running.has(this)) return;
    this.pause();
    const abort = this.#abort = new AbortController();
    try {
      await this.#task(abort.signal);
      if (abort.signal.aborted) return;
      if (this.#failures) this.#onTrouble(null, 0);
      this.#failures = 0;
      this.#timer = setTimeout(() => this.now(), this.#every);
    } catch (error) {
      if (abort.signal.aborted) return;
      if (error.status === undefined) console.error(error);       // not the server's: a mistake of this page's
      this.#failures += 1;
      this.#wait(error, Math.min(LONGEST_WAIT, 2 ** (this.#failures - 1)));
    }
  }

  #wait(error, seconds) {
    this.#onTrouble(error, seconds);
    if (!running.has(this)) return;
    this.#timer = setTimeout(() => (seconds > 1 ? this.#wait(error, seconds - 1) : this.now()), 1000);
  }
}

/** What to say while waiting. */
export function trouble(error, seconds) {
  const what = error.status === 0 ? 'server unreachable' : error.message;
  return `${what}, retrying in ${seconds} s`;
}
