"use strict";
// The list of slides: sorted, filtered, searched; the address holds all of it. Kept up to date while
// a run goes on, jobs run, or the folder changes.

const POLL_MS = 4000;
const POLL_UNDER_WAY_MS = 2000;
const byId = (id) => document.getElementById(id);
const count = (name) => (slide) => (slide.summary?.[name] == null ? "–" : formatCount(slide.summary[name]));
const area = (name) => (slide) => (slide.summary?.[name] == null ? "–" : formatArea(slide.summary[name]));
const number = (name) => (slide) => slide.summary?.[name] ?? -1;

/** The number of patches; of an estimate, out of the whole slide's. */
const patchesOf = (slide) =>
  count("patches")(slide) + (slide.summary?.slide_patches == null ? "" : ` of ${formatCount(slide.summary.slide_patches)} (estimate)`);

/** The interval of the count with its source. */
function intervalOf(slide) {
  const { positives_low: low, positives_high: high, interval_source: source } = slide.summary ?? {};
  return low == null ? "–" : `${formatCount(low)} to ${formatCount(high)} (${source})`;
}

/** The threshold of the results, marked where it is not the model's for counting. */
const thresholdOf = ({ summary }) =>
  summary ? summary.threshold.toFixed(3) + (summary.threshold_source === "count" ? "" : ` (${summary.threshold_source})`) : "–";

const unlikeOf = ({ summary }) => (summary?.unlike_training == null ? "–" : summary.unlike_training || "no");

const COLUMNS = [
  { name: "picture", title: "", key: null },
  { name: "slide", title: "slide", key: (slide) => slide.slide_id.toLowerCase(), about: "Click a name to look at the slide." },
  { name: "state", title: "state", key: (slide) => slide.state, about: "How the run over the slide ended." },
  { name: "patches", title: "patches", key: number("patches"), text: patchesOf, about: "Squares of tissue that the model was shown; of an estimate, the sample and the whole slide's." },
  { name: "positive", title: "positive", key: number("positives"), text: count("positives"), about: "Patches whose probability reaches the threshold." },
  { name: "interval", title: "95 % interval", key: number("positives_low"), text: intervalOf, about: "Where the true number of positive patches lies, and how that is known: by a person's review, by reviewed slides of this site, or by the model's validation patients." },
  { name: "share", title: "of assessed", key: number("positive_fraction"), about: "Positive patches as a share of those that could be read." },
  { name: "area", title: "positive mm²", key: number("positive_mm2"), text: area("positive_mm2"), about: "Area of the positive patches." },
  { name: "assessed", title: "assessed mm²", key: number("assessed_mm2"), text: area("assessed_mm2"), about: "Area of all patches that could be read." },
  { name: "largest", title: "largest region mm²", key: number("largest_positive_region_mm2"), text: area("largest_positive_region_mm2"), about: "Area of the largest group of positive patches that touch." },
  { name: "threshold", title: "threshold", key: number("threshold"), text: thresholdOf, about: "Probability from which on a patch of this slide is positive: the model's threshold for counting, its threshold for finding (detect), or a number that a user gave (user)." },
  { name: "unlike", title: "unlike training", key: (slide) => slide.summary?.unlike_training ?? "", text: unlikeOf, about: "What of the slide is further from the model's training patches than slides like its validation patients': its colour, the network's features, or both. No figure of the model speaks for such a slide." },
  { name: "probability", title: "mean probability", key: number("mean_probability"), text: (slide) => slide.summary?.mean_probability?.toFixed(3) ?? "–", about: "Over all patches that could be read." },
];
const BY_AREA = COLUMNS.findIndex((column) => column.name === "area");
const TEXTS = 3; // the first columns are sorted from A to Z

const STATES = {
  ok: ["ok", "Every patch could be read."],
  zero: ["no tissue", "No tissue was found on the slide."],
  damaged: ["damaged", "Some patches of the slide could not be read."],
  failed: ["failed", "The last run could not finish the slide."],
  running: ["under way", "The slide is being inferred."],
  unusable: ["results unusable", "The results on disk are damaged or of another version of wsi: infer the slide again."],
  none: ["not inferred", "No model has run over this slide yet."],
};

const list = { body: null, jobs: new Map(), column: BY_AREA, isRising: false, bin: null, rows: new Map() };

/* ---- what the address holds ---- */

/** Take sorting and filters from the address. */
function readLink() {
  const link = new URLSearchParams(location.search);
  byId("search").value = link.get("q") ?? "";
  for (const name of ["state", "look"]) {
    const value = link.get(name) ?? "";
    byId(name).value = [...byId(name).options].some((option) => option.value === value) ? value : "";
  }
  const column = COLUMNS.findIndex((one) => one.key && one.name === link.get("sort"));
  list.column = column < 0 ? BY_AREA : column;
  list.isRising = link.has("order") ? link.get("order") === "rising" : list.column < TEXTS;
  const [from, to] = ["min", "max"].map((name) => Number(link.get(name) ?? NaN));
  list.bin = Number.isFinite(from) && Number.isFinite(to) ? { from, to } : null;
  list.wantedRun = link.get("run");
}

/** Put sorting and filters into the address; what is as it is without a filter is left out. */
function writeLink() {
  const link = new URLSearchParams();
  const run = byId("run");
  const values = { q: byId("search").value.trim(), state: byId("state").value, look: byId("look").value };
  if (run.selectedIndex > 0) values.run = run.options[run.selectedIndex].text;
  if (list.column !== BY_AREA) values.sort = COLUMNS[list.column].name;
  if (list.isRising !== list.column < TEXTS) values.order = list.isRising ? "rising" : "falling";
  if (list.bin) Object.assign(values, { min: list.bin.from, max: list.bin.to });
  for (const [name, value] of Object.entries(values)) if (value !== "") link.set(name, value);
  const query = link.toString();
  history.replaceState(null, "", query ? `?${query}` : location.pathname);
}

/* ---- what the server says ---- */

async function load() {
  const answer = await fetch(at("/api/v1/slides")).catch(() => null);
  byId("message").textContent = answer?.ok ? "" : "the server does not answer";
  if (!answer?.ok) return;
  list.body = await answer.json();
  if (list.body.can_run_jobs) await loadJobs();
  if (byId("run").options.length !== list.body.runs.length) {
    byId("run").replaceChildren(...list.body.runs.map((run) => new Option(run.name, run.run_id)));
    const wanted = list.body.runs.find((run) => run.name === list.wantedRun);
    if (wanted) byId("run").value = wanted.run_id;
    byId("run-label").hidden = list.body.runs.length < 2;
  }
  byId("xlsx").hidden = !list.body.can_write_excel;
  draw();
}

async function loadJobs() {
  const answer = await fetch(at("/api/v1/jobs")).catch(() => null);
  if (answer?.ok) list.jobs = new Map((await answer.json()).map((job) => [job.slide_id, job]));
}

async function keepLoading() {
  await load();
  const isUnderWay = list.body?.runs.some((run) => run.live?.is_under_way);
  setTimeout(keepLoading, isUnderWay ? POLL_UNDER_WAY_MS : POLL_MS);
}

const findRun = () => list.body.runs.find((run) => run.run_id === byId("run").value);

/** Every slide in the chosen run, with those that have failed or are under way and have no results yet. */
function collectRows() {
  const run = byId("run").value;
  const live = findRun()?.live;
  const failures = new Map((live?.failures ?? []).map((one) => [one.slide_id, one.reason]));
  const underWay = new Map((live?.slides_under_way ?? []).map((one) => [one.slide_id, one]));
  const known = new Set(list.body.slides.map((slide) => slide.slide_id));
  const others = [...failures.keys(), ...underWay.keys()].filter((slideId) => !known.has(slideId));
  const bare = [...new Set(others)].map((slideId) => ({ slide_id: slideId, has_file: false, can_run: false, summaries: {}, concerns: {} }));
  return [...list.body.slides, ...bare].map((slide) => describeRow(slide, run, failures, underWay));
}

function describeRow(slide, run, failures, underWay) {
  const summary = slide.summaries[run] ?? null;
  const row = { ...slide, summary, concerns: { ...slide.concerns[run] }, isBare: !Object.keys(slide.summaries).length && !slide.has_file };
  row.state = run in slide.summaries ? (summary?.state ?? "unusable") : "none";
  if (row.state === "unusable") row.concerns = { damaged: "the results cannot be read", ...row.concerns };
  if (underWay.has(slide.slide_id)) {
    const { blocks_done: done, blocks } = underWay.get(slide.slide_id);
    row.state = "running";
    row.progress = blocks ? `${Math.round((100 * done) / blocks)} %` : "";
  } else if (row.state === "none" && failures.has(slide.slide_id)) {
    row.state = "failed";
    row.concerns = { failed: failures.get(slide.slide_id) };
  }
  return row;
}

/* ---- what is shown ---- */

const LOOKS = {
  "": () => true,
  first: (row) => Object.keys(row.concerns).length > 0,
  damaged: (row) => "damaged" in row.concerns || "failed" in row.concerns,
  unlike: (row) => "unlike" in row.concerns,
  near: (row) => "near" in row.concerns,
};

function chooseRows(rows) {
  const text = byId("search").value.trim().toLowerCase();
  const state = byId("state").value;
  const looks = LOOKS[byId("look").value];
  return rows.filter((row) => row.slide_id.toLowerCase().includes(text) && (!state || row.state === state) && looks(row));
}

function sortRows(rows) {
  const { key } = COLUMNS[list.column];
  const sign = list.isRising ? 1 : -1;
  return rows.sort((one, other) => (key(one) < key(other) ? -sign : key(one) > key(other) ? sign : one.slide_id < other.slide_id ? -1 : 1));
}

/** The rows as they are shown now. */
function rowsToShow() {
  const chosen = chooseRows(collectRows());
  return sortRows(list.bin ? chosen.filter((row) => row.summary && isWithin(row.summary.positive_mm2, list.bin)) : chosen);
}

function draw() {
  if (!list.body) return;
  writeLink();
  const all = collectRows();
  const rows = rowsToShow();
  drawCohort(all);
  drawHeads();
  placeRows(rows);
  hideSilentColumns(all);
  byId("empty").hidden = rows.length > 0;
  byId("about").textContent = describeRun(rows);
  byId("facts").textContent = `${formatCount(rows.length)} of ${formatCount(all.length)} slides`;
  byId("sort").value = COLUMNS[list.column].name;
  byId("order").textContent = list.isRising ? "↑" : "↓";
}

function chooseBin(bin) {
  list.bin = bin;
  draw();
}

function drawCohort(all) {
  const [areas, shown] = [all, chooseRows(all)].map((rows) => rows.flatMap((row) => row.summary?.positive_mm2 ?? []));
  drawLive(findRun()?.live ?? null);
  byId("cohort").hidden = !all.some((row) => row.summary || "failed" in row.concerns);
  drawBins(byId("bins"), makeBins(areas, shown), list.bin, chooseBin);
  byId("any-area").hidden = !list.bin;
  if (list.bin) byId("any-area").textContent = `${describeBin(list.bin)} mm² ✕`;
  const concerned = all.filter(LOOKS.first).length;
  drawFirst(byId("first"), all, linkTo);
  byId("no-first").hidden = concerned > 0;
  byId("all-first").hidden = concerned <= MOST_FIRST;
  byId("all-first").textContent = `all ${formatCount(concerned)}`;
}

/** Hide what says the same of every slide: the one threshold, which the text above names, and that none is unlike. */
function hideSilentColumns(all) {
  const summaries = all.flatMap((row) => row.summary ?? []);
  byId("slides").classList.toggle("one-threshold", new Set(summaries.map((one) => one.threshold)).size < 2);
  byId("slides").classList.toggle("none-unlike", !summaries.some((one) => one.unlike_training));
}

/** What the figures mean, in words. */
function describeRun(rows) {
  const summaries = rows.flatMap((row) => row.summary ?? []);
  if (!summaries.length) return "";
  const summary = summaries[0];
  if (new Set(summaries.map((one) => one.threshold)).size > 1) return `A line is a slide; click its name to look at it. The slides have different thresholds, in the column of that name. Positive is a patch whose probability of ${summary.positive_class} reaches its slide's threshold; patches are counted, not cells, and a count is no grade. A column's title sorts.`;
  const where = { user: "", detect: "the model's threshold for finding, " }[summary.threshold_source] ?? "the model's threshold for counting, ";
  return `A line is a slide; click its name to look at it. Positive is a patch whose probability of ${summary.positive_class} is ${where}${summary.threshold.toFixed(3)}, or more; patches are counted, not cells, and a count is no grade. A column's title sorts.`;
}

function sortBy(index) {
  list.isRising = list.column === index ? !list.isRising : index < TEXTS;
  list.column = index;
  draw();
}

function makeHeads() {
  const heads = COLUMNS.map((column, index) => {
    const head = makeElement(column.key ? "th" : "td", `c-${column.name}`);
    if (!column.key) return head;
    head.scope = "col";
    const button = makeButton(column.title, () => sortBy(index));
    button.title = column.about;
    head.append(button);
    return head;
  });
  byId("heads").replaceChildren(...heads);
  byId("sort").replaceChildren(...COLUMNS.filter((column) => column.key).map((column) => new Option(column.title, column.name)));
  byId("order").onclick = () => sortBy(list.column);
}

function drawHeads() {
  [...byId("heads").children].forEach((head, index) => {
    head.ariaSort = list.column !== index ? null : list.isRising ? "ascending" : "descending";
  });
}

/** Put the rows in place; those that have not changed stay the same elements, with their images and the focus. */
function placeRows(rows) {
  const kept = new Map();
  rows.forEach((row, index) => {
    const drawn = JSON.stringify([row, list.jobs.get(row.slide_id), byId("run").value]);
    const before = list.rows.get(row.slide_id);
    const element = before?.drawn === drawn ? before.element : drawRow(row);
    kept.set(row.slide_id, { drawn, element });
    const there = byId("rows").children[index];
    if (there !== element) byId("rows").insertBefore(element, there ?? null);
  });
  while (byId("rows").children.length > rows.length) byId("rows").lastElementChild.remove();
  list.rows = kept;
}

/** The name of a slide, which leads to it where there is anything to look at. */
function linkTo(slide) {
  if (slide.isBare) return makeElement("span", "name", slide.slide_id);
  const link = makeElement("a", "name", slide.slide_id);
  link.href = at(`/slides/${encodeURIComponent(slide.slide_id)}`);
  return link;
}

function drawRow(slide) {
  const row = makeElement("tr", slide.isBare ? "bare" : "");
  const link = linkTo(slide);
  const picture = makeElement("img");
  picture.loading = "lazy";
  picture.decoding = "sync"; // small ones: shown with the row, not after it
  picture.alt = "";
  if (slide.summary || slide.has_file) picture.src = at(`/api/v1/slides/${encodeURIComponent(slide.slide_id)}/thumbnail.jpg?side=224`);
  picture.addEventListener("click", () => link.click());
  const named = makeElement("span");
  named.append(link);
  if (list.body.can_review && slide.summary) named.append(" ", drawReviewLink(slide.slide_id));
  const cells = [picture, named, drawState(slide), ...COLUMNS.slice(TEXTS).map((column) => (column.text ? column.text(slide) : drawShare(slide)))];
  cells.forEach((content, index) => {
    const cell = makeElement("td", `c-${COLUMNS[index].name}`);
    cell.dataset.title = COLUMNS[index].title;
    cell.append(content);
    row.append(cell);
  });
  return row;
}

function drawState(slide) {
  const holder = makeElement("span");
  const state = makeElement("span", `state ${slide.state}`);
  [state.textContent, state.title] = STATES[slide.state];
  if (slide.progress) state.textContent += ` ${slide.progress}`;
  holder.append(state);
  if (slide.summary?.unreadable) holder.append(makeElement("span", "note", ` ${formatCount(slide.summary.unreadable)} unreadable`));
  if (slide.concerns.failed) holder.append(makeElement("span", "note", ` ${slide.concerns.failed}`));
  if ("near" in slide.concerns) {
    const near = makeElement("span", "state near", CONCERNS.near[0]);
    near.title = slide.concerns.near;
    holder.append(" ", near);
  }
  if (slide.can_run) holder.append(drawJob(slide));
  return holder;
}

function drawReviewLink(slideId) {
  const link = makeElement("a", "review-link", "review");
  link.href = at(`/review/${encodeURIComponent(byId("run").value)}/${encodeURIComponent(slideId)}`);
  link.title = "Call patches that are drawn at random, and learn how many are positive.";
  return link;
}

function drawShare(slide) {
  const share = slide.summary?.positive_fraction;
  const holder = makeElement("span", "", share == null ? "–" : `${(100 * share).toFixed(1)} %`);
  if (share != null) {
    const bar = makeElement("span", "bar");
    const filled = makeElement("i");
    filled.style.width = `${100 * share}%`;
    bar.append(filled);
    holder.append(bar);
  }
  return holder;
}

function drawJob(slide) {
  const job = list.jobs.get(slide.slide_id);
  const isUnderWay = job && ["waiting", "running", "cancelling"].includes(job.state);
  const holder = makeElement("span", "job");
  if (job && (isUnderWay || slide.state === "none" || job.state === "failed")) {
    const share = job.patches_total ? ` ${Math.round((100 * job.patches_done) / job.patches_total)} %` : "";
    holder.append(`${job.state}${isUnderWay ? share : ""} `);
    if (job.message) holder.title = job.message;
  }
  if (isUnderWay) holder.append(makeButton("cancel", () => send("DELETE", at(`/api/v1/jobs/${job.job_id}`))));
  else if (["none", "failed"].includes(slide.state)) holder.append(makeButton("infer", () => send("POST", at("/api/v1/jobs"), { slide_id: slide.slide_id })));
  return holder;
}

function makeButton(text, onClick) {
  const button = makeElement("button", "", text);
  button.type = "button";
  button.addEventListener("click", onClick);
  return button;
}

/** Ask the server for something; null, and a message, where it refuses. */
async function ask(method, address, body) {
  const answer = await fetch(address, { method, headers: body ? { "Content-Type": "application/json" } : {}, body: body && JSON.stringify(body) });
  if (answer.ok) return answer;
  byId("message").textContent = (await answer.json()).error;
  return null;
}

async function send(method, address, body) {
  await ask(method, address, body);
  await load();
}

/** Save the metrics of the slides that are shown, in their order. */
async function saveTable(format) {
  const names = rowsToShow().filter((row) => row.summary).map((row) => row.slide_id);
  const answer = await ask("POST", at(`/api/v1/tables/${format}`), { run_id: byId("run").value, slide_ids: names });
  if (!answer) return;
  const link = makeElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = `${findRun().name}.${format}`;
  link.click();
  URL.revokeObjectURL(link.href);
}

byId("controls").addEventListener("input", (event) => {
  if (event.target === byId("sort")) sortBy(COLUMNS.findIndex((column) => column.name === byId("sort").value));
  else draw();
});
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("any-area").addEventListener("click", () => chooseBin(null));
byId("all-first").addEventListener("click", () => {
  byId("look").value = "first";
  draw();
});
for (const format of ["csv", "xlsx"]) byId(format).addEventListener("click", () => saveTable(format));
makeHeads();
readLink();
keepLoading();
