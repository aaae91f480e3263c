"use strict";
// Pieces of tissue on one glass: an outline each, and a number that does not turn with the slide.

const PIECE_COLOUR = "#00626b";
const REST_DASH = [2, 4];
const PIECE_FONT = "600 13px system-ui, sans-serif";
const LABEL_HIGH_PX = 19;
const LABEL_GAP_PX = 4; // between a number and its piece

class PiecesLayer {
  /** pieces: as the server lists them, the rest (number 0) last. */
  constructor(pieces) {
    this.pieces = pieces;
    this.current = null; // number of the piece that was visited last
    this.tops = new Map(); // number → the corner of its outline that is topmost at an angle
  }

  /** Show other pieces, or the same ones counted at another threshold. */
  replace(pieces) {
    this.pieces = pieces;
    this.tops.clear();
  }

  /** The pieces without the rest. */
  get numbered() {
    return this.pieces.filter((piece) => piece.tissue_id);
  }

  /** The piece under a level-0 place, or null. */
  pieceAt(x, y) {
    const isNear = ({ bounds_l0: box }) => box && x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3];
    return this.numbered.find((piece) => isNear(piece) && isInside(piece.outline, x, y)) ?? null;
  }

  draw(context, view) {
    if (!view.display.showPieces) return;
    for (const { tissue_id: number, outline } of this.pieces)
      view.strokePolygons(context, outline, PIECE_COLOUR, view.lineWidth + (number === this.current ? 2 : 0.5), number ? [] : REST_DASH);
  }

  drawOnScreen(context, view) {
    if (!view.display.showPieces) return;
    context.font = PIECE_FONT;
    context.textAlign = "center";
    for (const { number, x, y, wide } of this.placeLabels(context, view)) {
      context.fillStyle = number === this.current ? PIECE_COLOUR : PLATE;
      context.fillRect(x - wide / 2, y, wide, LABEL_HIGH_PX);
      context.fillStyle = number === this.current ? "white" : INK;
      context.fillText(number, x, y + LABEL_HIGH_PX - 5);
    }
    context.textAlign = "start";
  }

  /** Places of the numbers in sight, {number, x, y, wide} in screen pixels: above their pieces, at the top of the view in the piece that fills it, and never one over another. */
  placeLabels(context, view) {
    const placed = [];
    const middle = this.pieceAt(view.viewport.x, view.viewport.y)?.tissue_id;
    const isFirst = ({ tissue_id: number }) => Number(number === this.current || number === middle);
    for (const piece of this.numbered.sort((one, other) => isFirst(other) - isFirst(one))) {
      const number = piece.tissue_id;
      const wide = context.measureText(number).width + 10;
      let [x, y] = view.toScreen(...this._topOf(piece, view.viewport));
      y -= LABEL_HIGH_PX + LABEL_GAP_PX;
      if (number === middle) [x, y] = [Math.min(view.width - wide / 2, Math.max(wide / 2, x)), Math.min(view.height - LABEL_HIGH_PX, Math.max(0, y))];
      const isFree = placed.every((other) => Math.abs(other.x - x) > (other.wide + wide) / 2 || Math.abs(other.y - y) > LABEL_HIGH_PX);
      if (isFree && x > 0 && y > -LABEL_HIGH_PX && x < view.width && y < view.height) placed.push({ number, x, y, wide });
    }
    return placed;
  }

  /** The corner of a piece's outline that is topmost on the screen. */
  _topOf({ tissue_id: number, outline }, { angle, turn }) {
    const known = this.tops.get(number);
    if (known?.angle === angle) return known.place;
    const height = ([x, y]) => x * turn[1] + y * turn[0];
    const place = outline.flat(2).reduce((top, corner) => (height(corner) < height(top) ? corner : top), outline[0][0][0]);
    this.tops.set(number, { angle, place });
    return place;
  }
}

/** True where a level-0 place lies in polygons of rings: an odd number of borders is to its right. */
function isInside(polygons, x, y) {
  let isOdd = false;
  for (const ring of polygons.flat())
    for (let index = 1; index < ring.length; index++) {
      const [[x0, y0], [x1, y1]] = [ring[index - 1], ring[index]];
      if (y0 > y !== y1 > y && x < x0 + ((y - y0) / (y1 - y0)) * (x1 - x0)) isOdd = !isOdd;
    }
  return isOdd;
}
