// Ask: a conversation about pictures, which the page remembers and sends whole with each question.

import { events, Fault, request } from "./api.js";
import { sendOnEnter } from "./drawing.js";
import { by, examples, fill, icon, iconButton, make, showFault } from "./elements.js";
import { ofFile, takeFiles } from "./files.js";
import { copy, dataUrl, drop, ofDataUrl, opener, shown } from "./pictures.js";
import { noteWords } from "./words.js";

export class Ask {
  #app;
  #turns = []; // {role, parts: [{text} or {picture}], element}
  #shown = []; // pictures that go with the next question
  #running = null;

  constructor(app) {
    this.#app = app;
    const [form, text] = [by("say"), by("question")];
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running) this.#running.abort();
      else this.#submit();
    });
    sendOnEnter(text, { requestSubmit: () => this.#running || form.requestSubmit() });
    text.addEventListener("input", () => grow(text));
    takeFiles(by("ask"), by("ask-file"), (files) => this.takeFiles(files));
    takeFiles(make("p"), by("say-file"), (files) => this.takeFiles(files));
    by("ask-sample").addEventListener("click", () => this.#sample());
    by("talk-new").addEventListener("click", () => this.#clear());
  }

  /** What the model is, once it is known. */
  start(model) {
    by("ask-sample").closest("p").hidden = !model.verbs.includes("generate");
    noteWords(by("question"), "question-words", model.words);
    examples(by("questions"), model.questions, (question) => this.#example(question));
  }

  /** Puts a picture beside the next question. */
  add(picture) {
    this.#shown.push(copy(picture));
    this.#showShown();
    by("question").focus();
  }

  /** Files that were chosen, dropped or pasted. */
  async takeFiles(files) {
    showFault(by("say-fault"));
    for (const file of files) {
      try {
        const picture = await ofFile(file, this.#app.model);
        this.add(picture);
        drop(picture);
      } catch (error) {
        showFault(by("say-fault"), error.message);
      }
    }
  }

  async #sample() {
    showFault(by("say-fault"));
    try {
      const picture = await this.#app.sample(by("ask-sample"));
      this.add(picture);
      drop(picture);
    } catch (error) {
      showFault(by("say-fault"), error.message);
    }
  }

  #example(question) {
    fill(by("question"), question);
    by("question").focus();
    if (this.#running) return;
    if (this.#shown.length || this.#turns.length) this.#submit();
    else showFault(by("say-fault"), "Now add the picture that this is about.");
  }

  #showShown() {
    by("shown").replaceChildren(
      ...this.#shown.map((picture, i) =>
        make(
          "li",
          {},
          shown(picture, nameOf(picture)),
          iconButton("close", `Remove ${nameOf(picture)}`, () => {
            this.#shown.splice(i, 1).forEach(drop);
            this.#showShown();
            by("question").focus();
          }),
        ),
      ),
    );
    const some = this.#shown.length > 0;
    by("ask-drop").hidden = some;
    by("ask-next").hidden = !some;
    by("ask-empty").classList.toggle("asking", some);
  }

  #submit() {
    const text = by("question").value.trim();
    showFault(by("say-fault"));
    if (!text) {
      by("question").focus();
      return showFault(by("say-fault"), "Ask something first.");
    }
    this.#add("user", [...this.#shown.map((picture) => ({ picture })), { text }]);
    this.#shown = [];
    this.#showShown();
    fill(by("question"), "");
    this.#answer();
  }

  /** Asks for the answer to all that was said, and shows it as it comes. */
  async #answer() {
    const turn = this.#add("assistant", []);
    turn.element.classList.add("waiting");
    this.#setRunning(new AbortController());
    const { signal } = this.#running;
    let note = "";
    try {
      note = await this.#read(turn, signal);
    } catch (error) {
      if (error.name !== "AbortError") return this.#failed(turn, error);
      note = "Stopped";
    } finally {
      turn.element.classList.remove("waiting");
      this.#setRunning(null);
    }
    if (!turn.parts.length) note = note || "No answer";
    const stay = atEnd();
    if (note) turn.element.append(make("p", { class: "quiet note", text: note }));
    if (!turn.parts.length) this.#turns = this.#turns.filter((other) => other !== turn);
    if (stay) toEnd();
  }

  /** Reads a streamed answer into a turn; returns what is to be noted of its end. */
  async #read(turn, signal) {
    const before = this.#turns.slice(0, this.#turns.indexOf(turn));
    const messages = await Promise.all(before.map(message));
    const response = await request("v1/chat/completions", {
      body: { messages, stream: true },
      signal,
    });
    let finish = null;
    for await (const event of events(response)) {
      if (signal.aborted) break;
      const [choice] = event.choices;
      if (!choice) continue;
      for (const part of partsOf(choice.delta.content)) await this.#append(turn, part);
      finish = choice.finish_reason ?? finish;
    }
    if (signal.aborted) return "Stopped";
    if (!finish) throw new Fault("The server stopped before the answer was done.", { again: true });
    return finish === "length"
      ? "Cut here: the answer reached the longest that was asked for."
      : "";
  }

  async #append(turn, part) {
    const stay = atEnd();
    turn.element.classList.remove("waiting");
    if (part.type === "image_url") {
      const picture = await ofDataUrl(part.image_url.url, { name: "picture-of-an-answer" });
      turn.parts.push({ picture });
      turn.element.append(this.#opener(picture));
    } else if (part.text) {
      const last = turn.parts.at(-1);
      if (last?.text === undefined) {
        turn.parts.push({ text: part.text });
        turn.element.append(make("p", { class: "words", text: part.text.trimStart() }));
      } else {
        last.text += part.text;
        turn.element.lastElementChild.append(part.text);
      }
    }
    if (stay) toEnd();
  }

  #failed(turn, error) {
    if (!turn.parts.length) this.#remove(turn);
    showFault(by("say-fault"), error.message, () => {
      showFault(by("say-fault"));
      if (this.#turns.includes(turn)) this.#remove(turn);
      if (!this.#running) this.#answer();
    });
  }

  #add(role, parts) {
    const who = make("span", { class: "unseen", text: role === "user" ? "You:" : "The model:" });
    const element = make("li", { class: role }, who);
    const pictures = parts.filter((part) => part.picture);
    if (pictures.length)
      element.append(
        make("div", { class: "row" }, ...pictures.map((part) => this.#opener(part.picture))),
      );
    for (const part of parts)
      if (part.text) element.append(make("p", { class: "words", text: part.text }));
    const turn = { role, parts, element };
    this.#turns.push(turn);
    by("talk").append(element);
    by("ask-empty").hidden = true;
    by("talk-new").disabled = false;
    toEnd();
    return turn;
  }

  #opener(picture) {
    return opener(this.#app, picture, () => this.pictures, nameOf(picture));
  }

  #remove(turn) {
    turn.element.remove();
    this.#turns = this.#turns.filter((other) => other !== turn);
  }

  #clear() {
    this.#running?.abort();
    for (const picture of this.pictures) drop(picture);
    this.#turns = [];
    by("talk").replaceChildren();
    by("ask-empty").hidden = false;
    by("talk-new").disabled = true;
    showFault(by("say-fault"));
    by("question").focus();
  }

  #setRunning(controller) {
    this.#running = controller;
    const label = controller ? "Stop" : "Send";
    const button = by("say-go");
    button.replaceChildren(icon(label.toLowerCase()));
    button.title = label;
    button.setAttribute("aria-label", label);
    by("talk").setAttribute("aria-busy", String(controller !== null));
  }

  /** All pictures of the conversation. */
  get pictures() {
    return this.#turns.flatMap((turn) => turn.parts.flatMap((part) => part.picture ?? []));
  }
}

const nameOf = ({ prompt, seed, name }) => (prompt ? `${prompt}, seed ${seed}` : name || "Picture");

/** A turn as the API takes it. */
async function message({ role, parts }) {
  if (parts.every((part) => part.text !== undefined))
    return { role, content: parts.map((part) => part.text).join("") };
  const part = async ({ text, picture }) =>
    picture
      ? { type: "image_url", image_url: { url: await dataUrl(picture) } }
      : { type: "text", text };
  return { role, content: await Promise.all(parts.map(part)) };
}

/** What a piece of an answer holds: nothing, a text, or parts. */
function partsOf(content) {
  if (Array.isArray(content)) return content;
  return content ? [{ type: "text", text: content }] : [];
}

/** A field of one line, as high as its text. */
function grow(text) {
  text.style.height = "auto";
  text.style.height = `${Math.min(text.scrollHeight, 160)}px`;
}

/** Whether the reader has the end in view. */
const atEnd = () => document.documentElement.scrollHeight - innerHeight - scrollY < 60;

function toEnd() {
  scrollTo(0, document.documentElement.scrollHeight);
}
