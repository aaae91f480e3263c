"use strict";
// A slide on a canvas: overview, tiles, map, tissue and regions, at any zoom and angle. Places are level-0 pixels of the slide.

const LARGEST_SCALE = 16; // screen pixels per level-0 pixel
const REGION_COLOUR = "#b00020";
const THINNEST_PX = 1;
const THICKEST_PX = 3;

/** What is looked at, shared by views that stand side by side: centre, screen pixels per level-0 pixel, and angle in degrees. */
class Viewport {
  constructor() {
    this.x = 0;
    this.y = 0;
    this.scale = 1;
    this.angle = 0;
    this.smallest = 1e-6;
    this.listeners = [];
  }

  set(x, y, scale, angle = this.angle) {
    this.x = x;
    this.y = y;
    this.scale = this.limit(scale);
    this.angle = ((angle % 360) + 360) % 360;
    for (const listener of this.listeners) listener();
  }

  limit(scale) {
    return Math.min(LARGEST_SCALE, Math.max(this.smallest, scale));
  }

  /** Show a whole box [x, y, width, height], turned as the view is, on so many screen pixels. */
  fit(box, width, height, margin = 1.05) {
    const [cos, sin] = this.turn.map(Math.abs);
    const [wide, high] = [box[2] * cos + box[3] * sin, box[2] * sin + box[3] * cos];
    this.set(box[0] + box[2] / 2, box[1] + box[3] / 2, Math.min(width / wide, height / high) / margin);
  }

  /** [cosine, sine] of the angle; exact for quarter turns. */
  get turn() {
    if (this.angle % 90 === 0) return [[1, 0], [0, 1], [-1, 0], [0, -1]][this.angle / 90];
    const radians = (this.angle * Math.PI) / 180;
    return [Math.cos(radians), Math.sin(radians)];
  }
}

/** Settings that every view of a page shares. */
const DEFAULT_DISPLAY = {
  opacity: 0.5,
  threshold: 0.5,
  mode: BY_PROBABILITY,
  colormap: "",
  showMap: true,
  showRegions: true,
  showTissue: false,
  showPieces: null, // told by the number of pieces
  showTruth: false,
  showCorrections: true,
  showDrawn: true,
  isBare: false, // nothing but the slide
};

class SlideView {
  /**
   * scene: {slide, overview: {image, box_l0}, tiles, map, regions, tissue: {image, box_l0}, title, layers}; all but slide may be
   * null. Layers draw themselves: draw(context, view) turns with the slide, drawOnScreen(context, view) does not.
   */
  constructor(canvas, viewport, display, scene) {
    this.canvas = canvas;
    this.viewport = viewport;
    this.display = display;
    this.scene = scene;
    this.selected = null;
    this.currentRegion = null;
    this.tool = null; // takes clicks and drags while it is set
    this.onHover = () => {};
    this.onPick = () => {};
    this._isAsked = false;
    viewport.listeners.push(() => this.redraw());
    new ResizeObserver(() => this.redraw()).observe(canvas);
    this.input = new ViewInput(this);
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
    const { x, y, scale, turn } = this.viewport;
    const [dx, dy] = [px - this.width / 2, py - this.height / 2];
    return [x + (dx * turn[0] + dy * turn[1]) / scale, y + (dy * turn[0] - dx * turn[1]) / scale];
  }

  /** Where a level-0 place would be on the canvas if the view were not turned: where layers draw. */
  toFlat(x, y) {
    const port = this.viewport;
    return [(x - port.x) * port.scale + this.width / 2, (y - port.y) * port.scale + this.height / 2];
  }

  toScreen(x, y) {
    const { turn } = this.viewport;
    const [fx, fy] = this.toFlat(x, y);
    const [dx, dy] = [fx - this.width / 2, fy - this.height / 2];
    return [this.width / 2 + dx * turn[0] - dy * turn[1], this.height / 2 + dx * turn[1] + dy * turn[0]];
  }

  /** Corners of what is in sight, in level-0 pixels, in order around it. */
  get corners() {
    const { width, height } = this;
    return [[0, 0], [width, 0], [width, height], [0, height]].map((place) => this.toSlide(...place));
  }

  /** The level-0 box [x0, y0, x1, y1] around what is in sight. */
  get boundsInSight() {
    const [xs, ys] = [0, 1].map((axis) => this.corners.map((place) => place[axis]));
    return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
  }

  zoomAt(px, py, factor) {
    const port = this.viewport;
    const [x, y] = this.toSlide(px, py);
    const share = port.scale / port.limit(port.scale * factor);
    port.set(x + (port.x - x) * share, y + (port.y - y) * share, port.scale * factor);
  }

  pan(dx, dy) {
    const { x, y, scale, turn } = this.viewport;
    this.viewport.set(x + (dx * turn[0] + dy * turn[1]) / scale, y + (dy * turn[0] - dx * turn[1]) / scale, scale);
  }

  /** Width of outlines: thin where patches are a few pixels, stronger the closer one looks. */
  get lineWidth() {
    const pitch = this.scene.map ? this.scene.map.grid.pitch_l0 * this.viewport.scale : 20;
    return Math.min(THICKEST_PX, Math.max(THINNEST_PX, pitch / 20));
  }

  _draw() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    context.save();
    this._turn(context);
    this._drawSlide(context, ratio);
    if (!this.display.isBare) this._drawLayers(context);
    context.restore();
    if (!this.display.isBare) for (const layer of this.scene.layers || []) layer.drawOnScreen?.(context, this);
    this.tool?.drawOnScreen?.(context, this);
    drawMarks(context, this);
  }

  /** Turn what is drawn from now on as the slide is turned. */
  _turn(context) {
    const [cos, sin] = this.viewport.turn;
    context.translate(this.width / 2, this.height / 2);
    context.transform(cos, sin, -sin, cos, 0, 0);
    context.translate(-this.width / 2, -this.height / 2);
  }

  _drawSlide(context, ratio) {
    const [width, height] = this.scene.slide.size_l0;
    const [x0, y0] = this.toFlat(0, 0);
    context.fillStyle = "white";
    context.fillRect(x0, y0, width * this.viewport.scale, height * this.viewport.scale);
    const { overview, tiles } = this.scene;
    if (overview && overview.image) this.drawImage(context, overview.image, overview.box_l0, 1, true);
    if (tiles) tiles.draw(context, this, ratio);
  }

  _drawLayers(context) {
    const { scene, display } = this;
    if (scene.tissue && display.showTissue) this.drawImage(context, scene.tissue.image, scene.tissue.box_l0, 1, true);
    if (scene.map && display.showMap) this.drawImage(context, scene.map.picture(display), this.mapBox, display.opacity, false);
    for (const layer of scene.layers || []) layer.draw?.(context, this);
    if (display.showRegions) for (const region of scene.regions || []) this._drawRegion(context, region);
    if (this.selected && scene.map) this._drawBox(context, scene.map.boxOf(this.selected));
  }

  /** The level-0 box [x, y, width, height] of all cells of the map. */
  get mapBox() {
    const { grid } = this.scene.map;
    return [...grid.cells_xy_l0, Math.max(grid.cols, 1) * grid.pitch_l0, Math.max(grid.rows, 1) * grid.pitch_l0];
  }

  drawImage(context, image, box, alpha, isSmooth) {
    const [x0, y0] = this.toFlat(box[0], box[1]);
    context.globalAlpha = alpha;
    context.imageSmoothingEnabled = isSmooth;
    context.drawImage(image, x0, y0, box[2] * this.viewport.scale, box[3] * this.viewport.scale);
    context.globalAlpha = 1;
    context.imageSmoothingEnabled = true;
  }

  _drawRegion(context, region) {
    const width = this.lineWidth * (this.currentRegion === region.number ? 2 : 1);
    this.strokePolygons(context, region.outline, REGION_COLOUR, width);
  }

  /** Polygons of rings of level-0 places, as a line with a pale border that shows it on every tissue. */
  strokePolygons(context, polygons, colour, width, dash = []) {
    context.beginPath();
    for (const polygon of polygons) for (const ring of polygon) this.tracePath(context, ring);
    context.lineJoin = "round";
    context.strokeStyle = "rgba(255,255,255,0.85)";
    context.lineWidth = width + Math.min(2, width);
    context.stroke();
    context.setLineDash(dash);
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke();
    context.setLineDash([]);
  }

  tracePath(context, ring) {
    ring.forEach(([x, y], index) => {
      const place = this.toFlat(x, y);
      if (index) context.lineTo(...place);
      else context.moveTo(...place);
    });
    context.closePath();
  }

  _drawBox(context, box) {
    const [x, y] = this.toFlat(box[0], box[1]);
    const side = Math.max(box[2] * this.viewport.scale, 3);
    for (const [colour, width] of [["white", 4], ["black", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.strokeRect(x, y, side, side);
    }
  }
}
