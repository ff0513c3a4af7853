// What the theme leaves unsaid to whoever does not see, and out of reach of the keyboard. Found by axe (tests/browser/axe.py).

function named() {
  // The button shows "Search Ctrl + K" and is called "Search": who speaks to a browser says what is seen.
  for (const button of document.querySelectorAll(".search-button-field")) {
    button.setAttribute("aria-label", button.textContent.trim().replace(/\s+/g, " "));
  }
  // The arrow that unfolds a part of the menu has no name; it gets that of the part.
  for (const summary of document.querySelectorAll("nav li > details > summary")) {
    const link = summary.closest("li").querySelector(":scope > a");
    if (link) summary.setAttribute("aria-label", link.textContent.trim());
  }
}

function reachable() {
  // A formula that is wider than the screen scrolls; without a stop only a mouse or a finger could do it.
  for (const formula of document.querySelectorAll("mjx-container[display], div.math")) {
    formula.tabIndex = formula.scrollWidth > formula.clientWidth ? 0 : -1;
  }
}

document.addEventListener("DOMContentLoaded", () => {
  named();
  window.MathJax?.startup?.promise?.then(reachable);
});
window.addEventListener("load", () => {
  window.MathJax?.startup?.promise?.then(reachable);
  window.addEventListener("resize", reachable);
});
