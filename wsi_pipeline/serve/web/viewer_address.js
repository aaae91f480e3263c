"use strict";
// The address holds the view: place, angle, threshold, opacity, colours, what is shown, runs, patch.

const SHOWN = ["showMap", "showRegions", "showTissue", "showPieces", "showTruth", "showCorrections", "showDrawn"];

function writeAddress(viewer) {
  const { viewport, display } = viewer;
  const parts = new URLSearchParams({
    x: viewport.x.toFixed(1),
    y: viewport.y.toFixed(1),
    s: viewport.scale.toPrecision(7),
    t: display.threshold,
    o: display.opacity,
    m: display.mode,
    c: display.colormap,
    l: SHOWN.filter((name) => display[name]).join("."),
  });
  if (viewport.angle) parts.set("a", +viewport.angle.toFixed(1));
  if (viewer.runs[0]) parts.set("run", viewer.runs[0]);
  if (viewer.runs[1]) parts.set("with", viewer.runs[1]);
  if (viewer.selected) parts.set("p", `${viewer.selected.row}.${viewer.selected.col}`);
  return `#${parts}`;
}

function readAddress(hash, colours) {
  const parts = new URLSearchParams(hash.slice(1));
  const number = (name) => (parts.has(name) && Number.isFinite(+parts.get(name)) ? +parts.get(name) : null);
  const place = ["x", "y", "s"].map(number);
  const [row, col] = (parts.get("p") || "").split(".").map(Number);
  return {
    run: parts.get("run"),
    with: parts.get("with"),
    display: readDisplay(parts, number, colours),
    place: place.includes(null) || place[2] <= 0 ? null : [...place, number("a") ?? 0],
    cell: Number.isInteger(row) && Number.isInteger(col) ? { row, col } : null,
  };
}

function readDisplay(parts, number, colours) {
  const display = { colormap: colours.choose(parts.get("c")) };
  if (number("t") !== null) display.threshold = Math.min(1, Math.max(0, number("t")));
  if (number("o") !== null) display.opacity = Math.min(1, Math.max(0, number("o")));
  if (MAP_MODES.includes(parts.get("m"))) display.mode = parts.get("m");
  if (!parts.has("l")) return display;
  const layers = parts.get("l").split(".");
  for (const name of SHOWN) display[name] = layers.includes(name);
  if (layers.includes("onlyPositive")) display.mode = POSITIVE_ONLY; // links of earlier versions
  return display;
}
