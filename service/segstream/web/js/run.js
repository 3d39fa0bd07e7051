/** A run: the frames of one source through one or more sessions, each shown in its pane. */

import { FrameGrabber } from "./frame_grabber.js";
import { readLabelMap } from "./label_map.js";

export class Run {
  /** Called with a session's name and what ended it, and with errors of single frames. */
  onError = () => {};
  onFrameError = () => {};
  /** Called when the source has no more frames and all are answered. */
  onEnd = () => {};

  #source;
  #grabber;
  #lanes = new Map();
  #nextIndex = 0;
  #isGrabbing = false;
  #isOver = false;
  #hasEnded = false;

  constructor(source, frameHeight) {
    this.#source = source;
    this.#grabber = new FrameGrabber(frameHeight);
    source.onFrame = (video) => this.#offer(video);
    source.onEnd = () => {
      this.#hasEnded = true;
      this.#checkEnd();
    };
  }

  get sessionIds() {
    return Array.from(this.#lanes.values(), ({ session }) => session.id);
  }

  /** Let the frames go through this session too, from the next one on. */
  async add(name, session, pane) {
    await session.open();
    if (this.#isOver) await session.end();
    else this.#lanes.set(name, { session, pane, numInFlight: 0 });
  }

  async remove(name) {
    const lane = this.#lanes.get(name);
    this.#lanes.delete(name);
    await lane?.session.end();
  }

  /** Tell the service that nobody comes back; the page is going. */
  leave() {
    for (const { session } of this.#lanes.values()) session.end();
  }

  async stop() {
    this.#isOver = true;
    this.#source.onFrame = () => false;
    this.#source.onEnd = () => {};
    await Promise.all(Array.from(this.#lanes.keys(), (name) => this.remove(name)));
  }

  /** Take a frame if every session has room for it; a frame is not waited for. */
  #offer(video) {
    const lanes = [...this.#lanes.values()];
    const hasRoom = lanes.every(({ numInFlight }) => numInFlight < this.#source.maxInFlight);
    if (this.#isOver || this.#isGrabbing || !lanes.length || !hasRoom) return false;
    this.#segment(video, lanes);
    return true;
  }

  async #segment(video, lanes) {
    this.#isGrabbing = true;
    const frame = { index: this.#nextIndex++, capturedAt: performance.now() };
    for (const lane of lanes) lane.numInFlight++;
    try {
      Object.assign(frame, await this.#grabber.grab(video));
    } finally {
      this.#isGrabbing = false;
    }
    await Promise.all(lanes.map((lane) => this.#answer(lane, frame)));
    frame.picture.close();
    this.#checkEnd();
  }

  async #answer(lane, frame) {
    try {
      const { result, data } = await lane.session.segment(frame.index, frame.image);
      const latency = performance.now() - frame.capturedAt;
      if (result.error) this.onFrameError(result.error);
      else if (result.label_map) {
        const { memory_length: memoryLength } = lane.session.ready;
        lane.pane.show(frame, await readLabelMap(data), result, latency, memoryLength);
      }
    } catch (error) {
      const name = this.#nameOf(lane);
      if (name && !this.#isOver) this.onError(name, error);
    } finally {
      lane.numInFlight--;
    }
  }

  #nameOf(lane) {
    return [...this.#lanes.keys()].find((name) => this.#lanes.get(name) === lane);
  }

  #checkEnd() {
    const isBusy = [...this.#lanes.values()].some(({ numInFlight }) => numInFlight > 0);
    if (this.#hasEnded && !isBusy && !this.#isOver) this.onEnd();
  }
}
