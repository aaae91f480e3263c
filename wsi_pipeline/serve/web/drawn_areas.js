"use strict";
// "Run the model here": areas that a person draws, the job that infers them, and their outlines.

const JOB_POLL_MS = 700;
const LATER_MS = 1500; // after a job, for the list of slides to be read again
const AREA_COLOUR = "#5b2a86";
const AREA_DASH = [10, 4];
const UNDER_WAY = ["waiting", "running", "cancelling"];
const jobsApi = at("/api/v1/jobs");

class AreaTool extends BoxTool {
  get what() {
    return "run the model here";
  }

  async take(geometry) {
    this.viewer.useTool(null);
    await this.viewer.drawnAreas.run(geometry);
  }
}

class DrawnAreas {
  constructor(viewer) {
    this.viewer = viewer;
    this.body = null;
    this.job = null; // the last one of this slide, as the server describes it
    byId("run-here").addEventListener("click", () => this.use());
    byId("cancel-job").addEventListener("click", () => this.cancel());
  }

  async load() {
    const { body, error } = await ask(`${api}/drawn`, "GET");
    this.body = body;
    if (error) this.viewer.panel.say(error);
    if (this.body?.can_write && !this.job) await this._findJob();
    this._show();
  }

  /** A job for this slide may be under way already: of another window, or of this one before it was loaded again. */
  async _findJob() {
    const jobs = (await ask(jobsApi, "GET")).body ?? [];
    const job = jobs.findLast((each) => each.slide_id === slideId && UNDER_WAY.includes(each.state));
    if (job) this._watch(job);
  }

  get isUnderWay() {
    return UNDER_WAY.includes(this.job?.state);
  }

  /** Begin to draw, or end it. */
  use() {
    if (!this.body?.can_write) return;
    if (this.isUnderWay) return this.viewer.panel.say("a job for this slide is under way; wait, or cancel it");
    this.viewer.display.showDrawn = true;
    this.viewer.useTool(this.viewer.tool instanceof AreaTool ? null : new AreaTool(this.viewer));
  }

  /** Infer an area; all other results are kept. */
  async run(region) {
    const { body, error } = await ask(jobsApi, "POST", { slide_id: slideId, region });
    if (error) return this._say(error);
    this._watch(body);
    return this.load();
  }

  async cancel() {
    const { body, error } = await ask(`${jobsApi}/${this.job.job_id}`, "DELETE");
    if (error) return this._say(error);
    this.job = body;
    return this._show();
  }

  async remove(number) {
    const { body, error } = await ask(`${api}/drawn/${number}?version=${this.body.version}`, "DELETE");
    if (error) await this.load();
    else this.body = body;
    this._show();
    this._say(error || "removed; its patches leave the results when the slide is inferred again");
  }

  /** Follow a job to its end. */
  async _watch(job) {
    const isNew = this.job?.job_id !== job.job_id;
    this.job = job;
    this._show();
    if (!isNew) return;
    while (this.isUnderWay) {
      await new Promise((resolve) => setTimeout(resolve, JOB_POLL_MS));
      const { body, error } = await ask(`${jobsApi}/${job.job_id}`, "GET");
      if (error === "no such job") this.job = { ...this.job, state: "failed", message: "the server was started again; run the area again" };
      else if (body) this.job = body;
      this._show(error);
    }
    await this._end();
  }

  async _end() {
    await this.load();
    for (let times = 0; times < 2 && this.job.state === "done"; times++) {
      await this.viewer.poll();
      await new Promise((resolve) => setTimeout(resolve, LATER_MS));
    }
  }

  _say(text) {
    if (byId("job").textContent !== text) byId("job").textContent = text; // said once by a screen reader
  }

  draw(context, view) {
    const runId = this.viewer.runs[this.viewer.views.indexOf(view)];
    if (!view.display.showDrawn || !this.body || ![null, this.body.run_id].includes(runId)) return;
    for (const { outline } of this.body.areas) view.strokePolygons(context, outline, AREA_COLOUR, view.lineWidth + 1, AREA_DASH);
  }

  _show(fault) {
    const { body, job } = this;
    byId("drawn-section").hidden = !body || (!body.can_write && !body.areas.length);
    byId("run-tools").hidden = !body?.can_write;
    byId("run-here").disabled = this.isUnderWay;
    byId("cancel-job").hidden = !this.isUnderWay;
    byId("cancel-job").disabled = job?.state === "cancelling";
    byId("job-progress").hidden = !this.isUnderWay;
    byId("job-progress").max = job?.patches_total || 1;
    byId("job-progress").value = job?.patches_done ?? 0;
    byId("job-count").textContent = this.isUnderWay && job.patches_total ? `${job.patches_done.toLocaleString("en")} of ${job.patches_total.toLocaleString("en")} patches` : "";
    if (job) this._say(fault || describeJob(job));
    byId("drawn-areas").replaceChildren(...(body?.areas ?? []).map((area) => this._makeRow(area)));
    this.viewer.redraw();
  }

  _makeRow(area) {
    const actions = [[`${formatMm2(area.area_mm2)} mm²`, () => visitPolygons(this.viewer, area.outline)]];
    if (this.body.can_write && !this.isUnderWay) {
      actions.push(["run again", () => this.run({ type: "MultiPolygon", coordinates: area.outline })]);
      actions.push(["remove", () => this.remove(area.number)]);
    }
    return makeRow(actions);
  }
}

/** State of a job in words. */
function describeJob(job) {
  const words = { waiting: "waits for its turn", running: "the model runs", cancelling: "stops after this block" };
  return words[job.state] ?? `${job.state}${job.message ? `: ${job.message.replace(`${job.state}; `, "")}` : ""}`;
}
