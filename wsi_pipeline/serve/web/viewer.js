"use strict";
// The viewer of one slide: loads it, draws it once or, for two runs, twice side by side, and keeps the address up to date.

const POLL_MS = 5000;
const REGIONS_WAIT_MS = 150;
const slideId = document.body.dataset.slide;
const api = at(`/api/v1/slides/${encodeURIComponent(slideId)}`);
const byId = (id) => document.getElementById(id);

async function getJson(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer.json();
}

/** Send a request; returns {body, error, status}: error is the reason in words, "" without one. */
async function ask(address, method, content) {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(address, { method, headers, body: content && JSON.stringify(content) }).catch(() => null);
  const body = await answer?.json().catch(() => null);
  const error = answer?.ok ? "" : (body?.error ?? "the server does not answer");
  return { body: error ? null : body, error, status: answer?.status };
}

async function getNpy(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error("the map cannot be loaded");
  return decodeNpy(await answer.arrayBuffer());
}

function loadImage(address) {
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => resolve(null);
    image.src = address;
  });
}

class Viewer {
  constructor() {
    this.viewport = new Viewport();
    this.display = { ...DEFAULT_DISPLAY };
    this.views = [byId("first"), byId("second")].map((canvas) => new SlideView(canvas, this.viewport, this.display, null));
    this.runs = [null, null]; // what stands in each view
    this.selected = null;
    this.regionIndex = -1;
    this.version = null;
    this.maps = new Map();
    this.masks = new Map();
    this.truths = new Map();
    this.visited = null; // polygons of the region or the error that was visited last
    this.regionsAsked = 0;
    this.body = null;
  }

  async start() {
    this.body = await getJson(api);
    this.version = this.body.version;
    await this._loadPictures();
    const state = readAddress(location.hash, this.colours);
    const runs = this.body.results.map((result) => result.run_id);
    const first = runs.includes(state.run) ? state.run : runs[0] || null;
    const second = runs.includes(state.with) && state.with !== first ? state.with : null;
    Object.assign(this.display, { threshold: this.resultOf(first)?.threshold ?? 0.5 }, state.display);
    this.corrections = new Corrections(this);
    this.drawnAreas = new DrawnAreas(this);
    this.truthPanel = new TruthPanel(this);
    this.piecesPanel = new PiecesPanel(this);
    await this.showRuns(first, second);
    await nextFrame();
    this.setSmallest();
    if (state.place) this.viewport.set(...state.place);
    else this.showWhole();
    if (state.cell) this.select(state.cell);
    this.viewport.listeners.push(() => this.keepAddress());
    this.overviewMap = new OverviewMap(byId("overview"), this.views[0]);
    this.panel = new Panel(this);
    this.overviewMap.redraw();
    this.truthPanel.refresh();
    await Promise.all([this.corrections.load(), this.drawnAreas.load()]);
    this.keepAddress();
    setInterval(() => this.poll(), POLL_MS);
    document.body.dataset.ready = "yes";
  }

  async _loadPictures() {
    const { body } = this;
    this.overview = { image: await loadImage(`${api}/thumbnail.jpg?side=4096`), box_l0: body.overview.box_l0 };
    const address = (level, col, row) => `${api}/tiles/${level}/${col}/${row}.jpg`;
    this.tiles = body.tiles && new TileLayer(address, body.tiles, body.slide.size_l0, () => this.redraw());
    this.colours = new Colours(body.colormaps, body.centred);
  }

  resultOf(runId) {
    return this.body.results.find((result) => result.run_id === runId) || null;
  }

  async _mapOf(runId) {
    const result = this.resultOf(runId);
    if (!result) return null;
    if (!this.maps.has(runId)) {
      const address = `${api}/map.npy?run=${encodeURIComponent(runId)}`;
      const hasContext = result.summary.context_um > 0;
      const [values, own] = await Promise.all([getNpy(address), hasContext ? getNpy(`${address}&own=true`) : null]);
      this.maps.set(runId, new MapLayer(values, result.grid, this.colours, result.summary, own));
    }
    return this.maps.get(runId);
  }

  /** The tissue mask by which a run chose its patches; null where its results hold none. */
  async _tissueOf(runId) {
    if (!this.resultOf(runId)?.has_tissue) return null;
    if (!this.masks.has(runId)) {
      const image = await loadImage(`${api}/tissue.png?run=${encodeURIComponent(runId)}`);
      this.masks.set(runId, image && { image, box_l0: this.resultOf(runId).overview.box_l0 });
    }
    return this.masks.get(runId);
  }

  /** What is known of the slide, over a run's map; null where nothing is. */
  async _loadTruth(runId, map) {
    if (!map || this.truths.has(runId)) return;
    const body = await getJson(`${api}/truth?run=${encodeURIComponent(runId)}`).catch((error) => ({ note: error.message }));
    this.truths.set(runId, { note: body.note, layer: body.labels ? new TruthLayer(body, map) : null });
  }

  /** The known labels over the map of the first or the second view, or null. */
  truthOf(index) {
    return this.truths.get(this.runs[index])?.layer ?? null;
  }

  get truthNote() {
    return this.truths.get(this.runs[0])?.note;
  }

  /** Show one run, or two side by side. */
  async showRuns(first, second) {
    this.runs = [first, second];
    const maps = await Promise.all(this.runs.map((run) => this._mapOf(run)));
    const masks = await Promise.all(this.runs.map((run) => this._tissueOf(run)));
    await Promise.all(this.runs.map((run, index) => this._loadTruth(run, maps[index])));
    const before = this.views[0].width;
    this.views.forEach((view, index) => {
      view.canvas.hidden = index === 1 && !second;
      const title = second ? this.resultOf(this.runs[index]).name : null;
      const layers = [this.piecesPanel.layers[index], this.truthOf(index), this.corrections, this.drawnAreas].filter(Boolean);
      view.scene = { slide: this.body.slide, overview: this.overview, tiles: this.tiles, tissue: masks[index], map: maps[index], regions: [], title, layers };
    });
    const { x, y, scale } = this.viewport;
    if (before && this.version) this.viewport.set(x, y, (scale * this.views[0].width) / before); // what was in sight stays in sight
    await this.loadRegions();
    this.setSmallest();
    this.redraw();
  }

  get shownViews() {
    return this.views.filter((view) => !view.canvas.hidden);
  }

  get map() {
    return this.views[0].scene?.map ?? null;
  }

  get regions() {
    return this.views[0].scene?.regions ?? [];
  }

  /** Regions at the present threshold, for every view. */
  async loadRegions() {
    const asked = ++this.regionsAsked;
    const { threshold } = this.display;
    const pieces = this.piecesPanel.load();
    const found = await Promise.all(
      this.runs.map((run) => (run ? getJson(`${api}/regions?run=${encodeURIComponent(run)}&threshold=${threshold}`) : { regions: [], found: 0 })),
    );
    await pieces;
    if (asked !== this.regionsAsked) return; // the slider went on meanwhile
    this.views.forEach((view, index) => view.scene && (view.scene.regions = found[index].regions));
    this.regionsFound = found[0].found;
    this.regionIndex = -1;
    for (const view of this.views) view.currentRegion = null;
    this.panel?.showRegions();
    this.redraw();
  }

  redraw() {
    for (const view of this.shownViews) if (view.scene) view.redraw();
    this.overviewMap?.redraw();
  }

  get tool() {
    return this.views[0].tool;
  }

  /** Take up a tool, or lay it down. */
  useTool(tool) {
    for (const view of this.views) view.tool = tool;
    this.panel.showTool();
    this.redraw();
  }

  setThreshold(value) {
    this.display.threshold = value;
    clearTimeout(this.regionsTimer);
    this.regionsTimer = setTimeout(() => this.loadRegions(), REGIONS_WAIT_MS);
    this.changed();
  }

  /** A setting was changed: draw, count, remember. */
  changed() {
    this.redraw();
    this.panel?.showCounts();
    this.truthPanel.refresh();
    this.piecesPanel.refresh();
    this.keepAddress();
  }

  setSmallest() {
    const [width, height] = this.body.slide.size_l0;
    this.viewport.smallest = Math.min(this.views[0].width / width, this.views[0].height / height) / 4;
  }

  showWhole() {
    this.viewport.fit(this.body.slide.bounds_l0, this.views[0].width, this.views[0].height);
  }

  /** Region number index in order of strength; wraps around. */
  showRegion(index) {
    if (!this.regions.length) return;
    this.regionIndex = (index + this.regions.length) % this.regions.length;
    const region = this.regions[this.regionIndex];
    this.views[0].currentRegion = region.number;
    this.visited = region.outline;
    const [view] = this.views;
    this.viewport.fit(regionBox(region, this.map.grid), view.width, view.height, 1.4);
    const cell = this.map.cellAt(...region.peak_xy_l0);
    if (cell) this.select(cell);
    this.panel.showRegions();
  }

  select(cell) {
    this.selected = cell;
    for (const view of this.views) view.selected = cell;
    this.panel?.showPatch();
    this.redraw();
    this.keepAddress();
  }

  keepAddress() {
    history.replaceState(null, "", writeAddress(this));
  }

  /** Notice that the results on disk were replaced. */
  async poll() {
    const answer = await fetch(api, { headers: { "If-None-Match": `"${this.version}"` } }).catch(() => null);
    if (!answer || answer.status !== 200) return;
    this.body = await answer.json();
    if (this.body.version === this.version) return;
    this.version = this.body.version;
    this.maps.clear();
    this.masks.clear();
    this.truths.clear();
    await this._loadPictures();
    const [first, second] = this.runs;
    const shown = this.resultOf(first) ? first : (this.body.results[0]?.run_id ?? null);
    if (!first && shown) this.display.threshold = this.resultOf(shown).threshold;
    await this.showRuns(shown, this.resultOf(second) ? second : null);
    this.panel.showAll();
    this.truthPanel.refresh();
    if (shown !== first) await this.corrections.load();
    this.panel.say("the results on disk changed and were loaded again");
  }

  /** What is in sight as one picture, with a line that says what it is. */
  picture() {
    const views = this.shownViews;
    const ratio = window.devicePixelRatio || 1;
    const caption = Math.round(30 * ratio);
    const canvas = document.createElement("canvas");
    canvas.width = views.reduce((sum, view) => sum + view.canvas.width, 0);
    canvas.height = views[0].canvas.height + caption;
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    let x = 0;
    for (const view of views) {
      context.drawImage(view.canvas, x, 0);
      x += view.canvas.width;
    }
    context.fillStyle = "black";
    context.font = `${14 * ratio}px system-ui, sans-serif`;
    const count = this.map ? ` · threshold ${this.display.threshold.toFixed(3)}: ${describeCount(this.map, this.display.threshold).patches}` : "";
    context.fillText(`${slideId} · ${this.body.slide.mpp} µm/px${count}`, 10 * ratio, canvas.height - 10 * ratio);
    return canvas;
  }
}

function nextFrame() {
  return new Promise((resolve) => requestAnimationFrame(() => resolve()));
}

const viewer = new Viewer();
window.addEventListener("load", () => viewer.start().catch((error) => (byId("message").textContent = `Cannot be shown: ${error.message}`)));
