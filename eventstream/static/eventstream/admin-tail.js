// The live tail of a channel: the project's own stream, read with fetch, as an EventSource
// takes no token in a header and shows only event types that are known beforehand.
"use strict";

(() => {
  const box = document.querySelector("[data-es-tail]");
  if (!box) return;
  const MAX_ROWS = 200;
  const MAX_LENGTH = 500;
  const RETRY_MS = 2000;
  const list = box.querySelector("ol");
  const stateLine = document.querySelector("[data-es-tail-state]");
  const stop = document.querySelector("[data-es-tail-stop]");
  let position = box.dataset.esPosition;
  let silence = 45000;
  let controller = null;
  let isOver = false;

  function say(text) {
    if (stateLine.textContent !== text) stateLine.textContent = text;
  }

  function cell(text) {
    const span = document.createElement("span");
    // Never as HTML: it is whatever the application sent.
    span.textContent = text.length > MAX_LENGTH ? `${text.slice(0, MAX_LENGTH)}…` : text;
    return span;
  }

  function show(type, id, data) {
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const row = document.createElement("li");
    row.className = "es-mono";
    const eid = id.slice(id.lastIndexOf(":") + 1);
    row.append(cell(new Date().toLocaleTimeString("en-GB")), cell(eid ? `#${eid}` : "no id"), cell(type), cell(data));
    list.append(row);
    while (list.children.length > MAX_ROWS) list.firstChild.remove();
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  }

  function take(block) {
    let type = "message";
    let id = null;
    const data = [];
    for (const line of block.split("\n")) {
      if (line.startsWith("event: ")) type = line.slice(7);
      else if (line.startsWith("id: ")) id = line.slice(4);
      else if (line === "data:" || line.startsWith("data: ")) data.push(line.slice(6));
    }
    if (type === "stream-error") {
      const error = JSON.parse(data.join("\n"));
      isOver = true;
      say(error.condition === "token-expired" ? "Ended: load the page again to go on." : `Ended: ${error.text}`);
      return;
    }
    if (id !== null) position = id;
    // Two keep-alives may be late or lost; a third is not coming.
    if (type === "stream-open") silence = JSON.parse(data.join("\n")).keep_alive * 2000 + 5000;
    if (type === "stream-reset") show(type, "", "what is older is not stored any more");
    else if (data.length && type !== "keep-alive" && type !== "stream-open") show(type, id ?? "", data.join("\n"));
  }

  async function read(signal) {
    const attempt = new AbortController();
    const stopReading = () => attempt.abort();
    let timer;
    const listen = () => {
      clearTimeout(timer);
      timer = setTimeout(() => attempt.abort(new Error(`nothing came for ${silence / 1000} s`)), silence);
    };
    signal.addEventListener("abort", stopReading);
    try {
      await readUntil(attempt.signal, listen);
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", stopReading);
    }
  }

  async function readUntil(signal, listen) {
    listen();
    const headers = { Accept: "text/event-stream", Authorization: `Bearer ${box.dataset.esToken}` };
    if (position) headers["Last-Event-ID"] = position;
    const response = await fetch(box.dataset.esTail, { headers, signal, credentials: "omit", cache: "no-store" });
    // A token that is refused is answered with a stream, whose stream-error says why.
    if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
      const text = (await response.text()).trim();
      isOver = response.status === 501;
      throw new Error(text.slice(0, 300) || `${response.status}`);
    }
    if (response.ok) say("Live.");
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done || isOver) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      blocks.forEach(take);
      listen();
    }
  }

  async function run() {
    controller = new AbortController();
    const { signal } = controller;
    while (!isOver) {
      try {
        await read(signal);
        if (!isOver) say("The stream ended; opening it again.");
      } catch (error) {
        if (signal.aborted) return;
        say(isOver ? `Ended: ${error.message}` : `Cannot be read: ${error.message}. Trying again.`);
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      if (signal.aborted) return; // by Stop, which Go on may have followed
    }
  }

  stop.addEventListener("click", () => {
    if (!controller.signal.aborted) {
      controller.abort();
      stop.textContent = "Go on";
      say("Stopped.");
    } else {
      stop.textContent = "Stop";
      isOver = false;
      run();
    }
  });
  document.querySelector("[data-es-tail-clear]").addEventListener("click", () => list.replaceChildren());
  run();
})();
