"use strict";
// The probability map: one value per cell, NaN where nothing was assessed.

class MapLayer {
  /** values: Float32Array in row order; grid: as in the view's description; colours: Uint8Array of 256 × RGB. */
  constructor(values, grid, colours) {
    this.values = values;
    this.grid = grid;
    this.colours = colours;
    this.canvas = document.createElement("canvas");
    this.canvas.width = Math.max(grid.cols, 1);
    this.canvas.height = Math.max(grid.rows, 1);
    this.painted = null;
    this.assessed = 0;
    for (const value of values) this.assessed += value === value ? 1 : 0;
  }

  /** Cells at or above the threshold; compared as float32, like the stored values. */
  countPositive(threshold) {
    const limit = Math.fround(threshold);
    let count = 0;
    for (const value of this.values) count += value >= limit ? 1 : 0;
    return count;
  }

  /** The picture of the map, one pixel per cell; with onlyPositive, cells below the threshold are clear. */
  picture(threshold, onlyPositive) {
    const key = onlyPositive ? `t${threshold}` : "all";
    if (this.painted !== key && this.values.length) {
      this._paint(onlyPositive ? Math.fround(threshold) : -1);
      this.painted = key;
    }
    return this.canvas;
  }

  _paint(limit) {
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(this.grid.cols, this.grid.rows);
    this.values.forEach((value, index) => {
      if (!(value >= limit)) return;
      const colour = 3 * Math.min(255, Math.floor(value * 256));
      image.data.set([this.colours[colour], this.colours[colour + 1], this.colours[colour + 2], 255], 4 * index);
    });
    context.putImageData(image, 0, 0);
  }

  /** The cell {row, col} over a level-0 pixel; null outside the grid. */
  cellAt(x, y) {
    const col = Math.floor((x - this.grid.cells_xy_l0[0]) / this.grid.pitch_l0);
    const row = Math.floor((y - this.grid.cells_xy_l0[1]) / this.grid.pitch_l0);
    return row >= 0 && col >= 0 && row < this.grid.rows && col < this.grid.cols ? { row, col } : null;
  }

  /** Probability of a cell; NaN where it was not assessed. */
  valueAt(cell) {
    return this.values[cell.row * this.grid.cols + cell.col];
  }

  /** The level-0 box [x, y, width, height] of a cell's patch. */
  boxOf(cell) {
    const [x, y] = this.grid.origin_xy_l0;
    return [x + cell.col * this.grid.pitch_l0, y + cell.row * this.grid.pitch_l0, this.grid.side_l0, this.grid.side_l0];
  }
}

function decodeBase64(text) {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}

/** The values of a .npy file of float32 in row order. */
function decodeNpy(buffer) {
  const view = new DataView(buffer);
  const major = view.getUint8(6);
  const start = major === 1 ? 10 + view.getUint16(8, true) : 12 + view.getUint32(8, true);
  const header = new TextDecoder().decode(new Uint8Array(buffer, 0, start));
  if (!header.includes("'<f4'") || header.includes("'fortran_order': True")) throw new Error("the map is not float32 in row order");
  return new Float32Array(buffer.slice(start));
}
