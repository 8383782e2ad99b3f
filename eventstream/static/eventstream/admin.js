// The operators' pages: health and lists that refresh themselves, and ticking all.
"use strict";

(() => {
  const POLL_MS = 5000;
  const SILENT_MS = 20000;

  const panel = document.querySelector("[data-es-stream]");
  if (panel) live(panel);

  const table = document.querySelector("[data-es-table]");
  const boxes = () => [...document.querySelectorAll('input[name="item"]')];

  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-es-all]")) {
      for (const box of boxes()) box.checked = event.target.checked;
    }
    if (event.target.name === "item") countTicks();
  });

  function countTicks() {
    const all = document.querySelector("[data-es-all]");
    if (!all) return;
    all.checked = boxes().length > 0 && boxes().every((box) => box.checked);
    all.indeterminate = !all.checked && boxes().some((box) => box.checked);
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
      if (table && state.table !== undefined) refresh(table, state.table);
      if (state.level !== headline) {
        if (headline !== null && announcer) announcer.textContent = state.headline;
        headline = state.level;
      }
      document.documentElement.dataset.esLive = String(heardAt);
    }

    const source = new EventSource(panel.dataset.esStream);
    source.addEventListener("status", (event) => show(JSON.parse(event.data)));
    source.addEventListener("stream-error", () => source.close());

    // Where the server cannot stream, or the stream hangs: ask. That may hang, too.
    let isAsking = false;
    setInterval(async () => {
      if (isAsking || Date.now() - heardAt < (source.readyState === EventSource.OPEN ? SILENT_MS : POLL_MS)) return;
      isAsking = true;
      try {
        // By the location, which has no password, if the page was opened with one: fetch takes none.
        const response = await fetch(new URL(panel.dataset.esStatus, location), {
          headers: { Accept: "application/json" },
          signal: AbortSignal.timeout(SILENT_MS),
        });
        if (response.ok && !response.redirected) show(await response.json());
        else stale();
      } catch {
        stale();
      } finally {
        isAsking = false;
      }
    }, POLL_MS);

    function stale() {
      const meta = panel.querySelector(".es-meta");
      if (meta) meta.textContent = "This server does not answer any more, or you have been logged out: what stands here is old.";
    }
  }

  // Row by row, in place: what is ticked, has the keyboard or is marked with the mouse stays
  // as it is, also when it has been delivered, or has moved to another page, meanwhile.
  function refresh(element, html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    const [before, after] = [element, template.content].map((root) => root.querySelector("table"));
    if (!before || (!after && !isHeld(before))) {
      if (element.innerHTML !== html) element.replaceChildren(template.content);
      return;
    }
    const found = new Map([...(after ? after.tBodies : [])].map((row) => [row.dataset.esEvent, row]));
    for (const row of [...before.tBodies]) {
      if (found.has(row.dataset.esEvent)) continue;
      if (isHeld(row)) mark(row);
      else row.remove();
    }
    let next = before.tBodies[0] || null; // both are in the same order
    for (const [key, row] of found) {
      while (next && !found.has(next.dataset.esEvent)) next = next.nextElementSibling;
      if (next && next.dataset.esEvent === key) {
        const current = next;
        next = next.nextElementSibling;
        update(current, row);
      } else {
        before.insertBefore(row, next);
      }
    }
    replace(before.caption, after ? after.caption.innerHTML : "None is on this page any more but what is ticked.");
    const [old, fresh] = [element, template.content].map((root) => root.querySelector(".es-pager"));
    if (old && fresh) replace(old, fresh.innerHTML);
    else if (fresh) element.append(fresh);
    else if (old) old.remove();
    countTicks();
  }

  function isHeld(element) {
    const selection = getSelection();
    return Boolean(
      element.querySelector('input[name="item"]:checked') ||
        (element.tagName === "TBODY" && element.contains(document.activeElement)) ||
        (!selection.isCollapsed && selection.containsNode(element, true)),
    );
  }

  const values = (row) => [...row.querySelectorAll('input[name="item"]')].map((box) => box.value).join("\n");

  function update(row, fresh) {
    if (row.innerHTML === fresh.innerHTML) return;
    if (values(row) !== values(fresh) || row.rows.length !== fresh.rows.length) {
      // Some target has accepted it: what is ticked for the others goes on being ticked.
      const ticked = [...row.querySelectorAll("input:checked")].map((box) => twin(fresh, box));
      const active = row.contains(document.activeElement) ? document.activeElement : null;
      const focused = active && twin(fresh, active);
      if (ticked.includes(null) || (active && !focused)) {
        mark(row);
        return;
      }
      for (const box of ticked) box.checked = true;
      row.replaceWith(fresh);
      if (focused) focused.focus();
      return;
    }
    if (row.dataset.esGone) {
      delete row.dataset.esGone;
      row.querySelector("[data-es-note]").remove();
    }
    [...row.rows].forEach((line, index) => {
      [...line.cells].forEach((cell, place) => {
        const wanted = fresh.rows[index].cells[place];
        if (cell.querySelector("input") || cell.contains(document.activeElement)) return;
        if (cell.innerHTML !== wanted.innerHTML) cell.innerHTML = wanted.innerHTML;
        if (cell.title !== wanted.title) cell.title = wanted.title;
      });
    });
  }

  function twin(root, element) {
    const name = element.matches("input") ? "value" : "href";
    const alike = [...root.querySelectorAll(element.tagName)];
    return alike.find((other) => other.getAttribute(name) === element.getAttribute(name)) || null;
  }

  function mark(row) {
    if (row.dataset.esGone) return;
    row.dataset.esGone = "yes";
    const note = document.createElement("div");
    note.className = "es-badge es-warning";
    note.dataset.esNote = "";
    note.textContent = "changed since: delivered, or on another page";
    row.rows[0].cells[1].append(note);
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
