"use strict";
// Regions that a person draws, relabels or erases: on disk when the server has answered, as QuPath's GeoJSON.

const CORRECTION_COLOURS = ["#00458f", "#a83c00"]; // negative, positive
const CORRECTION_DASHES = [[3, 4], []];
const MOST_UNDONE = 50;

/** Draws a region of a class, or erases. */
class CorrectionTool extends DrawTool {
  /** action: "draw" or "erase"; className: of what is drawn. */
  constructor(viewer, action, className) {
    super(viewer);
    this.action = action;
    this.className = className;
  }

  get what() {
    return this.action === "erase" ? "erase" : `draw ${this.className}`;
  }

  async take(geometry) {
    await this.viewer.corrections.send({ action: this.action, class_name: this.className, geometry });
  }
}

class Corrections {
  constructor(viewer) {
    this.viewer = viewer;
    this.body = null;
    this.undone = []; // what the regions were before each step
    this.selected = -1;
    this._bind();
  }

  get address() {
    return `${api}/corrections?run=${encodeURIComponent(this.viewer.runs[0])}`;
  }

  async load() {
    this.body = this.viewer.runs[0] ? await getJson(this.address).catch((error) => this._fail(error)) : null;
    this.undone = [];
    this._show();
  }

  _fail(error) {
    this.viewer.panel?.say(error.message);
    return null;
  }

  /** Send one step; the server answers with all regions. */
  async send(step) {
    await this._write("POST", step, this._copy());
  }

  async undo() {
    const regions = this.undone.pop();
    if (regions) await this._write("PUT", { regions }, null);
    else this.viewer.panel.say("there is no step to undo");
  }

  /** Start from what is known: every true region becomes one that can be changed. */
  async copyLabels() {
    const truth = this.viewer.truthOf(0)?.body;
    if (!truth) return;
    const regions = [truth.negative, truth.positive].flatMap((polygons, label) => polygons.map((rings) => toRegion(this.body.class_names[label], [rings])));
    await this._write("PUT", { regions: [...this._copy(), ...regions] }, this._copy());
  }

  /** The present regions, as they are sent. */
  _copy() {
    return this.body.regions.map((region) => toRegion(region.class_name, region.outline));
  }

  async _write(method, content, before) {
    if (this.isBusy || !this.body?.can_write) return;
    this.isBusy = true;
    const { body, error, status } = await ask(this.address, method, { version: this.body.version, ...content });
    this.isBusy = false;
    if (error) {
      if (status === 409) await this.load();
      this.viewer.panel.say(status ? error : `${error}; nothing was written`);
      return;
    }
    if (before) this.undone = [...this.undone, before].slice(-MOST_UNDONE);
    this.body = body;
    this.selected = -1;
    this.viewer.panel.say("written");
    this._show();
  }

  _bind() {
    byId("draw-negative").addEventListener("click", () => this.use("draw", 0));
    byId("draw-positive").addEventListener("click", () => this.use("draw", 1));
    byId("erase").addEventListener("click", () => this.use("erase", 0));
    byId("undo-correction").addEventListener("click", () => this.undo());
    byId("copy-labels").addEventListener("click", () => this.copyLabels());
    byId("call-negative").addEventListener("click", () => this.callVisited(0));
    byId("call-positive").addEventListener("click", () => this.callVisited(1));
  }

  /** Make a correction of the region or the error that was visited last. */
  async callVisited(label) {
    if (!this.viewer.visited) return this.viewer.panel.say("visit a region (n, p, g) or an error (e) first");
    this.viewer.display.showCorrections = true;
    const geometry = { type: "MultiPolygon", coordinates: this.viewer.visited };
    return this.send({ action: "draw", class_name: this.body.class_names[label], geometry });
  }

  /** Take up the tool that draws a class or erases; the same once more lays it down. */
  use(action, label) {
    if (!this.body?.can_write) return;
    const className = this.body.class_names[label];
    const { tool } = this.viewer;
    const isSame = tool instanceof CorrectionTool && tool.action === action && tool.className === className;
    this.viewer.display.showCorrections = true;
    this.viewer.useTool(isSame ? null : new CorrectionTool(this.viewer, action, className));
  }

  draw(context, view) {
    if (!view.display.showCorrections || !this.body) return;
    for (const region of this.body.regions) {
      const label = Math.max(0, this.body.class_names.indexOf(region.class_name));
      const width = view.lineWidth + (region.number === this.selected ? 3 : 1);
      view.strokePolygons(context, region.outline, CORRECTION_COLOURS[label], width, CORRECTION_DASHES[label]);
    }
  }

  _show() {
    const { body, viewer } = this;
    byId("corrections-section").hidden = !body || (!body.can_write && !body.regions.length);
    viewer.redraw();
    if (!body) return;
    byId("correct-tools").hidden = !body.can_write;
    byId("draw-negative-text").textContent = body.class_names[0];
    byId("draw-positive-text").textContent = body.class_names[1];
    byId("copy-labels").hidden = !viewer.truthOf(0) || body.regions.length > 0;
    byId("undo-correction").disabled = !this.undone.length;
    const areas = body.class_names.map((name) => body.regions.filter((region) => region.class_name === name));
    const sum = (regions) => formatMm2(regions.reduce((total, region) => total + region.area_mm2, 0));
    byId("corrected").textContent = body.regions.length ? areas.map((regions, label) => `${body.class_names[label]}: ${regions.length}, ${sum(regions)} mm²`).join(" · ") : "none drawn yet";
    byId("corrected-regions").replaceChildren(...body.regions.map((region) => this._drawRow(region)));
    byId("training").hidden = !body.lines.length;
    byId("training-lines").textContent = body.lines.join("\n");
  }

  _drawRow(region) {
    const other = this.body.class_names.find((name) => name !== region.class_name);
    const actions = [[`${region.class_name}, ${formatMm2(region.area_mm2)} mm²`, () => this._visit(region)]];
    if (this.body.can_write) {
      actions.push([`→ ${other}`, () => this.send({ action: "relabel", number: region.number, class_name: other })]);
      actions.push(["erase", () => this.send({ action: "remove", number: region.number })]);
    }
    return makeRow(actions);
  }

  _visit(region) {
    this.selected = region.number;
    this.viewer.display.showCorrections = true;
    visitPolygons(this.viewer, region.outline);
  }
}

function toRegion(className, polygons) {
  return { class_name: className, geometry: { type: "MultiPolygon", coordinates: polygons } };
}
