/**
 * Reads a label map's PNG: the palette indices are the ids.
 *
 * A canvas would give the palette's colours, and not exactly so where a browser guards against
 * fingerprinting or manages colours.
 */

const SIGNATURE_BYTES = 8;
const INDEXED = 3;
const latin = new TextDecoder("latin1");

/** Ids, one byte per pixel, row by row, and the size in pixels. Rejects for other kinds of PNG. */
export async function readLabelMap(png) {
  const { header, packed } = chunksOf(png);
  const width = header.getUint32(0);
  const height = header.getUint32(4);
  const [depth, colourType, , , interlace] = new Uint8Array(header.buffer, header.byteOffset + 8, 5);
  if (depth !== 8 || colourType !== INDEXED || interlace !== 0) {
    throw new Error(`a label map is an 8-bit palette PNG, not depth ${depth}, type ${colourType}`);
  }
  const stream = new Blob(packed).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(stream).arrayBuffer());
  return { ids: unfiltered(rows, width, height), width, height };
}

function chunksOf(png) {
  const view = new DataView(png.buffer, png.byteOffset, png.byteLength);
  const packed = [];
  let header = null;
  for (let at = SIGNATURE_BYTES; at < png.byteLength; ) {
    const size = view.getUint32(at);
    const kind = latin.decode(png.subarray(at + 4, at + 8));
    if (kind === "IHDR") header = new DataView(png.buffer, png.byteOffset + at + 8, size);
    if (kind === "IDAT") packed.push(png.subarray(at + 8, at + 8 + size));
    at += 12 + size;
  }
  return { header, packed };
}

/** Each row begins with the filter that its bytes went through. */
function unfiltered(rows, width, height) {
  const ids = new Uint8Array(width * height);
  let above = new Uint8Array(width);
  for (let y = 0; y < height; y++) {
    const start = y * (width + 1);
    const row = ids.subarray(y * width, (y + 1) * width);
    row.set(rows.subarray(start + 1, start + 1 + width));
    addPrediction(rows[start], row, above);
    above = row;
  }
  return ids;
}

const PREDICTIONS = [
  null,
  (left) => left,
  (_, up) => up,
  (left, up) => (left + up) >> 1,
  paeth,
];

function addPrediction(filter, row, above) {
  const predict = PREDICTIONS[filter];
  if (!predict) return;
  let left = 0;
  let corner = 0;
  for (let x = 0; x < row.length; x++) {
    left = row[x] = row[x] + predict(left, above[x], corner);
    left &= 255;
    corner = above[x];
  }
}

function paeth(left, up, corner) {
  const toLeft = Math.abs(up - corner);
  const toUp = Math.abs(left - corner);
  const toCorner = Math.abs(left + up - 2 * corner);
  if (toLeft <= toUp && toLeft <= toCorner) return left;
  return toUp <= toCorner ? up : corner;
}
