/** The sessions that the service holds. */

import { getJson, remove } from "./api.js";
import { byId, element, refill } from "./dom.js";
import { showNotice } from "./notices.js";

const TIERS = { none: "none", device: "on the device", spill: "spilled", frames: "as frames" };
const MIB = 2 ** 20;

export class SessionsPanel {
  #ownIds;

  /** `ownIds()`: the ids of this page's sessions. */
  constructor(ownIds) {
    this.#ownIds = ownIds;
  }

  async refresh() {
    const { sessions } = await getJson("/v1/sessions");
    byId("sessions-count").textContent = sessions.length ? String(sessions.length) : "";
    refill(byId("sessions"), sessions.length ? this.#table(sessions) : nothing());
  }

  #table(sessions) {
    const heads = ["Session", "Model", "State", "Memory", "Label maps", "Idle"];
    const names = heads.map((name) => element("th", { scope: "col" }, name));
    const actions = element("th", {}, element("span", { className: "visually-hidden" }, "Actions"));
    return element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...names, actions)),
      element("tbody", {}, ...sessions.map((session) => this.#row(session))),
    );
  }

  #row(session) {
    const id = session.session_id;
    const isOwn = this.#ownIds().includes(id);
    const close = element(
      "button",
      { type: "button", className: "text-button", "aria-label": `Close session ${id}` },
      "Close",
    );
    close.addEventListener("click", () => this.#close(id));
    const badge = isOwn ? element("span", { className: "badge" }, "this page") : null;
    return element(
      "tr",
      {},
      element("td", { title: id }, `${shortened(id)} `, badge),
      element("td", {}, session.model),
      element("td", {}, session.is_streaming ? "streaming" : "parked"),
      element("td", { className: "number" }, memory(session)),
      element("td", { className: "number" }, String(session.num_label_maps)),
      element("td", { className: "number" }, `${session.idle_seconds.toFixed(0)} s`),
      element("td", {}, close),
    );
  }

  async #close(id) {
    try {
      await remove(`/v1/sessions/${encodeURIComponent(id)}`);
      await this.refresh();
    } catch (error) {
      showNotice(error.message);
    }
  }
}

function memory({ tier, device_bytes: device, spill_bytes: spill, frame_bytes: frames }) {
  const bytes = { none: 0, device, spill, frames }[tier];
  return bytes ? `${(bytes / MIB).toFixed(1)} MiB ${TIERS[tier]}` : TIERS[tier];
}

function shortened(id) {
  return id.length > 12 ? `${id.slice(0, 8)}…` : id;
}

function nothing() {
  return element("p", { className: "nothing" }, "Nobody is streaming.");
}
