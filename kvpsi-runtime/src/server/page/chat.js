// A conversation with the model, to try it.
//
// Owns the conversation, the stream and its end. What the model says is put in
// as text, and as what `markdown.js` makes of it. Out of scope: how the rest of the
// page looks.

import { ask, Refused } from "./api.js";
import { count, percent } from "./figures.js";
import { elements, parse } from "./markdown.js";

const $ = (id) => document.getElementById(id);

/** The data of server-sent events, one string an event. */
async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = done ? "" : lines.pop();
      for (const line of lines) {
        if (line === "" && data.length > 0) {
          yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
      if (done) return;
    }
  } finally {
    // The server frees the sequence as soon as the connection is gone.
    reader.cancel().catch(() => {});
  }
}

function ending(reason, usage, seconds) {
  const parts = [];
  if (reason === "length") parts.push("cut off at the most tokens");
  if (usage) {
    // The clock starts at the first token.
    const speed = seconds > 0 ? `, ${((usage.completion_tokens - 1) / seconds).toFixed(1)}/s` : "";
    parts.push(`${count(usage.prompt_tokens)} + ${count(usage.completion_tokens)} tokens${speed}`);
  }
  const kvpsi = usage?.kvpsi;
  if (kvpsi) {
    parts.push(
      `${count(kvpsi.trims)} ${kvpsi.trims === 1 ? "trim" : "trims"} meanwhile, ` +
        `${count(kvpsi.tokens_dropped)} tokens dropped, ` +
        `${percent(kvpsi.attention_mass_dropped)} of attention`,
    );
  }
  return parts.join(" · ");
}

export class Chat {
  /** `model` names the model to ask; `refused` is told of a refusal for want of a key. */
  constructor({ model, refused }) {
    this.model = model;
    this.refused = refused;
    this.said = [];
    this.running = null;
    $("chat").addEventListener("submit", (e) => {
      e.preventDefault();
      if (this.running === null) this.send();
    });
    $("say").addEventListener("keydown", (e) => {
      // Enter ends a word of an input method first.
      if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
        e.preventDefault();
        if (this.running === null) this.send();
      }
    });
    $("stop").addEventListener("click", () => this.running?.abort());
    $("anew").addEventListener("click", () => {
      this.running?.abort();
      this.said = [];
      $("talk").replaceChildren();
      $("say").focus();
    });
  }

  /** A new entry at the end of the conversation. */
  entry(role, text) {
    const entry = document.createElement("div");
    entry.className = `entry ${role}`;
    const body = document.createElement("div");
    body.className = "body";
    body.textContent = text;
    const foot = document.createElement("small");
    entry.append(body, foot);
    $("talk").append(entry);
    this.follow(true);
    return { entry, body, foot };
  }

  /** Keeps the end in view, unless the reader has scrolled away from it. */
  follow(always) {
    const talk = $("talk");
    if (always || talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80) talk.scrollTop = talk.scrollHeight;
  }

  busy(on) {
    $("send").hidden = on;
    $("stop").hidden = !on;
    $("talk").setAttribute("aria-busy", String(on));
  }

  async send() {
    const text = $("say").value.trim();
    if (text === "") return;
    $("say").value = "";
    const said = this.said;
    said.push({ role: "user", content: text });
    this.entry("user", text);
    const out = this.entry("assistant", "");
    out.entry.classList.add("pending");
    const running = new AbortController();
    this.running = running;
    this.busy(true);
    let [answer, frame] = ["", 0];
    const show = () => {
      frame = 0;
      out.body.replaceChildren(...elements(parse(answer)));
      this.follow(false);
    };
    try {
      const foot = await this.stream(said, running.signal, (piece) => {
        answer += piece;
        // As often as it can be seen: all of it is put in anew.
        if (frame === 0) frame = requestAnimationFrame(show);
      });
      out.foot.textContent = foot;
    } catch (e) {
      this.broken(e, out);
    }
    cancelAnimationFrame(frame);
    show();
    out.entry.classList.remove("pending");
    // What was said stays said: the next turn goes on from there.
    if (answer !== "") said.push({ role: "assistant", content: answer });
    else {
      said.pop();
      if ($("say").value === "") $("say").value = text;
    }
    if (this.running === running) {
      this.running = null;
      this.busy(false);
      this.follow(false);
    }
  }

  /** Streams an answer; returns what is to be said at its end. */
  async stream(messages, signal, piece) {
    const body = {
      model: this.model(),
      messages,
      stream: true,
      stream_options: { include_usage: true },
      max_tokens: Math.max(Number.parseInt($("most").value, 10) || 256, 1),
      temperature: Math.max(Number.parseFloat($("temperature").value) || 0, 0),
    };
    const response = await ask("v1/chat/completions", { body, signal });
    let [reason, usage, first] = [null, null, 0];
    for await (const data of events(response.body)) {
      if (data === "[DONE]") {
        return ending(reason, usage, first === 0 ? 0 : (performance.now() - first) / 1000);
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(response.status, String(chunk.error.message ?? "an error"));
      const choice = chunk.choices?.[0];
      if (choice?.delta?.content) {
        if (first === 0) first = performance.now();
        piece(choice.delta.content);
      }
      reason = choice?.finish_reason ?? reason;
      usage = chunk.usage ?? usage;
    }
    throw new Refused(0, "the answer broke off");
  }

  broken(e, { foot, entry }) {
    if (e.name === "AbortError") {
      foot.textContent = "stopped";
      return;
    }
    entry.classList.add("failed");
    if (!(e instanceof Refused)) foot.textContent = "the answer broke off";
    else if (e.retryAfter) foot.textContent = `${e.message} (try again in ${e.retryAfter} s)`;
    else foot.textContent = e.message;
    if (e.status === 401) this.refused();
  }
}
