// Where a table, a picture or code is wider than the screen, say so: it scrolls sideways.
window.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll(".pst-scrollable-table-container, .scrolls")) {
    const frame = document.createElement("div"); // stands still while the box scrolls
    box.replaceWith(frame);
    frame.append(box);
    const look = () => {
      const hidden = box.scrollWidth - box.clientWidth - box.scrollLeft;
      frame.className = hidden > 2 ? "more-right" : "";
    };
    box.tabIndex = 0; // so that keys scroll it too
    box.addEventListener("scroll", look);
    new ResizeObserver(look).observe(box);
    for (const child of box.children) new ResizeObserver(look).observe(child);
    look();
  }
});
