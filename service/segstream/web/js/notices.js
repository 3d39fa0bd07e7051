/** What went wrong, said where it is seen and read aloud. */

import { byId, element } from "./dom.js";

const MAX_NOTICES = 3;

/** Show an error until it is dismissed. */
export function showNotice(text) {
  const notices = byId("notices");
  const same = [...notices.children].find((notice) => notice.firstChild.textContent === text);
  same?.remove();
  const dismiss = element("button", { type: "button", className: "text-button" }, "Dismiss");
  const notice = element("div", { className: "notice" }, element("p", {}, text), dismiss);
  dismiss.addEventListener("click", () => notice.remove());
  notices.append(notice);
  while (notices.children.length > MAX_NOTICES) notices.firstChild.remove();
}

export function clearNotices() {
  byId("notices").replaceChildren();
}

/** Read a piece of news aloud without showing it. */
export function announce(text) {
  byId("announcements").textContent = text;
}
