/** Making elements without HTML in strings. */

/** An element with properties (`aria-*`, `data-*` and `role` as attributes) and children. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (/^(aria-|data-)|^(role|scope)$/.test(key)) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** The element of this id, which the page has. */
export function byId(id) {
  return document.getElementById(id);
}

/** Replace what is in `parent`; what had the focus there has it again, known by its label. */
export function refill(parent, child) {
  const label = parent.contains(document.activeElement) ? document.activeElement.ariaLabel : null;
  parent.replaceChildren(child);
  if (label) parent.querySelector(`[aria-label="${CSS.escape(label)}"]`)?.focus();
}
