/** Frame rate and latency of the last seconds. */

const WINDOW_MS = 4000;

export class Meter {
  #answers = [];

  /** An answer came; times in milliseconds, `change` the share of pixels with another class. */
  record({ latency, service, change }) {
    this.#answers.push({ at: performance.now(), latency, service, change });
  }

  /** Frames per second and the medians of the window; null where there is nothing to tell. */
  figures() {
    const now = performance.now();
    this.#answers = this.#answers.filter(({ at }) => now - at < WINDOW_MS);
    const answers = this.#answers;
    if (answers.length < 2) return null;
    const seconds = (answers.at(-1).at - answers[0].at) / 1000;
    return {
      framesPerSecond: (answers.length - 1) / seconds,
      latency: median(answers.map((answer) => answer.latency)),
      service: median(answers.map((answer) => answer.service)),
      change: median(answers.map((answer) => answer.change).filter((change) => change !== null)),
    };
  }
}

function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted.length ? sorted[sorted.length >> 1] : null;
}
