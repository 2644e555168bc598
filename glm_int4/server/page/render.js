// A message as nodes. Its text is untrusted: it only ever becomes text nodes, never markup.

const FENCE = /```([^\n`]*)\n([\s\S]*?)(?:\n?```|$)/g;
const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*/g;

export function element(tag, className, content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (content !== undefined) made.textContent = content;
  return made;
}

function inline(parent, source) {
  let end = 0;
  for (const match of source.matchAll(INLINE)) {
    parent.append(source.slice(end, match.index), element(match[1] ? "code" : "strong", "", match[1] ?? match[2]));
    end = match.index + match[0].length;
  }
  parent.append(source.slice(end));
}

// Fenced code, `code` and **bold**; everything else as it was written.
export function renderText(target, source) {
  target.replaceChildren();
  let end = 0;
  for (const match of source.matchAll(FENCE)) {
    inline(target, source.slice(end, match.index));
    const block = element("pre");
    block.append(element("code", "", match[2]));
    target.append(block);
    end = match.index + match[0].length;
  }
  inline(target, source.slice(end));
}
