// Keeps the page fresh: puts the pieces that the stream brings in their places, and opens incidents in a dialog.
// Pieces are written and escaped by khook; the policy of the page lets no script in them run.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const phases = ["pending", "firing", "notified", "resolved"];
  const state = $("state"), moves = $("moves"), dialog = $("dialog"), detail = $("detail"), filter = $("filter");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let version = document.body.dataset.version;
  let known = JSON.parse(document.body.dataset.state);
  let heard = new Date();

  // ---- pieces

  const parse = (html) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    return template.content.firstElementChild;
  };

  const put = (element) => {
    const old = $(element.id), list = $(element.dataset.list);
    if (!list) return;
    const focused = old && old.contains(document.activeElement);
    const from = old && old.dataset.list;
    const before = old && !old.hidden && from !== element.dataset.list ? old.getBoundingClientRect() : null;
    if (old) old.remove();
    const order = element.dataset.order;
    // Lists are in order, so a search in halves finds the place.
    let low = 0, high = list.children.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (list.children[middle].dataset.order < order) low = middle + 1; else high = middle;
    }
    list.insertBefore(element, list.children[low] || null);
    sift(element);
    if (focused) element.querySelector("a")?.focus({ preventScroll: true });
    if (element.id.startsWith("incident:") && from !== element.dataset.list) {
      tell(element);
      if (before && !still.matches && !element.hidden) fly(element, before);
    }
    if (dialog.open && detail.dataset.id === element.id) show(detail.dataset.href, element.id);
  };

  const fly = (element, from) => {
    const to = element.getBoundingClientRect();
    const start = `translate(${from.left - to.left}px, ${from.top - to.top}px)`;
    element.animate([{ transform: start, opacity: 0.6 }, { transform: "none", opacity: 1 }], { duration: 350, easing: "ease-out" });
  };

  const drop = (id) => {
    const old = $(id);
    if (!old) return;
    const focused = old.contains(document.activeElement);
    const next = old.nextElementSibling || old.previousElementSibling;
    old.remove();
    if (focused) (next?.querySelector("a") || $("incidents")).focus({ preventScroll: true });
    if (dialog.open && detail.dataset.id === id) show(detail.dataset.href, id);
  };

  const take = (name, data) => {
    const pieces = JSON.parse(data);
    const elements = pieces.upsert.map(parse);
    if (name === "snapshot") {
      const ids = new Set(elements.map((element) => element.id));
      for (const old of document.querySelectorAll("[data-list]")) if (!ids.has(old.id)) drop(old.id);
    }
    pieces.remove.forEach(drop);
    elements.forEach(put);
    known = pieces.state;
    count();
    choices();
  };

  const count = () => {
    for (const phase of phases) {
      const all = $(phase).children.length;
      const seen = $(phase).querySelectorAll(":scope > :not([hidden])").length;
      document.querySelector(`[data-count="${phase}"]`).textContent = seen === all ? all : `${seen} of ${all}`;
    }
  };

  // ---- what is said of moves, to those who listen: all that moves within a few seconds in one sentence

  let told = new Map(), timer = 0;
  const tell = (element) => {
    if (element.hidden) return;
    told.set(element.id, `${element.querySelector("a").textContent} is ${element.dataset.list}`);
    timer ||= setTimeout(() => {
      const all = [...told.values()];
      moves.textContent = all.length > 3 ? `${all.length} incidents have moved` : all.join(", ");
      told = new Map();
      timer = 0;
    }, 4000);
  };

  // ---- which are shown

  const sift = (element) => {
    const { namespace, hook } = element.dataset;
    if (namespace === undefined) return;
    const text = filter.text.value.trim().toLowerCase();
    const is = (select, value) => !select.value || select.value === value;
    element.hidden = !(is(filter.namespace, namespace) && is(filter.hook, hook) && (!text || element.textContent.toLowerCase().includes(text)));
  };
  const siftAll = () => {
    document.querySelectorAll("[data-list]").forEach(sift);
    count();
  };
  const choices = () => {
    for (const name of ["namespace", "hook"]) {
      const select = filter[name], there = new Set([...document.querySelectorAll(`[data-${name}]`)].map((e) => e.dataset[name]));
      if (select.value) there.add(select.value);
      const wanted = ["", ...[...there].sort()];
      if (wanted.length === select.options.length && wanted.every((value, at) => select.options[at].value === value)) continue;
      const chosen = select.value;
      select.replaceChildren(...wanted.map((value) => new Option(value || "all", value, false, value === chosen)));
    }
  };
  filter.hidden = false;
  filter.addEventListener("input", siftAll);
  filter.addEventListener("submit", (event) => event.preventDefault());

  // ---- ages

  const age = (seconds) => {
    const s = Math.max(0, Math.floor(seconds)), m = Math.floor(s / 60), h = Math.floor(s / 3600), d = Math.floor(s / 86400);
    const two = (big, unit, small, other) => (small ? `${big}${unit}${small}${other}` : `${big}${unit}`);
    if (m < 2) return `${s}s`;
    if (m < 10) return two(m, "m", s % 60, "s");
    if (m < 180) return `${m}m`;
    if (h < 8) return two(h, "h", m % 60, "m");
    if (h < 48) return `${h}h`;
    return d < 8 ? two(d, "d", h % 24, "h") : `${d}d`;
  };
  const grow = () => {
    const now = Date.now();
    for (const time of document.querySelectorAll("time[data-age]")) {
      const text = age((now - Date.parse(time.dateTime)) / 1000);
      if (time.textContent !== text) time.textContent = text;
    }
  };
  setInterval(grow, 5000);

  // ---- the stream

  let source = null, pause = 1000, watchdog = 0;
  const clock = (time) => new Date(time).toLocaleTimeString();
  const say = (text, kind) => {
    if (state.textContent !== text) state.textContent = text;
    state.className = kind;
  };
  const live = () => {
    heard = new Date();
    pause = 1000;
    clearTimeout(watchdog);
    watchdog = setTimeout(lost, 45000);
    const [broken] = known.broken;
    if (broken) say(`khook's watch broke off at ${clock(broken.since)}, this is from then: ${broken.error}`, "lost");
    else if (known.listed) say("Live", "live");
    else say("khook is listing the Hooks, some may be missing", "");
  };
  const lost = () => {
    source?.close();
    clearTimeout(watchdog);
    say(`Reconnecting; this is from ${clock(heard)}`, "lost");
    // Not all at once when a server comes back.
    setTimeout(connect, pause * (0.75 + Math.random() / 2));
    pause = Math.min(pause * 2, 15000);
  };
  const connect = () => {
    source = new EventSource(`stream?since=${encodeURIComponent(version)}`);
    source.onopen = live;
    source.onerror = lost;
    source.addEventListener("beat", live);
    for (const name of ["snapshot", "changes"]) {
      source.addEventListener(name, (event) => {
        take(name, event.data);
        version = event.lastEventId;
        live();
      });
    }
  };

  // ---- the dialog

  let asked = 0;
  const show = async (href, id) => {
    const number = ++asked;
    let article;
    try {
      const text = await (await fetch(href)).text();
      article = new DOMParser().parseFromString(text, "text/html").querySelector("article");
    } catch {
      article = parse('<article class="incident"><h2 id="incident-title">khook does not answer</h2><p>Try again when the page is connected.</p></article>');
    }
    if (number !== asked || !article) return;
    for (const time of article.querySelectorAll(".timeline time")) time.title = new Date(time.dateTime).toLocaleString();
    detail.dataset.id = id;
    detail.dataset.href = href;
    detail.replaceChildren(article);
    if (!dialog.open) dialog.showModal();
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest(".card a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey || event.button) return;
    event.preventDefault();
    show(link.getAttribute("href"), link.closest(".card").id);
  });
  $("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    ++asked;
    // The card may be another element by now.
    $(detail.dataset.id)?.querySelector("a")?.focus({ preventScroll: true });
    detail.replaceChildren();
  });

  choices();
  grow();
  connect();
})();
