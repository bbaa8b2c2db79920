"use strict";

// Charts: drawn as SVG, so that the page's colours and the printer reach them; one after the other, so that
// a long page can be read meanwhile.
const views = {};
const sources = [...document.querySelectorAll("script[data-chart]")];
const draw = async () => {
  const source = sources.shift();
  if (!source) return;
  const element = document.getElementById(source.dataset.chart);
  const { view } = await vegaEmbed(element, JSON.parse(source.textContent), { actions: false, renderer: "svg", ast: false });
  (views[element.dataset.study] ??= []).push(view);
  setTimeout(draw);
};
draw();

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

// Search: rows and runs of a study that do not contain the words are hidden. "/" goes to the nearest field.
const searches = [...document.querySelectorAll("input[data-study]")];
for (const input of searches) {
  const study = document.getElementById(`${input.dataset.study}-section`);
  const rows = [...study.querySelectorAll("table.results tbody tr")];
  const runs = [...study.querySelectorAll(".runs > details")];
  const every = study.querySelector(".every");
  const status = study.querySelector(".found");
  const find = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const keep = (element, text) => !(element.hidden = !words.every((word) => text.toLowerCase().includes(word)));
    const left = rows.filter((row) => keep(row, row.textContent)).length;
    const found = runs.filter((run) => keep(run, run.firstElementChild.textContent + run.querySelector("code").textContent)).length;
    if (words.length) every.open = true;
    status.textContent = words.length ? `${left} of ${rows.length} rows, ${found} of ${runs.length} runs` : "";
  };
  input.addEventListener("input", find);
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    input.value = "";
    find();
  });
}
addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
  const ends = (input) => document.getElementById(`${input.dataset.study}-section`).getBoundingClientRect().bottom;
  const input = searches.find((each) => ends(each) > 0) ?? searches[0];
  if (!input) return;
  event.preventDefault();
  input.focus();
  input.select();
});

// Print: what can be opened is on paper, as nothing can be opened there; of very many runs, those that are open.
const mostRuns = 60;
addEventListener("beforeprint", () => {
  const closed = [...document.querySelectorAll("details:not([open])")];
  const many = document.querySelectorAll(".runs > details").length > mostRuns;
  for (const details of closed) {
    if (!(many && details.closest(".runs"))) details.dataset.opened = details.open = true;
  }
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details[data-opened]")) details.open = delete details.dataset.opened && false;
});
