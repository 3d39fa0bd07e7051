/** The legend: point at a class to bring it out, press it to hide it. */

import { byId, element } from "./dom.js";

export class Legend {
  #palette;
  #rows = [];

  constructor(palette) {
    this.#palette = palette;
    const showAll = byId("show-all");
    showAll.addEventListener("click", () => palette.showAll());
    palette.addEventListener("change", () => {
      this.#rows.forEach(({ button }, trainId) => button.setAttribute("aria-pressed", palette.isShown(trainId)));
      showAll.hidden = !palette.hasHidden;
    });
  }

  /** The classes of another model. */
  setLabels(labels) {
    this.#rows = labels.map((label, trainId) => this.#row(label, trainId));
    byId("legend").replaceChildren(...this.#rows.map(({ item }) => item));
    this.#palette.setLabels(labels);
  }

  /** How much of the picture each class takes, by train id. */
  tell(shares) {
    this.#rows.forEach(({ share }, trainId) => {
      const percent = Math.round(100 * shares[trainId]);
      share.textContent = percent > 0 ? `${percent} %` : "";
    });
  }

  #row({ name, colour }, trainId) {
    const swatch = element("span", { className: "swatch", "aria-hidden": "true" });
    swatch.style.background = `rgb(${colour.join(" ")})`;
    const share = element("span", { className: "share" });
    const button = element(
      "button",
      { type: "button", "aria-pressed": "true", "data-train-id": trainId },
      swatch,
      element("span", { className: "class-name" }, name),
      share,
    );
    button.addEventListener("click", () => this.#palette.toggle(trainId));
    for (const name of ["pointerenter", "focus"]) {
      button.addEventListener(name, () => this.#palette.highlight(trainId));
    }
    for (const name of ["pointerleave", "blur"]) {
      button.addEventListener(name, () => this.#palette.highlight(null));
    }
    return { item: element("li", {}, button), button, share };
  }
}
