// Feeds a growing MP4 into a <video>, over as many connections as it takes.

import { mimeType } from "./codecs.js";

const ENDED = new Set(["done", "failed", "cancelled"]);
const RETRY_MS = [250, 500, 1000, 2000, 4000];
const KEEP_BEHIND_S = 30;
const ASK_WHEN_HIDDEN_MS = 1000;

const pause = (milliseconds) => new Promise((go) => setTimeout(go, milliseconds));
const heard = (target, name) => new Promise((go) => target.addEventListener(name, go, { once: true }));

/**
 * Reads one growing file to its end.
 *
 * A browser has six connections for all tabs of a server. So a hidden tab keeps none: it rests, or,
 * if it plays on, asks for a piece every second.
 *
 * Events: "grown" after every append; "complete" when the whole video is there; "restarted" when the
 * server began the video anew; "failed" when the browser cannot play it.
 */
export class Feed extends EventTarget {
  #video;
  #url;
  #attempt;
  #isNeeded;
  #abort = new AbortController();
  #connection = null;
  #source = null;
  #buffer = null;
  #received = 0;
  #head = new Uint8Array();
  #tries = 0;

  /**
   * @param {HTMLVideoElement} video plays it.
   * @param {string} url of the growing file.
   * @param {number} attempt which of the attempts at the job.
   * @param {() => boolean} isNeeded whether it is played even where nobody sees it.
   */
  constructor(video, url, attempt, isNeeded) {
    super();
    this.#isNeeded = isNeeded;
    this.#video = video;
    this.#url = url;
    this.#attempt = Math.max(1, attempt);
    this.isComplete = false;
    const hide = () => document.hidden && this.#connection?.abort();
    document.addEventListener("visibilitychange", hide, { signal: this.#abort.signal });
    this.#run().catch((error) => {
      if (!this.#abort.signal.aborted) this.#tell("failed", error);
    });
  }

  /** Whether this browser can play growing files at all. */
  static get isSupported() {
    return "MediaSource" in window || "ManagedMediaSource" in window;
  }

  /** Which file, and which attempt at it. */
  get source() {
    return `${this.#url} ${this.#attempt}`;
  }

  /** Seconds that are there, from the first to the last. */
  get range() {
    const buffered = this.#buffer?.buffered;
    return buffered?.length ? [buffered.start(0), buffered.end(buffered.length - 1)] : [0, 0];
  }

  /** Stop reading and let go of the connection. */
  close() {
    this.#abort.abort();
    this.#connection?.abort();
  }

  async #run() {
    const Source = window.MediaSource ?? window.ManagedMediaSource;
    this.#source = new Source();
    this.#video.disableRemotePlayback = true; // ManagedMediaSource asks for it
    const opened = heard(this.#source, "sourceopen");
    this.#video.src = URL.createObjectURL(this.#source);
    await opened;
    URL.revokeObjectURL(this.#video.src);
    while (!this.isComplete && !this.#abort.signal.aborted) {
      await this.#rest();
      if (!(await this.#connect())) {
        await pause(RETRY_MS[Math.min(this.#tries, RETRY_MS.length - 1)]);
        this.#tries += 1;
      }
    }
  }

  /** While the tab is hidden: wait a second, or until it is needed again. */
  async #rest() {
    const listening = new AbortController();
    const shown = new Promise((go) => {
      document.addEventListener("visibilitychange", go, { signal: listening.signal });
    });
    while (document.hidden && !this.#abort.signal.aborted) {
      await Promise.race([shown, pause(ASK_WHEN_HIDDEN_MS)]);
      if (this.#isNeeded()) break;
    }
    listening.abort();
  }

  /** Read over one connection; false when nothing came of it. */
  async #connect() {
    const before = this.#received;
    const follow = !document.hidden;
    let state = "";
    this.#connection = new AbortController();
    try {
      const query = `from=${before}&attempt=${this.#attempt}&follow=${follow}`;
      const response = await fetch(`${this.#url}?${query}`, {
        cache: "no-store",
        signal: this.#connection.signal,
      });
      if (response.status === 409) {
        this.close();
        this.#tell("restarted");
        return true;
      }
      if (!response.ok) return false;
      state = response.headers.get("X-Job-State") ?? "";
      await this.#read(response.body.getReader());
    } catch (error) {
      if (error.name === "NotSupportedError" || error.name === "InvalidStateError") throw error;
      return false;
    }
    if (this.#received > before) {
      this.#tries = 0;
      return true;
    }
    if (ENDED.has(state)) this.#finish();
    return this.isComplete || !follow;
  }

  async #read(reader) {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      await this.#take(value);
      this.#received += value.length;
      this.#tell("grown");
    }
  }

  async #take(bytes) {
    if (this.#buffer) return this.#append(bytes);
    const head = new Uint8Array(this.#head.length + bytes.length);
    head.set(this.#head);
    head.set(bytes, this.#head.length);
    this.#head = head;
    const type = mimeType(head);
    if (!type) return undefined;
    this.#buffer = this.#source.addSourceBuffer(type);
    this.#head = new Uint8Array();
    return this.#append(head);
  }

  async #append(bytes) {
    for (;;) {
      try {
        this.#buffer.appendBuffer(bytes);
        await heard(this.#buffer, "updateend");
        return;
      } catch (error) {
        if (error.name !== "QuotaExceededError") throw error;
        await this.#makeRoom();
      }
    }
  }

  /** Forget what was watched; without that, wait: reading pauses and the server with it. */
  async #makeRoom() {
    const until = this.#video.currentTime - KEEP_BEHIND_S;
    if (until <= this.range[0]) return pause(500);
    this.#buffer.remove(0, until);
    return heard(this.#buffer, "updateend");
  }

  #finish() {
    this.isComplete = true;
    if (this.#source.readyState === "open" && this.#buffer) this.#source.endOfStream();
    this.#tell("complete");
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
