/** Turns what a video shows into a JPEG of the working size, and keeps the picture for the view. */

const JPEG_QUALITY = 0.92;

export class FrameGrabber {
  #canvas = document.createElement("canvas");
  #height;

  /** Frames of at most `height` pixels. */
  constructor(height) {
    this.#height = height;
  }

  /** The picture now, and the JPEG of exactly these pixels; close() the picture when done. */
  async grab(video) {
    const height = Math.min(this.#height, video.videoHeight);
    const width = Math.max(1, Math.round((video.videoWidth * height) / video.videoHeight));
    if (this.#canvas.width !== width) this.#canvas.width = width;
    if (this.#canvas.height !== height) this.#canvas.height = height;
    this.#canvas.getContext("2d").drawImage(video, 0, 0, width, height);
    const [picture, blob] = await Promise.all([
      createImageBitmap(this.#canvas),
      new Promise((resolve) => this.#canvas.toBlob(resolve, "image/jpeg", JPEG_QUALITY)),
    ]);
    return { picture, image: await blob.arrayBuffer() };
  }
}
