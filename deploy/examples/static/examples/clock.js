"use strict";
const log = document.getElementById("log");
const state = document.getElementById("state");
const stream = new EventSource("events/");
stream.addEventListener("open", () => (state.textContent = "connected"));
stream.addEventListener("error", () => {
  // After an answer that is no stream an EventSource does not come back.
  const isOver = stream.readyState === EventSource.CLOSED;
  state.textContent = isOver ? "closed: load the page again" : "connecting again";
});
stream.addEventListener("message", (event) => {
  const item = document.createElement("li");
  item.textContent = JSON.parse(event.data);
  log.prepend(item);
  while (log.children.length > 20) log.lastChild.remove();
});
