// Dark or light: the system's choice until the user makes one.

import { byId } from "./dom.js";
import { kept } from "./store.js";

const NAME = "nvlm-trt-theme";
const system = matchMedia("(prefers-color-scheme: dark)");

export function followTheme() {
  const button = byId("theme");
  const isDark = () => (kept.get(NAME) ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => {
    document.documentElement.dataset.theme = kept.get(NAME) ?? "";
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to ${button.textContent.toLowerCase()} colours`);
  };
  button.addEventListener("click", () => {
    kept.set(NAME, isDark() ? "light" : "dark");
    show();
  });
  system.addEventListener("change", show);
  show();
}
