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

// Yields {text}, then {end, usage}; throws a ServerError, or an AbortError once the signal says so.
export async function* answer(request, apiKey, signal) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(apiKey), body, signal });
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
