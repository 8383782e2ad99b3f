// The browsable API's page of a stream. The stream is at the page's own address.
(() => {
  "use strict";
  const MOST = 500;
  const live = document.getElementById("eventstream-live");
  const list = document.getElementById("eventstream-events");
  const state = document.getElementById("eventstream-state");
  const count = document.getElementById("eventstream-count");
  const quiet = document.getElementById("eventstream-quiet");
  const before = document.querySelector(".content-main .response-info");
  before.parentNode.insertBefore(live, before);

  const types = JSON.parse(document.getElementById("eventstream-types").textContent);
  const own = ["stream-open", "stream-reset", "stream-error", "initial-state", "keep-alive"];
  let events = 0;

  function setState(text) {
    state.textContent = text;
    state.dataset.state = text;
  }

  function cell(item, tag, className, text) {
    const found = document.createElement(tag);
    found.className = className;
    found.textContent = text; // never as HTML: the data are anybody's
    item.append(found);
  }

  function add(event) {
    const item = document.createElement("li");
    item.className = event.type;
    cell(item, "time", "time", new Date().toLocaleTimeString());
    cell(item, "span", "type", event.type);
    cell(item, "span", "id", event.lastEventId);
    cell(item, "span", "data", event.data);
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    list.append(item);
    while (list.children.length > MOST) list.firstChild.remove();
    if (atEnd) list.scrollTop = list.scrollHeight;
    if (!own.includes(event.type)) events += 1;
    count.textContent = events === 1 ? "1 event" : `${events} events`;
  }

  const address = new URL(window.location.href);
  address.searchParams.delete("format"); // the page's, not the stream's
  const stream = new EventSource(address);
  stream.onopen = () => setState("open");
  stream.onerror = () =>
    setState(stream.readyState === EventSource.CLOSED ? "closed" : "connecting");
  for (const type of new Set([...types, ...own])) stream.addEventListener(type, add);
  stream.addEventListener("stream-error", () => {
    stream.close();
    setState("closed");
  });

  const hide = () => list.classList.toggle("quiet", quiet.checked);
  quiet.addEventListener("change", hide);
  hide();
  document.getElementById("eventstream-clear").addEventListener("click", () => {
    list.replaceChildren();
    events = 0;
    count.textContent = "0 events";
  });
})();
