"use strict";
// A line of any number of corners: its length in µm or mm and, from three corners on, the area that it closes in mm².

const TOOL_COLOUR = "#0b5cad";

/** A tool that sets corners: by clicks, or by Enter in the middle of the view. */
class CornerTool {
  constructor(viewer) {
    this.viewer = viewer;
    this.corners = []; // level-0 places
  }

  click(x, y) {
    this.corners.push([x, y]);
    this.changed();
  }

  /** Set a corner in the middle of the view, which a cross marks. */
  addCentre() {
    this.click(this.viewer.viewport.x, this.viewer.viewport.y);
  }

  removeLast() {
    this.corners.pop();
    this.changed();
  }

  clear() {
    this.corners = [];
    this.changed();
  }

  changed() {
    this.viewer.redraw();
  }

  drawOnScreen(context, view) {
    const places = this.corners.map((corner) => view.toScreen(...corner));
    this._drawCross(context, view.width / 2, view.height / 2);
    for (const [colour, width] of [["white", 5], [TOOL_COLOUR, 2.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.setLineDash([]);
      context.beginPath();
      for (const place of places) context.lineTo(...place);
      context.stroke();
      if (places.length > 2) this._close(context, places);
    }
    context.fillStyle = TOOL_COLOUR;
    for (const [x, y] of places.slice(0, 200)) context.fillRect(x - 3, y - 3, 6, 6);
  }

  _close(context, places) {
    context.setLineDash([5, 5]);
    context.beginPath();
    context.moveTo(...places.at(-1));
    context.lineTo(...places[0]);
    context.stroke();
    context.setLineDash([]);
  }

  _drawCross(context, x, y) {
    for (const [colour, width] of [["white", 3], ["black", 1]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(x - 8, y);
      context.lineTo(x + 8, y);
      context.moveTo(x, y - 8);
      context.lineTo(x, y + 8);
      context.stroke();
    }
  }
}

class MeasureTool extends CornerTool {
  get words() {
    if (this.corners.length < 2) return "measure: click, or Enter, for a corner; Backspace takes one back, Escape ends";
    const { mpp } = this.viewer.body.slide;
    const length = `length ${formatUm(measureLength(this.corners) * mpp)}`;
    return this.corners.length < 3 ? length : `${length} · area ${formatMm2(measureArea(this.corners) * (mpp / 1000) ** 2)} mm²`;
  }

  changed() {
    super.changed();
    this.viewer.panel.showTool();
  }
}

function measureLength(corners) {
  return corners.slice(1).reduce((sum, [x, y], index) => sum + Math.hypot(x - corners[index][0], y - corners[index][1]), 0);
}

/** The area inside a closed line, by the shoelace formula. */
function measureArea(corners) {
  const doubled = corners.reduce((sum, [x, y], index) => {
    const [nextX, nextY] = corners[(index + 1) % corners.length];
    return sum + x * nextY - nextX * y;
  }, 0);
  return Math.abs(doubled) / 2;
}
