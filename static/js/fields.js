// What is said beside the fields of the form: findings, refusals, the length of the prompt, the cost
// of a tier.

import { span } from "./format.js";
import { FPS } from "./player.js";
import { say, sayError, sayNote, tierName } from "./texts.js";

const ADVANCED = new Set(["num_clip", "infer_frames", "sample_steps", "seed", "online_decode", "size"]);
const GOOD_LENGTH = [60, 90];
const CUSTOM = "custom";

/** Shows notes and errors per field; remembers them to say them again in another language. */
export class Fields {
  #said = new Map();
  #tiers = [];
  #tier = "";
  #cost = null;
  #speechSeconds = null;
  #counted = null;

  constructor() {
    window.addEventListener("la-language", () => this.#draw());
    const fold = document.getElementById("la-fold");
    fold.addEventListener("click", () => {
      fold.setAttribute("aria-expanded", String(fold.getAttribute("aria-expanded") !== "true"));
    });
    const prompt = document.querySelector("#la-prompt textarea");
    prompt.addEventListener("input", () => this.#countPrompt());
    // A handler that fills the field makes no event.
    setInterval(() => this.#countPrompt(), 400);
  }

  /** Take what the server offers. */
  setTiers(tiers) {
    this.#tiers = tiers;
    this.#tier ||= tiers[0]?.name ?? "";
    this.#drawTier();
  }

  /** The reader chose a tier. */
  chooseTier(name) {
    this.#tier = name;
    this.#cost = null;
    if (name === CUSTOM) openAdvanced();
    this.#drawTier();
  }

  /** Rate to expect of the chosen tier, seconds of video per second, null without a measurement. */
  get expectedRate() {
    const tier = this.#tiers.find((candidate) => candidate.name === this.#tier);
    return tier?.fps ? tier.fps / FPS : null;
  }

  /** Show what an inspection found: `{tier, notes, errors, speech, cost}`. */
  showInspection({ tier, notes, errors, speech, cost }) {
    this.#speechSeconds = speech?.duration_s ?? null;
    if (tier === this.#tier) this.#cost = cost;
    this.#said = this.#notInspected();
    for (const note of notes) if (note.code !== "long_prompt") this.#add(note.field, note);
    for (const error of errors) {
      if (error.field === "tier" && cost && !cost.fits) continue; // said where the cost is
      if (error.field === "size" && !sizeField()?.value) continue; // not typed yet
      this.#add(error.field, { ...error, isError: true });
      if (ADVANCED.has(error.field)) openAdvanced();
    }
    this.#draw();
  }

  /** Show one refusal, `{field, message}` as the server said it, or `{field, key}` of our own. */
  showError({ field, message, key, isUpload = false }) {
    const isTooLarge = field === "tier" && this.#isTooLarge;
    this.#add(field, { field, message, key: isTooLarge ? "no_fit" : key, isError: true, isUpload });
    if (ADVANCED.has(field)) openAdvanced();
    this.#draw();
    if (place(this.#placeOf(field))) place(this.#placeOf(field)).scrollIntoView({ block: "nearest" });
  }

  /** Show why a file did not become a field's, in place of all that was said about it. */
  showOnly(refusal) {
    this.#said.delete(refusal.field);
    this.showError({ ...refusal, isUpload: true });
  }

  /** What an inspection knows nothing of: refusals of the whole form, and files that did not come in. */
  #notInspected() {
    const kept = new Map([["form", this.#said.get("form") ?? []]]);
    for (const field of ["portrait", "speech"]) {
      const items = (this.#said.get(field) ?? []).filter((item) => item.isUpload && !holdsFile(field));
      kept.set(field, items);
    }
    return kept;
  }

  /** Forget all refusals; findings stay. */
  clearErrors() {
    for (const [field, items] of this.#said) {
      this.#said.set(field, items.filter((item) => !item.isError));
    }
    this.#draw();
  }

  #add(field, item) {
    const name = this.#placeOf(field);
    const items = this.#said.get(name) ?? [];
    const isKnown = ({ message, key }) => message === item.message && key === item.key;
    if (!items.some(isKnown)) items.push(item);
    this.#said.set(name, items);
  }

  #placeOf(field) {
    if (ADVANCED.has(field)) return "advanced";
    return ["portrait", "speech", "prompt", "tier"].includes(field) ? field : "form";
  }

  #draw() {
    for (const list of document.querySelectorAll(".la-notes[data-field]")) {
      const items = this.#said.get(list.dataset.field) ?? [];
      list.replaceChildren(...items.map(line));
    }
    this.#countPrompt(true);
    this.#drawTier();
  }

  #countPrompt(always = false) {
    const text = document.querySelector("#la-prompt textarea")?.value ?? "";
    if (!always && text === this.#counted) return;
    this.#counted = text;
    const count = [...text.trim()].length;
    const [least, most] = GOOD_LENGTH;
    const word = count === 0 ? "empty" : count < least ? "short" : count > most ? "long" : "good";
    const output = document.getElementById("la-count");
    output.dataset.length = word;
    output.textContent = say(`count_${word}`, { count });
  }

  /** What the tier costs with the inputs at hand, else what it costs at most times. */
  get #chosen() {
    const tier = this.#tiers.find((candidate) => candidate.name === this.#tier);
    return { ...tier, ...this.#cost };
  }

  get #isTooLarge() {
    return this.#chosen.fits === false;
  }

  #drawTier() {
    document.body.classList.toggle("la-custom", this.#tier === CUSTOM);
    const tier = this.#tiers.find((candidate) => candidate.name === this.#tier) ?? this.#tiers[0];
    for (const name of ["num_clip", "infer_frames", "sample_steps"]) {
      const input = document.querySelector(`#la-${name} input, #la-${name} textarea`);
      if (input && tier) input.placeholder = String(tier.defaults[name]);
    }
    // The style sheet shows this over the field, which is too narrow for all that a choice says.
    const shown = [tierName(this.#tier), tier?.name === this.#tier ? tier.size.replace("*", "×") : ""];
    const text = JSON.stringify(shown.filter(Boolean).join(" · "));
    document.documentElement.style.setProperty("--la-text-tier", text);
    this.#drawCost();
  }

  #drawCost() {
    const chosen = this.#chosen;
    const output = document.getElementById("la-cost");
    output.dataset.fits = String(!this.#isTooLarge);
    const { memory_gib: used, available_gib: there } = chosen;
    const memory = used == null ? null : { used: used.toFixed(1), there: there.toFixed(1) };
    const bar = memory ? [meter(used / there)] : [];
    if (this.#isTooLarge) {
      const why = paragraph(say("cost_no", memory));
      why.title = chosen.reason;
      output.replaceChildren(...bar, why);
    } else if (this.#tier === CUSTOM && !this.#cost) {
      output.replaceChildren(paragraph(say("cost_custom")));
    } else if (this.#tier) {
      const needs = memory ? [paragraph(say("cost_memory", memory))] : [];
      output.replaceChildren(this.#time(chosen), ...bar, ...needs);
    }
  }

  /** How long it takes, where that was measured: in one line, as what is below must not move. */
  #time(chosen) {
    if (!chosen.fps || !this.#speechSeconds) return paragraph(speedOf(chosen));
    const first = chosen.first_frame_s;
    const time = span((first ?? 0) + (this.#speechSeconds * FPS) / chosen.fps, say("second"));
    const key = first == null ? "cost_whole" : "cost_speech";
    const whole = paragraph(say(key, { time, first: first?.toFixed(1) }));
    whole.className = "la-cost-whole";
    return whole;
  }
}

function speedOf(tier) {
  if (!tier.fps) return say("cost_unmeasured");
  const fps = tier.fps.toFixed(tier.fps < 10 ? 1 : 0);
  if (tier.first_frame_s == null) return say("cost_fps", { fps });
  return say("cost_speed", { first: tier.first_frame_s.toFixed(1), fps });
}

function meter(share) {
  const bar = document.createElement("span");
  bar.className = "la-meter";
  const fill = document.createElement("i");
  fill.style.width = `${Math.min(100, 100 * share)}%`;
  bar.append(fill);
  return bar;
}

function paragraph(text) {
  return Object.assign(document.createElement("p"), { textContent: text });
}

function line(item) {
  // Of several fields in one card, the refused one has to be named.
  const name = ADVANCED.has(item.field) ? `${say(item.field)}: ` : "";
  const text = item.isError ? name + sayError(item) : sayNote(item);
  const element = Object.assign(document.createElement("li"), { textContent: text });
  element.className = item.isError ? "la-error" : "la-note";
  if (item.isError) element.setAttribute("role", "alert");
  return element;
}

const holdsFile = (field) => document.querySelector(`#la-${field} :is(img, .waveform-container)`);

const sizeField = () => document.querySelector("#la-size input, #la-size textarea");

function place(field) {
  return document.querySelector(`.la-notes[data-field="${field}"]`);
}

function openAdvanced() {
  document.getElementById("la-fold").setAttribute("aria-expanded", "true");
}
