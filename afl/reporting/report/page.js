"use strict";
// Theme: the system's, until the button says otherwise.
const root = document.documentElement;
const button = document.getElementById("theme");
const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
const label = () => { button.textContent = isDark() ? "Light" : "Dark"; };
try { const kept = localStorage.getItem("theme"); if (kept) root.dataset.theme = kept; } catch (error) { /* no storage here */ }
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch (error) { /* no storage here */ }
  label();
});
systemDark.addEventListener("change", label);
label();
// A select shows those parts of its section whose data-NAME it names, and hides the others.
for (const select of document.querySelectorAll("select[data-shows]")) {
  const name = select.dataset.shows;
  const parts = select.closest("section").querySelectorAll(`[data-part="${name}"]`);
  select.addEventListener("change", () => {
    for (const part of parts) part.hidden = part.dataset.value !== select.value;
  });
}
