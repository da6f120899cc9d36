// The page: who tells whom.

import { Calls } from "./calls.js";
import { Examples, UPLOAD_MS } from "./examples.js";
import { Fields } from "./fields.js";
import { Follower } from "./follower.js";
import { Group } from "./group.js";
import { applyGradioTexts } from "./gradio_texts.js";
import { History } from "./history.js";
import { FPS } from "./player.js";
import { keepPresses } from "./presses.js";
import { ask } from "./server.js";
import { Stage } from "./stage.js";
import { TabTitle } from "./tab_title.js";
import { applyTexts, chooseLanguage, language, say } from "./texts.js";
import { Uploads } from "./uploads.js";

const SHOWN = "la_shown_job";
const LEAVING_MS = 3000;
const PATIENCE_MS = 30_000;
const PRESSED = "#la-generate, #la-examples button, [id^=la-tell-]";
const OPEN = new Set(["queued", "running"]);

const at = (id) => document.getElementById(id);

const uploads = new Uploads();
const calls = new Calls();
keepPresses("#la-form, #la-buttons");
const examples = new Examples(calls, uploads);

class Page {
  #stage = new Stage();
  #title = new TabTitle();
  #fields = new Fields();
  #history = new History();
  #group = new Group();
  #follower = null;
  #job = null;
  #config = null;
  #wasReady = null;
  #timer = 0;
  #inspectedAt = 0;

  constructor() {
    this.#history.addEventListener("choose", (event) => this.#open(event.detail, true));
    this.#history.addEventListener("removed", (event) => {
      if (event.detail.id === this.#job?.id) this.#close();
    });
    this.#history.addEventListener("list", (event) => this.#rejoin(event.detail), { once: true });
    this.#group.addEventListener("news", (event) => this.#takeGroup(event.detail));
    window.addEventListener("la-language", () => this.#retell());
    for (const button of document.querySelectorAll("[data-language]")) {
      button.addEventListener("click", () => chooseLanguage(button.dataset.language));
    }
    this.#followCalls();
    at("la-cancel").addEventListener("click", () => this.#cancel());
    whenAnswered("la-submitted", (answer) => this.#takeJob(answer));
    whenAnswered("la-inspected", (answer) => {
      if (answer.asked_at < this.#inspectedAt) return; // overtaken by a later one
      this.#inspectedAt = answer.asked_at;
      this.#fields.showInspection(answer);
    });
    whenAnswered("la-filled", ({ example }) => examples.takeFilled(example));
    whenAnswered("la-chosen", ({ tier }) => this.#fields.chooseTier(tier));
    renewKey();
    uploads.addEventListener("refused", ({ detail }) => this.#fields.showOnly(detail));
    document.body.classList.toggle("la-insecure", !window.isSecureContext);
    new MutationObserver(() => applyGradioTexts()).observe(at("la-form"), {
      childList: true,
      subtree: true,
    });
    this.#retell();
    this.#history.refresh();
    this.#readConfig();
    this.#drawButtons();
  }

  /** From a click on Generate to its answer; there is one for each click, within seconds. */
  #followCalls() {
    at("la-generate").addEventListener("click", () => this.#sending(LEAVING_MS), { capture: true });
    examples.addEventListener("held", () => {
      this.#sending(uploads.areComing ? UPLOAD_MS : PATIENCE_MS);
    });
    examples.addEventListener("dropped", () => this.#sending(0));
    examples.addEventListener("failed", ({ detail }) => this.#refuse(detail.message));
    const isOurs = ({ body }) => body.includes(keyField().value);
    calls.addEventListener("left", ({ detail }) => {
      if (isOurs(detail)) this.#sending(PATIENCE_MS);
    });
    calls.addEventListener("failed", ({ detail }) => {
      if (isOurs(detail)) this.#refuse(detail.message);
    });
    if (calls.haveBegun) return;
    // Gradio shows its buttons before it listens to them: until then nobody can press one in vain.
    const buttons = document.querySelectorAll(PRESSED);
    for (const button of buttons) button.disabled = true;
    const begin = () => {
      for (const button of buttons) button.disabled = false;
      this.#tellTiers();
    };
    calls.addEventListener("left", begin, { once: true });
  }

  #refuse(message) {
    this.#sending(0);
    this.#fields.showError({ field: null, ...(message ? { message } : { key: "no_answer" }) });
  }

  /** A handler answered: a job, or why there is none. */
  #takeJob(answer) {
    this.#sending(0);
    if (answer.errors) {
      for (const error of [...answer.errors].reverse()) this.#fields.showError(error);
      return;
    }
    if (answer.id === this.#job?.id) return; // a double click
    renewKey();
    this.#open(answer, true);
    this.#history.refresh();
  }

  /** Cancel the job on the stage. */
  async #cancel() {
    if (!this.#job?.can_cancel) return;
    this.#fields.clearErrors();
    await ask(`api/jobs/${this.#job.id}/cancel`, "POST").catch(() => null);
    this.#follower?.hurry();
  }

  #open(job, starts) {
    this.#follower?.stop();
    sessionStorage.setItem(SHOWN, job.id);
    this.#history.mark(job.id);
    this.#show(job, starts);
    const follower = new Follower(`api/jobs/${job.id}`);
    this.#follower = follower;
    follower.addEventListener("news", (event) => this.#show(event.detail, starts));
    follower.addEventListener("lost", () => this.#stage.showLost());
    follower.addEventListener("gone", () => {
      this.#close();
      this.#stage.showGone();
    });
    if (window.matchMedia("(max-width: 900px)").matches) {
      at("la-stage").scrollIntoView({ block: "start" });
    }
  }

  #show(job, starts) {
    const hasEnded = this.#job && OPEN.has(this.#job.state) && !OPEN.has(job.state);
    const hasBegun = this.#job?.state === "queued" && job.state === "running";
    this.#job = job;
    this.#stage.show(job, this.#rateOf(job), starts);
    document.body.classList.add("la-has-job");
    this.#title.show(job);
    this.#drawButtons();
    if (hasEnded || hasBegun) this.#history.refresh();
    if (hasEnded) this.#readConfig();
  }

  #close() {
    this.#follower?.stop();
    this.#follower = null;
    this.#job = null;
    sessionStorage.removeItem(SHOWN);
    document.body.classList.remove("la-has-job");
    this.#history.mark("");
    this.#stage.clear();
    this.#title.show(null);
    this.#drawButtons();
  }

  /** After a refresh: the job that was on the stage, else one that is being made. */
  #rejoin(jobs) {
    if (this.#job) return;
    const shown = jobs.find((job) => job.id === sessionStorage.getItem(SHOWN));
    const job = shown ?? jobs.find((candidate) => OPEN.has(candidate.state));
    if (job) this.#open(job, OPEN.has(job.state));
  }

  #takeGroup(group) {
    this.#stage.setGroup(group);
    if (group === null) this.#wasReady = false;
    else if (group.state === "ready" && this.#wasReady !== true) {
      // Ready, or back again: a job may have changed meanwhile.
      if (this.#wasReady === false) this.#history.refresh();
      this.#wasReady = true;
      this.#follower?.hurry();
      this.#readConfig();
    } else if (group.state !== "ready") this.#wasReady = false;
  }

  async #readConfig() {
    this.#config = await ask("api/config").catch(() => this.#config);
    if (!this.#config) return;
    this.#fields.setTiers(this.#config.tiers);
    this.#tellTiers();
    this.#drawModel();
    at("la-logout").hidden = !this.#config.features.admin;
  }

  #rateOf(job) {
    const fps = this.#config?.tiers.find((tier) => tier.name === job.tier)?.fps;
    return fps ? fps / FPS : null;
  }

  #retell() {
    applyTexts();
    applyGradioTexts();
    this.#drawModel();
    this.#title.show(this.#job);
    if (this.#config) this.#tellTiers();
    this.#drawButtons();
  }

  /** Have the tiers said in the present language, with what was measured lately. */
  #tellTiers() {
    at(`la-tell-${language()}`).click();
  }

  #drawModel() {
    const model = this.#config?.model;
    const key = model?.is_random ? "model_random" : model?.is_demo ? "model_demo" : "";
    at("la-model-note").hidden = !key;
    at("la-model-note").textContent = key ? say(key) : "";
  }

  #drawButtons() {
    at("la-cancel").disabled = !this.#job?.can_cancel;
  }

  /** Show that the form is being sent, for so many milliseconds at most; 0: no more. */
  #sending(patienceMs) {
    clearTimeout(this.#timer);
    const isSending = patienceMs > 0;
    if (isSending) {
      this.#fields.clearErrors();
      this.#timer = setTimeout(() => this.#refuse(), patienceMs);
    }
    document.body.classList.toggle("la-sending", isSending);
    at("la-generate").setAttribute("aria-busy", String(isSending));
  }
}

/**
 * Name what will be sent next. Until the server has answered, sending it again, by a double click or
 * because the answer was lost on its way, makes no second video.
 */
function renewKey() {
  const field = keyField();
  field.value = [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(36)).join("");
  field.dispatchEvent(new Event("input", { bubbles: true }));
}

const keyField = () => at("la-key").querySelector("textarea, input");

/** Hand over what a handler writes into its answer. */
function whenAnswered(id, take) {
  new MutationObserver(() => {
    const answer = at(id).querySelector("data");
    if (answer && answer.dataset.serial !== at(id).dataset.taken) {
      at(id).dataset.taken = answer.dataset.serial;
      take(JSON.parse(answer.value));
    }
  }).observe(at(id), { childList: true, subtree: true, attributes: true });
}

/** Gradio builds its fields after this module has run. */
function whenBuilt(ids, act) {
  const isBuilt = () => ids.every((id) => at(id));
  if (isBuilt()) {
    act();
    return;
  }
  const observer = new MutationObserver(() => {
    if (!isBuilt()) return;
    observer.disconnect();
    act();
  });
  observer.observe(document.documentElement, { childList: true, subtree: true });
}

const built = ["la-group-chip", "la-stage", "la-history", "la-generate", "la-cancel", "la-submitted"];
whenBuilt([...built, "la-inspected", "la-filled", "la-chosen", "la-key", "la-fold", "la-tell-en", "la-tell-zh", "la-count", "la-cost"], () => new Page());
