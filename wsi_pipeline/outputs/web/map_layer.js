"use strict";
// The probability map: one value per cell, NaN where nothing was assessed.

class MapLayer {
  /**
   * values: Float32Array in row order; grid: as in the view's description; colours: Colours; terms: {context_um, min_region_mm2} of
   * the results; own: the probability of each patch alone, where the map has context and they are at hand.
   */
  constructor(values, grid, colours, terms, own = null) {
    this.values = values;
    this.grid = grid;
    this.colours = colours;
    this.contextUm = terms.context_um;
    this.minRegionMm2 = terms.min_region_mm2;
    this.minCells = terms.min_region_mm2 / grid.cell_area_mm2;
    this.own = own || (terms.context_um ? null : values);
    this.mask = { threshold: null, isPositive: new Uint8Array(values.length), count: 0, leftOut: 0 };
    this.canvas = document.createElement("canvas");
    this.canvas.width = Math.max(grid.cols, 1);
    this.canvas.height = Math.max(grid.rows, 1);
    this.context = this.canvas.getContext("2d", { willReadFrequently: true }); // in memory: painted anew far more often than moved
    this.image = this.context.createImageData(this.canvas.width, this.canvas.height);
    this.levels = findLevels(values);
    this.painted = null;
    this.assessed = 0;
    for (const value of values) this.assessed += value === value ? 1 : 0;
  }

  /** Positive cells as {isPositive: Uint8Array, count, leftOut}: values compared as float32, like the stored ones; small groups left out. */
  positives(threshold) {
    if (this.mask.threshold === threshold) return this.mask;
    const { values } = this;
    const { isPositive } = this.mask;
    const limit = Math.fround(threshold);
    let reached = 0;
    for (let index = 0; index < isPositive.length; index++) reached += isPositive[index] = values[index] >= limit ? 1 : 0;
    const leftOut = this.minCells > 1 ? dropSmallGroups(isPositive, this.grid.cols, this.minCells) : 0;
    this.mask = { threshold, isPositive, count: reached - leftOut, leftOut };
    return this.mask;
  }

  /** The picture of the map, one pixel per cell; unless everything is shown, cells that do not count as positive are clear. */
  picture({ threshold, mode, colormap }) {
    const isAll = mode === EVERYTHING;
    const key = [colormap, mode, isAll && !this.colours.centred.has(colormap) ? "" : threshold].join();
    if (this.painted !== key && this.values.length) {
      this._paint(this.colours.palette(colormap, threshold, mode), isAll ? null : this.positives(threshold).isPositive);
      this.painted = key;
    }
    return this.canvas;
  }

  _paint(palette, isShown) {
    const { levels } = this;
    const pixels = new Uint32Array(this.image.data.buffer);
    if (isShown) for (let index = 0; index < pixels.length; index++) pixels[index] = isShown[index] ? palette[levels[index]] : 0;
    else for (let index = 0; index < pixels.length; index++) pixels[index] = palette[levels[index]];
    this.context.putImageData(this.image, 0, 0);
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

/** Of each value its level: 0 where nothing was assessed, else 1 and the number of its colour, 0 to 255. */
function findLevels(values) {
  const levels = new Uint16Array(values.length);
  for (let index = 0; index < values.length; index++) {
    const value = values[index];
    levels[index] = value === value ? 1 + Math.min(255, Math.max(0, Math.floor(value * 256))) : 0;
  }
  return levels;
}

/** Clears, in a mask in row order, groups of touching cells (corners included) of fewer than minCells; returns how many cells that are. */
function dropSmallGroups(mask, cols, minCells) {
  let dropped = 0;
  for (const group of findGroups(mask, cols)) {
    if (group.length >= minCells - 1e-9) continue; // an area of exactly n cells must not fail by rounding
    for (const index of group) mask[index] = 0;
    dropped += group.length;
  }
  return dropped;
}

/** Groups of cells that touch (corners included) in a mask in row order, each as the indices of its cells. */
function* findGroups(mask, cols) {
  const isSeen = new Uint8Array(mask.length);
  const rows = mask.length / cols;
  const queue = new Int32Array(mask.length);
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || isSeen[start]) continue;
    let length = 1;
    queue[0] = start;
    isSeen[start] = 1;
    for (let next = 0; next < length; next++) length = addNeighbours(queue, length, queue[next], mask, isSeen, rows, cols);
    yield queue.slice(0, length);
  }
}

function addNeighbours(queue, length, index, mask, isSeen, rows, cols) {
  const [row, col] = [Math.floor(index / cols), index % cols];
  for (let y = Math.max(0, row - 1); y <= Math.min(rows - 1, row + 1); y++)
    for (let x = Math.max(0, col - 1); x <= Math.min(cols - 1, col + 1); x++) {
      const other = y * cols + x;
      if (!mask[other] || isSeen[other]) continue;
      isSeen[other] = 1;
      queue[length++] = other;
    }
  return length;
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
