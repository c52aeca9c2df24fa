"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);

/* Theme */

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function setUpTheme() {
  const button = byId("theme");
  const show = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("panbench-theme", next);
    } catch (error) {
      // The choice holds for this page only.
    }
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}

/* Tables: sort within each section, filter rows */

function sortValue(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  if (cell.classList.contains("num") || cell.classList.contains("none")) return null;
  const name = cell.querySelector(".name");
  return (name || cell).textContent.trim();
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortTable(table, column, descending) {
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => !row.classList.contains("section"));
    const keyed = rows.map((row) => ({ row, value: sortValue(row, column) }));
    keyed.sort((a, b) => {
      // Rows without a value stay at the end, whichever way the others go.
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
      return descending ? compare(b.value, a.value) : compare(a.value, b.value);
    });
    body.append(...keyed.map((item) => item.row));
  }
}

function setUpSorting() {
  for (const table of all("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const first = head.dataset.better === "high" ? "descending" : "ascending";
        const next = now ? (now === "ascending" ? "descending" : "ascending") : first;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", next);
        sortTable(table, column, next === "descending");
      });
    });
  }
}

function setUpFilters() {
  const slugs = new Set(all("[data-filter]").map((input) => input.dataset.filter));
  for (const slug of slugs) {
    const figure = byId(slug);
    const input = document.querySelector(`[data-filter="${slug}"]`);
    const ranked = document.querySelector(`[data-complete="${slug}"]`);
    const count = document.querySelector(`[data-count="${slug}"]`);
    const apply = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      let total = 0;
      for (const body of figure.querySelector("table").tBodies) {
        let here = 0;
        for (const row of body.rows) {
          if (row.classList.contains("section")) continue;
          const fits = words.every((word) => row.dataset.name.includes(word));
          row.hidden = !fits || (ranked !== null && ranked.checked && "unranked" in row.dataset);
          total += 1;
          here += row.hidden ? 0 : 1;
        }
        body.hidden = here === 0;
        shown += here;
      }
      count.textContent = shown === total ? `${total} rows` : `${shown} of ${total} rows`;
    };
    input.addEventListener("input", apply);
    if (ranked) ranked.addEventListener("change", apply);
    apply();
  }
  for (const box of all("[data-differences]")) {
    const show = () => byId(box.dataset.differences).classList.toggle("plain", !box.checked);
    box.addEventListener("change", show);
    show();
  }
}

/* One of several tables at a time */

function setUpChoosers() {
  for (const group of all("[data-chosen]")) {
    const buttons = all("button[data-choice]", group);
    const parts = all("div[data-choice]", group);
    const show = (choice) => {
      buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.choice === choice)));
      parts.forEach((part) => (part.hidden = part.dataset.choice !== choice));
    };
    buttons.forEach((button) => button.addEventListener("click", () => show(button.dataset.choice)));
    show("0");
  }
  const board = byId("board");
  if (board) board.addEventListener("change", () => (location.href = board.value));
}

/* Commands */

function setUpCommands() {
  for (const button of all("button.copy")) {
    button.addEventListener("click", async () => {
      const command = button.previousElementSibling;
      try {
        await navigator.clipboard.writeText(command.textContent);
        button.textContent = "Copied";
      } catch (error) {
        // No clipboard (an old browser, or not allowed): select it, for the reader's own keys.
        getSelection().selectAllChildren(command);
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }
  const open = () => {
    const row = location.hash.startsWith("#r-") ? byId(location.hash.slice(1)) : null;
    const details = row && row.querySelector("details");
    if (details) details.open = true;
    if (row) row.scrollIntoView({ block: "center" });
  };
  addEventListener("hashchange", open);
  open();
}

/* Gallery of errors */

function setUpGallery() {
  const gallery = byId("gallery");
  if (!gallery) return;
  const items = [...gallery.children];
  const selects = all("#gallery-controls select");
  items.sort((a, b) => Number(b.dataset.damage) - Number(a.dataset.damage));
  gallery.append(...items);
  const apply = () => {
    let shown = 0;
    for (const item of items) {
      item.hidden = selects.some((s) => s.value && item.dataset[s.dataset.by] !== s.value);
      shown += item.hidden ? 0 : 1;
    }
    byId("gallery-count").textContent = `${shown} of ${items.length} instances`;
  };
  selects.forEach((select) => select.addEventListener("change", apply));
  apply();
}

/* Two methods side by side */

const KINDS = ["render", "semantic", "instance", "error", "depth", "normal"];
const LABELS = ["semantic", "instance", "error"];
const TRUTH = { render: "photo", semantic: "truth_semantic", instance: "truth_instance" };

function fill(select, names, wanted) {
  const before = wanted ?? select.value;
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.includes(before)) select.value = before;
}

function setUpComparison() {
  const holder = byId("pictures");
  if (!holder) return;
  const grounds = JSON.parse(holder.textContent);
  const [ground, left, right, kind] = ["ground", "left", "right", "kind"].map(byId);
  const [stage, split, views] = ["stage", "split", "views"].map(byId);
  const truth = "ground truth";
  let view = null;

  const current = () => grounds.find((g) => g.title === ground.value);
  const pictureOf = (name, wanted) => {
    const runs = current().runs;
    if (name !== truth) {
      const run = runs.find((r) => r.name === name);
      return (run.views[view] || {})[wanted];
    }
    const of = TRUTH[wanted] || "photo";
    return runs.map((r) => (r.views[view] || {})[of]).find(Boolean);
  };

  function draw() {
    const missing = [];
    for (const [side, select] of [["left", left], ["right", right]]) {
      const path = pictureOf(select.value, kind.value);
      const image = byId(`image-${side}`);
      image.hidden = !path;
      if (path) image.src = path;
      const what = select.value === truth && !TRUTH[kind.value] ? "photo" : kind.value;
      image.alt = `${select.value}: ${what} of view ${view}`;
      byId(`tag-${side}`).textContent = select.value;
      if (!path) missing.push(`${select.value} has no picture "${kind.value}" of this view.`);
    }
    stage.classList.toggle("labels", LABELS.includes(kind.value));
    byId("missing").textContent = missing.join(" ");
    all("button", views).forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.view === view)));
    const state = { scene: ground.value, left: left.value, right: right.value, show: kind.value, view };
    history.replaceState(null, "", "#" + new URLSearchParams(state));
  }

  function changeGround(wanted = {}) {
    const runs = current().runs;
    const names = [...runs.map((r) => r.name), truth];
    fill(left, names, wanted.left ?? left.value);
    const before = wanted.right ?? right.value;
    fill(right, names, before);
    if (left.value === right.value || !names.includes(before)) {
      // Another method than the left one says more than another seed of it.
      const method = (runs.find((r) => r.name === left.value) || {}).method;
      right.value = (runs.find((r) => r.method !== method) || { name: truth }).name;
    }
    const kinds = KINDS.filter((k) => runs.some((r) => Object.values(r.views).some((v) => v[k])));
    fill(kind, kinds, wanted.show ?? (kind.value || "instance"));
    const named = [...new Set(runs.flatMap((r) => Object.keys(r.views)))];
    view = named.includes(wanted.view) ? wanted.view : named.includes(view) ? view : named[0];
    views.replaceChildren(
      ...named.map((name) => {
        const button = document.createElement("button");
        const photo = runs.map((r) => (r.views[name] || {}).photo).find(Boolean);
        button.type = "button";
        button.dataset.view = name;
        if (photo) {
          const image = document.createElement("img");
          image.src = photo;
          image.alt = "";
          button.append(image);
        }
        button.append(`view ${name}`);
        button.addEventListener("click", () => {
          view = name;
          draw();
        });
        return button;
      }),
    );
    const [height, width] = current().size;
    if (height && width) stage.style.aspectRatio = `${width} / ${height}`;
    draw();
  }

  const move = () => stage.style.setProperty("--split", `${split.value}%`);
  split.addEventListener("input", move);
  ground.addEventListener("change", () => changeGround());
  for (const select of [left, right, kind]) select.addEventListener("change", draw);
  const wanted = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  fill(ground, grounds.map((g) => g.title), wanted.scene);
  move();
  changeGround(wanted);
}

setUpTheme();
setUpSorting();
setUpFilters();
setUpChoosers();
setUpCommands();
setUpGallery();
setUpComparison();
