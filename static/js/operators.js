// The operator's panel: machines and groups where there are several, every rank, the queue, the last errors.

import { gib } from "./format.js";
import { say, tierName } from "./texts.js";

/** Show the panel for a group whose details the server gave, hide it otherwise. */
export function drawOperators(group) {
  const panel = document.getElementById("la-operators");
  panel.hidden = !group?.ranks;
  if (!group?.ranks) return;
  const { tier, reason } = group.ceiling ?? {};
  document.getElementById("la-op-ceiling").hidden = !tier;
  const limit = tier ? say("op_ceiling", { tier: tierName(tier), reason }) : "";
  document.getElementById("la-op-ceiling-text").textContent = limit;
  const body = document.getElementById("la-operators-body");
  const scrolled = body.querySelector(".la-op-scroll")?.scrollLeft ?? 0;
  body.replaceChildren(
    ...summary(group),
    ...clusterLists(group),
    ...(group.ranks.length ? [rankTable(group.ranks)] : []),
    jobList(group),
    errorList(group),
  );
  body.querySelector(".la-op-scroll")?.scrollTo({ left: scrolled });
}

function make(name, className, ...children) {
  const element = document.createElement(name);
  element.className = className;
  element.append(...children);
  return element;
}

/** What is to be seen at a glance; below it, what the group has to say where it cannot work. */
function summary(group) {
  const dot = make("i", "la-dot");
  const state = make("span", "la-op-state", dot, say(`group_${group.state}`, { percent: group.load_percent }));
  state.dataset.state = group.state;
  const running = (group.jobs ?? []).filter((job) => job.state === "running").length;
  const facts = [
    ["op_state", state],
    ["op_running", String(running)],
    ["op_waiting", String(group.queue_length ?? 0)],
    ["op_restarts", String(group.restarts ?? 0)],
  ];
  const list = make("dl", "la-numbers", ...facts.map(([key, value]) =>
    make("div", "", make("dt", "", say(key)), make("dd", "", value))));
  if (!group.message || group.state === "loading") return [list];
  return [list, make("p", "la-op-message", group.message)];
}

function clusterLists({ nodes = [], groups = [] }) {
  if (!nodes.length && groups.length < 2) return [];
  const machines = nodes.map(({ name, alive, gpus, cpus }) =>
    make("li", "", `${name} · ${alive ? say("op_node_has", { gpus, cpus }) : say("op_node_lost")}`),
  );
  const lines = groups.map((each) => {
    const state = say(`group_${each.state}`, { percent: each.load_percent });
    const jobs = say("op_jobs_held", { count: each.num_jobs });
    const message = each.state === "loading" ? "" : each.message;
    return make("li", "", [each.number, each.node, state, jobs, message].filter(Boolean).join(" · "));
  });
  return [titled("op_nodes", machines), titled("op_groups", lines)];
}

// Columns of the table: text of the head, and what a rank shows there. One that no rank has anything
// for, such as a temperature without a GPU, is left out.
const COLUMNS = [
  ["op_group", (rank, ranks) => (ranks.some((other) => other.group !== rank.group) ? String(rank.group) : null)],
  ["op_rank", (rank) => String(rank.rank)],
  ["op_role", layersOf],
  ["op_device", (rank) => rank.device],
  ["op_memory", memoryBar],
  ["op_temperature", (rank) => (rank.temperature_c == null ? null : `${rank.temperature_c} °C`)],
  ["op_gpu", (rank) => percent(rank.gpu_busy_share)],
  ["op_busy", (rank) => percent(rank.busy_share)],
  ["op_item", (rank) => rank.item || null],
];

function rankTable(ranks) {
  const columns = COLUMNS.map(([key, show]) => ({ key, cells: ranks.map((rank) => show(rank, ranks)) }));
  const shown = columns.filter(({ key, cells }) => key === "op_item" || cells.some((cell) => cell != null));
  const heads = shown.map(({ key }) => {
    const head = make("th", "", say(key));
    head.scope = "col";
    return head;
  });
  const rows = ranks.map((_, row) =>
    make("tr", "", ...shown.map(({ cells }) => make("td", "", cells[row] ?? "–"))),
  );
  return make("div", "la-op-scroll", make("table", "la-op-table", make("tr", "", ...heads), ...rows));
}

function percent(share) {
  return share == null ? null : `${Math.round(100 * share)} %`;
}

function layersOf({ role, layers }) {
  if (!layers) return role;
  const [first, last] = layers;
  return `${role} (${first === last ? first : `${first}–${last}`})`;
}

function memoryBar({ memory_bytes: used, memory_limit_bytes: limit }) {
  if (!limit) return `${gib(used)} GiB`;
  const bar = make("span", "la-meter", make("i", ""));
  bar.firstChild.style.width = `${Math.min(100, (100 * used) / limit)}%`;
  return make("span", "la-op-memory", bar, `${gib(used)} / ${gib(limit)} GiB`);
}

function jobList(group) {
  const jobs = group.jobs ?? [];
  const lines = jobs.map((job) =>
    make("li", "", `${job.title} · ${say(`step_${job.state}`)} · ${job.frames}\u00a0/\u00a0${job.total_frames}`),
  );
  return titled("op_jobs", lines);
}

function errorList(group) {
  const lines = (group.errors ?? []).map((error) =>
    make("li", "", `${new Date(error.at * 1000).toLocaleString()} · ${error.message}`),
  );
  return titled("op_errors", lines.reverse());
}

function titled(key, lines) {
  const list = lines.length ? lines : [make("li", "la-op-none", say("op_none"))];
  return make("div", "la-op-part", make("h3", "", say(key)), make("ul", "", ...list));
}
