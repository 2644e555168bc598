// What is said about an answer: its speed, how it ended, why it failed.

import { text } from "./texts.js";

const MIN_TOKENS_FOR_SPEED = 8; // fewer come too fast to be timed

export function speed(tokens, times, now) {
  const seconds = (now - times.first) / 1000;
  const known = tokens >= MIN_TOKENS_FOR_SPEED && seconds > 0;
  return known ? `${((tokens - 1) / seconds).toFixed(1)} ${text("perSecond")}` : "";
}

export function note(message, { end, usage }, times) {
  const parts = [];
  if (usage && times.first) parts.push(`${usage.completion_tokens} ${text("tokens")}`);
  if (usage && times.first) parts.push(speed(usage.completion_tokens, times, performance.now()));
  if (times.first) parts.push(`${text("first")} ${((times.first - times.started) / 1000).toFixed(2)} s`);
  if (end === "length") parts.push(text("cut"));
  if (message.stopped) parts.push(text("stopped"));
  return parts.filter(Boolean).join(" · ");
}

export function explain(error) {
  if (error.name === "AbortError") return { stopped: true };
  if (error.status === 401) return { error: text("key") };
  if (error.status === 429) return { error: text("full") };
  return { error: error.status ? error.message : text("lost") };
}
