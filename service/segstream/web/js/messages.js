/** Messages of /v1/stream: a JSON head and, where there are bytes, the bytes behind it. */

const SIZE_BYTES = 4;
const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** A binary message: the size of the head (uint32, big endian), the head, the image. */
export function packFrame(fields, image) {
  const head = encoder.encode(JSON.stringify({ frame: fields }));
  const message = new Uint8Array(SIZE_BYTES + head.length + image.byteLength);
  new DataView(message.buffer).setUint32(0, head.length);
  message.set(head, SIZE_BYTES);
  message.set(new Uint8Array(image), SIZE_BYTES + head.length);
  return message;
}

/** The head of a message of the service, and the bytes behind it. */
export function unpack(message) {
  if (typeof message === "string") return { head: JSON.parse(message), data: new Uint8Array() };
  const size = new DataView(message).getUint32(0);
  const head = JSON.parse(decoder.decode(new Uint8Array(message, SIZE_BYTES, size)));
  return { head, data: new Uint8Array(message, SIZE_BYTES + size) };
}
