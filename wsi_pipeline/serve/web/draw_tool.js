"use strict";
// Drawing a region: by a drag, or corner by corner with clicks or Enter; and rows of regions that were drawn.

const SMALLEST_STEP_PX = 2; // between corners of a line drawn by hand

/** Draws a closed line. A subclass says `what` is drawn and gets the polygon in `take`. */
class DrawTool extends CornerTool {
  get hint() {
    return "drag around a region, or click corners; Escape ends";
  }

  get words() {
    if (!this.corners.length) return `${this.what}: ${this.hint}`;
    return `${this.what}: ${this.corners.length} corners; f closes the line, Backspace takes one back`;
  }

  drag(x, y) {
    const last = this.corners.at(-1);
    const step = SMALLEST_STEP_PX / this.viewer.viewport.scale;
    if (!last || Math.hypot(x - last[0], y - last[1]) >= step) this.click(x, y);
  }

  dragEnd() {
    this.finish();
  }

  changed() {
    super.changed();
    this.viewer.panel.showTool();
  }

  async finish() {
    const { corners } = this;
    if (corners.length < 3) return;
    this.clear();
    await this.take({ type: "Polygon", coordinates: [corners] });
  }
}

/** Draws a box by a drag, upright on the screen however the slide is turned. */
class BoxTool extends DrawTool {
  get hint() {
    return "drag a box, or click corners; Escape ends";
  }

  drag(x, y) {
    const [view] = this.viewer.views;
    this.start ??= [x, y];
    const [from, to] = [view.toScreen(...this.start), view.toScreen(x, y)];
    this.corners = [from, [to[0], from[1]], to, [from[0], to[1]]].map((place) => view.toSlide(...place));
    this.changed();
  }

  clear() {
    this.start = null;
    super.clear();
  }
}

/** A row of the panel: a button per [text, action]. */
function makeRow(actions) {
  const row = document.createElement("li");
  for (const [text, action] of actions) {
    const button = Object.assign(document.createElement("button"), { textContent: text });
    button.addEventListener("click", action);
    row.append(button);
  }
  return row;
}

/** Move the view to polygons of rings of level-0 places. */
function visitPolygons(viewer, polygons) {
  const corners = polygons.flat(2);
  const [[x0, x1], [y0, y1]] = [0, 1].map((axis) => corners.reduce(([low, high], corner) => [Math.min(low, corner[axis]), Math.max(high, corner[axis])], [Infinity, -Infinity]));
  const [view] = viewer.views;
  const box = viewer.map ? regionBox({ bounds_l0: [x0, y0, x1, y1] }, viewer.map.grid) : [x0, y0, x1 - x0, y1 - y0];
  viewer.viewport.fit(box, view.width, view.height, 1.4);
  viewer.changed();
}
