"use strict";
// The probability map: one value per cell, NaN where nothing was assessed.

class MapLayer {
  /**
   * values: Float32Array in row order; grid: as in the view's description; colours: Uint8Array of 256 × RGB; terms: {context_um,
   * min_region_mm2} of the results; own: the probability of each patch alone, where the map has context and they are at hand.
   */
  constructor(values, grid, colours, terms, own = null) {
    this.values = values;
    this.grid = grid;
    this.colours = colours;
    this.contextUm = terms.context_um;
    this.minRegionMm2 = terms.min_region_mm2;
    this.minCells = terms.min_region_mm2 / grid.cell_area_mm2;
    this.own = own || (terms.context_um ? null : values);
    this.mask = { threshold: null, isPositive: null, count: 0, leftOut: 0 };
    this.canvas = document.createElement("canvas");
    this.canvas.width = Math.max(grid.cols, 1);
    this.canvas.height = Math.max(grid.rows, 1);
    this.painted = null;
    this.assessed = 0;
    for (const value of values) this.assessed += value === value ? 1 : 0;
  }

  /** Positive cells as {isPositive: Uint8Array, count, leftOut}: values compared as float32, like the stored ones; small groups left out. */
  positives(threshold) {
    if (this.mask.threshold === threshold) return this.mask;
    const limit = Math.fround(threshold);
    const isPositive = new Uint8Array(this.values.length);
    let reached = 0;
    for (let index = 0; index < isPositive.length; index++) reached += isPositive[index] = this.values[index] >= limit ? 1 : 0;
    const leftOut = this.minCells > 1 ? dropSmallGroups(isPositive, this.grid.cols, this.minCells) : 0;
    this.mask = { threshold, isPositive, count: reached - leftOut, leftOut };
    return this.mask;
  }

  /** The picture of the map, one pixel per cell; with onlyPositive, cells that do not count as positive are clear. */
  picture(threshold, onlyPositive) {
    const key = onlyPositive ? `t${threshold}` : "all";
    if (this.painted !== key && this.values.length) {
      this._paint(onlyPositive ? this.positives(threshold).isPositive : null);
      this.painted = key;
    }
    return this.canvas;
  }

  _paint(isShown) {
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(this.grid.cols, this.grid.rows);
    this.values.forEach((value, index) => {
      if (Number.isNaN(value) || (isShown && !isShown[index])) return;
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

  /** Probability of a cell on the map; NaN where it was not assessed. */
  valueAt(cell) {
    return this.values[cell.row * this.grid.cols + cell.col];
  }

  /** Probability of a cell's patch alone, without its neighbours; null where that is not at hand. */
  ownAt(cell) {
    return this.own && this.own[cell.row * this.grid.cols + cell.col];
  }

  /** How a cell counts, in words. */
  judge(cell, threshold) {
    if (this.positives(threshold).isPositive[cell.row * this.grid.cols + cell.col]) return "positive";
    return this.valueAt(cell) >= Math.fround(threshold) ? "at the threshold, but in a group too small to count" : "negative";
  }

  /** The level-0 box [x, y, width, height] of a cell's patch. */
  boxOf(cell) {
    const [x, y] = this.grid.origin_xy_l0;
    return [x + cell.col * this.grid.pitch_l0, y + cell.row * this.grid.pitch_l0, this.grid.side_l0, this.grid.side_l0];
  }
}

/** Clears, in a mask in row order, groups of touching cells (corners included) of fewer than minCells; returns how many cells that are. */
function dropSmallGroups(mask, cols, minCells) {
  const isSeen = new Uint8Array(mask.length);
  const rows = mask.length / cols;
  let dropped = 0;
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || isSeen[start]) continue;
    const group = [start];
    isSeen[start] = 1;
    for (let next = 0; next < group.length; next++) addNeighbours(group, group[next], mask, isSeen, rows, cols);
    if (group.length >= minCells - 1e-9) continue; // an area of exactly n cells must not fail by rounding
    for (const index of group) mask[index] = 0;
    dropped += group.length;
  }
  return dropped;
}

function addNeighbours(group, index, mask, isSeen, rows, cols) {
  const [row, col] = [Math.floor(index / cols), index % cols];
  for (let y = Math.max(0, row - 1); y <= Math.min(rows - 1, row + 1); y++)
    for (let x = Math.max(0, col - 1); x <= Math.min(cols - 1, col + 1); x++) {
      const other = y * cols + x;
      if (!mask[other] || isSeen[other]) continue;
      isSeen[other] = 1;
      group.push(other);
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
