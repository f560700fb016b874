// The page: finds out what the model can do, and brings its parts together.

import { model, onKeyNeeded, request } from "./api.js";
import { Ask } from "./ask.js";
import { by, showFault } from "./elements.js";
import { newSeed } from "./drawing.js";
import { keepPage, takePasted } from "./files.js";
import { Generate } from "./generate.js";
import { ofBase64 } from "./pictures.js";
import { Rework } from "./rework.js";
import { Viewer } from "./viewer.js";

const AGAIN = 3; // seconds between tries to reach the server
const tabs = [...document.querySelectorAll('[role="tab"]')];

// What the parts of the page share. `reworks`: the word for what the third tab does, or null.
const app = {
  model: null,
  reworks: null,
  view: (picture, list) => viewer.open(picture, list),
  leaveView: () => viewer.close(),
  ask(picture) {
    viewer.close();
    show("ask");
    ask.add(picture);
  },
  rework(picture) {
    viewer.close();
    show("rework");
    rework.set(picture);
  },
  sample,
};
const viewer = new Viewer(app);
const generate = new Generate(app);
const ask = new Ask(app);
const rework = new Rework(app);

/** Draws one picture of an example, for who has none at hand; the button waits. */
async function sample(button) {
  const { prompts } = app.model;
  const prompt = prompts[newSeed() % prompts.length];
  const label = button.textContent;
  button.disabled = true;
  button.textContent = "Drawing…";
  try {
    const response = await request("v1/images/generations", { body: { prompt, seed: newSeed() } });
    const { data, output_format: format } = await response.json();
    return await ofBase64(data[0].b64_json, format, { prompt, seed: data[0].seed });
  } finally {
    button.disabled = false;
    button.textContent = label;
  }
}

/** Shows a panel, if the model can do what it is for. */
function show(name, focus = false) {
  const wanted = tabs.find((tab) => tab.getAttribute("aria-controls") === name && !tab.hidden);
  const shown = wanted ?? tabs.find((tab) => !tab.hidden);
  for (const tab of tabs) {
    const own = tab === shown;
    tab.setAttribute("aria-selected", String(own));
    tab.tabIndex = own ? 0 : -1;
    by(tab.getAttribute("aria-controls")).hidden = !own;
  }
  if (focus) shown.focus();
  history.replaceState(null, "", `#${shown.getAttribute("aria-controls")}`);
}

function startTabs() {
  for (const tab of tabs)
    tab.addEventListener("click", () => show(tab.getAttribute("aria-controls")));
  by("tab-generate").parentElement.addEventListener("keydown", (event) => {
    const open = tabs.filter((tab) => !tab.hidden);
    const here = open.findIndex((tab) => tab.getAttribute("aria-selected") === "true");
    const next = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: open.length - 1 }[
      event.key
    ];
    if (next === undefined) return;
    event.preventDefault();
    show(open.at(next % open.length).getAttribute("aria-controls"), true);
  });
  addEventListener("hashchange", () => show(location.hash.slice(1)));
  show(location.hash.slice(1));
}

/** Asks a person for the key; null if there is none. */
function askKey(wrong) {
  const dialog = by("key-dialog");
  showFault(by("key-fault"), wrong ? "The server does not accept this key." : "");
  dialog.showModal();
  return new Promise((resolve) => {
    const done = new AbortController();
    const end = (key) => {
      done.abort();
      by("key").value = "";
      if (dialog.open) dialog.close();
      resolve(key);
    };
    const { signal } = done;
    by("key-form").addEventListener(
      "submit",
      (event) => {
        event.preventDefault();
        const key = by("key").value.trim();
        if (/^[\x21-\x7e]+$/.test(key)) end(key);
        else
          showFault(
            by("key-fault"),
            key ? "A key has letters, digits and signs only." : "Type the key first.",
          );
      },
      { signal },
    );
    by("key-cancel").addEventListener("click", () => end(null), { signal });
    dialog.addEventListener("close", () => end(null), { signal });
  });
}

function tell(state, words) {
  by("state").dataset.state = state;
  by("state").firstElementChild.textContent = words;
  by("state").title = words;
}

/** Waits for the server and its model, then starts what the model can do. */
async function connect() {
  try {
    app.model = await model();
  } catch (error) {
    const warming = error.status === 503;
    tell(warming ? "wait" : "fault", warming ? "The model is warming up" : error.message);
    if (error.status === 401) by("state").append(keyButton());
    else setTimeout(connect, (warming ? 1 : AGAIN) * 1000);
    return;
  }
  tell("ready", app.model.id);
  start(app.model);
}

function keyButton() {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "link";
  button.textContent = "Enter it";
  button.addEventListener("click", () => {
    button.remove();
    connect();
  });
  return button;
}

function start({ id, verbs }) {
  const verb = ["edit", "reconstruct"].find((name) => verbs.includes(name));
  app.reworks = verb ? verb[0].toUpperCase() + verb.slice(1) : null;
  by("tab-generate").hidden = !verbs.includes("generate");
  by("tab-ask").hidden = !verbs.includes("chat");
  by("tab-rework").hidden = !verb;
  by("tab-rework").textContent = app.reworks ?? "";
  document.title = `${id} · BLIP3-o`;
  if (verbs.includes("generate")) generate.start(app.model);
  if (verbs.includes("chat")) ask.start(app.model);
  if (verb) rework.start(app.model, verb);
  by("main").inert = false;
  show(location.hash.slice(1));
}

onKeyNeeded(askKey);
keepPage();
takePasted((files) => {
  const open =
    app.model &&
    [
      [by("ask"), ask],
      [by("rework"), rework],
    ].find(([panel]) => !panel.hidden);
  if (open) open[1].takeFiles(files);
  return Boolean(open);
});
startTabs();
connect();
