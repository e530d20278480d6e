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
// What is wider than its place says that it scrolls.
const hint = document.createElement("p");
hint.className = "hint";
hint.textContent = "Wider than the page: scroll sideways \u2192";
const links = document.querySelector("nav .links");
const measure = () => {
  for (const box of document.querySelectorAll(".scroll")) {
    const known = box.previousElementSibling?.classList.contains("hint") ? box.previousElementSibling : null;
    const wide = box.scrollWidth > box.clientWidth + 1;
    if (wide && !known) box.before(hint.cloneNode(true));
    if (!wide && known) known.remove();
  }
  if (links) links.classList.toggle("more", links.scrollLeft + links.clientWidth < links.scrollWidth - 1);
};
window.addEventListener("resize", measure);
document.addEventListener("change", measure);
document.addEventListener("toggle", measure, true);
measure();
// The navigation follows the section on the screen.
if (links) {
  links.addEventListener("scroll", measure);
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.children) {
        const here = link.hash === `#${entry.target.id}`;
        link.classList.toggle("here", here);
        if (here) links.scrollTo({ left: link.offsetLeft - links.clientWidth / 2, behavior: "smooth" });
      }
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const section of document.querySelectorAll("section[id]")) seen.observe(section);
}
