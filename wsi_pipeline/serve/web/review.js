"use strict";
// One patch at a time, called by one key. An answer is on disk before the next patch is shown.

const { run, slide } = document.body.dataset;
const api = at(`/api/v1/reviews/${encodeURIComponent(run)}/${encodeURIComponent(slide)}`);
const byId = (id) => document.getElementById(id);
const MOST_MORE = 200;
const page = { body: null, isBusy: false, ahead: [], isTraining: location.hash === "#training" };
const watch = new Stopwatch();

/** The address of the queue that is shown. */
const queue = () => (page.isTraining ? `${api}/training` : api);

const addressOf = ({ row, col }) => `${api}/patches/${row}/${col}.jpg`;
const plural = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

/** Send one request; false where it was refused, which the page then says. */
async function send(method, address, content) {
  if (page.isBusy) return false;
  page.isBusy = true;
  try {
    const headers = content ? { "Content-Type": "application/json" } : {};
    const answer = await fetch(address, { method, headers, body: content && JSON.stringify(content) });
    const body = await answer.json();
    if (!answer.ok) throw Object.assign(new Error(body.error), { status: answer.status });
    page.body = body;
    byId("message").textContent = "";
    draw();
    return true;
  } catch (error) {
    byId("message").textContent = error.status ? error.message : "the server does not answer; the answer was not written";
    if (error.status === 409) await reload();
    return false;
  } finally {
    page.isBusy = false;
  }
}

/** Show what is on disk: another tab may have gone on. */
async function reload() {
  const answer = await fetch(queue()).catch(() => null);
  if (!answer?.ok) return;
  page.body = await answer.json();
  draw();
}

async function call(isPositive) {
  const patch = page.body?.upcoming[0];
  if (!patch) return;
  const time = page.isTraining ? { seconds: watch.seconds } : {};
  if (await send("POST", `${queue()}/answers`, { row: patch.row, col: patch.col, is_positive: isPositive, ...time })) {
    byId("last").textContent = `called ${isPositive ? "positive" : "negative"}: row ${patch.row}, column ${patch.col}`;
  }
}

async function undo() {
  if (!(await send("DELETE", `${queue()}/answers/last`))) return;
  const { undone } = page.body;
  byId("last").textContent = undone ? `undone: row ${undone.row}, column ${undone.col}` : "there is no answer to undo";
}

async function askMore() {
  if (!page.body?.can_ask_more) return;
  if (await send("POST", `${api}/more`, { patches: countMore() })) byId("last").textContent = "more patches were drawn";
}

function countMore() {
  return Math.min(MOST_MORE, Math.max(page.body.estimate?.needed || 25, 5));
}

async function switchQueue(isTraining) {
  if (page.isBusy || isTraining === page.isTraining) return;
  page.isTraining = isTraining;
  history.replaceState(null, "", isTraining ? "#training" : location.pathname);
  byId("last").textContent = "";
  await send("GET", queue());
}

function draw() {
  const { body } = page;
  byId("for-count").setAttribute("aria-pressed", String(!page.isTraining));
  byId("for-training").setAttribute("aria-pressed", String(page.isTraining));
  byId("counted").hidden = byId("bar").hidden = page.isTraining;
  byId("trained").hidden = !page.isTraining;
  watch.show(body.upcoming[0]);
  byId("reviewer").textContent = `reviewed by ${body.reviewer}`;
  byId("question").textContent = `Is the outlined patch ${body.positive_class}?`;
  drawPatch();
  for (const id of ["negative", "positive"]) byId(id).disabled = !body.upcoming.length;
  byId("undo").disabled = !(body.answered ?? body.called);
  byId("more").hidden = !body.can_ask_more;
  if (page.isTraining) drawTraining(body);
  else drawCount(body);
  document.body.dataset.ready = "yes";
}

function drawCount(body) {
  byId("progress").textContent = `${body.answered} of ${body.asked}`;
  byId("bar").max = Math.max(body.asked, 1);
  byId("bar").value = body.answered;
  byId("more-text").textContent = `ask for ${countMore()} more`;
  drawEstimate();
}

function drawPatch() {
  const [patch, ...following] = page.body.upcoming;
  byId("patch").hidden = !patch;
  byId("done").hidden = Boolean(patch);
  if (patch) {
    byId("patch").src = addressOf(patch);
    byId("patch").alt = `The outlined patch of ${+page.body.field_um.toPrecision(3)} µm, row ${patch.row}, column ${patch.col}, among its neighbours`;
    page.ahead = following.map((each) => Object.assign(new Image(), { src: addressOf(each) })); // kept, so that they are loaded
  } else if (page.isTraining) byId("done").textContent = "All patches of the slide are called.";
  else if (!page.body.asked) byId("done").textContent = "There is no patch to call yet.";
  else byId("done").textContent = `All ${page.body.asked} patches are called.${page.body.can_ask_more ? " Press m for more." : ""}`;
}

function drawEstimate() {
  const { estimate, agreements } = page.body;
  if (estimate) {
    const [low, high] = [estimate.low, estimate.high].map((count) => Math.round(count).toLocaleString("en"));
    byId("estimate").textContent = `about ${plural(Math.round(estimate.estimate), "patch", "patches")} (${low} to ${high}) of ${estimate.assessed.toLocaleString("en")}`;
  } else byId("estimate").textContent = "after a few answers more";
  const { needed } = estimate ?? {};
  byId("needed").textContent = needed == null ? "" : needed === 0 ? "± 20 % is reached" : `± 20 % needs about ${needed.toLocaleString("en")} more`;
  byId("agreements").replaceChildren(
    ...agreements.map(({ one, other, kappa, shared }) => {
      const item = document.createElement("li");
      item.textContent = `${one} and ${other}: kappa ${kappa == null ? "cannot be told" : kappa.toFixed(2)} over ${plural(shared, "patch", "patches")}`;
      return item;
    }),
  );
}

const positive = () => call(true);
const negative = () => call(false);
const KEYS = { 1: positive, p: positive, ArrowRight: positive, 0: negative, n: negative, ArrowLeft: negative, u: undo, Backspace: undo, m: askMore, q: () => switchQueue(!page.isTraining) };

document.addEventListener("keydown", (event) => {
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  event.preventDefault();
  action();
});
for (const [id, action] of Object.entries({ positive, negative, undo, more: askMore })) byId(id).addEventListener("click", action);
byId("for-count").addEventListener("click", () => switchQueue(false));
byId("for-training").addEventListener("click", () => switchQueue(true));
byId("patch").addEventListener("error", async () => {
  const answer = await fetch(byId("patch").src).catch(() => null);
  if (answer && !answer.ok) byId("message").textContent = (await answer.json()).error;
});
window.addEventListener("focus", () => page.isBusy || reload());
send("GET", queue());
