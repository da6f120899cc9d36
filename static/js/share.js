// The page behind a share link: the stage and nothing else.

import { Follower } from "./follower.js";
import { Stage } from "./stage.js";
import { followTheme } from "./theme.js";
import { applyTexts, chooseLanguage } from "./texts.js";

followTheme();
applyTexts();
for (const button of document.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => chooseLanguage(button.dataset.language));
}
const start = document.getElementById("la-shared-job");
const job = JSON.parse(start.textContent);
const stage = new Stage();
if (job) follow();
else stage.showGone();

function follow() {
  show(job);
  const follower = new Follower(`s/${start.dataset.token}/job`);
  follower.addEventListener("news", (event) => show(event.detail));
  follower.addEventListener("lost", () => stage.showLost());
  follower.addEventListener("gone", () => stage.showGone());
}

function show(news) {
  stage.setGroup(news.group);
  stage.show(news, null, true);
}
