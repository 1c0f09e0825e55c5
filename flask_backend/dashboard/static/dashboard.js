"use strict"; // Each page works without this script: it refreshes, measures rates, and listens to keys.
(() => {
  const WAITS = ["5", "2", "15", "off"], THEMES = ["system", "light", "dark"], LONGEST_MS = 120e3, SAMPLES = 60;
  const find = (selector, from = document) => from.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const attempt = (act) => { try { return act(); } catch { return null; } }; // a browser may forbid storage
  const recall = (name, values) => values.find((each) => each === attempt(() => localStorage[`flask-backend ${name}`]));
  const remember = (name, value) => attempt(() => { localStorage[`flask-backend ${name}`] = value; });
  let theme = recall("theme", THEMES) ?? THEMES[0], every = recall("refresh", WAITS) ?? WAITS[0];
  let keys = recall("keys", ["off"]) ?? "on", failures = 0, staleSince = "", timer, request, lastBox;
  document.documentElement.dataset.theme = theme; // before the first paint; it also shows what needs this script
  const FIELDS = "select, textarea, input:not([type=checkbox], [type=hidden])"; // a refresh leaves them as they are
  const BUSY = `dialog[open], td input:checked, main :is(${FIELDS}):focus`;
  const isPaused = () => document.hidden || every === "off" || find(BUSY) || !find("[data-live]");
  const clock = () => new Date().toTimeString().slice(0, 5);
  const say = (text) => { if (find("#status").textContent !== text) find("#status").textContent = text; };
  async function refresh() {
    request?.abort();
    const mine = request = new AbortController(), limit = setTimeout(() => mine.abort(), 10e3);
    try {
      const asked = { headers: { Accept: "text/html; fragment" }, signal: mine.signal, redirect: "manual" };
      const answer = await fetch(location.href, asked).catch(() => { throw new Error("no answer"); });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!answer.ok) throw new Error(find("h1", page)?.textContent ?? "log in again");
      if (find("[data-away]")) location.reload(); // the broker is back
      if (isPaused()) return; // since the request
      for (const part of all("[data-live]")) {
        const next = page.getElementById(part.id);
        if (next) Idiomorph.morph(part, next, { callbacks: { beforeNodeMorphed: (old) => !old.matches?.(FIELDS) } });
      }
      measure();
      say(staleSince && `Up to date again at ${clock()}`);
      [failures, staleSince] = [0, ""];
    } catch (error) {
      if (mine === request) failures += 1, say(`Stale since ${staleSince ||= clock()}: ${error.message}`);
    } finally { clearTimeout(limit); }
  }
  function schedule() {
    clearTimeout(timer);
    const turn = async () => { if (!isPaused()) await refresh(); schedule(); };
    if (every !== "off") timer = setTimeout(turn, Math.min(every * 1e3 * 2 ** failures, LONGEST_MS));
  }
  // The rates of each queue, from the counters of two looks. This tab keeps one sample in 5 seconds, for the line.
  function measure() {
    for (const row of all("tr[data-queue]")) {
      const now = [row.closest("[data-at]").dataset.at, row.dataset.put, row.dataset.deleted].map(Number);
      const name = `flask-backend ${row.dataset.queue}`, kept = attempt(() => JSON.parse(sessionStorage[name])) ?? [];
      const past = kept.filter((each) => each[0] > now[0] - 300 && each[0] < now[0]);
      const rate = (from, to, n) => Math.max(0, to[n] - from[n]) / (to[0] - from[0]);
      const before = past.findLast((each) => each[0] <= now[0] - 1);
      for (const cell of before ? all("[data-rate]", row) : [])
        cell.textContent = +rate(before, now, cell.dataset.rate === "put" ? 1 : 2).toPrecision(2);
      const samples = past.length && past.at(-1)[0] > now[0] - 4.5 ? past : [...past, now].slice(-SAMPLES);
      attempt(() => { sessionStorage[name] = JSON.stringify(samples); });
      const x = (at) => (100 - (now[0] - at) / 3).toFixed(1), { reloads = "" } = row.closest("[data-at]").dataset;
      const rates = samples.slice(1).map((each, n) => [x(each[0]), rate(samples[n], each, 2)]);
      const most = Math.max(1, ...rates.map((each) => each[1]));
      const points = rates.map(([at, value]) => `${at},${(17 - 15 * value / most).toFixed(1)}`).join(" ");
      for (const cell of all("[data-spark]", row)) cell.innerHTML = `<svg viewBox="0 0 100 18" width="100" height="18"
        aria-hidden="true" fill="none" stroke="currentColor" stroke-width="1.5"><polyline points="${points}"/><polygon
        points="${parseFloat(points) || 0},17 ${points} 100,17" fill="currentColor" fill-opacity="0.15" stroke="none"/>
        <path d="${reloads.replace(/\S+ ?/g, (at) => `M${x(at)},0v18`)}" stroke-dasharray="2"/></svg>`;
    }
  }
  const set = {
    theme(to) { remember("theme", document.documentElement.dataset.theme = theme = to); },
    refresh(to) { remember("refresh", find("#refresh").value = every = to); schedule(); },
    keys(to) { remember("keys", keys = to); find("#has-keys").checked = to !== "off"; },
  };
  const move = (step, rows = all("tbody tr:has(a)")) =>
    find("a", rows[Math.max(0, rows.findIndex((row) => row.matches(":focus-within")) + step)] ?? find("main"))?.focus();
  const ACTS = {
    "/": () => find("input[type=search]")?.focus(), "?": () => find("#keys").showModal(),
    j: () => move(1), k: () => move(-1), x: () => find("tr:focus-within input[type=checkbox]")?.click(),
    r: () => set.refresh(every === "off" ? "5" : "off"), t: () => set.theme(THEMES[(THEMES.indexOf(theme) + 1) % 3]),
    close: () => find("#keys").close(),
  };
  function onKey(event) {
    const isTyping = event.target.closest("input:not([type=checkbox]), textarea, select, dialog");
    if (keys === "off" || isTyping || event.ctrlKey || event.altKey || event.metaKey) return;
    const link = find(`nav [data-key="${CSS.escape(event.key)}"]`), act = link ? () => link.click() : ACTS[event.key];
    if (act) event.preventDefault(), act();
  }
  function onClick({ target, shiftKey }) { // with shift, a click ticks all boxes from the one that was clicked last
    const box = target.closest("td input[type=checkbox]"), boxes = all("td input[type=checkbox]");
    const [from, to] = [boxes.indexOf(lastBox), boxes.indexOf(box)].sort((a, b) => a - b);
    if (box && shiftKey && from >= 0) for (const each of boxes.slice(from, to + 1)) each.checked = box.checked;
    lastBox = box ?? lastBox, ACTS[target.dataset.act]?.();
    if (target.dataset.copy) getSelection().selectAllChildren(find(target.dataset.copy)), // no clipboard without HTTPS
      say(document.execCommand("copy") ? "Copied" : "Press Ctrl+C to copy");
  }
  document.addEventListener("DOMContentLoaded", () => {
    for (const [name, to] of Object.entries({ theme, refresh: every, keys })) set[name](to);
    find("#refresh").onchange = (event) => set.refresh(event.target.value);
    find("#has-keys").onchange = (event) => set.keys(event.target.checked ? "on" : "off");
    document.onvisibilitychange = () => { if (!isPaused()) refresh(); };
    [document.onclick, document.onkeydown] = [onClick, onKey], measure();
    setTimeout(() => find("[data-continue]")?.click(), 300); // the next step of a large act, unless it is stopped
  });
})();
