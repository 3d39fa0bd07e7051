/** A pane: the picture of one session and its figures. */

import { element } from "./dom.js";
import { Meter } from "./meter.js";
import { OverlayView } from "./overlay_view.js";

const FIGURES = {
  rate: ["Frame rate", "Answers per second, over the last 4 seconds"],
  latency: ["Latency", "From a frame's capture to its answer, median"],
  service: ["Service", "From a frame's arrival at the service to its answer, median"],
  change: ["Changed", "Pixels whose class differs from the frame before, median"],
  memory: ["Memory", "Earlier frames that the last answer rests on, of those that may be"],
};

export class Pane {
  element;
  view;
  #meter = new Meter();
  #values = {};
  #memory = "–";
  #lastIndex = -1;
  #canvas;
  #palette;

  constructor(name, title, palette) {
    this.#palette = palette;
    this.#canvas = element("canvas", { role: "img", "aria-label": "No frame yet" });
    const pointed = element("span", { className: "pointed-class", hidden: true });
    const figures = Object.entries(FIGURES).map(([key, [label, title]]) => {
      this.#values[key] = element("dd", { "data-figure": key }, "–");
      return element("div", { title }, element("dt", {}, label), this.#values[key]);
    });
    this.element = element(
      "figure",
      { className: "pane", "data-pane": name },
      element("figcaption", { className: "pane-title" }, title),
      element("div", { className: "picture" }, this.#canvas, pointed),
      element("dl", { className: "figures" }, ...figures),
    );
    this.view = new OverlayView(this.#canvas, palette);
    this.#canvas.addEventListener("pointermove", (event) => {
      const id = this.view.idAt(event.clientX, event.clientY);
      pointed.hidden = id === null;
      if (id !== null) pointed.textContent = palette.name(id);
    });
    this.#canvas.addEventListener("pointerleave", () => (pointed.hidden = true));
  }

  /** An answer that came `latency` milliseconds after the frame's capture, of a session's memory. */
  show(frame, labelMap, result, latency, memoryLength) {
    if (frame.index < this.#lastIndex) return;
    this.#lastIndex = frame.index;
    this.element.dataset.frame = frame.index;
    this.#memory = memoryLength ? `${result.num_memory_frames} of ${memoryLength}` : "off";
    const change = this.view.show(frame.picture, labelMap);
    this.#meter.record({ latency, service: 1000 * (result.timings?.total_seconds ?? 0), change });
  }

  /** Bring the figures up to date. */
  tell() {
    const figures = this.#meter.figures();
    if (!figures) return;
    const texts = {
      rate: `${figures.framesPerSecond.toFixed(1)} fps`,
      latency: `${figures.latency.toFixed(0)} ms`,
      service: `${figures.service.toFixed(0)} ms`,
      change: figures.change === null ? "–" : `${(100 * figures.change).toFixed(1)} %`,
      memory: this.#memory,
    };
    for (const [key, text] of Object.entries(texts)) this.#values[key].textContent = text;
  }

  /** Tell in words what the picture shows. */
  describe() {
    const largest = Array.from(this.view.shares, (share, trainId) => ({ share, trainId }))
      .filter(({ share }) => share >= 0.01)
      .sort((a, b) => b.share - a.share)
      .slice(0, 5)
      .map(({ share, trainId }) => `${this.#palette.name(trainId)} ${Math.round(100 * share)} %`);
    if (largest.length) this.#canvas.setAttribute("aria-label", `Segmented frame: ${largest.join(", ")}`);
  }
}
