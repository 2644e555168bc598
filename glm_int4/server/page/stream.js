// One answer from the server, piece by piece.

export class ServerError extends Error {
  constructor(status, fault) {
    super(fault?.message ?? `HTTP ${status}`);
    this.status = status;
    this.code = fault?.code;
  }
}

function headers(apiKey) {
  const all = { "Content-Type": "application/json" };
  if (apiKey) all.Authorization = `Bearer ${apiKey}`;
  return all;
}

export async function findModel(apiKey) {
  const response = await fetch("v1/models", { headers: headers(apiKey) });
  if (!response.ok) throw new ServerError(response.status);
  return (await response.json()).data[0];
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n");
    held = parts.pop();
    yield* parts;
  }
}

function makeRequest(messages, settings) {
  const request = { messages: messages.map(({ role, content }) => ({ role, content })) };
  if (settings.system.trim()) request.messages.unshift({ role: "system", content: settings.system });
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (settings[name] !== "" && Number.isFinite(Number(settings[name]))) request[name] = Number(settings[name]);
  }
  return { ...request, stream: true, stream_options: { include_usage: true } };
}

// Yields {text}, then {end, usage}; throws a ServerError, or an AbortError once the signal says so.
export async function* answer(messages, settings, signal) {
  const request = { method: "POST", headers: headers(settings.api_key), body: JSON.stringify(makeRequest(messages, settings)) };
  const response = await fetch("v1/chat/completions", { ...request, signal });
  if (!response.ok) throw new ServerError(response.status, (await response.json().catch(() => ({}))).error);
  let end = null, usage = null, complete = false;
  for await (const line of lines(response.body)) {
    if (!line.startsWith("data: ")) continue;
    const data = line.slice("data: ".length);
    if (data === "[DONE]") {
      complete = true;
      break;
    }
    const event = JSON.parse(data);
    if (event.error) throw new ServerError(500, event.error);
    usage = event.usage ?? usage;
    end = event.choices[0]?.finish_reason ?? end;
    const piece = event.choices[0]?.delta.content;
    if (piece) yield { text: piece };
  }
  if (!complete) throw new TypeError("the stream ended early");
  yield { end, usage };
}
