/** The player: opens sources, runs them, and keeps panes and buttons in step. */

import { byId } from "./dom.js";
import { announce, clearNotices, showNotice } from "./notices.js";
import { Pane } from "./pane.js";
import { Run } from "./run.js";
import { Session } from "./session.js";

const LANES = {
  memory: { title: "With memory", config: {} },
  memoryless: { title: "Without memory", config: { is_memoryless: true } },
};

export class Player {
  /** Called when sessions came or went. */
  onChange = () => {};

  #palette;
  #settings;
  #source = null;
  #run = null;
  #panes = new Map();
  #hasEnded = false;
  #work = Promise.resolve();

  /** `settings`: what is chosen on the page — model, frameHeight, opacity, isCompared. */
  constructor(palette, settings) {
    this.#palette = palette;
    this.#settings = settings;
  }

  get file() {
    return this.#source?.file ?? null;
  }

  get sessionIds() {
    return this.#run?.sessionIds ?? [];
  }

  get panes() {
    return [...this.#panes.values()];
  }

  /** Open a source in place of the one that is open. */
  open(source) {
    return this.#inTurn(async () => {
      clearNotices();
      await this.#close();
      try {
        await source.open();
      } catch (error) {
        source.close();
        throw error;
      }
      this.#source = source;
      await this.#start();
    });
  }

  /** Begin anew with the same source, as the settings are now. */
  restart() {
    return this.#inTurn(async () => {
      if (!this.#source) return;
      await this.#stop();
      await this.#start();
    });
  }

  /** Show or end the session without memory. */
  compare() {
    return this.#inTurn(async () => {
      if (!this.#run) return;
      if (this.#settings.isCompared) await this.#add("memoryless");
      else await this.#remove("memoryless");
    });
  }

  /** The page is going. */
  leave() {
    this.#run?.leave();
  }

  close() {
    return this.#inTurn(() => this.#close());
  }

  /** Pause, go on, or play the clip once more. */
  async toggle() {
    if (this.#hasEnded) {
      this.#source.video.currentTime = 0;
      await this.restart();
    } else if (this.#source.isPaused) {
      await this.#source.play();
      announce("Playing");
    } else {
      this.#source.pause();
      announce("Paused");
    }
    this.#tellState();
  }

  /** Bring what changes by itself up to date. */
  tell() {
    if (!this.#source) return;
    byId("source-facts").textContent = this.#source.facts;
    for (const pane of this.panes) pane.tell();
  }

  /** One thing after another: what is pressed while a session opens waits for it. */
  #inTurn(work) {
    this.#work = this.#work.then(work).catch(async (error) => {
      showNotice(error.message);
      this.#settings.isCompared = this.#panes.has("memoryless");
      if (!this.#run?.sessionIds.length) await this.#close();
    });
    return this.#work;
  }

  async #start() {
    const run = new Run(this.#source, this.#settings.frameHeight);
    this.#run = run;
    this.#hasEnded = false;
    run.onError = (name, error) => this.#fail(run, name, error);
    run.onFrameError = (error) => showNotice(error.message);
    run.onEnd = () => this.#end(run);
    await this.#add("memory");
    byId("drop-zone").hidden = true;
    byId("running").hidden = false;
    byId("stage").dataset.state = "running";
    byId("source-name").textContent = this.#source.name;
    await this.#source.play();
    announce(`Streaming ${this.#source.name}`);
    this.#tellState();
    if (this.#settings.isCompared) await this.#add("memoryless");
  }

  /** A session has ended against our will. */
  #fail(run, name, error) {
    if (this.#run !== run) return;
    showNotice(error.message);
    if (name === "memory") this.close();
    else this.#inTurn(() => this.#remove(name));
  }

  async #add(name) {
    const { title, config } = LANES[name];
    const pane = new Pane(name, title, this.#palette);
    const session = new Session({
      model: this.#settings.model,
      has_scene_cut_guard: this.#source.hasCuts,
      ...config,
    });
    session.onState = (state) =>
      announce(state === "open" ? "The connection is back" : "The connection is lost, trying again");
    await this.#run.add(name, session, pane);
    pane.view.opacity = this.#settings.opacity;
    this.#panes.set(name, pane);
    byId("panes").append(pane.element);
    this.onChange();
  }

  async #remove(name) {
    this.#panes.get(name)?.element.remove();
    this.#panes.delete(name);
    await this.#run?.remove(name);
    if (name === "memoryless") this.#settings.isCompared = false;
    this.onChange();
  }

  async #end(run) {
    if (this.#run !== run) return;
    this.#hasEnded = true;
    this.#tellState();
    announce("The clip has ended");
    await run.stop();
    this.onChange();
  }

  async #stop() {
    const run = this.#run;
    this.#run = null;
    this.#source.pause();
    byId("panes").replaceChildren();
    this.#panes.clear();
    await run?.stop();
    this.onChange();
  }

  async #close() {
    if (this.#source) {
      await this.#stop();
      this.#source.close();
      this.#source = null;
    }
    byId("running").hidden = true;
    byId("drop-zone").hidden = false;
    byId("stage").dataset.state = "empty";
  }

  #tellState() {
    const isPaused = this.#source?.isPaused;
    byId("play-pause").textContent = this.#hasEnded ? "Play again" : isPaused ? "Go on" : "Pause";
    byId("stage").dataset.state = this.#hasEnded ? "ended" : isPaused ? "paused" : "running";
  }
}
