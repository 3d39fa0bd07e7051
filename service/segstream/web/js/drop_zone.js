/** Files that are dropped or chosen. */

import { byId } from "./dom.js";

/** Hand a clip that is dropped on the stage, or chosen, to `onFile`. */
export function acceptFiles(onFile) {
  const stage = byId("stage");
  const input = byId("clip-file");
  byId("choose-clip").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    if (input.files.length) onFile(input.files[0]);
    input.value = "";
  });
  let depth = 0;
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    stage.classList.toggle("is-dragged-over", depth > 0);
  };
  stage.addEventListener("dragenter", () => mark(+1));
  stage.addEventListener("dragleave", () => mark(-1));
  // A file that misses the stage must not replace the page.
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    mark(-depth);
    const [file] = event.dataTransfer.files;
    if (file) onFile(file);
  });
}
