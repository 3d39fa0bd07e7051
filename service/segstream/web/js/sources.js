/** Where frames come from: a clip that the browser decodes, or the camera. */

const MIN_RATE = 0.0625;
const SLOW_DOWN = 0.85;
const SPEED_UP = 1.02;

/**
 * Plays a video element and offers each frame that it shows to `onFrame(video)`, which tells
 * whether it took it.
 */
class VideoSource {
  video = document.createElement("video");
  isPaused = false;
  onFrame = () => false;
  onEnd = () => {};
  #isAwaiting = false;

  constructor() {
    this.video.muted = true;
    this.video.playsInline = true;
    this.video.addEventListener("ended", () => this.onEnd());
  }

  async play() {
    this.isPaused = false;
    await this.video.play();
    this.#await();
  }

  pause() {
    this.isPaused = true;
    this.video.pause();
  }

  #await() {
    if (this.#isAwaiting) return;
    this.#isAwaiting = true;
    const next = () => {
      this.#isAwaiting = false;
      if (this.isPaused || this.video.ended) return;
      this.offered(this.onFrame(this.video));
      this.#await();
    };
    if (this.video.requestVideoFrameCallback) this.video.requestVideoFrameCallback(next);
    else requestAnimationFrame(next);
  }

  offered() {}
}

/** A clip is played no faster than its frames are taken, so that few are passed over. */
export class ClipSource extends VideoSource {
  maxInFlight = 2;
  hasCuts = true;

  constructor(file) {
    super();
    this.file = file;
    this.name = file.name;
  }

  /** Rejects with an Error that says why, for a file that the browser cannot play. */
  async open() {
    this.video.src = URL.createObjectURL(this.file);
    await new Promise((resolve, reject) => {
      this.video.onloadeddata = resolve;
      this.video.onerror = () => reject(new Error(`${this.name} is no video that this browser can play.`));
    });
    if (!this.video.videoWidth) throw new Error(`${this.name} has no picture.`);
  }

  get facts() {
    const { videoWidth, videoHeight, playbackRate } = this.video;
    const speed = playbackRate < 0.98 ? `, played at ${playbackRate.toFixed(2)}× to keep up` : "";
    return `${videoWidth}×${videoHeight}${speed}`;
  }

  offered(isTaken) {
    const rate = this.video.playbackRate * (isTaken ? SPEED_UP : SLOW_DOWN);
    this.video.playbackRate = Math.min(1, Math.max(MIN_RATE, rate));
  }

  close() {
    this.pause();
    URL.revokeObjectURL(this.video.src);
    this.video.removeAttribute("src");
  }
}

/** The camera shows what is now; frames that nobody takes are gone. */
export class CameraSource extends VideoSource {
  maxInFlight = 1;
  hasCuts = false;
  name = "Camera";
  file = null;

  /** Rejects with an Error that says what to do. */
  async open() {
    if (!navigator.mediaDevices) {
      throw new Error("The camera needs a secure page: open this one over https, or on localhost.");
    }
    try {
      this.video.srcObject = await navigator.mediaDevices.getUserMedia({
        video: { width: { ideal: 1280 }, height: { ideal: 720 }, facingMode: "environment" },
      });
    } catch (error) {
      throw new Error(cameraFault(error));
    }
    const [track] = this.video.srcObject.getVideoTracks();
    this.name = track.label || this.name;
    track.addEventListener("ended", () => this.onEnd());
    await new Promise((resolve) => (this.video.onloadeddata = resolve));
  }

  get facts() {
    return `${this.video.videoWidth}×${this.video.videoHeight}`;
  }

  close() {
    this.pause();
    for (const track of this.video.srcObject?.getTracks() ?? []) track.stop();
    this.video.srcObject = null;
  }
}

function cameraFault(error) {
  const texts = {
    NotAllowedError: "The camera is not allowed: permit it in the browser's address bar and try again.",
    NotFoundError: "There is no camera on this device.",
    NotReadableError: "The camera is in use by another program.",
  };
  return texts[error.name] ?? `The camera cannot be opened: ${error.message}`;
}
