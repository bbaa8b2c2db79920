"use strict";

// Charts: drawn as SVG, so that the page's colours and the printer reach them.
const views = {};
for (const source of document.querySelectorAll("script[data-chart]")) {
  const element = document.getElementById(source.dataset.chart);
  const options = { actions: false, renderer: "svg", ast: false };
  vegaEmbed(element, JSON.parse(source.textContent), options).then(({ view }) => {
    (views[element.dataset.study] ??= []).push(view);
  });
}

// Legend: what is unticked is taken out of every chart of its study.
for (const legend of document.querySelectorAll(".legend")) {
  legend.addEventListener("change", () => {
    const hidden = [...legend.querySelectorAll("input:not(:checked)")].map((input) => input.value);
    for (const view of views[legend.dataset.study] ?? []) view.signal("hidden", hidden).runAsync();
  });
}

// Sorting: numbers by value, words by alphabet, what is missing always last.
const compare = (first, second, direction) => {
  if (first === "" || second === "") return (first === "") - (second === "");
  const [a, b] = [Number(first), Number(second)];
  const order = Number.isNaN(a) || Number.isNaN(b) ? first.localeCompare(second) : a - b;
  return direction === "ascending" ? order : -order;
};
for (const table of document.querySelectorAll("table.results")) {
  const headings = [...table.querySelectorAll("thead th")];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const direction = heading.ariaSort === "ascending" ? "descending" : "ascending";
      for (const other of headings) other.ariaSort = other === heading ? direction : "none";
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compare(a.cells[column].dataset.sort, b.cells[column].dataset.sort, direction));
      table.tBodies[0].append(...rows);
    });
  });
}

// Search: rows that do not contain the words are hidden.
for (const input of document.querySelectorAll("input[data-table]")) {
  const rows = document.getElementById(input.dataset.table).tBodies[0].rows;
  const status = input.closest(".tools").querySelector(".found");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      found += !row.hidden;
    }
    status.textContent = words.length ? `${found} of ${rows.length} rows` : "";
  });
}

// Print: everything is on paper, as nothing can be opened there.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) details.dataset.opened = details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-opened]")) details.open = delete details.dataset.opened && false;
});
