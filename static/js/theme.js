// Light or dark as `?__theme=` says, else as the system has it. Gradio does the same on its page.

/** Mark the body and keep to the system's choice while the page is open. */
export function followTheme() {
  const asked = new URLSearchParams(window.location.search).get("__theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const mark = () => {
    const isDark = asked === "dark" || (asked !== "light" && system.matches);
    document.body.classList.toggle("dark", isDark);
  };
  mark();
  system.addEventListener("change", mark);
}
