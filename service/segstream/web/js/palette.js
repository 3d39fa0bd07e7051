/** Which classes are shown, which one stands out, and so the colour of every id. */

const DIMMED = 45;

export class Palette extends EventTarget {
  labels = [];
  #hidden = new Set();
  #highlighted = null;

  /** `labels` in train-id order, as /v1/models lists them. */
  setLabels(labels) {
    this.labels = labels;
    this.#hidden.clear();
    this.#highlighted = null;
    this.#changed();
  }

  get hasHidden() {
    return this.#hidden.size > 0;
  }

  isShown(trainId) {
    return !this.#hidden.has(trainId);
  }

  toggle(trainId) {
    if (!this.#hidden.delete(trainId)) this.#hidden.add(trainId);
    this.#changed();
  }

  showAll() {
    this.#hidden.clear();
    this.#changed();
  }

  /** Let one class stand out; null: none. */
  highlight(trainId) {
    if (this.#highlighted === trainId) return;
    this.#highlighted = trainId;
    this.#changed();
  }

  name(trainId) {
    return this.labels[trainId]?.name ?? "no class";
  }

  /** A pixel of RGBA for each id, as the canvas keeps them in memory. */
  pixels() {
    const bytes = new Uint8Array(4 * 256);
    this.labels.forEach(({ colour }, trainId) => bytes.set([...colour, this.#alpha(trainId)], 4 * trainId));
    return new Uint32Array(bytes.buffer);
  }

  #alpha(trainId) {
    if (!this.isShown(trainId)) return 0;
    return this.#highlighted === null || this.#highlighted === trainId ? 255 : DIMMED;
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
