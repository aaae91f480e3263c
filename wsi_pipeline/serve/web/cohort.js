"use strict";
// The run as a whole, above the list: how far it is, how much is positive, which slides to look at first.

const MOST_BINS = 12;
const WIDE = 50; // times: positive areas further apart than this are shown on steps of 1, 2, 5, 10
const MOST_FIRST = 6;

const CONCERNS = {
  failed: ["failed", "The last run could not finish the slide."],
  damaged: ["damaged", "Patches, or the results, cannot be read."],
  unlike: ["unlike training", "Further from the model's training patches than its validation patients: no figure of the model speaks for such a slide."],
  near: ["near the threshold", "The count would be another with a slightly other threshold."],
};
/** Kinds of concern, most pressing first. */
const CONCERN_ORDER = Object.keys(CONCERNS);

function makeElement(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const formatCount = (count) => Math.round(count).toLocaleString("en");

/** An area with the digits that people read. */
function formatArea(area) {
  if (area === 0) return "0";
  return area >= 1 ? area.toFixed(2) : String(Number(area.toPrecision(2)));
}

/** Seconds as people say them. */
function describeDuration(seconds) {
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

/** The next of 1, 2, 5, 10, … that is at least this large. */
function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((digit) => digit * power).find((step) => step >= least * (1 - 1e-9));
}

/** Bins of positive areas: those that are 0, then [from, to) on even steps, or on 1, 2, 5 where areas lie far apart.
 *  `shown` are the areas that are counted. */
function makeBins(areas, shown) {
  const positive = areas.filter((area) => area > 0);
  const bins = [{ from: 0, to: 0 }];
  if (positive.length) {
    const most = Math.max(...positive), least = Math.min(...positive);
    const edges = most > WIDE * least ? spreadEdges(least, most) : evenEdges(most);
    edges.slice(1).forEach((to, index) => bins.push({ from: edges[index], to }));
  }
  for (const bin of bins) bin.count = shown.filter((area) => isWithin(area, bin)).length;
  return bins;
}

function evenEdges(most) {
  const step = niceStep(most / 8);
  const count = Math.floor(most / step) + 1;
  return Array.from({ length: count + 1 }, (_, index) => Number((index * step).toPrecision(6)));
}

function spreadEdges(least, most) {
  const edges = [niceStep(most * (1 + 1e-6))];
  while (edges[0] > least && edges.length < MOST_BINS) edges.unshift(nextLower(edges[0]));
  return edges[0] > least ? [0, ...edges] : edges;
}

function nextLower(edge) {
  const power = 10 ** Math.floor(Math.log10(edge * (1 + 1e-9)));
  const digit = Math.round(edge / power);
  return Number(({ 1: 0.5, 2: 1, 5: 2 }[digit] * power).toPrecision(6));
}

/** True where an area is in a bin. The bin without width is that of 0, which no other holds. */
function isWithin(area, { from, to }) {
  return from === to ? area === from : area > 0 && area >= from && area < to;
}

/** The areas of a bin in words. */
function describeBin({ from, to }) {
  return from === to ? String(from) : from === 0 ? `up to ${to}` : `${from} to ${to}`;
}

/** Draw the bars; a bar is a button that filters. `chosen` is the bin of the filter, or null. */
function drawBins(holder, bins, chosen, choose) {
  const most = Math.max(1, ...bins.map((bin) => bin.count));
  const isChosen = (bin) => chosen !== null && bin.from === chosen.from && bin.to === chosen.to;
  const bars = bins.map((bin) => {
    const button = makeElement("button", "bin");
    button.type = "button";
    button.setAttribute("aria-pressed", String(isChosen(bin)));
    button.setAttribute("aria-label", `${describeBin(bin)} mm² positive: ${bin.count} ${bin.count === 1 ? "slide" : "slides"}`);
    const column = makeElement("span", "column");
    const bar = makeElement("i");
    bar.style.height = `${(100 * bin.count) / most}%`;
    column.append(makeElement("b", "", bin.count || ""), bar);
    button.append(column, makeElement("span", "range", bin.from === 0 && bin.to > 0 ? ">0" : bin.from));
    button.addEventListener("click", () => choose(isChosen(bin) ? null : bin));
    return button;
  });
  replaceIfChanged(holder, bars);
}

/** Replace what an element holds, unless it is the same: nothing moves, or loses the focus, without need. */
function replaceIfChanged(holder, children) {
  const text = children.map((child) => child.outerHTML).join("");
  if (holder.dataset.drawn === text) return;
  const focused = [...holder.children].indexOf(document.activeElement);
  holder.dataset.drawn = text;
  holder.replaceChildren(...children);
  if (focused >= 0) holder.children[Math.min(focused, holder.children.length - 1)]?.focus();
}

/** The slides with a concern, most pressing first. */
function orderFirst(rows) {
  const place = (row) => Math.min(...Object.keys(row.concerns).map((kind) => CONCERN_ORDER.indexOf(kind)));
  const share = (row) => (row.summary?.near_threshold ?? 0) / ((row.summary?.positives ?? 0) + 1);
  return rows
    .filter((row) => Object.keys(row.concerns).length > 0)
    .sort((one, other) => place(one) - place(other) || share(other) - share(one) || (one.slide_id < other.slide_id ? -1 : 1));
}

function drawFirst(holder, rows, linkTo) {
  const items = orderFirst(rows).slice(0, MOST_FIRST).map((row) => {
    const item = makeElement("li");
    const kind = CONCERN_ORDER.find((name) => name in row.concerns);
    const chip = makeElement("span", `state ${kind}`, CONCERNS[kind][0]);
    chip.title = CONCERNS[kind][1];
    item.append(linkTo(row), " ", chip, " ", makeElement("span", "note", Object.values(row.concerns).join("; ")));
    return item;
  });
  replaceIfChanged(holder, items);
}

/** How far the run is, in words. */
function describeLive(live) {
  const parts = [`${formatCount(live.slides_ended)} of ${formatCount(live.slides)} slides`];
  if (live.rate !== null) parts.push(`${formatCount(live.rate)} patches/s`);
  if (live.seconds_left !== null) parts.push(`about ${describeDuration(live.seconds_left)} left`);
  return parts.join(", ");
}

const ENDINGS = { stopped: "The last run was stopped.", killed: "The last run was killed." };

/** The state of the last run; hidden where it came to its end: its failures are among the slides to look at. */
function drawLive(live) {
  byId("live").hidden = !live || !(live.is_under_way || live.ending in ENDINGS);
  if (byId("live").hidden) return;
  const failed = live.failures.length;
  const bar = byId("live-bar");
  bar.hidden = !live.is_under_way;
  if (live.patches_expected) {
    bar.max = live.patches_expected;
    bar.value = Math.min(live.patches_done, live.patches_expected);
  } else {
    bar.max = Math.max(1, live.slides);
    bar.value = live.slides_ended;
  }
  byId("live-text").textContent = live.is_under_way ? describeLive(live) : ENDINGS[live.ending];
  const failures = live.failures.slice(-MOST_FIRST).reverse().map((failure) => {
    const item = makeElement("li");
    item.append(makeElement("b", "", failure.slide_id), `: ${failure.reason}`);
    return item;
  });
  byId("failures-title").hidden = !failed;
  byId("failures-title").textContent = `${formatCount(failed)} ${failed === 1 ? "slide" : "slides"} failed`;
  replaceIfChanged(byId("failures"), failures);
}
