// Words that a model does not know: a model of few words takes them for others, without a fault.

import { by } from "./elements.js";

const SHOWN = 6; // of them, at most

/** Says under a text field which of its words the model does not know, as they are typed. */
export function noteWords(field, place, words) {
  if (!words.length) return;
  const known = new Set(words);
  field.addEventListener("input", () => {
    const said = field.value.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
    const strange = [...new Set(said)].filter((word) => !known.has(word));
    const more = strange.length > SHOWN ? " …" : "";
    by(place).textContent = strange.length
      ? `Not among the ${known.size} words of this model: ${strange.slice(0, SHOWN).join(", ")}${more}`
      : "";
    by(place).title = strange.length ? `It knows ${words.join(", ")}.` : "";
  });
}
