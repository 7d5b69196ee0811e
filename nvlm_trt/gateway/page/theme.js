// Dark or light: the system's choice until the user makes one.

import { byId } from "./dom.js";

const NAME = "nvlm-trt-theme";
const system = matchMedia("(prefers-color-scheme: dark)");

export function followTheme() {
  const button = byId("theme");
  const chosen = () => localStorage.getItem(NAME) ?? (system.matches ? "dark" : "light");
  const show = () => {
    document.documentElement.dataset.theme = chosen();
    button.textContent = chosen() === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to ${button.textContent.toLowerCase()} colours`);
  };
  button.addEventListener("click", () => {
    localStorage.setItem(NAME, chosen() === "dark" ? "light" : "dark");
    show();
  });
  system.addEventListener("change", show);
  show();
}
