/** The clips that were handed to the service: how far they are, and what came of them. */

import { getJson, postFile, remove } from "./api.js";
import { byId, element, refill } from "./dom.js";
import { showNotice } from "./notices.js";

const CLIPS = "/v1/clips";
const OPEN_STATES = ["queued", "running"];
const RESULTS = {
  overlay: "Overlay video",
  label_maps: "Label maps",
  report_page: "Report",
};

export class JobsPanel {
  /** Whether the service takes clips; null: not known yet. */
  isOffered = null;

  async refresh() {
    this.isOffered ??= CLIPS in (await getJson("/openapi.json")).paths;
    const { clips } = this.isOffered ? await getJson(CLIPS) : { clips: [] };
    byId("jobs-count").textContent = clips.length ? String(clips.length) : "";
    refill(byId("jobs"), clips.length ? this.#list(clips) : this.#nothing());
  }

  /** Hand a file in, to be segmented whole. */
  async submit(file) {
    try {
      await postFile(`${CLIPS}?name=${encodeURIComponent(file.name)}`, file);
      await this.refresh();
    } catch (error) {
      showNotice(error.message);
    }
  }

  #list(clips) {
    return element("ul", { className: "jobs" }, ...clips.map((clip) => this.#job(clip)));
  }

  #job(clip) {
    const name = clip.name || clip.id;
    const progress = clip.state === "running" ? progressBar(clip, name) : null;
    const error = clip.error ? element("p", { className: "job-error fine" }, clip.error.detail) : null;
    return element(
      "li",
      { className: "job" },
      element(
        "div",
        { className: "job-head" },
        element("span", { className: "job-name", title: clip.id }, name),
        element("span", { className: "fine" }, stateText(clip)),
      ),
      progress,
      error,
      element("div", { className: "job-links" }, ...resultLinks(clip), this.#removeButton(clip, name)),
    );
  }

  #removeButton(clip, name) {
    const verb = OPEN_STATES.includes(clip.state) ? "Cancel" : "Remove";
    const button = element(
      "button",
      { type: "button", className: "text-button", "aria-label": `${verb} ${name}` },
      verb,
    );
    button.addEventListener("click", async () => {
      try {
        await remove(`${CLIPS}/${encodeURIComponent(clip.id)}`);
        await this.refresh();
      } catch (error) {
        showNotice(error.message);
      }
    });
    return button;
  }

  #nothing() {
    const text = this.isOffered
      ? "No clips yet. Open one above and press “Make an overlay video”."
      : "This service takes no whole clips; it segments what you stream.";
    return element("p", { className: "nothing" }, text);
  }
}

function progressBar(clip, name) {
  const bar = element("progress", { max: 1, "aria-label": `Progress of ${name}` });
  if (clip.progress !== null && clip.progress !== undefined) bar.value = clip.progress;
  return bar;
}

function stateText(clip) {
  const frames = clip.num_frames_done ? `, ${clip.num_frames_done} frames` : "";
  const eta = clip.eta_seconds ? `, ${Math.ceil(clip.eta_seconds)} s left` : "";
  return `${clip.state}${frames}${eta}`;
}

function resultLinks(clip) {
  return Object.entries(RESULTS)
    .filter(([name]) => clip.links[name])
    .map(([name, text]) =>
      element("a", { className: "quiet-link", href: clip.links[name], "aria-label": `${text} of ${clip.name}` }, text),
    );
}
