// The language of the page: the browser's, or the one that was chosen with the switch.

import { chinese } from "./chinese.js";
import { chineseErrors } from "./chinese_errors.js";
import { english } from "./english.js";

const TEXTS = { en: english, zh: chinese };
const STORED = "la_language";

let current = firstLanguage();

function firstLanguage() {
  const asked = new URLSearchParams(window.location.search).get("lang");
  const wanted = [asked, localStorage.getItem(STORED), ...navigator.languages];
  for (const tag of wanted) {
    const known = Object.keys(TEXTS).find((name) => tag?.toLowerCase().startsWith(name));
    if (known) return known;
  }
  return "en";
}

/** "en" or "zh". */
export const language = () => current;

/**
 * A text in the present language.
 * @param {string} key of english.js.
 * @param {Record<string, string|number>} values for its `{name}` places.
 */
export function say(key, values = {}) {
  const text = TEXTS[current][key] ?? english[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place);
}

/** Name of a tier; one that only this server has is called as it calls it. */
export function tierName(name) {
  return TEXTS[current][`tier_${name}`] ?? name;
}

/** A finding of the server: by its code where the language has it, else as it came. */
export function sayNote(note) {
  return TEXTS[current][`note_${note.code}`] ?? note.message;
}

/**
 * A refusal: `{message}` as the server said it, or `{key}` of our own. The server speaks English; what
 * it says often is known here in Chinese, too. It stands beside its field and need not begin with its
 * name.
 */
export function sayError({ message, key }) {
  if (key) return say(key);
  const known = current === "zh" ? chineseErrors.map((entry) => translated(message, entry)) : [];
  const text = known.find(Boolean) ?? message.replace(/^[a-z_]+: /, "");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function translated(message, [english, chineseText]) {
  const names = [...english.matchAll(/\{(\w+)\}/g)].map((match) => match[1]);
  const pattern = english.replace(/[.*+?^$()|[\]\\]/g, "\\$&").replace(/\{\w+\}/g, "(.*?)");
  const found = new RegExp(`^${pattern}$`).exec(message);
  if (!found) return null;
  const values = Object.fromEntries(names.map((name, index) => [name, found[index + 1]]));
  return chineseText.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Change the language, remember it and tell everybody by the event "la-language". */
export function chooseLanguage(name) {
  current = name in TEXTS ? name : "en";
  localStorage.setItem(STORED, current);
  applyTexts();
  window.dispatchEvent(new Event("la-language"));
}

/** Fill in all elements that name their text by `data-text` or `data-text-label`. */
export function applyTexts() {
  document.documentElement.lang = current === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) {
    element.textContent = say(element.dataset.text);
  }
  for (const element of document.querySelectorAll("[data-text-label]")) {
    element.setAttribute("aria-label", say(element.dataset.textLabel));
  }
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", String(button.dataset.language === current));
  }
}
