// What a page can do beyond being read: tips, sorting, filtering, and the map's choices. Nothing is fetched.
"use strict";
const tip = document.createElement("div");
tip.id = "tip";
tip.setAttribute("role", "status");
tip.hidden = true;
document.body.append(tip);

function showTip(event) {
  const point = event.target.closest("[data-tip]");
  tip.hidden = !point;
  if (!point) return;
  tip.textContent = point.dataset.tip;
  const sheet = point.closest("[data-sheet]");
  if (sheet && point.dataset.n) {
    const { columns, sheet: name } = sheet.dataset;
    const all = document.getElementById(name);
    const side = 72, n = Number(point.dataset.n);
    const image = document.createElement("span");
    image.style.background = `url(${all.src}) ${-(n % columns) * side}px ${-Math.floor(n / columns) * side}px`;
    image.style.backgroundSize = `${columns * side}px`;
    tip.prepend(image);
  }
  const box = point.getBoundingClientRect();
  const left = Math.min(box.right + 8, innerWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, Math.min(box.top, innerHeight - tip.offsetHeight - 8))}px`;
}
document.addEventListener("pointerover", showTip);
document.addEventListener("focusin", showTip);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

function value(row, column) {
  const cell = row.cells[column];
  const given = cell.dataset.v ?? cell.textContent.trim();
  const number = Number.parseFloat(given.replaceAll(",", ""));
  return Number.isNaN(number) ? given : number;
}

function compare(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
  return typeof a === "number" ? -1 : 1;
}

for (const table of document.querySelectorAll("table.sort")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * compare(value(a, column), value(b, column)));
      body.append(...rows);
    });
  });
}

for (const field of document.querySelectorAll("input[data-filters]")) {
  const table = document.getElementById(field.dataset.filters);
  const said = document.getElementById(field.getAttribute("aria-describedby"));
  const apply = () => {
    const words = field.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    said.textContent = `${shown} of ${table.tBodies[0].rows.length} runs`;
  };
  field.addEventListener("input", apply);
  for (const link of document.querySelectorAll("a[data-filter]")) {
    link.addEventListener("click", () => { field.value = link.dataset.filter; apply(); });
  }
}

for (const choice of document.querySelectorAll("select[data-picks]")) {
  choice.addEventListener("change", () => {
    for (const point of document.querySelectorAll(".map [data-class]")) {
      point.classList.toggle("dim", choice.value !== "" && point.dataset.class !== choice.value);
    }
  });
}

addEventListener("beforeprint", () => { for (const more of document.querySelectorAll("details.print")) more.open = true; });
