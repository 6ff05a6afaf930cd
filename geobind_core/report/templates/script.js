"use strict";
// Everything can be read without this script. It adds what a page on paper cannot do.

// One recording at a time.
document.addEventListener("play", (event) => {
  for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
}, true);

// Columns that sort.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "descending";
      const sign = down ? 1 : -1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const compare = (a, b) => (a === "" || b === "" ? (a === "") - (b === "")
        : isNaN(a) || isNaN(b) ? sign * -a.localeCompare(b) : sign * (a - b));
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
    });
  });
}

// The values of a curve under the pointer.
const written = (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3)));
for (const svg of document.querySelectorAll(".chart svg")) {
  const [left, right, top, bottom] = svg.dataset.plot.split(" ").map(Number);
  const [x0, x1, y0, y1] = svg.dataset.values.split(" ").map(Number);
  const lines = [...svg.querySelectorAll(".line")].map((line) =>
    [...line.getAttribute("d").matchAll(/[ML]([\d.-]+) ([\d.-]+)/g)].map((found) => [+found[1], +found[2]]));
  const pointer = svg.querySelector(".pointer"), readout = svg.querySelector(".readout");
  const atRest = readout.textContent;
  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
    const near = lines.map((points) => points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)));
    const x = near[0][0];
    pointer.setAttribute("d", `M${x} ${top}V${bottom}`);
    const step = x0 + ((x - left) / (right - left)) * (x1 - x0);
    const values = near.map((point) => written(y0 + ((bottom - point[1]) / (bottom - top)) * (y1 - y0)));
    readout.textContent = `step ${Math.round(step).toLocaleString("en")}: ${values.join(", ")}`;
  });
  svg.addEventListener("pointerleave", () => {
    pointer.removeAttribute("d");
    readout.textContent = atRest;
  });
}
