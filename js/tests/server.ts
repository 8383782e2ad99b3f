/** A real HTTP server whose answers a test writes, and waiting for what comes of them. */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { TestContext } from "node:test";

import { EventStream, type EventStreamOptions } from "../src/eventstream.ts";

export interface Request {
  query: URLSearchParams;
  headers: IncomingMessage["headers"];
  at: number;
}

export type Answer = (response: ServerResponse, request: Request, number: number) => void;

export class Server {
  readonly requests: Request[] = [];
  readonly responses = new Set<ServerResponse>();
  url = "";

  static async start(t: TestContext, answer: Answer): Promise<Server> {
    const server = new Server();
    const http = createServer((incoming, response) => {
      const url = new URL(incoming.url!, "http://localhost");
      const request = { query: url.searchParams, headers: incoming.headers, at: Date.now() };
      server.requests.push(request);
      server.responses.add(response);
      response.on("close", () => server.responses.delete(response));
      answer(response, request, server.requests.length);
    });
    await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve));
    server.url = `http://127.0.0.1:${(http.address() as AddressInfo).port}/events/`;
    t.after(() => {
      http.closeAllConnections();
      http.close();
    });
    return server;
  }

  write(text: string): void {
    for (const response of this.responses) response.write(text);
  }

  cut(): void {
    for (const response of this.responses) response.destroy();
  }
}

export function open(response: ServerResponse, text = ""): void {
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  // Soon, so that no test waits for the two seconds that are the default.
  response.write(`retry: 20\n\n${text}`);
}

export function event(id: string | number, data: string | number = id, type = "message"): string {
  const position = typeof id === "number" ? `c:${id}` : id;
  return `id: ${position}\nevent: ${type}\ndata: ${data}\n\n`;
}

export function opening(position: string, head = position, keepAlive = 20, states?: number): string {
  const data = JSON.stringify({ head, keep_alive: keepAlive, states });
  return `${position && `id: ${position}\n`}event: stream-open\ndata: ${data}\n\n`;
}

/** An initial state: with the position it leads to, or "" of a best-effort channel. */
export function state(position: string, data: string | number): string {
  return `${position && `id: ${position}\n`}event: initial-state\ndata: ${data}\n\n`;
}

/** A stream that notes what it dispatches, and is closed with the test. */
export class Recorder {
  readonly stream: EventStream;
  readonly data: string[] = [];
  readonly ids: string[] = [];
  readonly statuses: string[] = [];
  readonly types: string[] = [];
  readonly states: string[] = [];

  constructor(t: TestContext, url: string, options: EventStreamOptions = {}) {
    this.stream = new EventStream(url, { max_retry_time: 40, ...options });
    t.after(() => this.stream.close());
    this.stream.addEventListener("message", (message) => {
      this.data.push(message.data);
      this.ids.push(message.lastEventId);
    });
    this.stream.addEventListener("initial-state", (message) => this.states.push(message.data));
    this.stream.addEventListener("stream-status", ({ status }) => this.statuses.push(status));
    for (const type of ["open", "error", "stream-open", "stream-reset", "stream-error"]) {
      this.stream.addEventListener(type, () => this.types.push(type));
    }
  }
}

export async function until(condition: () => unknown, what: string, timeout = 8_000): Promise<void> {
  const deadline = Date.now() + timeout;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`not within ${timeout} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

export function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
