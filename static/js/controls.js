// The bar under the picture: play, position over what is made, sound, full screen.

import { clock } from "./format.js";
import { drawIcon } from "./icons.js";
import { say } from "./texts.js";

const EDGE_SHOWS_S = 3;

/** Wires the controls in the page to a player; `draw` shows its status. */
export class Controls {
  #player;
  #video;
  #isDragging = false;

  /**
   * @param {import("./player.js").Player} player does it.
   * @param {HTMLVideoElement} video has sound and size.
   * @param {HTMLElement} screen what fills the screen.
   */
  constructor(player, video, screen) {
    this.#player = player;
    this.#video = video;
    const on = (id, name, act) => document.getElementById(id).addEventListener(name, act);
    on("la-play", "click", () => this.toggle());
    on("la-edge", "click", () => player.goLive());
    on("la-mute", "click", () => {
      video.muted = !video.muted;
    });
    on("la-full", "click", () => this.#fillScreen(screen));
    on("la-seek", "input", (event) => {
      this.#isDragging = true;
      player.seek(Number(event.target.value));
    });
    on("la-seek", "change", () => {
      this.#isDragging = false;
    });
    video.addEventListener("click", () => this.toggle());
    video.addEventListener("volumechange", () => this.draw(player.status));
  }

  /** Play or pause. */
  toggle() {
    const { phase } = this.#player.status;
    if (phase === "playing") this.#player.pause();
    else if (phase !== "empty" && phase !== "broken") this.#player.play();
  }

  /** Show a status of the player. */
  draw(status) {
    const { phase, made, position, total, isGrowing } = status;
    const isEmpty = phase === "empty" || phase === "broken";
    const at = (id) => document.getElementById(id);
    for (const id of ["la-play", "la-mute", "la-full", "la-seek"]) at(id).disabled = isEmpty;
    const plays = phase === "playing";
    drawIcon(at("la-play"), plays ? "pause" : "play", say(plays ? "pause" : "play"));
    const { muted } = this.#video;
    drawIcon(at("la-mute"), muted ? "silent" : "sound", say(muted ? "unmute" : "mute"));
    drawIcon(at("la-full"), "full", say("fullscreen"));
    at("la-time").textContent = clock(position);
    at("la-length").textContent = clock(total && Math.max(1, total)); // a moment is not nothing
    const share = (seconds) => `${total ? Math.min(100, (100 * seconds) / total) : 0}%`;
    at("la-made").style.width = share(made);
    at("la-played").style.width = share(position);
    const seek = at("la-seek");
    seek.max = String(total);
    if (!this.#isDragging) seek.value = String(position);
    const times = { position: clock(position), total: clock(total), made: clock(made) };
    seek.setAttribute("aria-valuetext", say("seek_value", times));
    at("la-edge").hidden = !(isGrowing && made - position > EDGE_SHOWS_S);
  }

  #fillScreen(screen) {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (screen.requestFullscreen) screen.requestFullscreen();
    else this.#video.webkitEnterFullscreen?.();
  }
}
