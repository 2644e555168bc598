// Text to the clipboard.

import { element } from "./render.js";

// Returns whether it is there.
export async function copyText(content) {
  try {
    await navigator.clipboard.writeText(content);
    return true;
  } catch { // browsers have no navigator.clipboard outside localhost and https
    return copySelection(content);
  }
}

function copySelection(content) {
  const focused = document.activeElement;
  const area = element("textarea", "copied", content);
  area.readOnly = true; // no keyboard comes up on a phone
  document.body.append(area);
  area.select();
  try {
    return document.execCommand("copy");
  } catch {
    return false;
  } finally {
    area.remove();
    focused?.focus();
  }
}
