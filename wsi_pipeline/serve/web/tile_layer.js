"use strict";
// Tiles of the slide: what is in sight is loaded, nearest to the centre first; what was loaded stays for a while.

const KEPT_TILES = 600;
const AT_ONCE = 6;
const RETRY_MS = 1500;

class TileLayer {
  /** url: (level, col, row) => address; tiles: {tile_px, coarsest}; size: of the slide in level-0 pixels. */
  constructor(url, tiles, size, onLoad) {
    this.url = url;
    this.tilePx = tiles.tile_px;
    this.coarsest = tiles.coarsest;
    this.size = size;
    this.onLoad = onLoad;
    this.loaded = new Map(); // key → ImageBitmap, least recently drawn first
    this.waiting = new Map(); // key → {level, col, row}
    this.loading = new Map(); // key → AbortController
    this.failed = new Map(); // key → time from which it may be tried again
  }

  /** Draw every tile in sight, coarser ones beneath, and ask for those that are missing. */
  draw(context, view, ratio) {
    const wanted = this._level(view.viewport.scale * ratio);
    this.waiting.clear();
    for (let level = this.coarsest; level >= wanted; level--) {
      const isAsked = level === wanted || level === Math.min(wanted + 2, this.coarsest);
      for (const tile of this._inSight(view, level)) this._drawTile(context, view, tile, isAsked);
    }
    this._trim();
    this._load(view);
  }

  get isIdle() {
    return !this.waiting.size && !this.loading.size;
  }

  _level(scale) {
    return Math.max(0, Math.min(this.coarsest, Math.floor(Math.log2(1 / scale) + 0.3)));
  }

  _inSight(view, level) {
    const side = this.tilePx * 2 ** level;
    const [x0, y0, x1, y1] = view.boundsInSight;
    const tiles = [];
    const [cols, rows] = this.size.map((extent) => Math.ceil(Math.ceil(extent / 2 ** level) / this.tilePx));
    for (let row = Math.max(0, Math.floor(y0 / side)); row <= Math.min(rows - 1, Math.floor(y1 / side)); row++)
      for (let col = Math.max(0, Math.floor(x0 / side)); col <= Math.min(cols - 1, Math.floor(x1 / side)); col++) tiles.push({ level, col, row });
    return tiles;
  }

  _drawTile(context, view, tile, isAsked) {
    const key = `${tile.level}/${tile.col}/${tile.row}`;
    const image = this.loaded.get(key);
    if (!image) {
      if (isAsked && !this.loading.has(key) && !(this.failed.get(key) > Date.now())) this.waiting.set(key, tile);
      return;
    }
    this.loaded.delete(key);
    this.loaded.set(key, image);
    const unit = 2 ** tile.level;
    const [x, y] = [tile.col * this.tilePx * unit, tile.row * this.tilePx * unit];
    const start = view.toFlat(x, y);
    const stop = view.toFlat(Math.min(x + image.width * unit, this.size[0]), Math.min(y + image.height * unit, this.size[1]));
    const [left, top, right, bottom] = [...start, ...stop].map(Math.round); // shared edges fall on the same pixel: no seams
    context.imageSmoothingEnabled = view.viewport.scale < 4;
    const over = view.viewport.angle % 90 ? 0.5 : 0; // at an angle edges are smoothed: tiles lap over
    context.drawImage(image, left, top, right - left + over, bottom - top + over);
    context.imageSmoothingEnabled = true;
  }

  _load(view) {
    const distance = ({ level, col, row }) => {
      const side = this.tilePx * 2 ** level;
      return Math.hypot((col + 0.5) * side - view.viewport.x, (row + 0.5) * side - view.viewport.y) - level * 1e7;
    };
    const order = [...this.waiting].sort((one, other) => distance(one[1]) - distance(other[1]));
    for (const [key, tile] of order) {
      if (this.loading.size >= AT_ONCE) return;
      this.waiting.delete(key);
      this._fetch(key, tile);
    }
  }

  async _fetch(key, tile) {
    const abort = new AbortController();
    this.loading.set(key, abort);
    try {
      const answer = await fetch(this.url(tile.level, tile.col, tile.row), { signal: abort.signal });
      if (!answer.ok) throw new Error(`tile ${key}: ${answer.status}`);
      this.loaded.set(key, await createImageBitmap(await answer.blob()));
      this.failed.delete(key);
    } catch {
      this.failed.set(key, Date.now() + RETRY_MS);
      setTimeout(this.onLoad, RETRY_MS + 50);
    } finally {
      this.loading.delete(key);
      this.onLoad();
    }
  }

  _trim() {
    for (const [key, image] of this.loaded) {
      if (this.loaded.size <= KEPT_TILES) return;
      image.close();
      this.loaded.delete(key);
    }
  }

  /** Forget everything: the file was replaced. */
  clear() {
    for (const image of this.loaded.values()) image.close();
    this.loaded.clear();
    this.failed.clear();
  }
}
