"use strict";
// The colours of a map and their opacity, as wsi_pipeline/outputs/colormaps.py has them.

const BY_PROBABILITY = "probability";
const POSITIVE_ONLY = "positive";
const EVERYTHING = "everything";
const MAP_MODES = [BY_PROBABILITY, POSITIVE_ONLY, EVERYTHING];
const FAINTEST = 0.3; // opacity at the threshold, as a share of that of a probability of 1

class Colours {
  /** tables: {name: base64 of 256 × RGB}; centred: names of those whose middle stands for the threshold. */
  constructor(tables, centred) {
    this.names = Object.keys(tables);
    this.tables = new Map(this.names.map((name) => [name, decodeBase64(tables[name])]));
    this.centred = new Set(centred);
  }

  /** The name if it is known, else that of the first table. */
  choose(name) {
    return this.tables.has(name) ? name : this.names[0];
  }

  /** [red, green, blue] of colour number 0 to 255. */
  rgb(name, number, threshold) {
    const table = this.tables.get(this.choose(name));
    const place = 3 * (this.centred.has(name) ? centre(number, threshold) : number);
    return [table[place], table[place + 1], table[place + 2]];
  }

  /** Opacity of colour number 0 to 255, as a share of the map's own. */
  opacity(number, threshold, mode) {
    if (mode === EVERYTHING) return 1;
    if (number < Math.min(Math.floor(threshold * 256), 255)) return 0;
    if (mode === POSITIVE_ONLY) return 1;
    return FAINTEST + (1 - FAINTEST) * Math.max(0, (number / 256 - threshold) / Math.max(1 - threshold, 1e-9));
  }

  /** Pixels of a canvas by level: 0 is clear, level k + 1 shows colour number k. */
  palette(name, threshold, mode) {
    const bytes = new Uint8ClampedArray(4 * 257);
    for (let number = 0; number < 256; number++)
      bytes.set([...this.rgb(name, number, threshold), 255 * this.opacity(number, threshold, mode)], 4 * (number + 1));
    return new Uint32Array(bytes.buffer);
  }
}

/** The place, 0 to 255, of a colour in a table whose middle lies at the threshold. */
function centre(number, threshold) {
  const value = number / 255;
  const below = (0.5 * value) / Math.max(threshold, 1e-9);
  const above = 0.5 + (0.5 * (value - threshold)) / Math.max(1 - threshold, 1e-9);
  return Math.round(255 * Math.min(1, Math.max(0, value < threshold ? below : above)));
}

function decodeBase64(text) {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}
