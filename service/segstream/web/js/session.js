/** One session over the WebSocket, which goes on when its socket breaks. */

import { keyProtocols } from "./api_key.js";
import { packFrame, unpack } from "./messages.js";

const RESUMABLE_ENDS = ["SESSION_END_REASON_SHUTDOWN", "SESSION_END_REASON_IDLE"];
const END_TEXTS = {
  SESSION_END_REASON_CLOSED: "The session was closed by its operator.",
  SESSION_END_REASON_EXPIRED: "The service has forgotten the session.",
  SESSION_END_REASON_REPLACED: "Another client has taken the session over.",
};
const RETRY_SECONDS = [0, 0.25, 0.5, 1, 2, 4, 4];
const END_SECONDS = 5;
const MESSAGE_TOO_BIG = 1009;

export class SessionError extends Error {
  constructor(message, { canRetry = false } = {}) {
    super(message);
    this.canRetry = canRetry;
  }
}

export class Session {
  /** Called with "reconnecting" and "open" when the socket breaks and when it is replaced. */
  onState = () => {};
  id = randomId();
  ready = null;

  #config;
  #url;
  #socket = null;
  #isConnecting = false;
  #isOver = false;
  #reason = new SessionError("The session has ended.");
  #ended = null;
  #unanswered = new Map();
  #memorised = [];
  #sent = [];
  #nextIndex = 0;

  /** `config` as the proto's SessionConfig has it. */
  constructor(config, url = streamUrl()) {
    this.#config = config;
    this.#url = url;
  }

  /** Open the session; its SessionReady. Rejects with a SessionError. */
  async open() {
    await this.#connect();
    return this.ready;
  }

  /** One JPEG frame; resolves with its FrameResult and the label map's bytes, in order. */
  segment(index, image) {
    return new Promise((resolve, reject) => {
      if (this.#isOver) {
        reject(this.#reason);
        return;
      }
      const frame = { index, image, resolve, reject };
      this.#nextIndex = index + 1;
      this.#unanswered.set(index, frame);
      if (this.#socket) this.#send(frame);
      else this.#reconnect();
    });
  }

  /** No more frames; resolves when the service has said its last word. */
  async end() {
    if (this.#isOver) return;
    this.#isOver = true;
    const socket = this.#socket;
    if (!socket) return;
    const isClosed = new Promise((resolve) => socket.addEventListener("close", resolve));
    socket.send(JSON.stringify({ end_of_frames: {} }));
    await Promise.race([isClosed, sleep(END_SECONDS)]);
    socket.close();
  }

  #connect() {
    return new Promise((resolve, reject) => {
      // The address tells a load balancer which replica has the session.
      const url = `${this.#url}?session_id=${encodeURIComponent(this.id)}`;
      const socket = new WebSocket(url, keyProtocols());
      socket.binaryType = "arraybuffer";
      let error = new SessionError("The service cannot be reached.", { canRetry: true });
      socket.onopen = () => socket.send(JSON.stringify({ config: this.#configNow() }));
      socket.onmessage = (event) => {
        const { head, data } = unpack(event.data);
        if (head.ready) {
          this.#begin(socket, head.ready);
          resolve();
        } else if (head.result) this.#answer(head.result, data);
        else if (head.ended) this.#ended = head.ended.reason;
        else if (head.error) error = sessionError(head.error);
      };
      socket.onclose = (event) => {
        if (event.code === MESSAGE_TOO_BIG) error = new SessionError("The frames are too large for the service.");
        reject(error);
        if (this.#socket === socket) this.#closed(error);
      };
    });
  }

  #configNow() {
    const config = { ...this.#config, session_id: this.id };
    if (this.ready === null) return config;
    const [firstMissing] = this.#unanswered.keys();
    return { ...config, resume: { next_frame_index: String(firstMissing ?? this.#nextIndex) } };
  }

  #begin(socket, ready) {
    const isFirst = this.ready === null;
    this.#socket = socket;
    this.#ended = null;
    this.#sent = [];
    this.ready = ready;
    if (this.#isOver) socket.send(JSON.stringify({ end_of_frames: {} }));
    else if (!isFirst) this.#resend(Number(ready.next_frame_index));
  }

  /** What the service's memory lacks, and what it has not answered. */
  #resend(nextFrameIndex) {
    for (const frame of this.#memorised) {
      if (frame.index >= nextFrameIndex) this.#send({ ...frame, isMemoriseOnly: true });
    }
    for (const frame of this.#unanswered.values()) this.#send(frame);
    this.onState("open");
  }

  #send(frame) {
    const fields = { index: String(frame.index), encoding: "IMAGE_ENCODING_JPEG" };
    if (frame.isMemoriseOnly) fields.is_memorise_only = true;
    this.#sent.push(frame);
    this.#socket.send(packFrame(fields, frame.image));
  }

  #answer(result, data) {
    const frame = this.#sent.shift();
    if (frame.isMemoriseOnly) return;
    this.#unanswered.delete(frame.index);
    if (result.label_map || result.skipped?.is_memorised) this.#memorise(frame);
    frame.resolve({ result, data });
  }

  #memorise({ index, image }) {
    this.#memorised.push({ index, image });
    if (this.#memorised.length > this.ready.memory_length) this.#memorised.shift();
  }

  #closed(error) {
    this.#socket = null;
    if (this.#isOver) this.#rejectAll(this.#reason);
    else if (this.#ended && !RESUMABLE_ENDS.includes(this.#ended)) this.#fail(endError(this.#ended));
    else if (!error.canRetry) this.#fail(error);
    else if (this.#unanswered.size > 0) this.#reconnect();
  }

  async #reconnect() {
    if (this.#isConnecting) return;
    this.#isConnecting = true;
    try {
      await this.#connectAgain();
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#isConnecting = false;
    }
  }

  async #connectAgain() {
    let lastError = null;
    this.onState("reconnecting");
    for (const seconds of RETRY_SECONDS) {
      await sleep(seconds);
      if (this.#isOver) return;
      try {
        await this.#connect();
        return;
      } catch (error) {
        lastError = error;
        if (!error.canRetry) break;
      }
    }
    throw lastError;
  }

  #fail(error) {
    this.#isOver = true;
    this.#reason = error; // of frames that come later, too
    this.#rejectAll(error);
  }

  #rejectAll(error) {
    for (const frame of this.#unanswered.values()) frame.reject(error);
    this.#unanswered.clear();
  }
}

function streamUrl() {
  const url = new URL("/v1/stream", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  return url;
}

function sessionError({ message, retry_after_seconds: retryAfterSeconds }) {
  return new SessionError(message, { canRetry: retryAfterSeconds > 0 });
}

function endError(reason) {
  return new SessionError(END_TEXTS[reason] ?? "The service has ended the session.");
}

/** 32 hexadecimal digits; crypto.randomUUID() is not there on pages without TLS. */
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function sleep(seconds) {
  return new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
}
