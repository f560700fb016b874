// The server: requests, its errors in words, and its streams of events.

const WAIT = 5; // seconds, where the server does not say

/** What went wrong, as a sentence. `again`: whether trying again may help. */
export class Fault extends Error {
  constructor(message, { status = 0, again = false, wait = WAIT } = {}) {
    super(message);
    Object.assign(this, { status, again, wait });
  }
}

let key = ""; // in this variable and nowhere else
let asking = null;
let askPerson = async () => null;

/** Sets who is asked for a key: async (wrong) => the key, or null. */
export function onKeyNeeded(ask) {
  askPerson = ask;
}

/** One question at a time, whoever needs the answer. */
function askKey(wrong) {
  asking ??= askPerson(wrong).finally(() => (asking = null));
  return asking;
}

/**
 * A response that is not an error.
 * @param {string} path Relative to the page.
 * @param {{body?: object|FormData, signal?: AbortSignal}} how A body makes it a POST.
 * @throws {Fault}
 */
export async function request(path, { body, signal } = {}) {
  for (;;) {
    const sent = key;
    const headers = sent ? { Authorization: `Bearer ${sent}` } : {};
    const how = { method: body ? "POST" : "GET", headers, signal, cache: "no-store" };
    if (body instanceof FormData) how.body = body;
    else if (body) {
      headers["Content-Type"] = "application/json";
      how.body = JSON.stringify(body);
    }
    let response;
    try {
      response = await fetch(path, how);
    } catch (error) {
      throw inWords(error);
    }
    if (response.ok) return response;
    if (response.status !== 401) throw await refusal(response);
    if (key !== sent) continue; // somebody else's question was answered meanwhile
    const given = await askKey(sent !== "");
    if (!given) throw new Fault("The server asks for a key.", { status: 401, again: true });
    key = given;
  }
}

/** What a fetch or a read throws, as a Fault; that it was cancelled stays what it is. */
export function inWords(error) {
  if (error instanceof Fault || error.name === "AbortError") return error;
  return new Fault("The server does not answer. Is it still running?", { again: true });
}

async function refusal(response) {
  let said = "";
  try {
    said = (await response.json()).error.message;
  } catch {
    // a proxy's page, or nothing
  }
  const told = parseInt(response.headers.get("Retry-After"), 10);
  return words(response.status, said, told > 0 ? told : WAIT);
}

function words(status, said, wait) {
  const seconds = wait === 1 ? "a second" : `${wait} seconds`;
  if (status === 429) {
    return new Fault(`The server is busy. Please wait ${seconds}, then try again.`, {
      status,
      again: true,
      wait,
    });
  }
  const again = status >= 500 || status === 408;
  return new Fault(sentence(said || `The server answered with the status ${status}`), {
    status,
    again,
    wait,
  });
}

function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

/**
 * The events of a stream: the objects that the server sends as JSON.
 * @throws {Fault} The server says that it failed, or the stream breaks.
 */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      let from = Math.max(0, rest.length - 1);
      rest += value.replaceAll("\r", "");
      for (let end; (end = rest.indexOf("\n\n", from)) >= 0; from = 0) {
        const data = dataOf(rest.slice(0, end));
        rest = rest.slice(end + 2);
        if (data === "[DONE]") return;
        if (data) yield checked(JSON.parse(data));
      }
    }
  } catch (error) {
    throw inWords(error);
  } finally {
    reader.cancel().catch(() => {}); // a broken stream cannot be cancelled, and need not
  }
}

function dataOf(block) {
  const lines = block.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}

function checked(event) {
  if (event.error)
    throw words(event.error.type === "rate_limit_error" ? 429 : 500, event.error.message, WAIT);
  return event;
}

/** The one model that is served, as /v1/models says. */
export async function model() {
  const { data } = await (await request("v1/models")).json();
  return { id: data[0].id, ...data[0].blip3o };
}
