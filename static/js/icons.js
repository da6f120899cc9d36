// Drawings of the buttons.

const shapes = {
  play: '<path d="M7.5 5.2v13.6c0 .8.9 1.3 1.6.8l10.4-6.8c.6-.4.6-1.3 0-1.7L9.1 4.4c-.7-.5-1.6 0-1.6.8Z" fill="currentColor"/>',
  pause: '<path d="M7 5h3.5v14H7zM13.5 5H17v14h-3.5z" fill="currentColor"/>',
  sound:
    '<path d="M4 9.5v5h3.5L12 18.5v-13L7.5 9.5H4Z" fill="currentColor"/><path d="M15.5 9a4.2 4.2 0 0 1 0 6M18 6.5a7.8 7.8 0 0 1 0 11" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round"/>',
  silent:
    '<path d="M4 9.5v5h3.5L12 18.5v-13L7.5 9.5H4Z" fill="currentColor"/><path d="m16 9.5 5 5m0-5-5 5" stroke="currentColor" stroke-width="1.8" stroke-linecap="round"/>',
  full: '<path d="M4.5 9V4.5H9M15 4.5h4.5V9M19.5 15v4.5H15M9 19.5H4.5V15" fill="none" stroke="currentColor" stroke-width="1.9" stroke-linecap="round" stroke-linejoin="round"/>',
  remove:
    '<path d="m7 7 10 10M17 7 7 17" stroke="currentColor" stroke-width="2" stroke-linecap="round"/>',
};

/** Put a drawing into a button and name it for everybody who does not see it. */
export function drawIcon(button, name, label) {
  if (button.dataset.icon !== name) {
    button.dataset.icon = name;
    button.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true">${shapes[name]}</svg>`;
  }
  button.setAttribute("aria-label", label);
  button.title = label;
}
