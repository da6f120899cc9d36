// Requests to the server that this page came from, under whatever prefix a proxy gives it.

const root = new URL("../../", import.meta.url);
const PATIENCE_MS = 20_000;

/** A request that the server understood and refused. */
export class RefusedError extends Error {
  /**
   * @param {number} status HTTP status.
   * @param {string} message what the server said.
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Full address of a path that the server gave, such as "/live/ID.mp4". */
export function address(path) {
  return new URL(path.replace(/^\//, ""), root).href;
}

/**
 * Ask for JSON.
 * @param {string} path such as "api/jobs".
 * @param {string} method HTTP method.
 * @returns {Promise<any>} the answer; null where it has no body.
 * @throws {RefusedError} the server refused; TypeError or DOMException when it was not reached.
 */
export async function ask(path, method = "GET") {
  const response = await fetch(address(path), {
    method,
    cache: "no-store",
    signal: AbortSignal.timeout(PATIENCE_MS),
  });
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => null);
  if (!response.ok) {
    throw new RefusedError(response.status, answer?.error?.message ?? response.statusText);
  }
  return answer;
}
