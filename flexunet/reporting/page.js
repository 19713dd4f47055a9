"use strict";
/* The page reads well without this: it sorts tables, and changes the theme. */
const dark = document.getElementById("dark");
const theme = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let isDark = prefersDark.matches;
function showTheme() {
  dark.media = isDark ? "screen" : "not all";
  theme.textContent = isDark ? "Light theme" : "Dark theme";
}
theme.hidden = false;
theme.addEventListener("click", () => { isDark = !isDark; showTheme(); });
prefersDark.addEventListener("change", () => { isDark = prefersDark.matches; showTheme(); });
showTheme();

function valueOf(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/,/g, ""));
  return Number.isNaN(number) ? text : number;
}
function compare(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  return typeof a === "number" ? -1 : 1;
}
function sortBy(table, heading, column) {
  const descending = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const entries = [...body.rows].map((row) => ({ row, value: valueOf(row, column) }));
  /* What is not defined stays at the end in both directions. */
  const defined = entries.filter((entry) => entry.value !== "\u2013");
  const rest = entries.filter((entry) => entry.value === "\u2013");
  defined.sort((a, b) => (descending ? compare(b.value, a.value) : compare(a.value, b.value)));
  body.append(...[...defined, ...rest].map((entry) => entry.row));
}
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.title = "Sort";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sortBy(table, heading, column));
  });
}
