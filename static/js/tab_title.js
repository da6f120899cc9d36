// How far the video is, in the title of the tab: who works in another one sees there when it is done.

import { stepOf } from "./stage.js";
import { say } from "./texts.js";

const OPEN = new Set(["queued", "running"]);

/** Puts the state of one job before the title that the document came with. */
export class TabTitle {
  #plain = document.title;
  #followed = ""; // the job that was seen open: of others nobody waits for the end

  /** @param {object|null} job as the server describes it. */
  show(job) {
    if (job && OPEN.has(job.state)) this.#followed = job.id;
    const isFollowed = job && job.id === this.#followed;
    const title = isFollowed ? `${stateOf(job)} · ${this.#plain}` : this.#plain;
    if (document.title !== title) document.title = title;
  }
}

function stateOf(job) {
  const share = Math.floor((100 * job.frames) / Math.max(1, job.total_frames));
  const step = stepOf(job);
  const counts = job.state === "running" && step !== "stopping" && job.frames > 0;
  return counts ? `${share} %` : say(`step_${step}`);
}
