/** The key that the service may ask for. It is kept for as long as the tab is open. */

import { byId } from "./dom.js";

const STORED = "segstream.api_key";
const PROTOCOL = "segstream.v1";

let asking = null;

/** The key that was given; null if none was. */
export function storedKey() {
  return sessionStorage.getItem(STORED);
}

/** Headers that show a key, if there is one. */
export function keyHeaders(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Subprotocols of a WebSocket, which can show the key in no other way. */
export function keyProtocols() {
  const key = storedKey();
  return key ? [PROTOCOL, `bearer.${key}`] : [];
}

/** Ask for a key in place of one that was refused; resolves when there is another. */
export async function askForKey(refusedKey, refusal) {
  if (storedKey() !== refusedKey) return;
  asking ??= ask(refusal).finally(() => {
    asking = null;
  });
  await asking;
}

/** Forget the key when the button is pressed; the page begins anew. */
export function offerForgetting() {
  const button = byId("forget-key");
  button.hidden = storedKey() === null;
  button.addEventListener("click", () => {
    sessionStorage.removeItem(STORED);
    location.reload();
  });
}

function ask(refusal) {
  const dialog = byId("key-dialog");
  const input = byId("key");
  const wasGiven = storedKey() !== null;
  sessionStorage.removeItem(STORED);
  byId("key-refusal").textContent = wasGiven ? refusal : "";
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const give = (event) => {
      event.preventDefault();
      const key = input.value.trim();
      // What no header can carry is no key.
      if (!/^[\w-]+$/.test(key)) {
        byId("key-refusal").textContent = "That is no key of segstream.";
        return;
      }
      byId("key-form").removeEventListener("submit", give);
      sessionStorage.setItem(STORED, key);
      byId("forget-key").hidden = false;
      input.value = "";
      dialog.close();
      resolve();
    };
    byId("key-form").addEventListener("submit", give);
    // There is nothing to see behind it.
    dialog.oncancel = (event) => event.preventDefault();
  });
}
