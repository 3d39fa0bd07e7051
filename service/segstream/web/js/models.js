/** The choice of model. */

import { getJson } from "./api.js";
import { byId, element } from "./dom.js";

export class Models {
  #models = [];
  #select = byId("model");

  /** `onChange(model)` is called when another model is chosen. */
  constructor(onChange) {
    this.#select.addEventListener("change", () => onChange(this.chosen));
  }

  get isLoaded() {
    return this.#models.length > 0;
  }

  /** The model that is chosen, as /v1/models lists it. */
  get chosen() {
    return this.#models.find(({ name }) => name === this.#select.value);
  }

  async load() {
    ({ models: this.#models } = await getJson("/v1/models"));
    const options = this.#models.map(({ name, is_default: selected }) =>
      element("option", { value: name, defaultSelected: selected }, name),
    );
    this.#select.replaceChildren(...options);
    this.#select.disabled = false;
  }
}
