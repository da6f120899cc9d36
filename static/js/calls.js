// Calls of Gradio's functions, seen on their way: Gradio 4.25 tells nobody when it has begun to listen
// to its buttons, and says little about a call that fails.

const CALL = /\/run\/predict(\?|$)/;

/**
 * Watches the calls; to be made before Gradio's own modules run, which keep the `fetch` they find.
 *
 * Events: "left" for each call, "failed" for each that no function answered. Their `detail` is the
 * call's `body`, and for a failed one the server's `message`, empty where it was not reached.
 */
export class Calls extends EventTarget {
  /** Whether any call has left; the first does as soon as Gradio listens. */
  haveBegun = false;

  constructor() {
    super();
    const original = window.fetch.bind(window);
    window.fetch = async (resource, options) => {
      if (!CALL.test(String(resource?.url ?? resource))) return original(resource, options);
      const body = String(options?.body ?? "");
      this.haveBegun = true;
      this.#tell("left", { body });
      const answer = await original(resource, options).catch((error) => {
        this.#tell("failed", { body, message: "" });
        throw error;
      });
      if (!answer.ok) {
        const said = await answer.clone().json().catch(() => null);
        this.#tell("failed", { body, message: said?.error?.message ?? answer.statusText });
      }
      return answer;
    };
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
