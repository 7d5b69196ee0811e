// Dark or light: the system's choice until the user makes one.

import { byId } from "./dom.js";

const NAME = "nvlm-trt-theme";
const system = matchMedia("(prefers-color-scheme: dark)");

export function followTheme() {
  const button = byId("theme");
  const isDark = () => (localStorage.getItem(NAME) ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => {
    document.documentElement.dataset.theme = localStorage.getItem(NAME) ?? "";
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to ${button.textContent.toLowerCase()} colours`);
  };
  button.addEventListener("click", () => {
    localStorage.setItem(NAME, isDark() ? "light" : "dark");
    show();
  });
  system.addEventListener("change", show);
  show();
}
