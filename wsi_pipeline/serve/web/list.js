"use strict";
// The list of slides: sorted, filtered, searched; kept up to date while jobs run or the folder changes.

const POLL_MS = 4000;
const byId = (id) => document.getElementById(id);
const figure = (name, digits) => (slide) => (slide.summary?.[name] == null ? "–" : slide.summary[name].toFixed(digits));

/** The interval of the count with its source. */
function intervalOf(slide) {
  const { positives_low: low, positives_high: high, interval_source: source } = slide.summary ?? {};
  return low == null ? "–" : `${low.toFixed(0)} to ${high.toFixed(0)} (${source})`;
}

/** The threshold of the results, marked where it is not the model's for counting. */
function thresholdOf(slide) {
  if (!slide.summary) return "–";
  const { threshold, threshold_source: source } = slide.summary;
  return threshold.toFixed(3) + (source === "count" ? "" : ` (${source})`);
}

const COLUMNS = [
  { title: "", key: null },
  { title: "slide", key: (slide) => slide.slide_id.toLowerCase(), about: "Click a name to look at the slide." },
  { title: "state", key: (slide) => slide.state, about: "How the run over the slide ended." },
  { title: "patches", key: (slide) => slide.summary?.patches ?? -1, text: figure("patches", 0), about: "Squares of tissue that the model was shown." },
  { title: "unreadable", key: (slide) => slide.summary?.unreadable ?? -1, text: figure("unreadable", 0), about: "Patches that could not be read from the file; they count as neither positive nor negative." },
  { title: "positive", key: (slide) => slide.summary?.positives ?? -1, text: figure("positives", 0), about: "Patches whose probability reaches the threshold." },
  { title: "95 % interval", key: (slide) => slide.summary?.positives_low ?? -1, text: intervalOf, about: "Where the true number of positive patches lies, and how that is known: by a person's review, by reviewed slides of this site, or by the model's validation patients." },
  { title: "of assessed", key: (slide) => slide.summary?.positive_fraction ?? -1, about: "Positive patches as a share of those that could be read." },
  { title: "positive mm²", key: (slide) => slide.summary?.positive_mm2 ?? -1, text: figure("positive_mm2", 2), about: "Area of the positive patches." },
  { title: "assessed mm²", key: (slide) => slide.summary?.assessed_mm2 ?? -1, text: figure("assessed_mm2", 2), about: "Area of all patches that could be read." },
  { title: "largest region mm²", key: (slide) => slide.summary?.largest_positive_region_mm2 ?? -1, text: figure("largest_positive_region_mm2", 2), about: "Area of the largest group of positive patches that touch." },
  { title: "threshold", key: (slide) => slide.summary?.threshold ?? -1, text: thresholdOf, about: "Probability from which on a patch of this slide is positive: the model's threshold for counting, its threshold for finding (detect), or a number that a user gave (user)." },
  { title: "unlike training", key: (slide) => slide.summary?.unlike_training ?? "", text: (slide) => ({ "": "no" })[slide.summary?.unlike_training] ?? slide.summary?.unlike_training ?? "–", about: "What of the slide is further from the model's training patches than slides like its validation patients': its colour, the network's features, or both. No figure of the model speaks for such a slide." },
  { title: "mean probability", key: (slide) => slide.summary?.mean_probability ?? -1, text: figure("mean_probability", 3), about: "Over all patches that could be read." },
];

const STATES = {
  ok: ["ok", "Every patch could be read."],
  zero: ["no tissue", "No tissue was found on the slide."],
  damaged: ["damaged", "Some patches of the slide could not be read."],
  unusable: ["results unusable", "The results on disk are damaged or of another version of wsi: infer the slide again."],
  none: ["not inferred", "No model has run over this slide yet."],
};

const list = { body: null, jobs: new Map(), column: 8, isRising: false, drawn: "" };

async function load() {
  const answer = await fetch(at("/api/v1/slides")).catch(() => null);
  if (!answer || !answer.ok) {
    byId("message").textContent = "the server does not answer";
    return;
  }
  byId("message").textContent = "";
  list.body = await answer.json();
  if (list.body.can_run_jobs) await loadJobs();
  if (byId("run").options.length !== list.body.runs.length) {
    byId("run").replaceChildren(...list.body.runs.map((run) => new Option(run.name, run.run_id)));
    byId("run-label").hidden = list.body.runs.length < 2;
  }
  draw();
}

async function loadJobs() {
  const answer = await fetch(at("/api/v1/jobs")).catch(() => null);
  if (answer?.ok) list.jobs = new Map((await answer.json()).map((job) => [job.slide_id, job]));
}

function rowsToShow() {
  const run = byId("run").value;
  const text = byId("search").value.trim().toLowerCase();
  const state = byId("state").value;
  const rows = list.body.slides.map((slide) => {
    const has = run in slide.summaries;
    return { ...slide, summary: slide.summaries[run] ?? null, state: has ? (slide.summaries[run]?.state ?? "unusable") : "none" };
  });
  const { key } = COLUMNS[list.column];
  const sign = list.isRising ? 1 : -1;
  const compare = (one, other) => (key(one) < key(other) ? -sign : key(one) > key(other) ? sign : one.slide_id < other.slide_id ? -1 : 1);
  return rows.filter((row) => row.slide_id.toLowerCase().includes(text) && (!state || row.state === state)).sort(compare);
}

function draw() {
  if (!list.body) return;
  const rows = rowsToShow();
  const drawn = JSON.stringify([rows, [...list.jobs], list.column, list.isRising]);
  if (drawn === list.drawn) return; // nothing moves under the pointer without need
  list.drawn = drawn;
  drawHeads();
  byId("rows").replaceChildren(...rows.map(drawRow));
  byId("empty").hidden = rows.length > 0;
  byId("about").textContent = describeRun(rows.find((row) => row.summary)?.summary, new Set(rows.filter((row) => row.summary).map((row) => row.summary.threshold)).size > 1);
  byId("facts").textContent = `${rows.length} of ${list.body.slides.length} slides`;
}

/** What the figures mean, in words. */
function describeRun(summary, isMixed) {
  if (!summary) return "";
  if (isMixed) return `A line is a slide; click its name to look at it. The slides have different thresholds, in the column of that name. Positive is a patch whose probability of ${summary.positive_class} reaches its slide's threshold; patches are counted, not cells, and a count is no grade. A column's title sorts.`;
  const where = { user: "", detect: "the model's threshold for finding, " }[summary.threshold_source] ?? "the model's threshold for counting, ";
  return `A line is a slide; click its name to look at it. Positive is a patch whose probability of ${summary.positive_class} is ${where}${summary.threshold.toFixed(3)}, or more; patches are counted, not cells, and a count is no grade. A column's title sorts.`;
}

function drawHeads() {
  const heads = COLUMNS.map((column, index) => {
    const head = document.createElement("th");
    if (!column.key) return head;
    const button = document.createElement("button");
    button.textContent = column.title;
    button.title = column.about;
    button.addEventListener("click", () => {
      list.isRising = list.column === index ? !list.isRising : index < 3;
      list.column = index;
      draw();
    });
    if (list.column === index) head.setAttribute("aria-sort", list.isRising ? "ascending" : "descending");
    head.append(button);
    return head;
  });
  byId("heads").replaceChildren(...heads);
}

function drawRow(slide) {
  const row = document.createElement("tr");
  const link = document.createElement("a");
  link.href = at(`/slides/${encodeURIComponent(slide.slide_id)}`);
  link.textContent = slide.slide_id;
  const picture = document.createElement("img");
  picture.loading = "lazy";
  picture.decoding = "sync"; // small ones: shown with the row, not after it
  picture.alt = "";
  if (slide.summary || slide.has_file) picture.src = at(`/api/v1/slides/${encodeURIComponent(slide.slide_id)}/thumbnail.jpg?side=224`);
  picture.addEventListener("click", () => link.click());
  const state = document.createElement("span");
  state.className = `state ${slide.state}`;
  [state.textContent, state.title] = STATES[slide.state];
  const named = document.createElement("span");
  named.append(link);
  if (list.body.can_review && slide.summary) named.append(" ", drawReviewLink(slide.slide_id));
  const cells = [picture, named, state, ...COLUMNS.slice(3).map((column) => (column.text ? column.text(slide) : drawShare(slide)))];
  for (const content of cells) {
    const cell = document.createElement("td");
    cell.append(content);
    row.append(cell);
  }
  if (slide.can_run) row.children[2].append(drawJob(slide));
  return row;
}

function drawReviewLink(slideId) {
  const link = document.createElement("a");
  link.className = "review-link";
  link.href = at(`/review/${encodeURIComponent(byId("run").value)}/${encodeURIComponent(slideId)}`);
  link.textContent = "review";
  link.title = "Call patches that are drawn at random, and learn how many are positive.";
  return link;
}

function drawShare(slide) {
  const share = slide.summary?.positive_fraction;
  const holder = document.createElement("span");
  holder.textContent = share == null ? "–" : `${(100 * share).toFixed(1)} %`;
  if (share != null) {
    const bar = document.createElement("span");
    bar.className = "bar";
    const filled = document.createElement("i");
    filled.style.width = `${100 * share}%`;
    bar.append(filled);
    holder.append(bar);
  }
  return holder;
}

function drawJob(slide) {
  const job = list.jobs.get(slide.slide_id);
  const isUnderWay = job && ["waiting", "running", "cancelling"].includes(job.state);
  const holder = document.createElement("span");
  holder.className = "job";
  if (job && (isUnderWay || slide.state === "none" || job.state === "failed")) {
    const share = job.patches_total ? ` ${Math.round((100 * job.patches_done) / job.patches_total)} %` : "";
    holder.append(`${job.state}${isUnderWay ? share : ""} `);
    if (job.message) holder.title = job.message;
  }
  if (isUnderWay) holder.append(makeButton("cancel", () => send("DELETE", at(`/api/v1/jobs/${job.job_id}`))));
  else if (slide.state === "none") holder.append(makeButton("infer", () => send("POST", at("/api/v1/jobs"), { slide_id: slide.slide_id })));
  return holder;
}

function makeButton(text, onClick) {
  const button = document.createElement("button");
  button.textContent = text;
  button.addEventListener("click", onClick);
  return button;
}

async function send(method, address, body) {
  const answer = await fetch(address, { method, headers: body ? { "Content-Type": "application/json" } : {}, body: body && JSON.stringify(body) });
  if (!answer.ok) byId("message").textContent = (await answer.json()).error;
  await load();
}

byId("controls").addEventListener("input", draw);
byId("controls").addEventListener("submit", (event) => event.preventDefault());
load();
setInterval(load, POLL_MS);
