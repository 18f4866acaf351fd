// Server-sent events of a POST: EventSource can only GET.

/** An answer that is not 2xx, or an error sent inside a stream. */
export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered ${status}`);
    this.status = status;
  }
}

/** Ask for a streamed answer; gives each event's object until [DONE]. */
export async function* ask(body, key, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch("v1/chat/completions", {
    method: "POST", headers, body: JSON.stringify(body), signal,
  });
  if (!response.ok) {
    const said = await response.json().catch(() => null);
    throw new ApiError(response.status, said?.error);
  }
  for await (const data of lines(response.body.getReader())) {
    if (data === "[DONE]") return;
    const value = JSON.parse(data);
    if (value.error) throw new ApiError(response.status, value.error);
    yield value;
  }
  throw new ApiError(0, { message: "the connection ended before the answer did" });
}

/** The text after "data: " of each event, whole, however the bytes arrive. */
async function* lines(reader) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events)
      if (event.startsWith("data: ")) yield event.slice(6);
  }
}
