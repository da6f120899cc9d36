// Files that are refused: Gradio 4.25 says nothing about them, so we look on.

// Gradio's uploads do not say for which field they are: the server names all that any of them takes.
const ANY_KIND = "expected a picture, a sound or a video";
const EXPECTED = { portrait: "expected a picture", speech: "expected a sound or a video" };
const KINDS = { portrait: "image/", speech: "audio/" };

/**
 * Watch what is given into the fields for files; to be called before Gradio's own modules run, which
 * keep the `fetch` they find.
 * @param {(refusal: {field: string, message?: string, key?: string}) => void} refused is told what was
 *   wrong with a file.
 */
export function watchUploads(refused) {
  let field = "portrait";
  const look = (event, files) => {
    const place = event.target.closest?.("#la-portrait, #la-speech");
    if (!place || !files?.length) return;
    field = place.id.slice("la-".length);
    // A browser tells the kind from the name; where it knows none, the server looks inside.
    const kind = files[0].type;
    if (kind && !kind.startsWith(KINDS[field])) refused({ field, key: `wrong_${field}` });
  };
  const options = { capture: true };
  document.addEventListener("change", (event) => look(event, event.target.files), options);
  document.addEventListener("drop", (event) => look(event, event.dataTransfer?.files), options);

  const original = window.fetch.bind(window);
  window.fetch = async (resource, ...more) => {
    const isUpload = /\/upload(\?|$)/.test(String(resource?.url ?? resource));
    const answer = await original(resource, ...more).catch((error) => {
      if (isUpload) refused({ field, key: "upload_lost" });
      throw error;
    });
    if (isUpload && !answer.ok) {
      const said = await answer.clone().json().catch(() => null);
      const message = said?.error?.message ?? answer.statusText;
      refused({ field, message: message.replace(ANY_KIND, EXPECTED[field]) });
    }
    return answer;
  };
}
