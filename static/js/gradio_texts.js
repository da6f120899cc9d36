// Words inside Gradio's own fields, which know no language switch.

import { say } from "./texts.js";

// What carries the label of a field, and its text.
const LABELS = {
  "#la-portrait [data-testid=block-label]": "portrait",
  "#la-speech [data-testid=block-label]": "speech",
  "#la-prompt [data-testid=block-info]": "prompt",
  "#la-tier [data-testid=block-info]": "tier",
  "#la-num_clip [data-testid=block-info]": "num_clip",
  "#la-infer_frames [data-testid=block-info]": "infer_frames",
  "#la-sample_steps [data-testid=block-info]": "sample_steps",
  "#la-seed [data-testid=block-info]": "seed",
  "#la-size [data-testid=block-info]": "size",
  "#la-online_decode label span": "online_decode",
  "#la-speech .record-button": "record",
  "#la-speech .stop-button": "record_stop",
  "#la-speech .stop-button-paused": "record_stop",
  "#la-speech .resume-button": "record_resume",
  "#la-speech .text-button:first-of-type": "trim",
  "#la-speech .text-button:last-of-type": "cancel",
  "#la-generate": "generate",
  "#la-cancel": "cancel",
};
const HINTS = {
  "#la-prompt textarea": "prompt_hint",
  "#la-seed input": "seed_hint",
  "#la-size input": "size_hint",
};
// Names for screen readers.
const NAMES = {
  "#la-portrait input[type=file]": "portrait_drop",
  "#la-portrait .upload-container > button": "portrait_drop",
  "#la-speech input[type=file]": "speech_drop",
  "#la-speech .audio-container > button": "speech_drop",
  "#la-speech .mic-select": "microphone",
  "#la-tier input": "tier",
};
// Names of buttons that show only a drawing: for screen readers, and for whoever points at them.
const DRAWINGS = {
  "#la-portrait button[aria-haspopup]": "remove_file",
  "#la-speech button[aria-haspopup]": "remove_file",
  "#la-speech .source-selection button:first-of-type": "upload_choice",
  "#la-speech .source-selection button:last-of-type": "microphone_choice",
  "#la-speech .pause-button": "record_pause",
  "#la-speech .settings-wrapper > .action:nth-last-of-type(2)": "trim_undo",
  "#la-speech .settings-wrapper > .action:last-of-type": "trim_choice",
};
// Texts that the style sheet shows in place of Gradio's.
const DRAWN = ["portrait_drop", "speech_drop"];

/** Say everything in the present language. */
export function applyGradioTexts() {
  for (const [selector, key] of Object.entries(LABELS)) {
    const label = document.querySelector(selector);
    if (label) setLastText(label, say(key));
  }
  for (const [selector, key] of Object.entries(HINTS)) {
    document.querySelector(selector)?.setAttribute("placeholder", say(key));
  }
  for (const [selector, key] of Object.entries(NAMES)) {
    document.querySelector(selector)?.setAttribute("aria-label", say(key));
  }
  for (const [selector, key] of Object.entries(DRAWINGS)) {
    const button = document.querySelector(selector);
    button?.setAttribute("aria-label", say(key));
    button?.setAttribute("title", say(key));
  }
  document.documentElement.style.setProperty("--la-text-uploading", JSON.stringify(say("uploading")));
  for (const key of DRAWN) {
    // Browsers give out the microphone only over https or on localhost.
    const isSilent = key === "speech_drop" && !window.isSecureContext;
    const text = JSON.stringify(say(isSilent ? "speech_insecure" : key));
    document.documentElement.style.setProperty(`--la-text-${key}`, text);
  }
}

/** Labels may begin with a drawing: only the text behind it is replaced. */
function setLastText(element, text) {
  const last = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).at(-1);
  if (!last) element.append(text);
  else if (last.data.trim() !== text) last.data = ` ${text}`;
}
