// What is said beside the fields of the form: findings, refusals, the length of the prompt, the cost
// of a tier.

import { span } from "./format.js";
import { FPS } from "./player.js";
import { say, sayNote } from "./texts.js";

const ADVANCED = new Set(["num_clip", "infer_frames", "sample_steps", "seed", "online_decode", "size"]);
const GOOD_LENGTH = [60, 90];

/** Shows notes and errors per field; remembers them to say them again in another language. */
export class Fields {
  #said = new Map();
  #tiers = [];
  #tier = "";
  #speechSeconds = null;
  #counted = null;

  constructor() {
    window.addEventListener("la-language", () => this.#draw());
    const prompt = document.querySelector("#la-prompt textarea");
    prompt.addEventListener("input", () => this.#countPrompt());
    // A handler that fills the field makes no event.
    setInterval(() => this.#countPrompt(), 400);
  }

  /** Take what the server offers. */
  setTiers(tiers) {
    this.#tiers = tiers;
    this.#tier ||= tiers[0]?.name ?? "";
    this.#drawCost();
  }

  /** The reader chose a tier. */
  chooseTier(name) {
    this.#tier = name;
    this.#drawCost();
  }

  /** Rate to expect of the chosen tier, seconds of video per second, null without a measurement. */
  get expectedRate() {
    const tier = this.#tiers.find((candidate) => candidate.name === this.#tier);
    return tier?.fps ? tier.fps / FPS : null;
  }

  /** Show what an inspection found: `{notes, errors, speech}`. */
  showInspection({ notes, errors, speech }) {
    this.#speechSeconds = speech?.duration_s ?? null;
    const refused = this.#said.get("form") ?? []; // an inspection knows nothing of these
    this.#said = new Map([["form", refused]]);
    for (const note of notes) if (note.code !== "long_prompt") this.#add(note.field, note);
    for (const error of errors) this.showError(error);
    this.#draw();
  }

  /** Show one refusal: `{field, message}`. */
  showError({ field, message }) {
    this.#add(field, { message, isError: true });
    if (ADVANCED.has(field)) openAdvanced();
    this.#draw();
    if (place(this.#placeOf(field))) place(this.#placeOf(field)).scrollIntoView({ block: "nearest" });
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
    if (!items.some((known) => known.message === item.message)) items.push(item);
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
    this.#drawCost();
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

  #drawCost() {
    const tier = this.#tiers.find((candidate) => candidate.name === this.#tier);
    const output = document.getElementById("la-cost");
    output.replaceChildren();
    if (!tier) return;
    if (tier.memory_gib !== null && tier.available_gib) output.append(meter(tier));
    if (!tier.fits) {
      output.append(paragraph(say("cost_no", { reason: tier.reason }), "la-cost-no"));
      return;
    }
    const said = [];
    if (tier.memory_gib !== null) {
      said.push(say("cost_memory", { used: tier.memory_gib, there: tier.available_gib }));
    }
    said.push(speedOf(tier));
    if (tier.fps && this.#speechSeconds) {
      const time = (tier.first_frame_s ?? 0) + (this.#speechSeconds * FPS) / tier.fps;
      const unit = say("second");
      const speech = span(this.#speechSeconds, unit);
      said.push(say("cost_speech", { speech, time: span(time, unit) }));
    }
    output.append(paragraph(sentence(said)));
  }
}

function sentence(parts) {
  const text = parts.join(" · ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function speedOf(tier) {
  if (!tier.fps) return say("cost_unmeasured");
  const fps = tier.fps.toFixed(tier.fps < 10 ? 1 : 0);
  if (tier.first_frame_s === null) return say("cost_fps", { fps });
  return say("cost_speed", { first: tier.first_frame_s.toFixed(1), fps });
}

function meter(tier) {
  const bar = document.createElement("span");
  bar.className = "la-meter";
  const fill = document.createElement("i");
  fill.style.width = `${Math.min(100, (100 * tier.memory_gib) / tier.available_gib)}%`;
  bar.append(fill);
  return bar;
}

function paragraph(text, className = "") {
  return Object.assign(document.createElement("p"), { textContent: text, className });
}

function line(item) {
  const text = item.isError ? withoutField(item.message) : sayNote(item);
  const element = Object.assign(document.createElement("li"), { textContent: text });
  element.className = item.isError ? "la-error" : "la-note";
  if (item.isError) element.setAttribute("role", "alert");
  return element;
}

/** The message stands beside its field and need not begin with its name. */
function withoutField(message) {
  const text = message.replace(/^[a-z_]+: /, "");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function place(field) {
  return document.querySelector(`.la-notes[data-field="${field}"]`);
}

function openAdvanced() {
  const button = document.querySelector("#la-advanced > button");
  if (button && !button.classList.contains("open")) button.click();
}
