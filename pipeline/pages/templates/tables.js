"use strict";
// A click on the head of a column sorts the table by it, with empty cells last.
for (const head of document.querySelectorAll("th[aria-sort]")) {
  head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0], column = [...head.parentNode.children].indexOf(head);
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const number = head.classList.contains("n");
    const rows = [...body.rows].sort((one, two) => {
      const a = value(one), b = value(two);
      if (a === "" || b === "") return (a === "") - (b === "");
      return (up ? 1 : -1) * (number ? a - b : a.localeCompare(b, "en", {numeric: true}));
    });
    body.append(...rows);
  });
}
// Print also shows what is folded.
addEventListener("beforeprint", () => { for (const folded of document.querySelectorAll("details")) folded.open = true; });
