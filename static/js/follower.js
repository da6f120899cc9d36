// Follows one job by asking the server again and again; a lost connection only makes it slower.

import { RefusedError, ask } from "./server.js";

const ENDED = new Set(["done", "failed", "cancelled"]);
const RUNNING_MS = 400;
const QUEUED_MS = 800;
const RETRY_MS = [500, 1000, 2000, 4000];

/**
 * Events: "news" with the job as `detail`; "lost" when the server is not reached; "gone" when it
 * knows no such job.
 */
export class Follower extends EventTarget {
  #path;
  #timer = 0;
  #failures = 0;
  #isStopped = false;

  /** @param {string} path of the job, such as "api/jobs/ID". */
  constructor(path) {
    super();
    this.#path = path;
    this.hurry = this.hurry.bind(this);
    window.addEventListener("online", this.hurry);
    document.addEventListener("visibilitychange", this.hurry);
    this.hurry();
  }

  /** Ask now. */
  hurry() {
    clearTimeout(this.#timer);
    if (!this.#isStopped) this.#timer = setTimeout(() => this.#ask(), 0);
  }

  /** Ask no more. */
  stop() {
    this.#isStopped = true;
    clearTimeout(this.#timer);
    window.removeEventListener("online", this.hurry);
    document.removeEventListener("visibilitychange", this.hurry);
  }

  async #ask() {
    let next = RETRY_MS[Math.min(this.#failures, RETRY_MS.length - 1)];
    try {
      const job = await ask(this.#path);
      if (this.#isStopped) return;
      this.#failures = 0;
      this.#tell("news", job);
      if (ENDED.has(job.state)) return this.stop();
      next = job.state === "running" ? RUNNING_MS : QUEUED_MS;
    } catch (error) {
      if (this.#isStopped) return undefined;
      if (error instanceof RefusedError && error.status === 404) {
        this.#tell("gone");
        return this.stop();
      }
      this.#failures += 1;
      this.#tell("lost");
    }
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#ask(), next);
    return undefined;
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
