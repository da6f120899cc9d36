// What the worker group does: a chip for everybody, a panel for the operator.

import { drawOperators } from "./operators.js";
import { ask } from "./server.js";
import { say, tierName } from "./texts.js";

const QUIET_MS = 4000;
const BUSY_MS = 1000;

/** Watches the group. Event: "news" with its state as `detail`, null when the server is not reached. */
export class Group extends EventTarget {
  #state = undefined;

  constructor() {
    super();
    window.addEventListener("la-language", () => this.#draw());
    document.getElementById("la-op-lift").addEventListener("click", () => this.#liftCeiling());
    this.#watch();
  }

  /** Where this fails, the limit stays in sight, and so does the button. */
  async #liftCeiling() {
    this.#state = await ask("api/group/ceiling", "DELETE").catch(() => this.#state);
    this.#draw();
  }

  async #watch() {
    try {
      this.#state = await ask("api/group");
    } catch {
      this.#state = null;
    }
    this.#draw();
    this.dispatchEvent(new CustomEvent("news", { detail: this.#state }));
    const isQuiet = this.#state?.state === "ready" && !this.#state.ranks;
    setTimeout(() => this.#watch(), isQuiet ? QUIET_MS : BUSY_MS);
  }

  #draw() {
    const group = this.#state;
    if (group === undefined) return;
    const chip = document.getElementById("la-group-chip");
    const state = group === null ? "lost" : group.state;
    chip.dataset.state = state;
    const text = say(`group_${state}`, { percent: group?.load_percent ?? 0 });
    const place = document.getElementById("la-group-text");
    if (place.textContent !== text) place.textContent = text;
    const queue = document.getElementById("la-queue-chip");
    queue.hidden = !group?.queue_length;
    queue.textContent = say("queue_waiting", { count: group?.queue_length ?? 0 });
    const { tier, reason } = group?.ceiling ?? {};
    const ceiling = document.getElementById("la-ceiling-chip");
    ceiling.hidden = !tier;
    ceiling.title = reason ?? "";
    const limit = tier ? say("group_ceiling", { tier: tierName(tier) }) : "";
    if (ceiling.textContent !== limit) ceiling.textContent = limit;
    drawOperators(group);
  }
}
