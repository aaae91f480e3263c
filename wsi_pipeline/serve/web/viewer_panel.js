"use strict";
// The panel beside the slide: sliders, counts, regions, the patch under the pointer, and the keyboard.

const PAN_PX = 120;
const SHOWN_REGIONS = 100;
const HINT = "drag to move · wheel to zoom · click for a patch · ? for keys";

class Panel {
  constructor(viewer) {
    this.viewer = viewer;
    this._bindSlider("threshold", () => viewer.setThreshold(byId("threshold").valueAsNumber));
    this._bindSlider("opacity", () => {
      viewer.display.opacity = byId("opacity").valueAsNumber;
      viewer.changed();
    });
    for (const [id, name] of LAYERS) this._bindCheck(id, name);
    this._bindButtons();
    this._bindRuns();
    for (const view of viewer.views) {
      view.onHover = (x, y) => (byId("place").textContent = describePlace(viewer.body.slide, view.scene?.map, x, y) || HINT);
      view.onPick = (x, y) => {
        const cell = view.scene?.map?.cellAt(x, y);
        if (cell) viewer.select(cell);
      };
    }
    byId("place").textContent = HINT;
    document.addEventListener("keydown", (event) => this._onKey(event));
    this.showAll();
  }

  _bindSlider(id, onInput) {
    byId(id).addEventListener("input", onInput);
  }

  _bindCheck(id, name) {
    byId(id).addEventListener("change", () => {
      this.viewer.display[name] = byId(id).checked;
      this.viewer.changed();
    });
  }

  _bindButtons() {
    for (const [id, action] of Object.entries(BUTTONS)) byId(id).addEventListener("click", () => action(this.viewer, this));
    byId("close-help").addEventListener("click", () => byId("help").close());
  }

  _bindRuns() {
    const { viewer } = this;
    for (const id of ["run", "with"]) {
      byId(id).addEventListener("change", async () => {
        await viewer.showRuns(byId("run").value || null, byId("with").value === byId("run").value ? null : byId("with").value || null);
        this.showAll();
        viewer.keepAddress();
      });
    }
  }

  /** Everything, after a change of runs or results. */
  showAll() {
    const { viewer } = this;
    const { body } = viewer;
    const fill = (id, options, value) => byId(id).replaceChildren(...options.map(([key, text]) => new Option(text, key, false, key === value)));
    const runs = body.results.map((result) => [result.run_id, result.name]);
    fill("run", runs, viewer.runs[0]);
    fill("with", [["", "nothing"], ...runs.filter(([run]) => run !== viewer.runs[0])], viewer.runs[1] || "");
    byId("runs").hidden = runs.length < 2;
    byId("map-controls").hidden = !viewer.map;
    byId("regions-section").hidden = !viewer.map;
    byId("patch-section").hidden = !viewer.map;
    const damaged = body.damaged_runs.map((run) => run.name).join(", ");
    byId("note").textContent = [body.tiles_note && `Only the overview: ${body.tiles_note}.`, damaged && `The results of ${damaged} are damaged: infer the slide again.`, !viewer.map && "No results for this slide yet."].filter(Boolean).join(" ");
    const { slide } = body;
    const [width, height] = slide.size_l0;
    byId("facts").textContent = `${width.toLocaleString()} × ${height.toLocaleString()} px · ${+slide.mpp.toPrecision(4)} µm/px (${slide.mpp_source}) · ${((width * slide.mpp) / 1000).toFixed(2)} × ${((height * slide.mpp) / 1000).toFixed(2)} mm`;
    const result = viewer.resultOf(viewer.runs[0]);
    byId("distance").textContent = result?.distance ?? "";
    byId("distance").classList.toggle("warning", Boolean(result?.summary.unlike_training));
    byId("interval").textContent = result ? `at ${result.threshold.toFixed(3)}: ${result.interval}` : "";
    byId("counting").textContent = result ? result.counting : "";
    byId("class").textContent = result ? `probability of ${result.positive_class}` : "slide";
    const second = viewer.resultOf(viewer.runs[1]);
    byId("reset").textContent = result ? `${second ? `${result.name}'s` : "results'"} threshold ${result.threshold.toFixed(3)}` : "";
    byId("reset-model").hidden = Boolean(second) || !result || result.threshold === result.model_threshold;
    if (result) byId("reset-model").textContent = `model's threshold ${result.model_threshold.toFixed(3)}`;
    byId("reset-second").hidden = !second;
    if (second) byId("reset-second").textContent = `${second.name}'s ${second.threshold.toFixed(3)}`;
    byId("report").href = `${api}/report.html${viewer.runs[0] ? `?run=${encodeURIComponent(viewer.runs[0])}` : ""}`;
    if (byId("review") && viewer.runs[0]) byId("review").href = at(`/review/${encodeURIComponent(viewer.runs[0])}/${encodeURIComponent(slideId)}`);
    this.showCounts();
    this.showRegions();
    this.showPatch();
  }

  showCounts() {
    const { viewer } = this;
    const { display } = viewer;
    byId("threshold").value = display.threshold;
    byId("opacity").value = display.opacity;
    byId("threshold-value").textContent = display.threshold.toFixed(3);
    byId("opacity-value").textContent = `${Math.round(100 * display.opacity)} %`;
    for (const [id, name] of LAYERS) byId(id).checked = display[name];
    const hasMask = viewer.shownViews.some((view) => view.scene?.tissue);
    byId("show-tissue").disabled = !hasMask;
    byId("tissue-note").textContent = hasMask ? "" : "(these results hold none)";
    const lines = viewer.shownViews.filter((view) => view.scene?.map).map((view) => ({ ...describeCount(view.scene.map, display.threshold), title: view.scene.title }));
    byId("count").textContent = lines.map((line) => (line.title ? `${line.title}: ` : "") + line.patches).join("\n");
    byId("area").textContent = lines.map((line) => (line.title ? `${line.title}: ` : "") + line.area + line.leftOut).join("\n");
  }

  showRegions() {
    const { viewer } = this;
    const found = viewer.regionsFound ?? 0;
    byId("region-count").textContent = found ? `${viewer.runs[1] ? `${viewer.resultOf(viewer.runs[0]).name}: ` : ""}${found} ${found === 1 ? "region" : "regions"} at ${viewer.display.threshold.toFixed(3)}, strongest first` : "no region reaches the threshold";
    const items = viewer.regions.slice(0, SHOWN_REGIONS).map((region, index) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.textContent = `${formatMm2(region.area_mm2)} mm² · mean ${region.mean_probability.toFixed(2)} · max ${region.max_probability.toFixed(2)}`;
      button.addEventListener("click", () => viewer.showRegion(index));
      item.className = index === viewer.regionIndex ? "current" : "";
      item.append(button);
      return item;
    });
    byId("regions").replaceChildren(...items);
    byId("regions").querySelector(".current")?.scrollIntoView({ block: "nearest" });
  }

  showPatch() {
    const { viewer } = this;
    const { selected, map } = viewer;
    byId("patch").hidden = !selected || !map || !viewer.tiles;
    if (!selected || !map) {
      byId("patch-text").textContent = "Click on the slide to see a patch as the model saw it.";
      return;
    }
    byId("patch-text").textContent = `row ${selected.row}, column ${selected.col}: ${this._describeSelected()}; ${map.grid.side_px} px at ${+map.grid.mpp.toPrecision(4)} µm/px, ${+(map.grid.side_px * map.grid.mpp).toPrecision(4)} µm wide`;
    if (viewer.tiles) byId("patch").src = `${api}/patches/${selected.row}/${selected.col}.png?run=${encodeURIComponent(viewer.runs[0])}`;
  }

  _describeSelected() {
    const { selected, display } = this.viewer;
    const views = this.viewer.shownViews.filter((view) => view.scene?.map);
    const words = views.map((view) => describePatch(view.scene.map, selected, display.threshold));
    return views.length > 1 ? views.map((view, index) => `\n${view.scene.title}: ${words[index]}`).join("") : words[0];
  }

  say(text) {
    byId("message").textContent = text;
    clearTimeout(this.messageTimer);
    this.messageTimer = setTimeout(() => (byId("message").textContent = ""), 6000);
  }

  _onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    if (["INPUT", "SELECT"].includes(event.target.tagName) && (event.key.startsWith("Arrow") || event.key.length > 1)) return;
    const action = KEYS[event.key];
    if (!action) return;
    event.preventDefault();
    action(this.viewer, this);
  }
}

const LAYERS = [["show-map", "showMap"], ["only-positive", "onlyPositive"], ["show-regions", "showRegions"], ["show-tissue", "showTissue"]];

/** What the model said of a patch and how it counts, in words. */
function describePatch(map, cell, threshold) {
  const [own, value] = [map.ownAt(cell), map.valueAt(cell)];
  if (value === undefined || Number.isNaN(value)) return "not assessed";
  const alone = map.contextUm ? `, alone ${own.toFixed(4)}` : "";
  return `probability ${value.toFixed(4)}${alone}, ${map.judge(cell, threshold)}`;
}

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

function zoom(factor) {
  return (viewer) => viewer.views[0].zoomAt(viewer.views[0].width / 2, viewer.views[0].height / 2, factor);
}

function pan(dx, dy) {
  return (viewer) => viewer.views[0].pan(dx * PAN_PX, dy * PAN_PX);
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

const BUTTONS = {
  reset: (viewer) => viewer.setThreshold(viewer.resultOf(viewer.runs[0])?.threshold ?? 0.5),
  "reset-model": (viewer) => viewer.setThreshold(viewer.resultOf(viewer.runs[0])?.model_threshold ?? 0.5),
  "reset-second": (viewer) => viewer.setThreshold(viewer.resultOf(viewer.runs[1])?.threshold ?? 0.5),
  strongest: (viewer) => viewer.showRegion(0),
  next: (viewer) => viewer.showRegion(viewer.regionIndex + 1),
  previous: (viewer) => viewer.showRegion(viewer.regionIndex <= 0 ? -1 : viewer.regionIndex - 1),
  whole: (viewer) => viewer.showWhole(),
  link: copyLink,
  save: savePicture,
  keys: () => byId("help").showModal(),
};

const KEYS = {
  ArrowLeft: pan(-1, 0),
  ArrowRight: pan(1, 0),
  ArrowUp: pan(0, -1),
  ArrowDown: pan(0, 1),
  "+": zoom(1.5),
  "=": zoom(1.5),
  "-": zoom(1 / 1.5),
  0: BUTTONS.whole,
  1: (viewer) => viewer.viewport.set(viewer.viewport.x, viewer.viewport.y, 1),
  h: toggle("showMap"),
  r: toggle("showRegions"),
  m: toggle("showTissue"),
  o: toggle("onlyPositive"),
  "[": nudge("opacity", -0.05),
  "]": nudge("opacity", 0.05),
  ",": nudge("threshold", -0.01),
  ".": nudge("threshold", 0.01),
  t: BUTTONS.reset,
  g: BUTTONS.strongest,
  n: BUTTONS.next,
  p: BUTTONS.previous,
  s: BUTTONS.save,
  l: BUTTONS.link,
  "?": BUTTONS.keys,
};
