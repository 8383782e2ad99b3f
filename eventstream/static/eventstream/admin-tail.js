// The live tail of a channel: the project's own stream, with a token in a header.
"use strict";

(() => {
  const box = document.querySelector("[data-es-tail]");
  if (!box) return;
  const MAX_ROWS = 200;
  const MAX_LENGTH = 500;
  const STATES = {
    connecting: "Connecting.",
    "catching-up": "Reading what was sent before.",
    live: "Live.",
    offline: "Cannot be read. Trying again.",
    closed: "Stopped.",
  };
  const HIDDEN = ["stream-open", "keep-alive"];
  const list = box.querySelector("ol");
  const stateLine = document.querySelector("[data-es-tail-state]");
  const stop = document.querySelector("[data-es-tail-stop]");
  let stream;

  function cell(text) {
    const span = document.createElement("span");
    // Never as HTML: it is whatever the application sent.
    span.textContent = text.length > MAX_LENGTH ? `${text.slice(0, MAX_LENGTH)}…` : text;
    return span;
  }

  function show(type, eid, data) {
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    const row = document.createElement("li");
    row.className = "es-mono";
    row.append(cell(new Date().toLocaleTimeString("en-GB")), cell(eid ? `#${eid}` : "no id"), cell(type), cell(data));
    list.append(row);
    while (list.children.length > MAX_ROWS) list.firstChild.remove();
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  }

  class Tail extends EventStream {
    #position = this.lastEventId;

    // Whatever its type: a listener would have to know that beforehand.
    dispatchEvent(event) {
      const isNumbered = this.lastEventId !== this.#position;
      this.#position = this.lastEventId;
      if (event.type === "stream-status") {
        stateLine.textContent = STATES[this.status] ?? "";
        stop.textContent = this.readyState === EventStream.CLOSED ? "Go on" : "Stop";
      } else if (event.type === "stream-error") {
        const isExpired = event.condition === "token-expired";
        stateLine.textContent = isExpired ? "Ended: load the page again to go on." : `Ended: ${event.text}`;
      } else if (event.type === "stream-reset") {
        show(event.type, "", "what is older is not stored any more");
      } else if (event instanceof MessageEvent && !HIDDEN.includes(event.type)) {
        show(event.type, isNumbered && this.#position.slice(this.#position.lastIndexOf(":") + 1), event.data);
      }
      return super.dispatchEvent(event);
    }
  }

  function start(lastEventId) {
    stateLine.textContent = STATES.connecting;
    stop.textContent = "Stop";
    stream = new Tail(box.dataset.esTail, { lastEventId, token: box.dataset.esToken });
  }

  stop.addEventListener("click", () => {
    if (stream.readyState === EventStream.CLOSED) start(stream.lastEventId);
    else stream.close();
  });
  document.querySelector("[data-es-tail-clear]").addEventListener("click", () => list.replaceChildren());
  start(box.dataset.esPosition);
})();
