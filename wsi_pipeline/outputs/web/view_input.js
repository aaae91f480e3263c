"use strict";
// What a pointer does to a view: drag to move, wheel or two fingers to zoom, click to pick; a tool may take clicks and drags.

const CLICK_PX = 5; // a pointer that moved less has clicked
const WHEEL_SPEED = 0.0015;

class ViewInput {
  constructor(view) {
    this.view = view;
    this.pointers = new Map(); // id → place on the canvas
    this.moved = 0;
    this.isDrawing = false;
    const { canvas } = view;
    for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => this[kind](event));
    canvas.addEventListener("pointerleave", () => view.onHover(NaN, NaN));
    canvas.addEventListener("dblclick", (event) => view.tool || view.zoomAt(event.offsetX, event.offsetY, 2));
    canvas.addEventListener("contextmenu", (event) => view.tool && event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  pointerdown(event) {
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    if (this.isDrawing && this.moved >= CLICK_PX && this.view.tool?.drag) this.view.tool.clear(); // a second finger: it zooms instead
    this.moved = this.pointers.size > 1 ? Infinity : 0;
    this.isDrawing = Boolean(this.view.tool) && this.pointers.size === 1 && event.button === 0;
    this.view.canvas.setPointerCapture(event.pointerId);
  }

  pointermove(event) {
    const [x, y] = [event.offsetX, event.offsetY];
    const before = this.pointers.get(event.pointerId);
    if (before) {
      this.moved += Math.abs(x - before[0]) + Math.abs(y - before[1]);
      if (this.pointers.size === 2) this._pinch(event.pointerId, [x, y]);
      else if (this.isDrawing) this._draw(before, [x, y]);
      else if (this.pointers.size === 1) this.view.pan(before[0] - x, before[1] - y);
      this.pointers.set(event.pointerId, [x, y]);
    }
    this.view.onHover(...this.view.toSlide(x, y));
  }

  pointerup(event) {
    const { view } = this;
    const place = view.toSlide(event.offsetX, event.offsetY);
    if (this.pointers.has(event.pointerId) && event.button <= 0) {
      if (this.moved < CLICK_PX) (view.tool?.click ?? view.onPick).call(view.tool, ...place);
      else if (this.isDrawing && this.moved < Infinity) view.tool?.dragEnd?.(...place);
    }
    this.pointercancel(event);
  }

  pointercancel(event) {
    this.pointers.delete(event.pointerId);
    this.isDrawing = false;
  }

  wheel(event) {
    event.preventDefault();
    this.view.zoomAt(event.offsetX, event.offsetY, Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : WHEEL_SPEED)));
  }

  /** A tool without drags leaves them to move the slide. */
  _draw(before, place) {
    const { view } = this;
    if (!view.tool?.drag) view.pan(before[0] - place[0], before[1] - place[1]);
    else if (this.moved >= CLICK_PX) view.tool.drag(...view.toSlide(...place));
  }

  /** Two fingers: what is between them stays between them. */
  _pinch(id, place) {
    const other = [...this.pointers].find(([each]) => each !== id)[1];
    const before = this.pointers.get(id);
    const [from, to] = [before, place].map(([x, y]) => ({ x: (x + other[0]) / 2, y: (y + other[1]) / 2, wide: Math.hypot(x - other[0], y - other[1]) }));
    this.view.pan(from.x - to.x, from.y - to.y);
    if (from.wide > 0) this.view.zoomAt(to.x, to.y, to.wide / from.wide);
  }
}
