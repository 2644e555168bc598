// Conversations and settings in the browser's localStorage. A conversation is a record of its own, so that two tabs do not erase
// each other's. What is found is checked: it may be of another version. What is written returns whether there was room.

const RECORD = "glm-int4.conversation.", OLD_LIST = "glm-int4.conversations", SETTINGS = "glm-int4.settings";
const DEFAULTS = { system: "", temperature: "", top_p: "", max_tokens: "", seed: "", language: "", theme: "auto", api_key: "" };

const unsaved = new WeakSet(); // messages that this tab wrote since it last saved them

function read(key, fallback) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? fallback;
  } catch {
    return fallback;
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

function remove(key) {
  try {
    localStorage.removeItem(key);
  } catch {} // where storage is forbidden, nothing was kept
}

function storedIds() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(RECORD)).map((key) => key.slice(RECORD.length));
  } catch {
    return [];
  }
}

// --- settings ----------------------------------------------------------------------------------------------

export function loadSettings() {
  const found = read(SETTINGS, {});
  const settings = { ...DEFAULTS };
  for (const name in DEFAULTS) if (typeof found[name] === "string") settings[name] = found[name];
  return settings;
}

export function saveSettings(settings) {
  return write(SETTINGS, settings);
}

export function holdsSettings(key) {
  return key === SETTINGS || key === null;
}

// --- conversations -----------------------------------------------------------------------------------------

// The time comes first: it orders the list.
export function makeId() {
  return `${Date.now()}-${Math.random().toString(36).slice(2)}`;
}

function newestFirst(one, other) {
  return (Number.parseInt(other.id) || 0) - (Number.parseInt(one.id) || 0);
}

function checkMessages(found) {
  if (!Array.isArray(found)) return [];
  const valid = found.filter((m) => m && typeof m.content === "string" && ["user", "assistant"].includes(m.role));
  return valid.map((m, i) => ({ ...m, id: typeof m.id === "string" ? m.id : `${i}` })); // the old list had no ids of messages
}

function loadConversation(id) {
  const found = read(RECORD + id, null);
  return found && { id, messages: checkMessages(found.messages), stored: true };
}

function loadOldList() {
  const found = read(OLD_LIST, []);
  if (!Array.isArray(found)) return [];
  const valid = found.filter((c) => c && typeof c.id === "string" && Array.isArray(c.messages));
  return valid.map((c) => ({ id: c.id, messages: checkMessages(c.messages) }));
}

// Earlier versions kept one list of all conversations. It goes once all of it is in records; while there is no room for them, it
// stays. A tab with the earlier page may write it again, with messages that a record lacks.
function takeOverOldList() {
  const old = loadOldList();
  if (!old.length) return;
  const before = new Map([[OLD_LIST, localStorage.getItem(OLD_LIST)]]);
  remove(OLD_LIST); // the records need its room
  for (const { id, messages } of old) {
    before.set(RECORD + id, localStorage.getItem(RECORD + id));
    const known = loadConversation(id)?.messages ?? [];
    const missing = messages.filter((m) => !known.some((k) => k.id === m.id));
    if (write(RECORD + id, { messages: [...known, ...missing] })) continue;
    for (const key of before.keys()) remove(key);
    for (const [key, value] of before) if (value !== null) localStorage.setItem(key, value);
    return;
  }
}

export function loadConversations() {
  takeOverOldList();
  const found = storedIds().map(loadConversation).filter(Boolean);
  const left = loadOldList().filter(({ id }) => !found.some((c) => c.id === id));
  return [...found, ...left].sort(newestFirst);
}

// A message that this tab wrote takes the place of the one with its id, or comes last.
export function putMessage(conversation, message) {
  unsaved.add(message);
  const place = conversation.messages.findIndex(({ id }) => id === message.id);
  if (place < 0) conversation.messages.push(message);
  else conversation.messages[place] = message;
}

// What is stored is true, except for the messages that this tab wrote since. So two tabs that answer in one conversation keep
// both questions and both answers, in the order in which they were first saved; if both answer the same question again, the
// answer that was saved last stays.
function merge(conversation, stored) {
  const own = conversation.messages.filter((m) => unsaved.has(m));
  Object.assign(conversation, stored);
  for (const message of own) putMessage(conversation, message);
}

export function saveConversation(conversation) {
  const stored = loadConversation(conversation.id);
  if (!stored && conversation.stored) return true; // another tab has deleted it, so it stays deleted
  if (stored) merge(conversation, stored);
  if (!write(RECORD + conversation.id, { messages: conversation.messages })) return false;
  conversation.stored = true;
  for (const message of conversation.messages) unsaved.delete(message);
  return true;
}

export function removeConversation({ id }) {
  remove(RECORD + id);
  const old = read(OLD_LIST, null);
  if (Array.isArray(old)) write(OLD_LIST, old.filter((c) => c?.id !== id));
}

// Bring a list up to date after another tab has changed a key (null: any).
export function followStorage(conversations, key) {
  const known = conversations.map(({ id }) => id);
  const ids = key === null ? new Set([...known, ...storedIds()]) : key.startsWith(RECORD) ? [key.slice(RECORD.length)] : [];
  for (const id of ids) {
    const stored = loadConversation(id);
    const conversation = conversations.find((c) => c.id === id);
    if (stored && conversation) merge(conversation, stored);
    else if (stored) conversations.push(stored);
    else if (conversation?.stored) conversations.splice(conversations.indexOf(conversation), 1);
  }
  conversations.sort(newestFirst);
}
