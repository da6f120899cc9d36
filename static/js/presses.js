// A press that begins on a button counts, wherever the button is when it ends: a note that appears above
// it must not move it away from under the pointer. Browsers make a click only where both ends meet.

const SAME_PLACE_PX = 12;
const CLICK_COMES_MS = 60;

/**
 * Watch the presses on buttons.
 * @param {string} within selector of the elements whose buttons are meant.
 */
export function keepPresses(within) {
  let pressed = null;
  const listen = (name, take) => document.addEventListener(name, take, { capture: true });
  listen("pointerdown", (event) => {
    const button = event.target.closest?.("button");
    const counts = button?.closest(within) && event.isPrimary && event.button === 0;
    pressed = counts ? { button, x: event.clientX, y: event.clientY } : null;
  });
  listen("click", (event) => {
    if (pressed?.button.contains(event.target)) pressed = null; // the browser's own, or ours
  });
  listen("pointercancel", () => { pressed = null; }); // it became a scroll
  listen("pointerup", (event) => {
    const press = pressed;
    if (!press) return;
    if (Math.hypot(event.clientX - press.x, event.clientY - press.y) > SAME_PLACE_PX) pressed = null;
    setTimeout(() => {
      if (pressed === press && !press.button.disabled) press.button.click();
    }, CLICK_COMES_MS);
  });
}
