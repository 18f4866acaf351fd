// The conversation: send, stream, stop, make again.

import { ApiError, ask } from "./sse.js";
import * as settings from "./settings.js";
import { addQuestion, Answer, button, following } from "./view.js";

const element = (id) => document.getElementById(id);
const [input, send, stop, status, panel, toggle] =
  ["ask", "send", "stop", "status", "settings", "toggle"].map(element);
const turns = []; // {question, asked, answer, reply, reasoning}
let model = "";
let about = null; // the promise of what the server says of itself
let running = null; // AbortController of the answer being written

function announce(text) {
  status.textContent = text;
}

function openSettings(open) {
  panel.classList.toggle("open", open);
  toggle.setAttribute("aria-expanded", String(open));
}

function messages(turn) {
  const past = settings.remembers() ? turns.slice(0, turns.indexOf(turn)) : [];
  const said = past.filter((t) => t.reply).flatMap((t) => [
    { role: "user", content: t.question },
    { role: "assistant", content: t.reply },
  ]);
  return [...said, { role: "user", content: turn.question }];
}

const seconds = (ms) => `${(ms / 1000).toFixed(ms < 10000 ? 1 : 0)} s`;

/** Counts while an answer streams and words the counts. */
class Clock {
  constructor() {
    this.began = performance.now();
    this.first = this.thought = this.last = null;
    this.tokens = this.reasoning = 0;
  }

  tick(chunk) {
    this.last = performance.now();
    this.tokens = chunk.usage?.completion_tokens ?? this.tokens;
    this.reasoning =
      chunk.usage?.completion_tokens_details.reasoning_tokens ?? this.reasoning;
    if (this.tokens && this.first === null)
      [this.first, this.atFirst] = [this.last, this.tokens];
  }

  label(thinking) {
    const time = seconds((thinking ? this.last : this.thought) - this.began);
    return `${thinking ? "Thinking" : "Thought"} · ${this.reasoning} tokens · ${time}`;
  }

  speed() {
    if (this.first === null) return "";
    const made = this.tokens - this.atFirst;
    const rate = made > 0 ? ` · ${((1000 * made) / (this.last - this.first)).toFixed(0)} tokens/s` : "";
    const first = `first after ${((this.first - this.began) / 1000).toFixed(2)} s`;
    return `${this.tokens} tokens${rate} · ${first}`;
  }
}

/** Stream one answer into the page; resolves when it has ended somehow. */
async function answer(turn) {
  turn.answer?.turn.remove();
  turn.answer = new Answer(model || "Model");
  turn.reply = "";
  running = new AbortController();
  busy(true);
  announce("The model is answering");
  const clock = new Clock();
  let thinking = false;
  let end = null;
  try {
    await introduced(); // a quick reader asks before the page knows the model
    running.signal.throwIfAborted();
    const body = {
      model, messages: messages(turn), stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
      ...settings.sampling(turn.asked++),
    };
    for await (const chunk of ask(body, settings.key(), running.signal)) {
      clock.tick(chunk);
      const choice = chunk.choices[0];
      if (!choice) continue;
      const { reasoning, content } = choice.delta;
      if (reasoning) {
        if (!thinking) announce("The model is thinking");
        thinking = true;
        turn.answer.think(reasoning);
      }
      if (thinking && (content || choice.finish_reason)) {
        thinking = false;
        clock.thought = clock.last;
      }
      if (content) {
        turn.answer.say(content);
        turn.reply += content;
      }
      end = choice.finish_reason ?? end;
      turn.answer.report(clock.label(clock.thought === null), clock.speed());
    }
    const cut = end === "length" ? " · cut at the limit" : "";
    turn.answer.report(clock.label(clock.thought === null), clock.speed() + cut);
    announce(`Answer: ${turn.reply || "none, the thinking did not end"}`);
  } catch (error) {
    ended(turn, error, clock);
  } finally {
    running = null;
    turn.answer.end(copyButton(turn), againButton(turn));
    busy(false);
  }
}

function ended(turn, error, clock) {
  clock.thought ??= clock.last;
  if (error.name === "AbortError") {
    turn.answer.report(clock.label(false), [clock.speed(), "stopped"].filter(Boolean).join(" · "));
    announce("Stopped");
    return;
  }
  const lost = !(error instanceof ApiError);
  turn.answer.fail(lost ? "the server cannot be reached; is it running?" : error.message);
  if (error.status === 401) {
    openSettings(true);
    element("key").focus();
  }
}

function copyButton(turn) {
  const made = button("Copy", async () => {
    await navigator.clipboard.writeText(turn.reply);
    announce("Copied");
  });
  made.disabled = !turn.reply || !navigator.clipboard;
  return made;
}

function againButton(turn) {
  const made = button("Regenerate", () => running || answer(turn).then(() => input.focus()));
  made.classList.add("again");
  return made;
}

function busy(now) {
  send.hidden = now;
  stop.hidden = !now;
  element("new").disabled = now || !turns.length;
  if (now && document.activeElement === document.body) stop.focus();
}

async function submit(question) {
  if (running || !question.trim()) return;
  element("welcome").hidden = true;
  turns.at(-1)?.answer.settle();
  const turn = { question, asked: 0 };
  turn.element = addQuestion(question);
  turns.push(turn);
  input.value = "";
  fit();
  await answer(turn);
  if (document.activeElement === document.body) input.focus();
}

/** The box grows with its text. */
function fit() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
  send.disabled = !input.value.trim();
}

function startAnew() {
  for (const turn of turns.splice(0)) {
    turn.element.remove();
    turn.answer.turn.remove();
  }
  element("welcome").hidden = false;
  element("new").disabled = true;
  announce("New chat");
  input.focus();
}

/** Ask the server once what it serves; again if it could not be reached. */
function introduced() {
  about ??= introduce().catch((error) => {
    about = null;
    throw error;
  });
  return about;
}

async function introduce() {
  const found = await (await fetch("page/about")).json();
  model = found.model;
  element("model").textContent = model;
  document.title = `${model} · R1-lite chat`;
  element("max_tokens").max = found.context;
  element("key-field").hidden = !found.key;
  for (const text of found.examples) {
    const item = document.createElement("li");
    const made = button(text, () => submit(text));
    made.className = "";
    item.append(made);
    element("examples").append(item);
  }
}

settings.setUp();
openSettings(innerWidth >= 1000);
element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit(input.value);
});
input.addEventListener("input", () => following(fit));
input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit(input.value);
});
stop.addEventListener("click", () => running?.abort());
element("new").addEventListener("click", startAnew);
toggle.addEventListener("click", () => openSettings(!panel.classList.contains("open")));
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (running) running.abort();
  else if (panel.contains(document.activeElement)) {
    openSettings(false);
    toggle.focus();
  }
});
fit();
introduced().catch(() => announce("The server cannot be reached"));
