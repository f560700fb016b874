// Elements of the page. Text goes in as text and is never read as HTML, whoever wrote it.

const SVG = "http://www.w3.org/2000/svg";

/** The element with an id. */
export const by = (id) => document.getElementById(id);

/**
 * A new element.
 * @param {string} tag
 * @param {object} own Attributes; `class`, `text`, and functions as listeners (`onclick`).
 * @param {...(Node|string)} children
 */
export function make(tag, own = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(own)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (name === "text") made.textContent = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Puts a text into a field, as if it was typed. */
export function fill(field, text) {
  field.value = text;
  field.dispatchEvent(new Event("input", { bubbles: true }));
}

/** A drawing of the sprite in index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows only a drawing. */
export function iconButton(name, label, onclick) {
  return make(
    "button",
    { type: "button", class: "icon", title: label, "aria-label": label, onclick },
    icon(name),
  );
}

/** Buttons with texts to start from. */
export function examples(place, texts, take) {
  place.replaceChildren(
    ...texts.map((text) =>
      make("button", { type: "button", class: "chip", text, onclick: () => take(text) }),
    ),
  );
}

/** Shows what went wrong under a form, or nothing. `again` is offered as a button. */
export function showFault(place, message = "", again = null) {
  place.replaceChildren();
  if (!message) return;
  place.append(icon("alert"), make("span", { text: message }));
  if (again)
    place.append(
      make("button", { type: "button", class: "link", text: "Try again", onclick: again }),
    );
}

/** Says something to those who do not see the page. */
export function sayAloud(text) {
  by("told-aloud").textContent = text;
}

/** "1 picture", "2 pictures". */
export const count = (n, thing) => `${n} ${thing}${n === 1 ? "" : "s"}`;
