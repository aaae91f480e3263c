"use strict";
// What lies on a view and does not turn with the slide: scale bar, magnification, colour bar, title.

const NICE = [1, 2, 5];
const OBJECTIVE_UM = 10; // µm per pixel times magnification: 0.5 µm/px is what scanners call 20x
const PLATE = "rgba(255,255,255,0.88)";
const INK = "#16191d";

function drawMarks(context, view) {
  drawScaleBar(context, view);
  if (view.scene.map?.colours && view.display.showMap) drawColourBar(context, view);
  if (view.scene.title) drawTitle(context, view.scene.title);
}

function drawScaleBar(context, view) {
  const { mpp } = view.scene.slide;
  const { um, px } = chooseScaleBar(view.viewport.scale / mpp, Math.min(180, view.width / 3));
  const text = describeMagnification(mpp / view.viewport.scale);
  context.font = "12px system-ui, sans-serif";
  const wide = Math.max(px, context.measureText(text).width);
  const [x, y] = [16, view.height - 36];
  drawPlate(context, x - 8, y - 24, wide + 16, 52);
  context.fillStyle = INK;
  context.fillRect(x, y, px, 4);
  context.fillText(text, x, y + 20);
  context.font = "13px system-ui, sans-serif";
  context.textAlign = "center";
  context.fillText(formatUm(um), x + px / 2, y - 6);
  context.textAlign = "start";
}

function drawColourBar(context, view) {
  const { threshold, mode, colormap } = view.display;
  const { colours } = view.scene.map;
  const [width, height] = [14, Math.min(180, view.height / 3)];
  const [x, y] = [view.width - 62, view.height - height - 26];
  drawPlate(context, x - 22, y - 34, 84, height + 48);
  for (let step = 0; step < height; step++) {
    const number = Math.min(255, Math.floor(256 * (1 - step / height)));
    context.fillStyle = `rgba(${colours.rgb(colormap, number, threshold)},${colours.opacity(number, threshold, mode)})`;
    context.fillRect(x, y + step, width, Math.min(1, height - step));
  }
  context.fillStyle = INK;
  context.strokeStyle = "#8a929c";
  context.lineWidth = 1;
  context.strokeRect(x - 0.5, y - 0.5, width + 1, height + 1);
  context.font = "11px system-ui, sans-serif";
  context.fillText("probability", x - 14, y - 18);
  for (const value of [0, 0.5, 1]) context.fillText(value.toString(), x + width + 8, y + (1 - value) * height + 4);
  context.fillRect(x - 8, y + (1 - threshold) * height - 1, width + 12, 2);
}

function drawTitle(context, title) {
  context.font = "600 13px system-ui, sans-serif";
  drawPlate(context, 8, 8, context.measureText(title).width + 16, 24);
  context.fillStyle = INK;
  context.fillText(title, 16, 25);
}

function drawPlate(context, x, y, width, height) {
  context.fillStyle = PLATE;
  context.fillRect(x, y, width, height);
}

/** The longest round length of µm whose bar is at most so many screen pixels wide. */
function chooseScaleBar(pxPerUm, maxPx) {
  const power = 10 ** Math.floor(Math.log10(maxPx / pxPerUm));
  const um = Math.max(...NICE.map((step) => step * power).filter((length) => length * pxPerUm <= maxPx));
  return { um, px: um * pxPerUm };
}

/** µm per screen pixel, and the magnification that scanners call so. */
function describeMagnification(umPerPx) {
  return `${+umPerPx.toPrecision(3)} µm/px · ${+(OBJECTIVE_UM / umPerPx).toPrecision(2)}x`;
}

function formatUm(um) {
  return um >= 1000 ? `${+(um / 1000).toPrecision(4)} mm` : `${+um.toPrecision(4)} µm`;
}

function formatMm2(area) {
  return area >= 1 ? area.toFixed(2) : (+area.toPrecision(3)).toString();
}

/** What stands under the pointer, in words. */
function describePlace(slide, map, x, y) {
  if (Number.isNaN(x)) return "";
  const place = `x ${Math.round(x * slide.mpp).toLocaleString()} µm, y ${Math.round(y * slide.mpp).toLocaleString()} µm`;
  const cell = map && map.cellAt(x, y);
  if (!cell) return place;
  const value = map.valueAt(cell);
  return `${Number.isNaN(value) ? "not assessed" : `probability ${value.toFixed(3)}`} · ${place}`;
}

/** Positives and their area, in words, and what is left out of them. */
function describeCount(map, threshold) {
  const { count: positives, leftOut } = map.positives(threshold);
  const share = map.assessed ? ` (${((100 * positives) / map.assessed).toFixed(1)} %)` : "";
  const area = [positives, map.assessed].map((cells) => formatMm2(cells * map.grid.cell_area_mm2)).join(" of ");
  return {
    positives,
    patches: `${positives} of ${map.assessed} patches positive${share}`,
    area: `${area} mm² assessed`,
    leftOut: leftOut ? `; ${leftOut} more in groups below ${formatMm2(map.minRegionMm2)} mm² do not count` : "",
  };
}

/** A place for a region on the screen: its box with room around it, and never closer than a few patches. */
function regionBox(region, grid) {
  const [x0, y0, x1, y1] = region.bounds_l0;
  const side = Math.max(x1 - x0, y1 - y0, 6 * grid.pitch_l0);
  return [(x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side, side];
}
