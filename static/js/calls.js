// Calls of Gradio's functions, seen on their way: Gradio 4.25 tells nobody when it has begun to listen
// to its buttons, says little about a call that fails, and takes answers as they come, though the
// reader may have done something else since.

const CALL = /\/run\/predict(\?|$)/;

/** As Gradio says of an output that it stays as it is. */
export const UNCHANGED = { __type__: "update" };

/**
 * Watches the calls; to be made before Gradio's own modules run, which keep the `fetch` they find.
 *
 * Events: "left" for each call, "failed" for each that no function answered. Their `detail` is the
 * call, `{name, body}`: the id of the element that set it off, empty where none did, and what is sent;
 * for a failed one also the server's `message`, empty where it was not reached.
 */
export class Calls extends EventTarget {
  /** Whether any call has left; the first does as soon as Gradio listens. */
  haveBegun = false;
  #newest = new Map(); // of calls that overtake each other
  #mend = (_call, data) => data;

  constructor() {
    super();
    const original = window.fetch.bind(window);
    window.fetch = async (resource, options) => {
      if (!CALL.test(String(resource?.url ?? resource))) return original(resource, options);
      const call = this.#begin(String(options?.body ?? ""));
      const answer = await original(resource, options).catch((error) => {
        this.#tell("failed", { ...call, message: "" });
        throw error;
      });
      if (answer.ok) return this.#mended(call, answer);
      const said = await answer.clone().json().catch(() => null);
      this.#tell("failed", { ...call, message: said?.error?.message ?? answer.statusText });
      return answer;
    };
  }

  /**
   * Let outputs stay as they are.
   * @param {(call: {name: string, body: string}, data: any[]) => any[]} mend gives the outputs of an
   *   answered call, with `UNCHANGED` in place of those that must not be taken.
   */
  mendWith(mend) {
    this.#mend = mend;
  }

  #begin(body) {
    const asked = JSON.parse(body);
    const call = { body, name: nameOf(asked.trigger_id) };
    const kind = kindOf(call.name, asked.fn_index);
    if (kind) this.#newest.set(kind, call);
    call.isOvertaken = () => kind !== null && this.#newest.get(kind) !== call;
    this.haveBegun = true;
    this.#tell("left", call);
    return call;
  }

  async #mended(call, answer) {
    const said = await answer.clone().json().catch(() => null);
    if (!Array.isArray(said?.data)) return answer;
    const data = call.isOvertaken()
      ? said.data.map(() => UNCHANGED)
      : this.#mend(call, said.data);
    return data === said.data ? answer : Response.json({ ...said, data }, { status: answer.status });
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

function nameOf(number) {
  const known = window.gradio_config.components.find(({ id }) => id === number);
  return known?.props?.elem_id ?? "";
}

/** Calls of one kind: the answer to the newest counts, in whatever order they come. */
function kindOf(name, index) {
  if (name.startsWith("la-tell-")) return "tell"; // the tiers, in one language or another
  return name === "la-tier" ? `tier ${index}` : null;
}
