// What MediaSource wants to know about a fragmented MP4 before its first byte.

const AAC_LC = "mp4a.40.2";

/** Position of four letters in bytes, -1 when they are not there. */
function find(bytes, letters) {
  const [a, b, c, d] = [...letters].map((letter) => letter.charCodeAt(0));
  for (let i = 0; i + 3 < bytes.length; i += 1) {
    if (bytes[i] === a && bytes[i + 1] === b && bytes[i + 2] === c && bytes[i + 3] === d) return i;
  }
  return -1;
}

/**
 * MIME type with codecs, read from an init segment.
 * @param {Uint8Array} bytes the beginning of the file.
 * @returns {string|null} null when more bytes are needed.
 */
export function mimeType(bytes) {
  // avcC: version, profile, compatibility, level.
  const box = find(bytes, "avcC");
  if (box < 0 || box + 8 > bytes.length) return null;
  const profile = [...bytes.subarray(box + 5, box + 8)]
    .map((value) => value.toString(16).padStart(2, "0"))
    .join("");
  return `video/mp4; codecs="avc1.${profile},${AAC_LC}"`;
}
