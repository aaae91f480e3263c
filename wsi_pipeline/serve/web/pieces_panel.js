"use strict";
// The section of the panel about pieces of tissue: what was found on each at the present threshold; a click goes there.

class PiecesPanel {
  constructor(viewer) {
    this.viewer = viewer;
    this.layers = viewer.views.map(() => new PiecesLayer([]));
    this.asked = 0;
    byId("show-pieces").addEventListener("change", () => {
      viewer.display.showPieces = byId("show-pieces").checked;
      viewer.changed();
    });
    byId("next-piece").addEventListener("click", () => this.step(1));
    byId("previous-piece").addEventListener("click", () => this.step(-1));
  }

  get pieces() {
    return this.layers[0].pieces;
  }

  /** Count the pieces of every view at the present threshold. */
  async load() {
    const asked = ++this.asked;
    const { runs, display } = this.viewer;
    const count = (run) => getJson(`${api}/tissue?run=${encodeURIComponent(run)}&threshold=${display.threshold}`).catch((error) => this._fail(error));
    const found = await Promise.all(runs.map((run) => (run ? count(run) : { pieces: [] })));
    if (asked !== this.asked) return; // the slider went on meanwhile
    found.forEach(({ pieces }, index) => this.layers[index].replace(pieces));
    display.showPieces ??= this.layers[0].numbered.length > 1; // one section needs no outline
    byId("pieces").replaceChildren(...this.pieces.map((piece) => this._drawRow(piece)));
    this.refresh();
  }

  _fail(error) {
    this.viewer.panel?.say(error.message);
    return { pieces: [] };
  }

  refresh() {
    byId("pieces-section").hidden = !this.pieces.length;
    byId("show-pieces").checked = Boolean(this.viewer.display.showPieces);
    const { current } = this.layers[0];
    const index = this.pieces.findIndex((piece) => piece.tissue_id === current);
    byId("piece").textContent = index < 0 ? "" : `${this.pieces[index].name}: ${describePieces(this.pieces[index])}`;
    [...byId("pieces").rows].forEach((row, at) => row.classList.toggle("current", at === index));
  }

  /** The piece under a level-0 place in words, where there are several. */
  describeAt(view, x, y) {
    const layer = this.layers[this.viewer.views.indexOf(view)];
    const piece = layer.numbered.length > 1 ? layer.pieceAt(x, y) : null;
    return piece ? `${piece.name} · ` : "";
  }

  _drawRow(piece) {
    const row = document.createElement("tr");
    const name = document.createElement("th");
    name.scope = "row";
    const text = piece.tissue_id ? String(piece.tissue_id) : "rest";
    const button = Object.assign(document.createElement("button"), { textContent: text, title: "Go there.", ariaLabel: piece.name });
    button.addEventListener("click", () => this.show(piece.tissue_id));
    name.append(piece.bounds_l0 ? button : text);
    const share = piece.positive_fraction === null ? "–" : `${(100 * piece.positive_fraction).toFixed(1)} %`;
    const figures = [formatMm2(piece.area_mm2), piece.assessed.toLocaleString("en"), piece.positives.toLocaleString("en"), share];
    row.append(name, ...figures.map((figure) => Object.assign(document.createElement("td"), { textContent: figure })));
    return row;
  }

  /** The next piece that has a place, or the one before; after the last comes the first. */
  step(by) {
    const placed = this.pieces.filter((piece) => piece.bounds_l0);
    if (!placed.length) return;
    const index = placed.findIndex((piece) => piece.tissue_id === this.layers[0].current);
    const next = index < 0 && by < 0 ? placed.length - 1 : (index + by + placed.length) % placed.length;
    this.show(placed[next].tissue_id);
  }

  show(number) {
    const { viewer } = this;
    const [x0, y0, x1, y1] = this.pieces.find((piece) => piece.tissue_id === number).bounds_l0;
    for (const layer of this.layers) layer.current = number;
    viewer.display.showPieces = true;
    viewer.viewport.fit([x0, y0, x1 - x0, y1 - y0], viewer.views[0].width, viewer.views[0].height, 1.2);
    viewer.changed();
    byId("pieces").querySelector(".current").scrollIntoView({ block: "nearest" });
  }
}

/** What was found on a piece, in words. */
function describePieces({ area_mm2: area, assessed, positives }) {
  return `${formatMm2(area)} mm², ${positives.toLocaleString("en")} of ${assessed.toLocaleString("en")} patches positive`;
}
