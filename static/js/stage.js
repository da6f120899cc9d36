// The stage: one place for the idle picture, the queue, the live video and the finished one.

import { Controls } from "./controls.js";
import { factor, span } from "./format.js";
import { FPS, Player } from "./player.js";
import { address } from "./server.js";
import { say, sayError, sayNote } from "./texts.js";

// What a video waits for while the worker group is not ready, by the group's state: what is said of
// that, and of the video.
const BEFORE_READY = {
  starting: ["starting", "loading_detail"],
  loading: ["loading", "loading_detail"],
  restarting: ["group_restarting", "kept_detail"],
  failed: ["group_failed", "kept_failed"],
  draining: ["server_stopping", "kept_stopped"],
  stopped: ["group_stopped", "kept_stopped"],
};
// The same of a video that was interrupted, where that is more than that it goes on by itself.
const INTERRUPTED = {
  loading: "hold_loading",
  failed: "hold_failed",
  draining: "hold_stopped",
  stopped: "hold_stopped",
};

const at = (id) => document.getElementById(id);

/** Shows one job at a time, or none. */
export class Stage {
  #player;
  #controls;
  #job = null;
  #group = null;
  #isLost = false;
  #isGone = false;
  #drawn = "";

  constructor() {
    const video = at("la-video");
    this.#player = new Player(video);
    this.#controls = new Controls(this.#player, video, at("la-screen"));
    this.#player.addEventListener("change", () => this.draw());
    at("la-play-now").addEventListener("click", () => this.#player.play());
    at("la-share").addEventListener("click", () => this.#copyLink());
    window.addEventListener("la-language", () => this.draw());
    this.draw();
  }

  /**
   * Show a job as it is now.
   * @param {object} job as the server describes it.
   * @param {number|null} expectedRate seconds of video per second, before anything is measured.
   * @param {boolean} starts whether a finished one begins to play by itself.
   */
  show(job, expectedRate, starts) {
    this.#job = job;
    this.#isLost = this.#isGone = false;
    this.#drawBackdrop(job.poster_url ?? job.thumbnail_url);
    this.#player.show(job, expectedRate, starts);
    this.draw();
  }

  /** Show the idle picture. */
  clear() {
    this.#job = null;
    this.#isLost = this.#isGone = false;
    this.#drawBackdrop(null);
    this.#player.clear();
    this.draw();
  }

  /** Say that the server is not reached. */
  showLost() {
    this.#isLost = true;
    this.draw();
  }

  /** Say that there is no such job any more. */
  showGone() {
    this.clear();
    this.#isGone = true;
    this.draw();
  }

  /** Take the state of the worker group into account. */
  setGroup(group) {
    this.#group = group;
    this.draw();
  }

  /** A picture behind the video, out of focus, and in the middle while there is no video. */
  #drawBackdrop(path) {
    const image = path ? `url("${address(path)}")` : "";
    if (at("la-backdrop").style.backgroundImage === image) return;
    at("la-backdrop").style.backgroundImage = image;
    at("la-art").style.backgroundImage = image;
    at("la-art").classList.toggle("la-has-portrait", Boolean(path));
  }

  /** Bring the page in line with what is known. */
  draw() {
    const status = this.#player.status;
    this.#controls.draw(status);
    const { headline, detail, name } = this.#message(status);
    at("la-stage").dataset.phase = name;
    setText("la-headline", headline);
    setText("la-detail", detail);
    at("la-message").hidden = !headline;
    this.#drawCaption(status);
    this.#drawBadge(status);
    this.#drawNumbers();
    this.#drawActions();
  }

  #message(status) {
    const job = this.#job;
    const words = (name, key, values = {}, detail = say(`${key}_detail`)) => ({
      name,
      headline: say(key, values),
      detail,
    });
    if (this.#isGone) return words("idle", "gone", {}, "");
    if (!job) return words("idle", "idle");
    if (job.state === "failed") return words("failed", "failed", {}, sayError({ message: job.error ?? "" }));
    if (status.phase === "broken" && job.state !== "done") return words("failed", "broken");
    if (status.phase === "blocked") return words("blocked", "blocked", {}, "");
    if (status.phase !== "empty") return { name: "video", headline: "", detail: "" };
    if (job.state === "cancelled") return words("cancelled", "cancelled");
    if (job.state === "queued") {
      const { state, load_percent: percent } = this.#group ?? {};
      if (state in BEFORE_READY) {
        const [key, detail] = BEFORE_READY[state];
        return words("queued", key, { percent }, say(detail));
      }
      const { position, eta_s: wait } = job;
      if (job.stage === "no group") return words("queued", "queued_no_group");
      const starts = wait === null || wait < 1 ? "" : say("queued_starts", { time: span(wait, say("second")) });
      const detail = starts + say("queued_detail");
      return position > 1
        ? words("queued", "queued", { position }, detail)
        : words("queued", "queued_next", {}, detail);
    }
    if (isStopping(job)) return words("working", "stopping", {}, "");
    if (job.state === "running" && job.stage !== "rendering") return words("working", "preparing");
    if (job.state === "running") return words("working", "rendering", {}, say("queued_detail"));
    return { name: "video", headline: "", detail: "" };
  }

  #drawCaption(status) {
    let text = "";
    if (this.#isLost) text = say("reconnecting");
    else if (isStopping(this.#job)) text = say("stopping");
    else if (status.phase === "holding" && status.isGrowing) text = this.#whyItWaits(status);
    at("la-caption").hidden = !text;
    setText("la-caption-text", text);
    const mayPlay = status.phase === "holding" && status.isGrowing && !this.#isLost;
    at("la-play-now").hidden = !mayPlay || isStopping(this.#job);
  }

  #whyItWaits({ rate, wait, hasPlayed }) {
    if (this.#job.state === "queued") { // interrupted: nothing is rendered now
      const { state, load_percent: percent } = this.#group ?? {};
      return say(INTERRUPTED[state] ?? "hold_interrupted", { percent });
    }
    if (rate === null || wait === null) return say("hold_unknown");
    const values = { rate: factor(rate), wait: span(wait, say("second")) };
    return say(hasPlayed ? "hold_again" : "hold_rate", values);
  }

  #drawBadge(status) {
    const isLive = this.#job?.state === "running" && status.phase !== "empty";
    at("la-badge").hidden = !isLive;
    if (isLive) {
      const { rate } = status;
      setText("la-badge", rate ? say("live", { rate: factor(rate) }) : say("live_plain"));
    }
  }

  #drawNumbers() {
    const job = this.#job;
    at("la-numbers").hidden = !job;
    if (!job) return;
    setText("la-step", say(`step_${stepOf(job)}`));
    setText("la-frames", `${job.frames} / ${job.total_frames}`);
    const fps = job.fps_measured;
    const values = fps && { fps: fps < 10 ? fps.toFixed(1) : fps.toFixed(0), rate: factor(fps / FPS) };
    setText("la-speed", fps ? say("speed_value", values) : "–");
    at("la-speed").parentElement.hidden = !fps && job.state !== "running";
    const isOpen = job.state === "running" && job.eta_s !== null && !isStopping(job);
    setText("la-left", isOpen ? say("left_value", { time: span(job.eta_s, say("second")) }) : "–");
    at("la-left").parentElement.hidden = job.state !== "running";
    // What the form says already need not stand here, too.
    const inForm = new Set([...document.querySelectorAll(".la-note")].map((line) => line.textContent));
    const notes = (job.notes ?? []).filter((note) => !inForm.has(sayNote(note)));
    const text = notes.map(sayNote).join("\n");
    if (this.#drawn !== text) {
      this.#drawn = text;
      at("la-job-notes").replaceChildren(
        ...notes.map((note) => Object.assign(document.createElement("li"), { textContent: sayNote(note) })),
      );
    }
    at("la-job-notes").hidden = !notes.length;
  }

  #drawActions() {
    const job = this.#job;
    const isLost = job && !job.video_url && ["failed", "cancelled"].includes(job.state);
    at("la-share").hidden = !job?.share_url || isLost;
    const link = at("la-download");
    link.hidden = !job?.download_url;
    if (job?.download_url) link.href = address(job.download_url);
  }

  async #copyLink() {
    const url = address(this.#job.share_url);
    const button = at("la-share");
    try {
      await navigator.clipboard.writeText(url);
      button.textContent = say("copied");
      setTimeout(() => {
        button.textContent = say("copy_link");
      }, 2000);
    } catch {
      window.prompt(say("copy_by_hand"), url); // plain http has no clipboard
    }
  }
}

/** A cancelled video ends with the block that is being made. */
const isStopping = (job) => job?.state === "running" && job.can_cancel === false;

/** What a job is at, as the page names it: its state, or the part of its work that runs. */
export function stepOf(job) {
  if (isStopping(job)) return "stopping";
  return job.state === "running" && job.stage ? job.stage : job.state;
}

function setText(id, text) {
  const element = at(id);
  if (element.textContent !== text) element.textContent = text;
}
