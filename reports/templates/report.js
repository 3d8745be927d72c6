"use strict";
// Everything essential is in the page without this script: it adds a filter, tooltips, jumps and a way to save the data.
window.addEventListener("error", (e) => { document.body.dataset.error = e.message; });
(() => {
  const $ = (id) => document.getElementById(id);
  const all = (selector, root) => Array.from((root || document).querySelectorAll(selector));

  // Tooltips: the title attributes, shown at once and where the pointer is.
  const tip = $("tip");
  for (const el of all(".blk[title], .sp[title]")) {
    el.dataset.tip = el.title;
    el.removeAttribute("title");
  }
  const place = (x, y) => {
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = (y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18) + "px";
  };
  document.addEventListener("pointermove", (e) => {
    const el = e.target instanceof Element ? e.target.closest("[data-tip]") : null;
    tip.hidden = !el;
    if (el) {
      tip.textContent = el.dataset.tip;
      place(e.clientX, e.clientY);
    }
  });
  document.addEventListener("pointerleave", () => { tip.hidden = true; });

  // A hop that is jumped to opens and is marked.
  const hops = all(".hop");
  const show = (id) => {
    const hop = $(id);
    if (!hop || !hop.classList.contains("hop")) return;
    if (hop.hidden && filter) { filter.value = ""; apply(); }
    for (const other of hops) other.classList.toggle("current", other === hop);
    const details = hop.querySelector("details");
    if (details) details.open = true;
  };
  window.addEventListener("hashchange", () => show(location.hash.slice(1)));

  // The hop under the pointer stands out in the topology.
  const svg = document.querySelector(".topology");
  if (svg) {
    const mark = (id) => {
      svg.classList.toggle("marked", Boolean(id));
      for (const el of all(".edge, .elabel", svg)) {
        el.classList.toggle("on", Boolean(id) && (el.dataset.hop || el.dataset.for) === id);
      }
    };
    for (const edge of all(".edge", svg)) {
      edge.addEventListener("pointerenter", () => mark(edge.dataset.hop));
      edge.addEventListener("pointerleave", () => mark(null));
      edge.addEventListener("focus", () => mark(edge.dataset.hop));
      edge.addEventListener("blur", () => mark(null));
      edge.addEventListener("click", () => show(edge.dataset.hop));
    }
  }

  // A line of the process topology: its panel opens when it is clicked, or reached with the keyboard.
  const panels = $("panels");
  const choose = (id) => {
    if (!panels) return false;
    let found = null;
    for (const line of all(".line", panels)) {
      line.classList.toggle("on", line.id === id);
      if (line.id === id) found = line;
    }
    for (const wire of all(".wire")) {
      wire.classList.toggle("on", wire.dataset.line === id);
      if (wire.dataset.line === id) wire.setAttribute("aria-current", "true");
      else wire.removeAttribute("aria-current");
    }
    document.querySelector(".processes").classList.toggle("chosen", Boolean(found));
    const map = $("map-connections");
    if (found && map) map.checked = true;
    if (found) found.scrollTop = 0;
    return found;
  };
  const forget = () => {
    choose(null);
    if (location.hash.startsWith("#line-")) history.replaceState(null, "", location.pathname + location.search);
  };
  if (panels) {
    panels.classList.add("scripted");
    for (const wire of all(".wire")) {
      // A mouse button that goes down gives focus too: then the click decides, for a panel that opened at once could lie under the pointer.
      wire.addEventListener("focus", () => { if (wire.matches(":focus-visible")) choose(wire.dataset.line); });
      wire.addEventListener("click", (e) => {
        e.preventDefault();
        choose(wire.dataset.line);
        history.replaceState(null, "", "#" + wire.dataset.line);
      });
    }
    for (const link of all(".line-close", panels)) {
      link.addEventListener("click", (e) => {
        e.preventDefault();
        const wire = document.querySelector(".wire.on");
        forget();
        // The keyboard goes on from where it was; focus alone must not open the panel again.
        if (wire) { wire.focus({ preventScroll: true }); forget(); }
      });
    }
    document.addEventListener("keydown", (e) => { if (e.key === "Escape") forget(); });
    const follow = () => {
      const line = choose(location.hash.slice(1));
      // The picture's end, and with it the panel, at the window's.
      if (line) scrollBy({ top: document.querySelector(".map-connections").getBoundingClientRect().bottom - innerHeight, behavior: "instant" });
    };
    window.addEventListener("hashchange", () => { if (location.hash.startsWith("#line-")) follow(); });
    if (location.hash.startsWith("#line-")) follow();
  }

  // Filter by name, where there is more than a screen of hops.
  const filter = $("filter");
  const apply = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const hop of hops) {
      hop.hidden = !words.every((w) => hop.dataset.search.includes(w));
      shown += hop.hidden ? 0 : 1;
    }
    $("filter-count").textContent = words.length ? shown + " of " + hops.length : "";
    $("filter-none").hidden = shown > 0;
  };
  if (filter && hops.length > 6) {
    $("filter-box").hidden = false;
    filter.addEventListener("input", apply);
  }

  // The embedded data is the whole report, as the JSON exporter writes it but for the histograms of single windows.
  const data = JSON.parse($("report-data").textContent);
  const save = $("save");
  save.hidden = false;
  save.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(data, null, 2)], { type: "application/json" }));
    link.download = "meshdiff-report.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  show(location.hash.slice(1));
  document.body.dataset.schema = data.schemaVersion;
  document.body.dataset.ready = "true";
})();
