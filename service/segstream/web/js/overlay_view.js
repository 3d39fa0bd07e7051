/** Draws a frame and its label map, in the colours of the palette, on a canvas. */

export class OverlayView {
  #canvas;
  #palette;
  #photo = document.createElement("canvas");
  #overlay = document.createElement("canvas");
  #labelMap = null;
  #opacity = 0.55;

  constructor(canvas, palette) {
    this.#canvas = canvas;
    this.#palette = palette;
    palette.addEventListener("change", () => this.#draw());
  }

  set opacity(opacity) {
    this.#opacity = opacity;
    this.#draw();
  }

  /** The share of each class in the picture, by train id. */
  get shares() {
    const counts = new Uint32Array(256);
    if (!this.#labelMap) return counts;
    for (const id of this.#labelMap.ids) counts[id]++;
    return Array.from(counts, (count) => count / this.#labelMap.ids.length);
  }

  /** Show a picture of the label map's size with the label map; what of it has changed, 0 to 1. */
  show(picture, labelMap) {
    for (const canvas of [this.#canvas, this.#photo, this.#overlay]) fit(canvas, labelMap);
    this.#photo.getContext("2d").drawImage(picture, 0, 0, labelMap.width, labelMap.height);
    const change = shareChanged(this.#labelMap, labelMap);
    this.#labelMap = labelMap;
    this.#draw();
    return change;
  }

  /** The train id under a point of the page; null outside of the picture. */
  idAt(clientX, clientY) {
    if (!this.#labelMap) return null;
    const { width, height, ids } = this.#labelMap;
    const box = this.#canvas.getBoundingClientRect();
    const scale = Math.min(box.width / width, box.height / height);
    const x = Math.floor((clientX - box.left - (box.width - width * scale) / 2) / scale);
    const y = Math.floor((clientY - box.top - (box.height - height * scale) / 2) / scale);
    return x >= 0 && x < width && y >= 0 && y < height ? ids[y * width + x] : null;
  }

  #draw() {
    if (!this.#labelMap) return;
    const { width, height } = this.#labelMap;
    this.#paint();
    const context = this.#canvas.getContext("2d");
    context.globalAlpha = 1;
    context.drawImage(this.#photo, 0, 0, width, height);
    context.globalAlpha = this.#opacity;
    context.drawImage(this.#overlay, 0, 0, width, height);
  }

  #paint() {
    const { ids, width, height } = this.#labelMap;
    const image = new ImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const colours = this.#palette.pixels();
    for (let at = 0; at < ids.length; at++) pixels[at] = colours[ids[at]];
    this.#overlay.getContext("2d").putImageData(image, 0, 0);
  }
}

function fit(canvas, { width, height }) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
}

function shareChanged(before, now) {
  if (before?.ids.length !== now.ids.length) return null;
  let count = 0;
  for (let at = 0; at < now.ids.length; at++) count += before.ids[at] !== now.ids[at];
  return count / now.ids.length;
}
