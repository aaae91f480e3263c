"use strict";
// The page of one slide that opens from a file: everything it shows is in it.

const report = JSON.parse(document.getElementById("view").textContent);
const reportColours = new Colours(report.colormaps, report.centred);
const reportDisplay = { ...DEFAULT_DISPLAY, threshold: report.threshold, colormap: reportColours.choose(""), showPieces: report.pieces.filter((piece) => piece.tissue_id).length > 1 };
const reportMap = new MapLayer(new Float32Array(decodeBase64(report.map).buffer), report.grid, reportColours, report.summary);
const reportPort = new Viewport();
const reportImage = new Image();
reportImage.src = report.overview.image;
const reportView = new SlideView(document.getElementById("canvas"), reportPort, reportDisplay, {
  slide: report.slide,
  overview: { image: reportImage, box_l0: report.overview.box_l0 },
  tiles: null,
  map: reportMap,
  regions: report.regions,
  tissue: null,
  title: null,
  layers: [new PiecesLayer(report.pieces)],
});
let reportRegion = -1;

const byId = (id) => document.getElementById(id);

function showCount() {
  const count = describeCount(reportMap, reportDisplay.threshold);
  byId("count").textContent = count.patches;
  byId("area").textContent = count.area + count.leftOut;
  byId("threshold-value").textContent = reportDisplay.threshold.toFixed(3);
  byId("opacity-value").textContent = `${Math.round(100 * reportDisplay.opacity)} %`;
  reportView.redraw();
}

function showRegion(step) {
  if (!report.regions.length) return;
  reportRegion = (reportRegion + step + report.regions.length) % report.regions.length;
  const region = report.regions[reportRegion];
  reportView.currentRegion = region.number;
  reportPort.fit(regionBox(region, report.grid), reportView.width, reportView.height, 1.5);
  byId("region").textContent =
    `${reportRegion + 1} of ${report.regions.length}: ${formatMm2(region.area_mm2)} mm², mean ${region.mean_probability.toFixed(2)}, highest ${region.max_probability.toFixed(2)}`;
}

function bindSlider(id, name) {
  byId(id).value = reportDisplay[name];
  byId(id).addEventListener("input", () => {
    reportDisplay[name] = byId(id).valueAsNumber;
    showCount();
  });
}

function bindCheck(id, name) {
  byId(id).checked = reportDisplay[name];
  byId(id).addEventListener("change", () => {
    reportDisplay[name] = byId(id).checked;
    reportView.redraw();
  });
}

/** A list of choices; those that have words in the page already keep them. */
function bindChoice(id, name, values) {
  if (!byId(id).options.length) byId(id).replaceChildren(...values.map((value) => new Option(value)));
  byId(id).value = reportDisplay[name];
  byId(id).addEventListener("change", () => {
    reportDisplay[name] = byId(id).value;
    reportView.redraw();
  });
}

document.addEventListener("keydown", (event) => {
  if (event.key !== " " || ["INPUT", "SELECT", "BUTTON"].includes(event.target.tagName)) return;
  event.preventDefault();
  reportDisplay.isBare = !reportDisplay.isBare;
  reportView.redraw();
});

bindSlider("opacity", "opacity");
bindSlider("threshold", "threshold");
bindCheck("show-map", "showMap");
bindCheck("show-regions", "showRegions");
byId("pieces-choice").hidden = !report.pieces.length;
bindCheck("show-pieces", "showPieces");
bindChoice("mode", "mode", MAP_MODES);
bindChoice("colormap", "colormap", reportColours.names);
byId("reset").addEventListener("click", () => {
  reportDisplay.threshold = report.threshold;
  byId("threshold").value = report.threshold;
  showCount();
});
byId("next").addEventListener("click", () => showRegion(1));
byId("previous").addEventListener("click", () => showRegion(-1));
byId("whole").addEventListener("click", () => reportPort.fit(report.overview.box_l0, reportView.width, reportView.height));
reportView.onHover = (x, y) => (byId("place").textContent = describePlace(report.slide, reportMap, x, y));
reportPort.smallest = Math.min(reportView.width / report.overview.box_l0[2], reportView.height / report.overview.box_l0[3]) / 4;
reportPort.fit(report.overview.box_l0, reportView.width, reportView.height);
reportImage.decode().then(() => reportView.redraw());
showCount();
