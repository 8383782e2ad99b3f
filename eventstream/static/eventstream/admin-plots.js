// The overview's plots. uPlot draws them; the points come from the database, one a minute.
"use strict";

(() => {
  const section = document.querySelector("[data-es-series]");
  if (!section || typeof uPlot === "undefined") return;
  const note = section.querySelector("[data-es-plots-note]");
  const plots = new Map();
  const REFRESH_MS = 30000;
  const LONE_SECONDS = 600;
  // Told apart by people who see no red or green, too; dashes tell the rest.
  const COLORS = {
    light: ["#0a58a5", "#b35900", "#6639ba", "#0f766e", "#a3255f"],
    dark: ["#8cc1ff", "#ffb77c", "#cbb2ff", "#6ee7d8", "#ff9fce"],
  };
  const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3], [12, 4]];

  function style() {
    const css = getComputedStyle(section);
    const isDark = css.colorScheme === "dark";
    return {
      fg: css.getPropertyValue("--es-soft").trim(),
      line: css.getPropertyValue("--es-line").trim(),
      colors: isDark ? COLORS.dark : COLORS.light,
    };
  }

  function lines(name, data) {
    const targets = Object.entries(data.targets);
    const each = (what) => targets.map(([target, columns]) => [target, columns[what]]);
    if (name === "events") {
      return [["written", data.events], ...each("confirmed").map(([target, values]) => [`confirmed by ${target}`, values])];
    }
    if (name === "oldest") return [["oldest", data.oldest]];
    if (name === "readers") return [["readers", data.readers]];
    return each(name);
  }

  function draw(element, data) {
    const name = element.dataset.esPlot;
    const series = lines(name, data);
    const { fg, line, colors } = style();
    const label = element.closest("figure").querySelector("figcaption").textContent;
    element.setAttribute("aria-label", describe(label, series));
    plots.get(name)?.destroy();
    element.replaceChildren();
    const values = [data.at, ...series.map(([, column]) => column)];
    const axis = { stroke: fg, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const options = {
      width: Math.max(240, element.clientWidth),
      height: 180,
      scales: {
        // Around a single point uPlot would show a thousand days, each tick at midnight.
        x: { range: (_, first, last) => (data.at.length === 1 ? [first - LONE_SECONDS, first] : [first, last]) },
        y: { range: (_, low, high) => [0, Math.max(1, high === null ? 1 : high * 1.1)] },
      },
      axes: [{ ...axis, space: 60, values: (_, ticks) => ticks.map(clock) }, { ...axis, size: 55 }],
      series: [
        { value: "{HH}:{mm}" },
        ...series.map(([title], index) => ({
          label: title,
          stroke: colors[index % colors.length],
          dash: DASHES[index % DASHES.length],
          width: 2,
          spanGaps: false,
          points: { show: data.at.length < 3 },
          value: (_, value) => (value === null || value === undefined ? "—" : round(value)),
        })),
      ],
    };
    plots.set(name, new uPlot(options, values, element));
  }

  function clock(seconds) {
    const at = new Date(seconds * 1000);
    return [at.getHours(), at.getMinutes()].map((part) => String(part).padStart(2, "0")).join(":");
  }

  function describe(label, series) {
    const words = series.map(([title, column]) => {
      const known = column.filter((value) => value !== null && value !== undefined);
      if (!known.length) return `${title}: nothing known`;
      return `${title}: now ${round(known[known.length - 1])}, at most ${round(Math.max(...known))}`;
    });
    return `${label.trim()}. ${words.join("; ") || "nothing known"}.`;
  }

  function round(value) {
    return value >= 100 ? String(Math.round(value)) : String(Math.round(value * 1000) / 1000);
  }

  let latest = null;

  function drawAll() {
    if (!latest) return;
    for (const element of section.querySelectorAll("[data-es-plot]")) draw(element, latest);
    const count = latest.at.length;
    note.textContent = count ? `${count === 1 ? "1 point" : `${count} points`}, one a minute, in the time of this browser.` : "No points yet: the sweep writes one a minute, and the first is there to subtract from.";
    section.dataset.esDrawn = String(count);
  }

  const chosen = () => section.querySelector('input[name="hours"]:checked').value;

  async function refresh() {
    const hours = chosen();
    try {
      // By the location, which has no password, if the page was opened with one: fetch takes none.
      const response = await fetch(new URL(`${section.dataset.esSeries}?hours=${hours}`, location), {
        signal: AbortSignal.timeout(REFRESH_MS),
      });
      if (!response.ok || response.redirected) throw new Error(response.statusText);
      const points = await response.json();
      if (hours !== chosen()) return; // and the answer to that may have come before
      latest = points;
      drawAll();
    } catch (error) {
      note.textContent = `The points cannot be loaded: ${error.message || error}`;
    }
  }

  for (const radio of section.querySelectorAll('input[name="hours"]')) radio.addEventListener("change", refresh);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  new MutationObserver(drawAll).observe(document.documentElement, { attributeFilter: ["data-theme", "class"] });
  let width = 0;
  new ResizeObserver(() => {
    if (section.clientWidth !== width) {
      width = section.clientWidth;
      drawAll();
    }
  }).observe(section);
  setInterval(refresh, REFRESH_MS);
  refresh();
})();
