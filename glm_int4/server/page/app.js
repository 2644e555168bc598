// The page: what is shown, and what happens on a click. No library, no build step.

import { element, renderText } from "./render.js";
import { loadConversations, loadSettings, saveConversations, saveSettings } from "./store.js";
import { answer, findModel } from "./stream.js";
import { preferredLanguage, speak, text } from "./texts.js";

const $ = (id) => document.getElementById(id);
const SAVE_EVERY_MS = 1000, NEAR_BOTTOM_PX = 80, TITLE_CHARACTERS = 40;

const settings = loadSettings();
const conversations = loadConversations();
let current = conversations[0] ?? begin();
let running = null; // {abort, conversation, message} while an answer comes

function begin() {
  const empty = conversations.find((c) => !c.messages.length);
  if (empty) return empty;
  const made = { id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, messages: [] };
  conversations.unshift(made);
  return made;
}

function title(conversation) {
  return conversation.messages[0]?.content.slice(0, TITLE_CHARACTERS) || text("untitled");
}

function save() {
  if (!saveConversations(conversations)) $("status").textContent = text("noRoom");
}

// --- what is shown -----------------------------------------------------------------------------------------

function applySettings() {
  speak(settings.language || preferredLanguage());
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = settings.theme === "auto" ? (dark ? "dark" : "light") : settings.theme;
}

function showAll() {
  $("title").textContent = title(current);
  $("conversations").replaceChildren(...conversations.map(listEntry));
  const shown = current.messages.map(messageNode);
  $("messages").replaceChildren(...(shown.length ? shown : [element("p", "empty", text("empty"))]));
  $("messages").scrollTop = $("messages").scrollHeight;
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
    save();
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

function messageNode(message) {
  const node = element("div", `message ${message.role}${message.error ? " error" : ""}`);
  const body = element("div", "text");
  renderText(body, message.error ? `${message.content}${message.content ? "\n" : ""}${message.error}` : message.content);
  node.append(body);
  if (message.role === "assistant") node.append(toolsNode(message));
  if (running?.message === message) node.classList.add("running");
  return node;
}

function toolsNode(message) {
  const tools = element("div", "tools");
  if (running?.message === message) return tools;
  const copy = element("button", "", text("copy"));
  copy.onclick = async () => {
    await navigator.clipboard.writeText(message.content);
    copy.textContent = text("copied");
  };
  tools.append(copy);
  if (message === current.messages.at(-1)) {
    const again = element("button", "again", text("again"));
    again.onclick = () => {
      if (running) return;
      current.messages.pop();
      reply(current);
    };
    tools.append(again);
  }
  tools.append(message.note ?? "");
  return tools;
}

function showRunning() {
  if (running?.conversation !== current) return;
  const list = $("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < NEAR_BOTTOM_PX;
  renderText(list.lastElementChild.querySelector(".text"), running.message.content);
  if (atEnd) list.scrollTop = list.scrollHeight;
}

function showButtons() {
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
}

// --- asking ------------------------------------------------------------------------------------------------

function makeRequest(messages) {
  const request = { messages: messages.map(({ role, content }) => ({ role, content })) };
  if (settings.system.trim()) request.messages.unshift({ role: "system", content: settings.system });
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (settings[name] !== "" && Number.isFinite(Number(settings[name]))) request[name] = Number(settings[name]);
  }
  return request;
}

function ask(question) {
  current.messages.push({ role: "user", content: question });
  reply(current);
}

async function reply(conversation) {
  const message = { role: "assistant", content: "" };
  // A question without an answer would stand beside the next question, and the roles must take turns.
  const asked = conversation.messages.filter((m, i, all) => m.content && all[i + 1]?.content !== "");
  const times = { started: performance.now(), first: null, saved: 0, pieces: 0, dropped: false };
  conversation.messages.push(message);
  running = { abort: new AbortController(), conversation, message };
  showAll();
  showButtons();
  $("status").textContent = text("waiting");
  let last = {};
  try {
    last = await receive(asked, message, times);
  } catch (error) {
    explain(error, message);
  }
  message.note = note(message, last, times);
  running = null;
  save();
  $("status").textContent = times.dropped ? text("dropped") : "";
  showButtons();
  if (conversation === current) showAll();
}

// Fill a message in as it comes; the oldest round is left out where the context is full.
async function receive(asked, message, times) {
  let last = {};
  for (;;) {
    try {
      for await (const part of answer(makeRequest(asked), settings.api_key, running.abort.signal)) {
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
  if (now - times.saved > SAVE_EVERY_MS) {
    times.saved = now;
    save();
  }
  showRunning();
  $("status").textContent = speed(times.pieces, times, now);
}

function speed(tokens, times, now) {
  const seconds = (now - times.first) / 1000;
  return tokens > 1 && seconds > 0 ? `${((tokens - 1) / seconds).toFixed(1)} ${text("perSecond")}` : "";
}

function note(message, { end, usage }, times) {
  const parts = [];
  if (usage && times.first) parts.push(`${usage.completion_tokens} ${text("tokens")}`);
  if (usage && times.first) parts.push(speed(usage.completion_tokens, times, performance.now()));
  if (times.first) parts.push(`${text("first")} ${((times.first - times.started) / 1000).toFixed(2)} s`);
  if (end === "length") parts.push(text("cut"));
  if (message.stopped) parts.push(text("stopped"));
  return parts.filter(Boolean).join(" · ");
}

function explain(error, message) {
  if (error.name === "AbortError") message.stopped = true;
  else if (error.status === 401) message.error = text("key");
  else if (error.status === 429) message.error = text("full");
  else if (error.status) message.error = error.message;
  else message.error = text("lost");
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
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // an input method takes Enter itself
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
  for (const name in settings) settings[name] = $("settings-form").elements[name].value;
  saveSettings(settings);
  applySettings();
  showAll();
  showModel();
};
matchMedia("(prefers-color-scheme: dark)").onchange = applySettings;
addEventListener("pagehide", () => running && save());
addEventListener("storage", () => { // another tab has saved
  if (running) return;
  conversations.splice(0, conversations.length, ...loadConversations());
  show(conversations.find((c) => c.id === current.id) ?? begin());
});

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
