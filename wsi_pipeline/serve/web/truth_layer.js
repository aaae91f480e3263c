"use strict";
// What is known of a slide over what the model says: outlines, and four outcomes in patterns that stay apart without colour.

const [NO_OUTCOME, TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, TRUE_NEGATIVE] = [0, 1, 2, 3, 4];
const OUTCOMES = [
  { key: TRUE_POSITIVE, name: "true positive", about: "positive, and so it is", colour: "#006d4e", lines: [[4, 0, 4, 8]], width: 1.4 },
  { key: FALSE_POSITIVE, name: "false positive", about: "called positive, but it is not", colour: "#a83c00", lines: [[0, 8, 8, 0], [-1, 1, 1, -1], [7, 9, 9, 7]], width: 1.4 },
  { key: FALSE_NEGATIVE, name: "false negative", about: "missed", colour: "#00458f", lines: [[4, 4, 4, 4.1]], width: 4.4 },
  { key: TRUE_NEGATIVE, name: "true negative", about: "negative, and so it is", colour: "#4a5058", lines: [[4, 4, 4, 4.1]], width: 2.2 },
];
const PATTERN_PX = 8;
const LABEL_LINES = [
  { name: "positive", colour: "#000000", dash: [9, 5] },
  { name: "negative", colour: "#4a5058", dash: [2, 5] },
];

class TruthLayer {
  /** body: as the server tells it; map: MapLayer of the same grid. */
  constructor(body, map) {
    this.body = body;
    this.map = map;
    this.labels = new Int8Array(decodeBase64(body.labels).buffer);
    this.at = null; // threshold of the outcomes
    this.masks = new Map(OUTCOMES.map(({ key }) => [key, this._makeMask()]));
    this.layer = document.createElement("canvas");
  }

  _makeMask() {
    return Object.assign(document.createElement("canvas"), { width: Math.max(1, this.map.grid.cols), height: Math.max(1, this.map.grid.rows) });
  }

  /** Outcome of each cell at a threshold: cells without a label or a probability have none. */
  outcomes(threshold) {
    if (this.at === threshold) return this.found;
    const { isPositive } = this.map.positives(threshold);
    const { values } = this.map;
    const kinds = new Uint8Array(this.labels.length);
    const counts = [0, 0, 0, 0, 0];
    for (let index = 0; index < kinds.length; index++) {
      const label = this.labels[index];
      if (label < 0 || Number.isNaN(values[index])) continue;
      const kind = label ? (isPositive[index] ? TRUE_POSITIVE : FALSE_NEGATIVE) : isPositive[index] ? FALSE_POSITIVE : TRUE_NEGATIVE;
      kinds[index] = kind;
      counts[kind] += 1;
    }
    this.at = threshold;
    this.found = { kinds, counts };
    this.errorsFound = null;
    this._paintMasks();
    return this.found;
  }

  _paintMasks() {
    for (const [key, canvas] of this.masks) {
      const context = canvas.getContext("2d");
      const image = context.createImageData(canvas.width, canvas.height);
      const pixels = new Uint32Array(image.data.buffer);
      for (let index = 0; index < this.found.kinds.length; index++) if (this.found.kinds[index] === key) pixels[index] = 0xff000000;
      context.putImageData(image, 0, 0);
    }
  }

  /** Groups of touching cells of one kind of error, the largest first: {kind, cells}. */
  errors(threshold) {
    const { kinds } = this.outcomes(threshold);
    if (this.errorsFound) return this.errorsFound;
    this.errorsFound = [];
    for (const kind of [FALSE_NEGATIVE, FALSE_POSITIVE])
      for (const cells of findGroups(kinds.map((each) => (each === kind ? 1 : 0)), this.map.grid.cols)) this.errorsFound.push({ kind, cells });
    this.errorsFound.sort((one, other) => other.cells.length - one.cells.length || one.cells[0] - other.cells[0]);
    return this.errorsFound;
  }

  /** The box [x0, y0, x1, y1] of cells in level-0 pixels. */
  boundsOf(cells) {
    const { cols, pitch_l0: pitch, cells_xy_l0: origin } = this.map.grid;
    let [col0, row0, col1, row1] = [Infinity, Infinity, -1, -1];
    for (const index of cells) {
      const [row, col] = [Math.floor(index / cols), index % cols];
      [col0, row0, col1, row1] = [Math.min(col0, col), Math.min(row0, row), Math.max(col1, col + 1), Math.max(row1, row + 1)];
    }
    return [origin[0] + col0 * pitch, origin[1] + row0 * pitch, origin[0] + col1 * pitch, origin[1] + row1 * pitch];
  }

  /** Cells as squares: polygons of one ring of level-0 places. */
  squaresOf(cells) {
    const { cols, pitch_l0: pitch, cells_xy_l0: origin } = this.map.grid;
    return [...cells].map((index) => {
      const [x, y] = [origin[0] + (index % cols) * pitch, origin[1] + Math.floor(index / cols) * pitch];
      return [[[x, y], [x + pitch, y], [x + pitch, y + pitch], [x, y + pitch], [x, y]]];
    });
  }

  draw(context, view) {
    if (!view.display.showTruth) return;
    const { counts } = this.outcomes(view.display.threshold);
    for (const outcome of OUTCOMES) if (counts[outcome.key]) this._drawPattern(context, view, outcome);
    for (const { name, colour, dash } of LABEL_LINES) view.strokePolygons(context, this.body[name], colour, view.lineWidth + 0.5, dash);
  }

  /** Fill the cells of one outcome with its pattern, which keeps its size at any zoom. */
  _drawPattern(context, view, outcome) {
    const { canvas } = view;
    const { layer } = this;
    if (layer.width !== canvas.width || layer.height !== canvas.height) Object.assign(layer, { width: canvas.width, height: canvas.height });
    const own = layer.getContext("2d");
    own.setTransform(1, 0, 0, 1, 0, 0);
    own.globalCompositeOperation = "source-over";
    own.clearRect(0, 0, layer.width, layer.height);
    own.setTransform(context.getTransform());
    view.drawImage(own, this.masks.get(outcome.key), view.mapBox, 1, false);
    own.setTransform(1, 0, 0, 1, 0, 0);
    own.globalCompositeOperation = "source-in";
    own.fillStyle = own.createPattern(makePattern(outcome), "repeat");
    own.fillRect(0, 0, layer.width, layer.height);
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(layer, 0, 0);
    context.restore();
  }
}

const patterns = new Map();

/** One tile of an outcome's pattern: dark lines with a pale border, seen on every tissue. */
function makePattern(outcome) {
  const ratio = Math.max(1, Math.round(window.devicePixelRatio || 1));
  const key = `${outcome.key} ${ratio}`;
  if (patterns.has(key)) return patterns.get(key);
  const canvas = Object.assign(document.createElement("canvas"), { width: PATTERN_PX * ratio, height: PATTERN_PX * ratio });
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.lineCap = "round";
  for (const [colour, width] of [["rgba(255,255,255,0.7)", outcome.width + 1.3], [outcome.colour, outcome.width]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    for (const [x0, y0, x1, y1] of outcome.lines) {
      context.beginPath();
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
      context.stroke();
    }
  }
  patterns.set(key, canvas);
  return canvas;
}

/** The section of the panel about what is known. */
class TruthPanel {
  constructor(viewer) {
    this.viewer = viewer;
    this.index = -1;
    byId("show-truth").addEventListener("change", () => {
      viewer.display.showTruth = byId("show-truth").checked;
      viewer.changed();
    });
    byId("next-error").addEventListener("click", () => this.show(this.index + 1));
    byId("previous-error").addEventListener("click", () => this.show(this.index - 1));
  }

  get layer() {
    return this.viewer.truthOf(0);
  }

  refresh() {
    const { viewer, layer } = this;
    byId("truth-section").hidden = !layer && !viewer.truthNote;
    byId("truth-note").textContent = layer ? `labels: ${layer.body.source}` : (viewer.truthNote ?? "");
    byId("truth-controls").hidden = !layer;
    byId("show-truth").checked = Boolean(viewer.display.showTruth);
    if (!layer) return;
    if (this.at !== viewer.display.threshold) this.index = -1;
    this.at = viewer.display.threshold;
    const { counts } = layer.outcomes(this.at);
    byId("outcomes").replaceChildren(...OUTCOMES.map((outcome) => drawLegend(outcome, counts[outcome.key])));
    if (this.index < 0) byId("error").textContent = "";
  }

  /** Visit an error; after the last comes the first. */
  show(index) {
    const { viewer, layer } = this;
    if (!layer) return;
    const errors = layer.errors(viewer.display.threshold);
    viewer.display.showTruth = true;
    viewer.changed();
    if (!errors.length) {
      byId("error").textContent = "no error at this threshold";
      return;
    }
    this.index = (index + errors.length) % errors.length;
    const { kind, cells } = errors[this.index];
    const { name, about } = OUTCOMES.find(({ key }) => key === kind);
    byId("error").textContent = `error ${this.index + 1} of ${errors.length}: ${cells.length} ${cells.length === 1 ? "patch" : "patches"}, ${name} (${about})`;
    viewer.visited = layer.squaresOf(cells);
    const [view] = viewer.views;
    viewer.viewport.fit(regionBox({ bounds_l0: layer.boundsOf(cells) }, viewer.map.grid), view.width, view.height, 1.4);
    viewer.select({ row: Math.floor(cells[0] / viewer.map.grid.cols), col: cells[0] % viewer.map.grid.cols });
  }
}

function drawLegend(outcome, count) {
  const row = document.createElement("li");
  const swatch = Object.assign(document.createElement("canvas"), { width: 26, height: 18, className: "swatch" });
  swatch.setAttribute("aria-hidden", "true");
  const context = swatch.getContext("2d");
  context.fillStyle = "#e9c9dc"; // as pale as stained tissue
  context.fillRect(0, 0, 26, 18);
  context.fillStyle = context.createPattern(makePattern(outcome), "repeat");
  context.fillRect(0, 0, 26, 18);
  row.append(swatch, ` ${outcome.name}: ${count.toLocaleString("en")}`);
  row.title = outcome.about;
  return row;
}
