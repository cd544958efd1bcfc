
// A click on a heading sorts the table by this column, a second click in descending order.
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];

  const compare = (one, other) => {
    const [a, b] = [one, other].map((cell) => cell.dataset.value ?? cell.textContent.trim());
    return one.dataset.value === undefined
      ? a.localeCompare(b, undefined, { numeric: true })
      : Number(a) - Number(b);
  };

  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      const rows = [...body.rows].sort((one, other) => {
        return direction * compare(one.cells[column], other.cells[column]);
      });
      body.append(...rows);
    });
  });
}

// The hint above a table shows while the table is wider than its box.
for (const box of document.querySelectorAll(".scroll")) {
  new ResizeObserver(() => {
    box.previousElementSibling.hidden = box.scrollWidth <= box.clientWidth;
  }).observe(box);
}
