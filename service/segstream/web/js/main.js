/** Puts the page together. */

import { isReady } from "./api.js";
import { offerForgetting } from "./api_key.js";
import { byId } from "./dom.js";
import { acceptFiles } from "./drop_zone.js";
import { JobsPanel } from "./jobs_panel.js";
import { Legend } from "./legend.js";
import { Models } from "./models.js";
import { Palette } from "./palette.js";
import { Player } from "./player.js";
import { Poller } from "./poller.js";
import { SessionsPanel } from "./sessions_panel.js";
import { CameraSource, ClipSource } from "./sources.js";

const FIGURES_MS = 250;
const DESCRIPTION_MS = 2000;
const POLL_SECONDS = 2;

const palette = new Palette();
const legend = new Legend(palette);
const models = new Models((model) => {
  legend.setLabels(model.labels);
  player.restart();
});
const settings = {
  get model() {
    return models.chosen?.name ?? "";
  },
  get frameHeight() {
    return Number(byId("frame-height").value);
  },
  get opacity() {
    return byId("opacity").valueAsNumber / 100;
  },
  get isCompared() {
    return byId("compare").checked;
  },
  set isCompared(isCompared) {
    byId("compare").checked = isCompared;
  },
};
const player = new Player(palette, settings);
const sessions = new SessionsPanel(() => player.sessionIds);
const jobs = new JobsPanel();

const poller = new Poller(async () => {
  try {
    tellService((await isReady()) ? "ready" : "busy");
    if (!models.isLoaded) {
      await models.load();
      legend.setLabels(models.chosen.labels);
    }
    await Promise.all([sessions.refresh(), jobs.refresh()]);
    byId("submit-clip").hidden = !(jobs.isOffered && player.file);
  } catch {
    tellService("gone");
  }
}, POLL_SECONDS);

function tellService(state) {
  const texts = { ready: "Ready", busy: "Takes no new sessions", gone: "Not reachable" };
  const chip = byId("service-state");
  if (chip.dataset.state === state) return;
  chip.dataset.state = state;
  chip.textContent = texts[state];
}

player.onChange = () => poller.now();
acceptFiles((file) => player.open(new ClipSource(file)));
byId("open-camera").addEventListener("click", () => player.open(new CameraSource()));
byId("play-pause").addEventListener("click", () => player.toggle());
byId("close-source").addEventListener("click", () => player.close());
byId("submit-clip").addEventListener("click", () => jobs.submit(player.file));
byId("compare").addEventListener("change", () => player.compare());
byId("frame-height").addEventListener("change", () => player.restart());
byId("opacity").addEventListener("input", () => {
  byId("opacity-value").textContent = `${byId("opacity").value} %`;
  for (const pane of player.panes) pane.view.opacity = settings.opacity;
});

addEventListener("pagehide", () => player.leave());

setInterval(() => player.tell(), FIGURES_MS);
setInterval(() => {
  for (const pane of player.panes) pane.describe();
  if (player.panes.length) legend.tell(player.panes[0].view.shares);
}, DESCRIPTION_MS);
offerForgetting();
poller.now();
