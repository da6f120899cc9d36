// The strip of this browser's videos; the server keeps them, so they survive a restart of either.

import { clock } from "./format.js";
import { drawIcon } from "./icons.js";
import { FPS } from "./player.js";
import { address, ask } from "./server.js";
import { say } from "./texts.js";

const OPEN = new Set(["queued", "running"]);
const WHILE_OPEN_MS = 3000;

/** Events: "choose" with the job as `detail`; "list" with all jobs whenever they were read. */
export class History extends EventTarget {
  #jobs = [];
  #shown = "";
  #chosen = "";
  #timer = 0;

  constructor() {
    super();
    window.addEventListener("la-language", () => {
      this.#shown = "";
      this.#draw();
    });
  }

  /** Read the list again. */
  async refresh() {
    clearTimeout(this.#timer);
    try {
      this.#jobs = await ask("api/jobs");
      this.dispatchEvent(new CustomEvent("list", { detail: this.#jobs }));
      this.#draw();
    } catch {
      this.#timer = setTimeout(() => this.refresh(), WHILE_OPEN_MS);
      return;
    }
    if (this.#jobs.some((job) => OPEN.has(job.state))) {
      this.#timer = setTimeout(() => this.refresh(), WHILE_OPEN_MS);
    }
  }

  /** Mark the job that the stage shows. */
  mark(id) {
    this.#chosen = id;
    this.#draw();
  }

  #draw() {
    const facts = this.#jobs.map((job) => [job.id, job.state, job.thumbnail_url, job.frames]);
    const shown = JSON.stringify([facts, this.#chosen]);
    if (shown === this.#shown) return;
    this.#shown = shown;
    document.getElementById("la-history").hidden = !this.#jobs.length;
    const list = document.getElementById("la-history-list");
    const focused = document.activeElement?.dataset?.job;
    list.replaceChildren(...this.#jobs.map((job) => this.#card(job)));
    if (focused) list.querySelector(`[data-job="${focused}"]`)?.focus();
  }

  #card(job) {
    const item = element("li", "la-card");
    item.dataset.state = job.state;
    const open = element("button", "la-card-open");
    open.type = "button";
    open.dataset.job = job.id;
    open.setAttribute("aria-current", String(job.id === this.#chosen));
    open.title = job.title;
    open.addEventListener("click", () => {
      this.dispatchEvent(new CustomEvent("choose", { detail: job }));
    });
    const picture = element("span", "la-thumbnail");
    const image = job.thumbnail_url ?? job.poster_url;
    if (image) picture.style.backgroundImage = `url("${address(image)}")`;
    if (OPEN.has(job.state)) {
      const bar = element("i", "la-progress");
      bar.style.width = `${(100 * job.frames) / Math.max(1, job.total_frames)}%`;
      picture.append(bar);
    }
    open.append(picture, element("span", "la-card-title", job.title), this.#line(job));
    item.append(open);
    if (!OPEN.has(job.state)) item.append(this.#remover(job));
    return item;
  }

  #line(job) {
    const frames = OPEN.has(job.state) ? job.total_frames : job.frames; // what is there in the end
    const length = frames ? [clock(frames / FPS)] : [];
    const state = job.state === "done" ? ago(job.created_at) : say(`step_${job.state}`);
    return element("span", "la-card-line", [...length, state].join(" · "));
  }

  #remover(job) {
    const button = element("button", "la-card-remove");
    button.type = "button";
    drawIcon(button, "remove", say("delete"));
    button.addEventListener("click", async () => {
      if (!window.confirm(say("delete_sure", { title: job.title }))) return;
      await ask(`api/jobs/${job.id}`, "DELETE").catch(() => null);
      this.dispatchEvent(new CustomEvent("removed", { detail: job }));
      this.refresh();
    });
    return button;
  }
}

function element(name, className, text = "") {
  return Object.assign(document.createElement(name), { className, textContent: text });
}

function ago(seconds) {
  const minutes = Math.floor((Date.now() / 1000 - seconds) / 60);
  if (minutes < 1) return say("ago_now");
  if (minutes < 60) return say("ago_minutes", { count: minutes });
  if (minutes < 1440) return say("ago_hours", { count: Math.floor(minutes / 60) });
  return say("ago_days", { count: Math.floor(minutes / 1440) });
}
