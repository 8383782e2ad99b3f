// The operators' pages: health that refreshes itself, and ticking all.
"use strict";

(() => {
  const POLL_MS = 5000;
  const SILENT_MS = 20000;

  const panel = document.querySelector("[data-es-stream]");
  if (panel) live(panel);

  const all = document.querySelector("[data-es-all]");
  if (all) {
    const boxes = () => [...document.querySelectorAll('input[name="item"]')];
    all.addEventListener("change", () => {
      for (const box of boxes()) box.checked = all.checked;
    });
    document.addEventListener("change", (event) => {
      if (event.target.name === "item") {
        all.checked = boxes().every((box) => box.checked);
        all.indeterminate = !all.checked && boxes().some((box) => box.checked);
      }
    });
  }

  function live(panel) {
    const parts = document.querySelector("[data-es-parts]");
    const announcer = document.querySelector("[data-es-announce]");
    let heardAt = Date.now();
    let headline = null;

    function show(state) {
      heardAt = Date.now();
      // Escaped where it was rendered, by the same templates as the page.
      replace(panel, state.html);
      if (parts) replace(parts, state.parts);
      if (state.level !== headline) {
        if (headline !== null && announcer) announcer.textContent = state.headline;
        headline = state.level;
      }
      document.documentElement.dataset.esLive = String(heardAt);
    }

    const source = new EventSource(panel.dataset.esStream);
    source.addEventListener("status", (event) => show(JSON.parse(event.data)));
    source.addEventListener("stream-error", () => source.close());

    // Where the server cannot stream, or the stream hangs: ask.
    setInterval(async () => {
      if (Date.now() - heardAt < (source.readyState === EventSource.OPEN ? SILENT_MS : POLL_MS)) return;
      try {
        const response = await fetch(panel.dataset.esStatus, { headers: { Accept: "application/json" } });
        if (response.ok && !response.redirected) show(await response.json());
        else stale();
      } catch {
        stale();
      }
    }, POLL_MS);

    function stale() {
      const meta = panel.querySelector(".es-meta");
      if (meta) meta.textContent = "This server does not answer any more, or you have been logged out: what stands here is old.";
    }
  }

  // Keeps the keyboard where it is: what had the focus gets it again.
  function replace(element, html) {
    if (element.innerHTML === html) return;
    const active = document.activeElement;
    const href = element.contains(active) ? active.getAttribute("href") : null;
    element.innerHTML = html;
    if (href !== null) {
      for (const link of element.querySelectorAll("a[href]")) {
        if (link.getAttribute("href") === href) {
          link.focus();
          break;
        }
      }
    }
  }
})();
