"use strict";
// The whole scanned area in a corner, with a frame around what is in sight; a click or a drag moves the view there.

const OVERVIEW_SIDE_PX = 190;
const OVERVIEW_SHARE = 0.28; // of a narrow view
const FRAME_COLOUR = "#0b5cad";
const SMALLEST_FRAME_PX = 6;

class OverviewMap {
  constructor(canvas, view) {
    this.canvas = canvas;
    this.view = view;
    view.viewport.listeners.push(() => this.redraw());
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this._goTo(event);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons && this._goTo(event));
  }

  /** Draw with the next frame. */
  redraw() {
    if (this._isAsked) return;
    this._isAsked = true;
    requestAnimationFrame(() => {
      this._isAsked = false;
      if (this.view.scene && !this.canvas.hidden) this._draw();
    });
  }

  get bounds() {
    return this.view.scene.slide.bounds_l0;
  }

  /** Screen pixels per level-0 pixel. */
  get scale() {
    const side = Math.min(OVERVIEW_SIDE_PX, OVERVIEW_SHARE * this.view.width);
    return side / Math.max(this.bounds[2], this.bounds[3]);
  }

  _goTo(event) {
    const [x, y] = this.bounds;
    const port = this.view.viewport;
    port.set(x + event.offsetX / this.scale, y + event.offsetY / this.scale, port.scale);
  }

  _draw() {
    const ratio = window.devicePixelRatio || 1;
    const [x, y, wide, high] = this.bounds;
    const [width, height] = [wide, high].map((side) => Math.max(1, Math.round(side * this.scale)));
    Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    const { scene, display } = this.view;
    if (scene.overview?.image !== this.source) this._shrink(scene.overview?.image ?? null);
    const place = (box) => [(box[0] - x) * this.scale, (box[1] - y) * this.scale, box[2] * this.scale, box[3] * this.scale];
    if (this.small) context.drawImage(this.small, ...place(scene.overview.box_l0));
    context.imageSmoothingEnabled = false;
    context.globalAlpha = display.opacity;
    if (scene.map && display.showMap && !display.isBare) context.drawImage(scene.map.picture(display), ...place(this.view.mapBox));
    context.globalAlpha = 1;
    this._drawFrame(context);
  }

  /** Keep a small copy of the slide's overview: it is drawn with every move. */
  _shrink(image) {
    this.source = image;
    this.small = image && document.createElement("canvas");
    if (!image) return;
    const share = Math.min(1, (2 * OVERVIEW_SIDE_PX) / Math.max(image.width, image.height));
    Object.assign(this.small, { width: Math.max(1, image.width * share), height: Math.max(1, image.height * share) });
    this.small.getContext("2d").drawImage(image, 0, 0, this.small.width, this.small.height);
  }

  _drawFrame(context) {
    const [x, y] = this.bounds;
    const corners = this.view.corners.map((place) => [(place[0] - x) * this.scale, (place[1] - y) * this.scale]);
    const isSmall = Math.hypot(corners[2][0] - corners[0][0], corners[2][1] - corners[0][1]) < SMALLEST_FRAME_PX;
    context.beginPath();
    if (isSmall) context.arc((corners[0][0] + corners[2][0]) / 2, (corners[0][1] + corners[2][1]) / 2, SMALLEST_FRAME_PX / 2, 0, 2 * Math.PI);
    else for (const corner of corners) context.lineTo(...corner);
    context.closePath();
    for (const [colour, width] of [["white", 4], [FRAME_COLOUR, 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.stroke();
    }
  }
}
