// Files on their way into the form: Gradio 4.25 shows nothing of them, and says nothing about those
// that are refused, so we look on.

// Gradio's uploads do not say for which field they are: the server names all that any of them takes.
const ANY_KIND = "expected a picture, a sound or a video";
const EXPECTED = {
  portrait: "expected a PNG, JPEG, WebP, TIFF, GIF or BMP picture",
  speech: "expected a WAV, MP3, FLAC, OGG or M4A sound, or a video",
};
const KINDS = { portrait: "image/", speech: "audio/" };
const UPLOAD = /\/upload(\?|$)/;
const TAKEN_IN_MS = 100; // from the answer until Gradio has put the file into the form

/**
 * Watches what is given into the fields for files; to be made before Gradio's own modules run, which
 * keep the `fetch` they find.
 *
 * Events: "refused" with `{field, message}` as the server said it, or `{field, key}` of our own, as
 * `detail`; "taken" when a file is in the form or will not come into it any more.
 */
export class Uploads extends EventTarget {
  /** Whether a file still comes in that was chosen at a time of `performance.now()`. */
  admits = async () => true;
  #chosen = { field: "portrait", at: 0 };
  #coming = new Set();

  constructor() {
    super();
    const options = { capture: true };
    document.addEventListener("change", (event) => this.#look(event, event.target.files), options);
    document.addEventListener("drop", (event) => this.#look(event, event.dataTransfer?.files), options);
    document.addEventListener("click", ({ target }) => {
      // A recording and what is cut out of it are sent, too.
      if (target.closest?.("#la-speech button")) this.#choose("speech");
    }, options);
    const original = window.fetch.bind(window);
    window.fetch = (resource, ...more) => {
      const isUpload = UPLOAD.test(String(resource?.url ?? resource));
      return isUpload ? this.#follow(original(resource, ...more)) : original(resource, ...more);
    };
  }

  /** Whether any file is on its way. */
  get areComing() {
    return this.#coming.size > 0;
  }

  #choose(field) {
    this.#chosen = { field, at: performance.now() };
  }

  #look(event, files) {
    const place = event.target.closest?.("#la-portrait, #la-speech");
    if (!place || !files?.length) return;
    const field = place.id.slice("la-".length);
    this.#choose(field);
    // A browser tells the kind from the name; where it knows none, the server looks inside.
    const kind = files[0].type;
    if (kind && !kind.startsWith(KINDS[field])) this.#refuse({ field, key: `wrong_${field}` });
  }

  async #follow(sending) {
    const upload = { ...this.#chosen }; // one choice may be sent twice, as a recording is
    this.#coming.add(upload);
    this.#draw();
    try {
      const answer = await sending;
      if (answer.ok) {
        await answer.clone().arrayBuffer(); // from here on Gradio needs no more than a moment
        // Gradio would put it over what was asked for since; it shows nothing while it waits.
        return (await this.admits(upload.at)) ? answer : new Promise(() => {});
      }
      const said = await answer.clone().json().catch(() => null);
      const message = said?.error?.message ?? answer.statusText;
      this.#refuse({ field: upload.field, message: message.replace(ANY_KIND, EXPECTED[upload.field]) });
      return answer;
    } catch (error) {
      this.#refuse({ field: upload.field, key: "upload_lost" });
      throw error;
    } finally {
      setTimeout(() => this.#end(upload), TAKEN_IN_MS);
    }
  }

  #end(upload) {
    this.#coming.delete(upload);
    this.#draw();
    if (!this.areComing) this.dispatchEvent(new Event("taken"));
  }

  #refuse(detail) {
    this.dispatchEvent(new CustomEvent("refused", { detail }));
  }

  #draw() {
    const fields = [...this.#coming].map(({ field }) => field);
    for (const field of Object.keys(KINDS)) {
      document.body.classList.toggle(`la-uploading-${field}`, fields.includes(field));
    }
  }
}
