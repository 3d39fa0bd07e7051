/** Asks again and again while somebody looks. */

export class Poller {
  #ask;
  #seconds;
  #timer = 0;
  #isAsking = false;

  /** `ask` is awaited every `seconds` while the page is visible. */
  constructor(ask, seconds) {
    this.#ask = ask;
    this.#seconds = seconds;
    document.addEventListener("visibilitychange", () => this.now());
  }

  /** Ask at once, and then regularly. */
  async now() {
    clearTimeout(this.#timer);
    if (document.hidden || this.#isAsking) return;
    this.#isAsking = true;
    try {
      await this.#ask();
    } finally {
      this.#isAsking = false;
      this.#timer = setTimeout(() => this.now(), 1000 * this.#seconds);
    }
  }
}
