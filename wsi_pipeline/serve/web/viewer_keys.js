"use strict";
// What keys and buttons do.

const PAN_PX = 120;
const TURN_DEGREES = 15;

function toggle(name) {
  return (viewer) => {
    viewer.display[name] = !viewer.display[name];
    viewer.changed();
  };
}

function nudge(name, step) {
  return (viewer) => {
    const value = +Math.min(1, Math.max(0, viewer.display[name] + step)).toFixed(3);
    if (name === "threshold") viewer.setThreshold(value);
    else {
      viewer.display[name] = value;
      viewer.changed();
    }
  };
}

/** The next of the values, after the last the first. */
function cycle(name, listValues) {
  return (viewer, panel) => {
    const values = listValues(viewer);
    viewer.display[name] = values[(values.indexOf(viewer.display[name]) + 1) % values.length];
    viewer.changed();
    panel.say(`${name === "mode" ? "map" : "colours"}: ${byId(name).selectedOptions[0].textContent}`);
  };
}

function zoom(factor) {
  return (viewer) => viewer.views[0].zoomAt(viewer.views[0].width / 2, viewer.views[0].height / 2, factor);
}

function pan(dx, dy) {
  return (viewer) => viewer.views[0].pan(dx * PAN_PX, dy * PAN_PX);
}

function turn(degrees) {
  return ({ viewport }) => viewport.set(viewport.x, viewport.y, viewport.scale, degrees === null ? 0 : viewport.angle + degrees);
}

/** An action of the tool in use; without a tool nothing happens. */
function withTool(action) {
  return (viewer) => viewer.tool && action(viewer.tool);
}

async function copyLink(viewer, panel) {
  viewer.keepAddress();
  try {
    await navigator.clipboard.writeText(location.href);
    panel.say("link copied: it opens this very view");
  } catch {
    panel.say("the address bar holds a link to this very view");
  }
}

function savePicture(viewer) {
  viewer.picture().toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${slideId}.view.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, "image/png");
}

function toggleOverview(viewer) {
  byId("overview").hidden = !byId("overview").hidden;
  viewer.overviewMap.redraw();
}

const BUTTONS = {
  reset: (viewer) => viewer.setThreshold(viewer.resultOf(viewer.runs[0])?.threshold ?? 0.5),
  "reset-model": (viewer) => viewer.setThreshold(viewer.resultOf(viewer.runs[0])?.model_threshold ?? 0.5),
  "reset-second": (viewer) => viewer.setThreshold(viewer.resultOf(viewer.runs[1])?.threshold ?? 0.5),
  strongest: (viewer) => viewer.showRegion(0),
  next: (viewer) => viewer.showRegion(viewer.regionIndex + 1),
  previous: (viewer) => viewer.showRegion(viewer.regionIndex <= 0 ? -1 : viewer.regionIndex - 1),
  whole: (viewer) => viewer.showWhole(),
  bare: toggle("isBare"),
  "zoom-in": zoom(1.5),
  "zoom-out": zoom(1 / 1.5),
  "turn-left": turn(-TURN_DEGREES),
  "turn-right": turn(TURN_DEGREES),
  upright: turn(null),
  "hide-overview": toggleOverview,
  "close-line": withTool((tool) => tool.finish?.()),
  measure: (viewer) => viewer.useTool(viewer.tool instanceof MeasureTool ? null : new MeasureTool(viewer)),
  link: copyLink,
  save: savePicture,
  keys: () => byId("help").showModal(),
};

const KEYS = {
  ArrowLeft: pan(-1, 0),
  ArrowRight: pan(1, 0),
  ArrowUp: pan(0, -1),
  ArrowDown: pan(0, 1),
  "+": BUTTONS["zoom-in"],
  "=": BUTTONS["zoom-in"],
  "-": BUTTONS["zoom-out"],
  0: BUTTONS.whole,
  1: (viewer) => viewer.viewport.set(viewer.viewport.x, viewer.viewport.y, 1),
  " ": BUTTONS.bare,
  h: toggle("showMap"),
  r: toggle("showRegions"),
  m: toggle("showTissue"),
  o: cycle("mode", () => MAP_MODES),
  c: cycle("colormap", (viewer) => viewer.colours.names),
  "[": nudge("opacity", -0.05),
  "]": nudge("opacity", 0.05),
  ",": nudge("threshold", -0.01),
  ".": nudge("threshold", 0.01),
  t: BUTTONS.reset,
  g: BUTTONS.strongest,
  n: BUTTONS.next,
  p: BUTTONS.previous,
  q: BUTTONS["turn-left"],
  w: BUTTONS["turn-right"],
  u: BUTTONS.upright,
  v: toggleOverview,
  d: BUTTONS.measure,
  Enter: withTool((tool) => tool.addCentre()),
  Backspace: withTool((tool) => tool.removeLast()),
  Escape: (viewer) => viewer.useTool(null),
  e: (viewer) => viewer.truthPanel.show(viewer.truthPanel.index + 1),
  E: (viewer) => viewer.truthPanel.show(viewer.truthPanel.index - 1),
  y: toggle("showTruth"),
  j: (viewer) => viewer.piecesPanel.step(1),
  J: (viewer) => viewer.piecesPanel.step(-1),
  i: toggle("showPieces"),
  k: toggle("showCorrections"),
  a: (viewer) => viewer.corrections.use("draw", 1),
  b: (viewer) => viewer.corrections.use("draw", 0),
  x: (viewer) => viewer.corrections.use("erase", 0),
  z: (viewer) => viewer.corrections.undo(),
  f: BUTTONS["close-line"],
  M: (viewer) => viewer.drawnAreas.use(),
  s: BUTTONS.save,
  l: BUTTONS.link,
  "?": BUTTONS.keys,
};

/** Keys that a focused control needs for itself. */
function isTaken({ key, target }) {
  const tag = target.tagName;
  if (["INPUT", "SELECT"].includes(tag)) return key.startsWith("Arrow") || key.length > 1 || key === " ";
  return ["BUTTON", "A", "SUMMARY"].includes(tag) && (key === " " || key === "Enter");
}
