// When a video that is still being made can be played without stopping later.

// Frames come in blocks of about half a second, and no machine is perfectly even.
const MARGIN_S = 0.4;
const CAUTION = 0.95;

/**
 * How much must be made before playing goes to the end without waiting.
 *
 * Playing from `position` reaches the end after `total - position` seconds, in which
 * `rate * (total - position)` more are made.
 *
 * @param {number} position where playing would begin, seconds.
 * @param {number} total length of the whole video, seconds.
 * @param {number|null} rate seconds of video made per second; null while nobody knows.
 * @returns {number} seconds; Infinity while the rate is not known.
 */
export function secondsNeeded(position, total, rate) {
  if (rate === null) return total;
  const slower = Math.max(0, 1 - CAUTION * rate);
  return Math.min(total, position + (total - position) * slower + MARGIN_S);
}

/**
 * Seconds until that much is made.
 * @param {number} needed what `secondsNeeded` gives.
 * @param {number} made seconds that are made.
 * @param {number|null} rate seconds of video made per second.
 * @returns {number|null} null while nobody knows.
 */
export function secondsToWait(needed, made, rate) {
  return rate ? Math.max(0, (needed - made) / rate) : null;
}

/** Measures how fast a video grows while one watches. */
export class GrowthMeter {
  #first = null;
  #last = null;

  /**
   * Note how much there is.
   * @param {number} made seconds of video.
   * @param {number} now seconds of any clock.
   */
  note(made, now) {
    if (made <= 0 || (this.#last && made <= this.#last.made)) return;
    this.#last = { made, now };
    this.#first ??= this.#last;
  }

  /** Seconds of video per second; null before two moments half a second apart. */
  get rate() {
    if (!this.#first || this.#last.now - this.#first.now < 0.3) return null;
    return (this.#last.made - this.#first.made) / (this.#last.now - this.#first.now);
  }
}
