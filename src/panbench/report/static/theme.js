"use strict";
// Before the page is drawn: the theme that the reader chose, else the system's (site.css).
try {
  const chosen = localStorage.getItem("panbench-theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
} catch (error) {
  // Storage is off: the system's theme it is.
}
