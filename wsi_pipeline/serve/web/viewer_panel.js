"use strict";
// The panel beside the slide: sliders, counts, regions, the patch under the pointer, and the keyboard.

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
    for (const name of ["mode", "colormap"]) this._bindChoice(name);
    byId("colormap").replaceChildren(...viewer.colours.names.map((name) => new Option(name)));
    this._bindButtons();
    this._bindRuns();
    for (const view of viewer.views) {
      view.onHover = (x, y) => (byId("place").textContent = viewer.tool?.words ?? (viewer.piecesPanel.describeAt(view, x, y) + describePlace(viewer.body.slide, view.scene?.map, x, y) || HINT));
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

  _bindChoice(name) {
    byId(name).addEventListener("change", () => {
      this.viewer.display[name] = byId(name).value;
      this.viewer.changed();
    });
  }

  _bindButtons() {
    for (const [id, action] of Object.entries(BUTTONS)) byId(id).addEventListener("click", () => action(this.viewer, this));
    byId("close-help").addEventListener("click", () => byId("help").close());
    document.addEventListener("click", ({ detail, target }) => {
      const isSwitch = target.matches("button, input[type=checkbox]");
      if (detail && isSwitch && !byId("help").open) byId("first").focus(); // after a click, not after a key: the space bar hides again
    });
  }

  _bindRuns() {
    const { viewer } = this;
    for (const id of ["run", "with"]) {
      byId(id).addEventListener("change", async () => {
        await viewer.showRuns(byId("run").value || null, byId("with").value === byId("run").value ? null : byId("with").value || null);
        this.showAll();
        viewer.truthPanel.refresh();
        await viewer.corrections.load();
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
    byId("note").textContent = [body.tiles_note && `Only the overview: ${body.tiles_note}.`, damaged && `The results of ${damaged} are damaged: infer the slide again.`, !viewer.map && "No results for this slide yet.", body.slide.colour_profile && `Colours are the file's own: its colour profile, ${body.slide.colour_profile}, is not applied here.`, body.slide.reader_note && `Read by ${body.slide.reader_note}.`].filter(Boolean).join(" ");
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
    for (const name of ["mode", "colormap"]) byId(name).value = display[name];
    byId("bare").setAttribute("aria-pressed", String(display.isBare));
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

  /** The tool in use: its button, and what it says. */
  showTool() {
    const { tool } = this.viewer;
    const isDrawing = tool instanceof CorrectionTool;
    const names = this.viewer.corrections.body?.class_names ?? [];
    const inUse = {
      measure: tool instanceof MeasureTool,
      "run-here": tool instanceof AreaTool,
      erase: isDrawing && tool.action === "erase",
      "draw-negative": isDrawing && tool.action === "draw" && tool.className === names[0],
      "draw-positive": isDrawing && tool.action === "draw" && tool.className === names[1],
    };
    for (const [id, isPressed] of Object.entries(inUse)) byId(id).setAttribute("aria-pressed", String(isPressed));
    byId("close-line").hidden = !(tool instanceof DrawTool);
    byId("close-line").disabled = (tool?.corners.length ?? 0) < 3;
    byId("place").textContent = tool?.words ?? HINT;
  }

  say(text) {
    byId("message").textContent = text;
    clearTimeout(this.messageTimer);
    this.messageTimer = setTimeout(() => (byId("message").textContent = ""), 6000);
  }

  _onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open || isTaken(event)) return;
    const action = KEYS[event.key];
    if (!action) return;
    event.preventDefault();
    action(this.viewer, this);
  }
}

const LAYERS = [["show-map", "showMap"], ["show-regions", "showRegions"], ["show-tissue", "showTissue"], ["show-corrections", "showCorrections"], ["show-drawn", "showDrawn"]];

/** What the model said of a patch and how it counts, in words. */
function describePatch(map, cell, threshold) {
  const [own, value] = [map.ownAt(cell), map.valueAt(cell)];
  if (value === undefined || Number.isNaN(value)) return "not assessed";
  const alone = map.contextUm ? `, alone ${own.toFixed(4)}` : "";
  return `probability ${value.toFixed(4)}${alone}, ${map.judge(cell, threshold)}`;
}
