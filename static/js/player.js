// Plays a job in a <video>: the growing file while it is made, the finished one afterwards. It begins
// as early as it can without stopping later, and knows why it waits.

import { Feed } from "./feed.js";
import { GrowthMeter, secondsNeeded, secondsToWait } from "./pacing.js";
import { address } from "./server.js";

export const FPS = 25;
const STARVED_S = 0.06;
const LOOK_EVERY_MS = 150;
const BEHIND_EDGE_S = 1;
const ENDED = new Set(["done", "failed", "cancelled"]);

/**
 * Player of one <video>. Event: "change", when `status` may be another.
 *
 * `status.phase` is "empty" without any picture, "holding" while it waits for enough to play on,
 * "playing", "paused" by the viewer, "blocked" when the browser wants a click first, "ended", or
 * "broken" when the video cannot be played.
 */
export class Player extends EventTarget {
  #video;
  #job = null;
  #feed = null;
  #file = "";
  #meter = new GrowthMeter();
  #isHolding = true;
  #isWanted = true;
  #isBlocked = false;
  #isBroken = false;
  #hasPlayed = false;
  #expectedRate = null;

  /** @param {HTMLVideoElement} video shows it. */
  constructor(video) {
    super();
    this.#video = video;
    for (const name of ["playing", "pause", "ended", "waiting", "seeked", "loadeddata", "timeupdate"]) {
      video.addEventListener(name, () => this.#look());
    }
    setInterval(() => this.#look(), LOOK_EVERY_MS);
  }

  /**
   * Play a job, as it is now; to be called with every news of it.
   * @param {object} job as the server describes it.
   * @param {number|null} expectedRate seconds per second to expect before anything is measured.
   * @param {boolean} starts whether a job that has ended begins to play by itself.
   */
  show(job, expectedRate = null, starts = true) {
    const isOpen = job.state === "queued" || job.state === "running";
    const hasNothing = !isOpen && !job.frames && !job.video_url; // ended before its first picture
    if (hasNothing || job.live_url !== this.#job?.live_url) {
      this.clear();
      this.#isWanted = starts;
    }
    // What it was interrupted for says nothing of how fast it grows.
    if (job.state === "queued") this.#meter = new GrowthMeter();
    this.#job = job;
    this.#expectedRate = expectedRate;
    if (this.#feed) {
      const [first] = this.#feed.range;
      if (job.video_url && this.#feed.isComplete && first > 0) this.#openFile(job.video_url);
    } else if (job.video_url) {
      this.#openFile(job.video_url);
    } else if (job.state === "running" || job.frames > 0 || (job.position ?? 9) <= 1) {
      this.#openFeed();
    }
    this.#look();
  }

  /** Show nothing. */
  clear() {
    this.#feed?.close();
    this.#feed = null;
    this.#file = "";
    this.#job = null;
    this.#meter = new GrowthMeter();
    this.#isHolding = this.#isWanted = true;
    this.#isBlocked = this.#isBroken = this.#hasPlayed = false;
    this.#video.removeAttribute("src");
    this.#video.load();
    this.#tell();
  }

  /** Play now, even if it has to stop later. */
  play() {
    this.#isWanted = true;
    this.#isHolding = this.#isBlocked = false;
    if (this.status.phase === "ended") this.#video.currentTime = 0;
    this.#start();
  }

  /** Stop until `play`. */
  pause() {
    this.#isWanted = false;
    this.#video.pause();
    this.#look();
  }

  /** Go to a time, as far as there is anything. */
  seek(seconds) {
    this.#video.currentTime = Math.max(0, Math.min(seconds, this.#made - 0.04));
    this.#look();
  }

  /** Go to the newest picture and play from there. */
  goLive() {
    this.seek(this.#made - BEHIND_EDGE_S);
    this.play();
  }

  /** What is to be said about it; all times in seconds. */
  get status() {
    const made = this.#made;
    const position = this.#video.currentTime;
    const total = this.#total;
    const rate = this.#rate;
    const needed = secondsNeeded(position, total, rate);
    return {
      phase: this.#phase,
      made,
      position,
      total,
      rate,
      needed,
      wait: secondsToWait(needed, made, rate),
      isGrowing: this.#isGrowing,
      hasPlayed: this.#hasPlayed,
      behind: made - position,
    };
  }

  get #total() {
    const planned = (this.#job?.total_frames ?? 0) / FPS;
    if (this.#isGrowing) return planned;
    return this.#file && this.#video.duration ? this.#video.duration : this.#made || planned;
  }

  get #made() {
    if (this.#feed) return this.#feed.range[1];
    return this.#file ? this.#video.duration || 0 : 0;
  }

  get #isGrowing() {
    return this.#feed ? !this.#feed.isComplete : !this.#file;
  }

  get #rate() {
    return this.#job?.realtime_factor ?? this.#meter.rate ?? this.#expectedRate;
  }

  get #phase() {
    if (this.#isBroken) return "broken";
    if (this.#video.readyState < 2) return this.#made > 0 && this.#isWanted ? "holding" : "empty";
    if (this.#isBlocked) return "blocked";
    if (this.#video.ended) return "ended";
    if (this.#isWanted && this.#isHolding) return "holding";
    return this.#video.paused ? "paused" : "playing";
  }

  #openFeed() {
    if (!Feed.isSupported) return;
    const isNeeded = () => this.#isWanted && this.#hasPlayed && !this.#isBlocked;
    this.#feed = new Feed(this.#video, address(this.#job.live_url), this.#job.attempt, isNeeded);
    const feed = this.#feed;
    feed.addEventListener("grown", () => {
      if (feed !== this.#feed) return;
      if (!ENDED.has(this.#job.state)) this.#meter.note(this.#made, performance.now() / 1000);
      this.#look();
    });
    feed.addEventListener("complete", () => this.#look());
    feed.addEventListener("restarted", () => {
      const job = this.#job;
      if (feed === this.#feed) this.clear();
      if (job && !this.#job) this.#job = { ...job, live_url: "" };
    });
    feed.addEventListener("failed", () => {
      this.#isBroken = feed === this.#feed;
      this.#tell();
    });
  }

  #openFile(path) {
    const position = this.#video.currentTime;
    this.#feed?.close();
    this.#feed = null;
    this.#file = path;
    this.#video.src = address(path);
    if (position > 0) this.#video.currentTime = position;
    this.#isHolding = false;
    if (this.#isWanted) this.#start();
  }

  /** Decide whether to begin, to go on or to wait. */
  #look() {
    if (this.#feed && this.#isWanted && !this.#isBlocked) {
      const { made, position, needed } = this.status;
      const isComplete = this.#feed.isComplete;
      if (this.#isHolding) {
        if (made > 0 && (isComplete || made >= needed)) {
          this.#isHolding = false;
          this.#start();
        }
      } else if (!isComplete && !this.#video.seeking && made - position < STARVED_S) {
        this.#isHolding = true;
        this.#video.pause();
      }
    }
    this.#tell();
  }

  #start() {
    this.#hasPlayed = true;
    this.#video.play().catch((error) => {
      if (error.name === "NotAllowedError") {
        this.#isBlocked = true;
        this.#tell();
      }
    });
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }
}
