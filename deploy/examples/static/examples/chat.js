"use strict";
const form = document.getElementById("say");
const log = document.getElementById("log");
const state = document.getElementById("state");
const { room, position } = form.dataset;
const isRest = form.dataset.style === "rest";
const base = `${isRest ? "/api/rooms" : "/chat"}/${encodeURIComponent(room)}`;
const shown = new Set();

function add(message) {
  if (shown.has(message.id)) return; // it was in the state already
  shown.add(message.id);
  const item = document.createElement("li");
  const name = document.createElement("strong");
  name.textContent = message.user;
  item.append(name, `: ${message.text}`);
  log.append(item);
  log.scrollTop = log.scrollHeight;
}

function showState(messages) {
  log.replaceChildren();
  shown.clear();
  messages.forEach(add);
}

if (!isRest) showState(JSON.parse(document.getElementById("messages").textContent));
const query = isRest ? "" : `?lastEventId=${encodeURIComponent(position)}`;
const stream = new EventSource(`${base}/events/${query}`);
stream.addEventListener("open", () => (state.textContent = "connected"));
stream.addEventListener("error", () => {
  // After an answer that is no stream an EventSource does not come back.
  const isOver = stream.readyState === EventSource.CLOSED;
  state.textContent = isOver ? "closed: load the page again" : "connecting again";
});
// What was missed is not stored any more. The page's state is in the page, the other's in the stream.
if (!isRest) stream.addEventListener("stream-reset", () => location.reload());
stream.addEventListener("initial-state", (event) => showState(JSON.parse(event.data)));
stream.addEventListener("message", (event) => add(JSON.parse(event.data)));
stream.addEventListener("stream-error", (event) => {
  stream.close();
  state.textContent = JSON.parse(event.data).text;
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = new FormData(form);
  form.elements.text.value = "";
  const answer = await fetch(`${base}/messages/`, { method: "POST", body });
  if (!answer.ok) state.textContent = `not sent: ${answer.status}`;
});
