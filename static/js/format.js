// Numbers as people read them.

/** Seconds as minutes and seconds: 8.4 is "0:08". */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(Number.isFinite(seconds) ? seconds : 0));
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor((whole % 3600) / 60);
  const rest = String(whole % 60).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

/** A span of time as a number and its unit: "8 s" below a minute and a half, else "1:40". */
export function span(seconds, unit) {
  const whole = Math.ceil(Math.max(0, seconds));
  return whole < 90 ? `${whole} ${unit}` : clock(whole);
}

/** A factor of real time: two digits below ten, then one. */
export function factor(value) {
  if (value < 0.095) return value.toFixed(2);
  return value < 10 ? value.toFixed(1) : value.toFixed(0);
}

/** Bytes in GiB with one digit. */
export function gib(bytes) {
  return (bytes / 2 ** 30).toFixed(1);
}
