// The page: what is shown, and what happens on a click. No library, no build step.

import { copyText } from "./copy.js";
import { explain, note, speed } from "./notes.js";
import { element, renderText } from "./render.js";
import {
  followStorage, holdsSettings, loadConversations, loadSettings, makeId, putMessage, removeConversation, saveConversation,
  saveSettings,
} from "./store.js";
import { answer, findModel } from "./stream.js";
import { preferredLanguage, speak, text } from "./texts.js";

const $ = (id) => document.getElementById(id);
const SAVE_EVERY_MS = 1000, NEAR_BOTTOM_PX = 80, TITLE_CHARACTERS = 40;

const settings = loadSettings();
const conversations = loadConversations();
let current = conversations[0] ?? begin();
let running = null; // {abort, conversation, message} while an answer comes
const unsaved = new Map(); // what the storage had no room for, and how it is saved

function begin() {
  const empty = conversations.find((c) => !c.messages.length);
  if (empty) return empty;
  const made = { id: makeId(), messages: [] };
  conversations.unshift(made);
  return made;
}

function title(conversation) {
  return conversation.messages[0]?.content.slice(0, TITLE_CHARACTERS) || text("untitled");
}

function attempt(write, what) {
  if (write(what)) unsaved.delete(what);
  else unsaved.set(what, write);
  $("warning").hidden = !unsaved.size;
}

function save(conversation) {
  if (conversations.includes(conversation)) attempt(saveConversation, conversation); // else it was deleted meanwhile
}

// There may be room again.
function saveTheRest() {
  for (const [what, write] of unsaved) {
    if (what === settings || conversations.includes(what)) attempt(write, what);
    else unsaved.delete(what);
  }
  $("warning").hidden = !unsaved.size;
}

// --- what is shown -----------------------------------------------------------------------------------------

function applySettings() {
  speak(settings.language || preferredLanguage());
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = settings.theme === "auto" ? (dark ? "dark" : "light") : settings.theme;
}

function showAll() {
  showList();
  showMessages();
  $("messages").scrollTop = $("messages").scrollHeight;
}

function showList() {
  $("title").textContent = title(current);
  $("conversations").replaceChildren(...conversations.map(listEntry));
}

function showMessages() {
  const shown = current.messages.map(messageNode);
  $("messages").replaceChildren(...(shown.length ? shown : [element("p", "empty", text("empty"))]));
}

// Change what is shown: who reads the end goes on reading the end, who has scrolled up stays there.
function keepPlace(change) {
  const list = $("messages"), top = list.scrollTop;
  const atEnd = list.scrollHeight - top - list.clientHeight < NEAR_BOTTOM_PX;
  change();
  list.scrollTop = atEnd ? list.scrollHeight : top;
}

function listEntry(conversation) {
  const entry = element("div", conversation === current ? "current" : "");
  const open = element("button", "", title(conversation));
  open.onclick = () => show(conversation);
  const remove = element("button", "", "×");
  remove.setAttribute("aria-label", text("remove"));
  remove.onclick = () => {
    if (running?.conversation === conversation) running.abort.abort();
    conversations.splice(conversations.indexOf(conversation), 1);
    removeConversation(conversation);
    saveTheRest();
    show(conversation === current ? conversations[0] ?? begin() : current);
  };
  entry.append(open, remove);
  return entry;
}

function show(conversation) {
  current = conversation;
  document.body.classList.remove("side-open");
  showAll();
}

function isRunning(message) {
  return running?.conversation === current && running.message.id === message.id;
}

function messageNode(message) {
  const node = element("div", `message ${message.role}${message.error ? " error" : ""}`);
  const body = element("div", "text");
  renderText(body, message.content);
  if (message.error) body.append(element("div", "fault", message.error));
  node.append(body);
  if (message.role === "assistant") node.append(toolsNode(message));
  if (isRunning(message)) node.classList.add("running");
  return node;
}

function toolsNode(message) {
  const tools = element("div", "tools");
  if (isRunning(message)) return tools;
  const copy = element("button", "", text("copy"));
  copy.onclick = async () => {
    copy.textContent = text(await copyText(message.content) ? "copied" : "notCopied");
  };
  tools.append(copy);
  if (message === current.messages.at(-1)) {
    const again = element("button", "again", text("again"));
    again.onclick = () => {
      if (!running) reply(current, { id: message.id, role: "assistant", content: "" });
    };
    tools.append(again);
  }
  tools.append(message.note ?? "");
  return tools;
}

function showRunning() {
  if (running?.conversation !== current) return;
  keepPlace(() => renderText($("messages").querySelector(".running .text"), running.message.content));
}

function showButtons() {
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
}

// --- asking ------------------------------------------------------------------------------------------------

function ask(question) {
  const message = { id: makeId(), role: "assistant", content: "" };
  putMessage(current, { id: makeId(), role: "user", content: question });
  putMessage(current, message);
  save(current);
  reply(current, message);
}

// Answer what stands before the message. An old answer with its id stays until the new one has begun.
async function reply(conversation, message) {
  const place = conversation.messages.findIndex(({ id }) => id === message.id);
  const again = conversation.messages[place] !== message;
  // A question without an answer would stand beside the next question, and the roles must take turns.
  const asked = conversation.messages.slice(0, place).filter((m, i, all) => m.content && all[i + 1]?.content !== "");
  const times = { started: performance.now(), first: null, saved: -Infinity, pieces: 0, dropped: false };
  running = { abort: new AbortController(), conversation, message };
  showAll();
  showButtons();
  $("status").textContent = text("waiting");
  let last = {}, fault = null;
  try {
    last = await receive(asked, message, times);
  } catch (error) {
    fault = explain(error);
  }
  if (again && fault && !times.first) {
    putMessage(conversation, { ...conversation.messages.find(({ id }) => id === message.id), ...fault });
  } else {
    Object.assign(message, fault);
    message.note = note(message, last, times);
    putMessage(conversation, message);
  }
  running = null;
  save(conversation);
  $("status").textContent = times.dropped ? text("dropped") : "";
  showButtons();
  if (conversation === current) showAll();
}

// Fill a message in as it comes; the oldest round is left out where the context is full.
async function receive(asked, message, times) {
  let last = {};
  for (;;) {
    try {
      for await (const part of answer(asked, settings, running.abort.signal)) {
        if (part.text === undefined) {
          last = part;
          continue;
        }
        take(part.text, message, times);
      }
      return last;
    } catch (error) {
      if (error.code !== "context_length_exceeded" || asked.length < 3) throw error;
      asked.splice(0, asked[1].role === "assistant" ? 2 : 1);
      times.dropped = true;
    }
  }
}

function take(piece, message, times) {
  const now = performance.now();
  times.first ??= now;
  times.pieces += 1;
  message.content += piece;
  putMessage(running.conversation, message);
  if (now - times.saved > SAVE_EVERY_MS) {
    times.saved = now;
    save(running.conversation);
  }
  showRunning();
  $("status").textContent = speed(times.pieces, times, now);
}

// --- clicks and keys ---------------------------------------------------------------------------------------

function fitInput() {
  $("input").style.height = "auto";
  $("input").style.height = `${$("input").scrollHeight + 2}px`;
}

$("composer").onsubmit = (event) => {
  event.preventDefault();
  const question = $("input").value.trim();
  if (!question || running) return;
  $("input").value = "";
  fitInput();
  ask(question);
};
$("input").oninput = fitInput;
$("input").onkeydown = (event) => {
  // An input method takes Enter itself; Safari has ended the composition by then, and only the key code 229 tells.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  $("composer").requestSubmit();
};
$("stop").onclick = () => running?.abort.abort();
$("new").onclick = () => {
  show(begin());
  $("input").focus();
};
$("menu").onclick = () => document.body.classList.toggle("side-open");
$("shade").onclick = () => document.body.classList.remove("side-open");
$("open-settings").onclick = () => {
  for (const name in settings) $("settings-form").elements[name].value = settings[name];
  $("settings-form").elements.language.value = settings.language || preferredLanguage();
  $("settings").showModal();
};
$("settings").onclose = () => {
  for (const name in settings) { // Escape closes without a check
    const field = $("settings-form").elements[name];
    if (field.validity.valid) settings[name] = field.value;
  }
  attempt(saveSettings, settings);
  applySettings();
  showAll();
  showModel();
};
matchMedia("(prefers-color-scheme: dark)").onchange = applySettings;
addEventListener("pagehide", () => running && save(running.conversation));
addEventListener("pageshow", ({ persisted }) => persisted && followOtherTabs(null));
addEventListener("storage", ({ key }) => followOtherTabs(key));

// Another tab has changed a key of the storage, or any (null). An answer that is running here goes on, unless its conversation
// was deleted.
function followOtherTabs(key) {
  const state = () => JSON.stringify([settings, conversations.map((c) => [c.id, title(c)]), current]);
  const before = state();
  if (holdsSettings(key) && !$("settings").open) {
    Object.assign(settings, loadSettings());
    applySettings();
  }
  followStorage(conversations, key);
  saveTheRest();
  if (running && !conversations.includes(running.conversation)) running.abort.abort();
  if (!conversations.includes(current)) current = conversations[0] ?? begin();
  if (state() === before) return;
  showList();
  keepPlace(showMessages);
}

async function showModel() {
  try {
    $("model").textContent = (await findModel(settings.api_key)).id;
  } catch (error) {
    $("model").textContent = error.status === 401 ? text("key") : "";
  }
}

applySettings();
showAll();
showButtons();
showModel();
