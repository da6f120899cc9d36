// An example takes a moment to fill the form: a press that comes meanwhile waits for it, or it would be
// about what stood there before.

const WAITING = "#la-generate, #la-examples button";
const MOST_MS = 30_000;

/**
 * Watches the presses on examples and on Generate; to be made before the listeners that shall wait.
 *
 * Events: "held" when a press on Generate begins to wait; "failed" when it was given up because the
 * example did not come, with the server's `message`, empty where there is none, as `detail`.
 */
export class Examples extends EventTarget {
  #filling = null; // the button of the example that is on its way
  #held = []; // the buttons that were pressed since, in their order
  #timer = 0;

  /** @param {import("./calls.js").Calls} calls tell of an example that failed. */
  constructor(calls) {
    super();
    document.addEventListener("click", (event) => this.#look(event), { capture: true });
    calls.addEventListener("failed", ({ detail }) => {
      if (this.#filling && isFrom(this.#filling, detail.body)) this.#giveUp(detail.message);
    });
  }

  /** The form holds this example: what was pressed meanwhile counts now. */
  takeFilled(name) {
    if (this.#filling?.id !== `la-example-${name}`) return; // was given up
    for (const button of this.#end()) button.click(); // after another example, the rest waits again
  }

  #look(event) {
    const button = event.target.closest?.(WAITING);
    if (!button) return;
    if (!this.#filling) {
      if (!isGenerate(button)) this.#begin(button);
      return;
    }
    event.stopImmediatePropagation();
    this.#held.push(button);
    if (isGenerate(button)) this.dispatchEvent(new Event("held"));
  }

  #begin(button) {
    this.#filling = button;
    this.#timer = setTimeout(() => this.#giveUp(""), MOST_MS);
  }

  #giveUp(message) {
    if (!this.#end().some(isGenerate)) return;
    this.dispatchEvent(new CustomEvent("failed", { detail: { message } }));
  }

  /** Wait no more; returns what did. */
  #end() {
    clearTimeout(this.#timer);
    this.#filling = null;
    return this.#held.splice(0);
  }
}

const isGenerate = (button) => button.id === "la-generate";

/** Whether a button set off a call, which names it by Gradio's number. */
function isFrom(button, body) {
  const known = window.gradio_config.components.find(({ props }) => props?.elem_id === button.id);
  return known !== undefined && JSON.parse(body).trigger_id === known.id;
}
