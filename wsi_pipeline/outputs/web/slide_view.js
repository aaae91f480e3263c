"use strict";
// A slide on a canvas: overview, tiles, map, tissue and regions, at any zoom. Places are level-0 pixels of the slide.

const LARGEST_SCALE = 16; // screen pixels per level-0 pixel
const POSITIVE_COLOUR = "#d7191c";
const NICE = [1, 2, 5];

/** What is looked at, shared by views that stand side by side: centre and screen pixels per level-0 pixel. */
class Viewport {
  constructor() {
    this.x = 0;
    this.y = 0;
    this.scale = 1;
    this.smallest = 1e-6;
    this.listeners = [];
  }

  set(x, y, scale) {
    this.x = x;
    this.y = y;
    this.scale = Math.min(LARGEST_SCALE, Math.max(this.smallest, scale));
    for (const listener of this.listeners) listener();
  }

  /** Show a whole box [x, y, width, height] on so many screen pixels. */
  fit(box, width, height, margin = 1.05) {
    this.set(box[0] + box[2] / 2, box[1] + box[3] / 2, Math.min(width / box[2], height / box[3]) / margin);
  }
}

/** Settings that every view of a page shares. */
const DEFAULT_DISPLAY = { opacity: 0.5, threshold: 0.5, showMap: true, showRegions: true, showTissue: false, onlyPositive: false };

class SlideView {
  /** scene: {slide, overview: {image, box_l0}, tiles, map, regions, tissue: {image, box_l0}, title}; all but slide may be null. */
  constructor(canvas, viewport, display, scene) {
    this.canvas = canvas;
    this.viewport = viewport;
    this.display = display;
    this.scene = scene;
    this.selected = null;
    this.currentRegion = null;
    this.onHover = () => {};
    this.onPick = () => {};
    this._isAsked = false;
    viewport.listeners.push(() => this.redraw());
    new ResizeObserver(() => this.redraw()).observe(canvas);
    this._listen();
  }

  get width() {
    return this.canvas.clientWidth;
  }

  get height() {
    return this.canvas.clientHeight;
  }

  /** Draw with the next frame. */
  redraw() {
    if (this._isAsked) return;
    this._isAsked = true;
    requestAnimationFrame(() => {
      this._isAsked = false;
      if (this.scene) this._draw();
    });
  }

  /** Level-0 place under a screen place on the canvas. */
  toSlide(px, py) {
    const { x, y, scale } = this.viewport;
    return [x + (px - this.width / 2) / scale, y + (py - this.height / 2) / scale];
  }

  toScreen(x, y) {
    const port = this.viewport;
    return [(x - port.x) * port.scale + this.width / 2, (y - port.y) * port.scale + this.height / 2];
  }

  zoomAt(px, py, factor) {
    const [x, y] = this.toSlide(px, py);
    const port = this.viewport;
    const scale = Math.min(LARGEST_SCALE, Math.max(port.smallest, port.scale * factor));
    port.set(x - (px - this.width / 2) / scale, y - (py - this.height / 2) / scale, scale);
  }

  pan(dx, dy) {
    this.viewport.set(this.viewport.x + dx / this.viewport.scale, this.viewport.y + dy / this.viewport.scale, this.viewport.scale);
  }

  _listen() {
    let from = null;
    let moved = 0;
    this.canvas.addEventListener("pointerdown", (event) => {
      from = [event.offsetX, event.offsetY];
      moved = 0;
      this.canvas.setPointerCapture(event.pointerId);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (from) {
        moved += Math.abs(event.offsetX - from[0]) + Math.abs(event.offsetY - from[1]);
        this.pan(from[0] - event.offsetX, from[1] - event.offsetY);
        from = [event.offsetX, event.offsetY];
      }
      this.onHover(...this.toSlide(event.offsetX, event.offsetY));
    });
    this.canvas.addEventListener("pointerup", (event) => {
      if (from && moved < 4) this.onPick(...this.toSlide(event.offsetX, event.offsetY));
      from = null;
    });
    this.canvas.addEventListener("pointerleave", () => this.onHover(NaN, NaN));
    this.canvas.addEventListener("dblclick", (event) => this.zoomAt(event.offsetX, event.offsetY, 2));
    this.canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.zoomAt(event.offsetX, event.offsetY, Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0015)));
      },
      { passive: false },
    );
  }

  _draw() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = "#f3f4f6";
    context.fillRect(0, 0, this.width, this.height);
    const { scene, display } = this;
    this._drawSlide(context, ratio);
    if (scene.tissue && display.showTissue) this._drawImage(context, scene.tissue.image, scene.tissue.box_l0, 1, true);
    if (scene.map && display.showMap) this._drawMap(context);
    if (display.showRegions) this._drawRegions(context);
    if (this.selected && scene.map) this._drawBox(context, scene.map.boxOf(this.selected));
    this._drawScaleBar(context);
    if (scene.map && scene.map.colours) this._drawColourBar(context);
    if (scene.title) this._drawTitle(context);
  }

  _drawSlide(context, ratio) {
    const [width, height] = this.scene.slide.size_l0;
    const [x0, y0] = this.toScreen(0, 0);
    context.fillStyle = "white";
    context.fillRect(x0, y0, width * this.viewport.scale, height * this.viewport.scale);
    const { overview, tiles } = this.scene;
    if (overview && overview.image) this._drawImage(context, overview.image, overview.box_l0, 1, true);
    if (tiles) tiles.draw(context, this, ratio);
  }

  _drawImage(context, image, box, alpha, isSmooth) {
    const [x0, y0] = this.toScreen(box[0], box[1]);
    context.globalAlpha = alpha;
    context.imageSmoothingEnabled = isSmooth;
    context.drawImage(image, x0, y0, box[2] * this.viewport.scale, box[3] * this.viewport.scale);
    context.globalAlpha = 1;
    context.imageSmoothingEnabled = true;
  }

  _drawMap(context) {
    const { map } = this.scene;
    const { grid } = map;
    const box = [...grid.cells_xy_l0, Math.max(grid.cols, 1) * grid.pitch_l0, Math.max(grid.rows, 1) * grid.pitch_l0];
    const picture = map.picture(this.display.threshold, this.display.onlyPositive);
    this._drawImage(context, picture, box, this.display.opacity, false);
  }

  _drawRegions(context) {
    for (const region of this.scene.regions || []) {
      const isCurrent = this.currentRegion === region.number;
      context.beginPath();
      for (const polygon of region.outline) for (const ring of polygon) this._tracePath(context, ring);
      context.lineJoin = "round";
      context.strokeStyle = "white";
      context.lineWidth = isCurrent ? 5 : 3;
      context.stroke();
      context.strokeStyle = POSITIVE_COLOUR;
      context.lineWidth = isCurrent ? 3 : 1.5;
      context.stroke();
    }
  }

  _tracePath(context, ring) {
    ring.forEach(([x, y], index) => {
      const place = this.toScreen(x, y);
      if (index) context.lineTo(...place);
      else context.moveTo(...place);
    });
    context.closePath();
  }

  _drawBox(context, box) {
    const [x, y] = this.toScreen(box[0], box[1]);
    const side = Math.max(box[2] * this.viewport.scale, 3);
    for (const [colour, width] of [["white", 4], ["black", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.strokeRect(x, y, side, side);
    }
  }

  _drawScaleBar(context) {
    const mpp = this.scene.slide.mpp;
    const { um, px } = chooseScaleBar(this.viewport.scale / mpp, Math.min(180, this.width / 3));
    const [x, y] = [16, this.height - 18];
    this._plate(context, x - 8, y - 24, px + 16, 34);
    context.fillStyle = "black";
    context.fillRect(x, y, px, 4);
    context.font = "13px system-ui, sans-serif";
    context.textAlign = "center";
    context.fillText(formatUm(um), x + px / 2, y - 6);
    context.textAlign = "start";
  }

  _drawColourBar(context) {
    const [width, height] = [14, Math.min(180, this.height / 3)];
    const [x, y] = [this.width - 62, this.height - height - 26];
    this._plate(context, x - 22, y - 34, 84, height + 48);
    const { colours } = this.scene.map;
    for (let step = 0; step < height; step++) {
      const colour = 3 * Math.floor(255 * (1 - step / height));
      context.fillStyle = `rgb(${colours[colour]},${colours[colour + 1]},${colours[colour + 2]})`;
      context.fillRect(x, y + step, width, 1.5);
    }
    context.fillStyle = "black";
    context.font = "11px system-ui, sans-serif";
    context.fillText("probability", x - 14, y - 18);
    for (const value of [0, 0.5, 1]) context.fillText(value.toString(), x + width + 8, y + (1 - value) * height + 4);
    const mark = y + (1 - this.display.threshold) * height;
    context.fillRect(x - 8, mark - 1, width + 12, 2);
  }

  _drawTitle(context) {
    context.font = "600 13px system-ui, sans-serif";
    this._plate(context, 8, 8, context.measureText(this.scene.title).width + 16, 24);
    context.fillStyle = "black";
    context.fillText(this.scene.title, 16, 25);
  }

  _plate(context, x, y, width, height) {
    context.fillStyle = "rgba(255,255,255,0.85)";
    context.fillRect(x, y, width, height);
  }
}

/** The longest round length of µm whose bar is at most so many screen pixels wide. */
function chooseScaleBar(pxPerUm, maxPx) {
  const power = 10 ** Math.floor(Math.log10(maxPx / pxPerUm));
  const um = Math.max(...NICE.map((step) => step * power).filter((length) => length * pxPerUm <= maxPx));
  return { um, px: um * pxPerUm };
}

function formatUm(um) {
  return um >= 1000 ? `${+(um / 1000).toPrecision(4)} mm` : `${+um.toPrecision(4)} µm`;
}

function formatMm2(area) {
  return area >= 1 ? area.toFixed(2) : (+area.toPrecision(3)).toString();
}

/** What stands under the pointer, in words. */
function describePlace(slide, map, x, y) {
  if (Number.isNaN(x)) return "";
  const place = `x ${Math.round(x * slide.mpp).toLocaleString()} µm, y ${Math.round(y * slide.mpp).toLocaleString()} µm`;
  const cell = map && map.cellAt(x, y);
  if (!cell) return place;
  const value = map.valueAt(cell);
  return `${Number.isNaN(value) ? "not assessed" : `probability ${value.toFixed(3)}`} · ${place}`;
}

/** Positives and their area, in words, and what is left out of them. */
function describeCount(map, threshold) {
  const { count: positives, leftOut } = map.positives(threshold);
  const share = map.assessed ? ` (${((100 * positives) / map.assessed).toFixed(1)} %)` : "";
  const area = [positives, map.assessed].map((cells) => formatMm2(cells * map.grid.cell_area_mm2)).join(" of ");
  return {
    positives,
    patches: `${positives} of ${map.assessed} patches positive${share}`,
    area: `${area} mm² assessed`,
    leftOut: leftOut ? `; ${leftOut} more in groups below ${formatMm2(map.minRegionMm2)} mm² do not count` : "",
  };
}

/** A place for a region on the screen: its box with room around it, and never closer than a few patches. */
function regionBox(region, grid) {
  const [x0, y0, x1, y1] = region.bounds_l0;
  const side = Math.max(x1 - x0, y1 - y0, 6 * grid.pitch_l0);
  return [(x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side, side];
}
