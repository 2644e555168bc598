// Conversations and settings in the browser's localStorage. What is found there is checked: it may be of another version.

const CONVERSATIONS = "glm-int4.conversations", SETTINGS = "glm-int4.settings";
const DEFAULTS = { system: "", temperature: "", top_p: "", max_tokens: "", seed: "", language: "", theme: "auto", api_key: "" };

function read(key, fallback) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function loadSettings() {
  const found = read(SETTINGS, {});
  const settings = { ...DEFAULTS };
  for (const name in DEFAULTS) if (typeof found[name] === "string") settings[name] = found[name];
  return settings;
}

export function saveSettings(settings) {
  localStorage.setItem(SETTINGS, JSON.stringify(settings));
}

export function loadConversations() {
  const found = read(CONVERSATIONS, []);
  if (!Array.isArray(found)) return [];
  return found.filter((c) => c && typeof c.id === "string" && Array.isArray(c.messages)).map((c) => ({
    id: c.id,
    messages: c.messages.filter((m) => m && typeof m.content === "string" && ["user", "assistant"].includes(m.role)),
  }));
}

// Returns whether there was room.
export function saveConversations(conversations) {
  try {
    localStorage.setItem(CONVERSATIONS, JSON.stringify(conversations.filter((c) => c.messages.length)));
    return true;
  } catch {
    return false;
  }
}
