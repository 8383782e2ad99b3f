"use strict";

const { channel, position } = document.currentScript.dataset;
const token = document.querySelector("[name=csrfmiddlewaretoken]").value;
const ROWS = 12;

/** One stream and its table. */
class Board {
  constructor(root) {
    this.root = root;
    this.position = position;
    this.received = 0;
    this.gaps = 0;
    this.button = this.find(".connection");
    this.button.addEventListener("click", () => (this.source ? this.disconnect() : this.connect()));
    this.connect();
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  connect() {
    this.show("connecting", "");
    this.button.textContent = "Disconnect";
    // The page's own position first, the last one received after that.
    const source = new EventStream(`/events/?channel=${encodeURIComponent(channel)}`, {
      lastEventId: this.position,
      share: true, // or the third window would take the last of the browser's six connections
    });
    this.source = source;
    source.addEventListener("stream-status", ({ status }) => {
      if (status !== "closed" && status !== "denied") this.show(status.replace("-", " "), status === "live" ? "open" : "");
    });
    source.addEventListener("message", (event) => this.receive(event));
    source.addEventListener("stream-reset", () => {
      // The log no longer reaches back to our position: the page has to be read anew.
      location.reload();
    });
    source.addEventListener("stream-error", (event) => {
      this.disconnect();
      this.show(event.text, "closed");
    });
  }

  disconnect() {
    this.source.close();
    this.source = null;
    this.button.textContent = "Connect";
    this.show("disconnected", "closed");
  }

  show(text, name) {
    const state = this.find(".state");
    state.textContent = text;
    state.className = `state ${name}`;
  }

  receive(event) {
    const order = JSON.parse(event.data);
    const id = Number(event.lastEventId.split(":").pop());
    if (id !== Number(this.position.split(":").pop()) + 1) this.gaps += 1;
    this.position = event.lastEventId;
    this.received += 1;
    const milliseconds = Math.max(0, Date.now() - order.sent_at * 1000);
    const seconds = milliseconds / 1000;
    const latency = seconds < 1 ? `${Math.round(milliseconds)} ms` : `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
    const row = document.createElement("tr");
    row.className = "new";
    for (const text of [id, `#${order.number}`, `${order.quantity} × ${order.item}`, latency]) {
      row.insertCell().textContent = text;
    }
    row.lastChild.className = "number";
    const body = this.find("tbody");
    body.prepend(row);
    while (body.rows.length > ROWS) body.lastElementChild.remove();
    this.find(".position").textContent = this.position;
    this.find(".count").textContent = `${this.received} received`;
    const gaps = this.find(".gaps");
    gaps.textContent = this.gaps ? `${this.gaps} gaps` : "no gap";
    gaps.classList.toggle("some", this.gaps > 0);
  }
}

async function post(path, fields) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "X-CSRFToken": token },
    body: new URLSearchParams(fields),
  });
  if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
  return response.json();
}

let rolledBack = 0;
for (const button of document.querySelectorAll("[data-count]")) {
  button.addEventListener("click", async () => {
    const rollback = "rollback" in button.dataset;
    await post("/orders/", { count: button.dataset.count, rollback: rollback ? 1 : 0 });
    if (rollback) {
      rolledBack += 1;
      document.getElementById("rolled-back").textContent = `${rolledBack} rolled back: nothing arrived, and no id is missing.`;
    }
    refresh();
  });
}

const workerButton = document.getElementById("worker");
let isRunning = true;
workerButton?.addEventListener("click", async () => {
  workerButton.disabled = true;
  show(await post("/worker/", { run: isRunning ? 0 : 1 }));
  workerButton.disabled = false;
});

function show({ waiting, worker }) {
  document.getElementById("waiting").textContent = waiting;
  document.querySelector(".waiting").classList.toggle("some", waiting > 0);
  if (workerButton && worker !== null) {
    isRunning = worker;
    workerButton.textContent = worker ? "Stop the worker" : "Start the worker";
    workerButton.classList.toggle("quiet", worker);
  }
}

async function refresh() {
  try {
    show(await (await fetch("/status/")).json());
  } catch {
    // The streams show that the server is away.
  }
}

for (const root of document.querySelectorAll("[data-window]")) new Board(root);
refresh();
setInterval(refresh, 1000);
