// Examples and files take a moment until they are in the form. A press on Generate or on an example
// that comes meanwhile waits, or it would be about what stood there before; and where two of them are
// for the same field, the one counts that the reader asked for last, in whatever order they come.

import { UNCHANGED } from "./calls.js";

const WAITING = "#la-generate, #la-examples button";
const MOST_MS = 30_000;
/** Longest that a press on Generate waits for a file on its way, milliseconds. */
export const UPLOAD_MS = 1_800_000;
const FIELDS = ["portrait", "speech", "prompt"]; // in the order in which an example fills them
const FILES = "#la-portrait, #la-speech";
// Buttons in the fields for files that change what is there: remove, record, trim, where from.
const CHANGES = "[aria-haspopup], .record-button, .stop-button, .stop-button-paused, .text-button, "
  + ".source-selection button";

/**
 * Watches the presses on examples and on Generate; to be made before the listeners that shall wait.
 *
 * Events: "held" when a press on Generate begins to wait; "failed" when it was given up because the
 * example or the file did not come, with the server's `message`, empty where there is none, as `detail`;
 * "dropped" when it was given up because a file was refused, which is said elsewhere.
 */
export class Examples extends EventTarget {
  #filling = null; // the example that is on its way: its button, since when, and who waits for its end
  #held = []; // the buttons that were pressed since, in their order, and when
  #changed = Object.fromEntries(FIELDS.map((field) => [field, 0])); // when the reader did so last
  #asked = new Map(); // when each example was asked for last, by the id of its button
  #filledAt = 0; // when the one was asked for that came last
  #again = 0; // when a press was made that is repeated now
  #uploads;
  #timer = 0;

  /**
   * @param {import("./calls.js").Calls} calls tell of an example that failed, and bring the others.
   * @param {import("./uploads.js").Uploads} uploads are the files on their way.
   */
  constructor(calls, uploads) {
    super();
    this.#uploads = uploads;
    const listen = (name, take) => document.addEventListener(name, take, { capture: true });
    listen("click", (event) => this.#look(event));
    for (const name of ["click", "change", "drop", "input"]) {
      listen(name, ({ target, type }) => this.#noteChange(target, type));
    }
    calls.mendWith((call, data) => this.#withoutChanged(call.name, data));
    calls.addEventListener("failed", ({ detail }) => {
      if (this.#filling?.button.id === detail.name) this.#giveUp(detail.message);
    });
    uploads.admits = (at) => this.#admits(at);
    uploads.addEventListener("taken", () => this.#goOn());
    uploads.addEventListener("refused", () => this.#drop());
  }

  /** The form holds this example: what was pressed meanwhile counts now. */
  takeFilled(name) {
    if (this.#filling?.button.id !== `la-example-${name}`) return; // was given up
    this.#filledAt = this.#filling.at;
    this.#goOn({ isOver: true });
  }

  #look(event) {
    const button = event.target.closest?.(WAITING);
    if (!button) return;
    const at = this.#again || performance.now();
    const waits = this.#filling || this.#held.length || (isGenerate(button) && this.#uploads.areComing);
    if (!waits) {
      if (!isGenerate(button)) this.#begin(button, at);
      return;
    }
    event.stopImmediatePropagation();
    if (!this.#filling && !this.#held.length) {
      this.#timer = setTimeout(() => this.#giveUp(""), UPLOAD_MS);
    }
    this.#held.push({ button, at });
    if (isGenerate(button)) this.dispatchEvent(new Event("held"));
  }

  /** What the reader does to a field of the form. */
  #noteChange(target, type) {
    const isText = type === "input" && target.closest?.("#la-prompt");
    const isFile = type === "click" ? target.closest?.(CHANGES) : type !== "input";
    const place = isText || (isFile && target.closest?.(FILES));
    if (place) this.#changed[place.id.slice("la-".length)] = performance.now();
  }

  #begin(button, at) {
    let end;
    const over = new Promise((resolve) => { end = resolve; });
    this.#filling = { button, at, over, end };
    this.#asked.set(button.id, at);
    for (const field of FIELDS) this.#changed[field] = Math.max(at, this.#changed[field]);
    this.#timer = setTimeout(() => this.#giveUp(""), MOST_MS);
  }

  /** The outputs of an example, but for the fields that the reader has changed since. */
  #withoutChanged(name, data) {
    const at = this.#asked.get(name);
    if (at === undefined) return data;
    const isChanged = (index) => this.#changed[FIELDS[index]] > at;
    return data.map((value, index) => (isChanged(index) ? UNCHANGED : value));
  }

  /** Whether a file comes in that was chosen at a time: not where an example came that is newer. */
  async #admits(at) {
    while (this.#filling && this.#filling.at > at) await this.#filling.over;
    return this.#filledAt <= at;
  }

  #giveUp(message) {
    if (!this.#end().some(({ button }) => isGenerate(button))) return;
    this.dispatchEvent(new CustomEvent("failed", { detail: { message } }));
  }

  /** A file was refused: what waited for it is over, but not an example and what was pressed after it. */
  #drop() {
    if (this.#filling) return;
    const held = this.#end();
    if (!held.length) return;
    this.dispatchEvent(new Event("dropped"));
    const others = held.findIndex(({ button }) => !isGenerate(button));
    if (others >= 0) this.#repeat(held.slice(others));
  }

  /** Repeat the presses that waited, unless there is still something to wait for. */
  #goOn({ isOver = false } = {}) {
    if (!this.#filling || isOver) this.#repeat(this.#end());
  }

  #repeat(held) {
    for (const { button, at } of held) { // after another example, the rest waits again
      this.#again = at;
      button.click();
      this.#again = 0;
    }
  }

  /** Wait no more; returns what did. */
  #end() {
    clearTimeout(this.#timer);
    this.#filling?.end();
    this.#filling = null;
    return this.#held.splice(0);
  }
}

const isGenerate = (button) => button.id === "la-generate";
