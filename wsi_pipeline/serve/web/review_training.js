"use strict";
// The second queue of a review: patches whose answers train a model and never enter a count.

const QUEUE_WORDS = { top: "one of the most probable patches", unsure: "one of which the model is least sure" };

/** What is shown of the answers for training. */
function drawTraining(body) {
  const [patch] = body.upcoming;
  byId("why").textContent = patch ? `This patch is ${QUEUE_WORDS[patch.queue]}.` : "";
  byId("progress").textContent = `${body.called} called`;
  byId("spent").textContent = `${plural(body.called, "patch", "patches")} in ${(body.seconds / 60).toFixed(1)} min`;
  byId("hard").textContent = `${body.positives} positive, ${body.called - body.positives} negative; ${plural(body.hard_negatives, "hard negative", "hard negatives")}`;
  byId("train-lines-part").hidden = !body.lines.length;
  byId("train-lines").textContent = body.lines.join("\n");
}

/** Seconds since the patch that is shown appeared. */
class Stopwatch {
  constructor() {
    this.patch = "";
    this.started = 0;
  }

  show(patch) {
    const name = patch ? `${patch.row}/${patch.col}` : "";
    if (name === this.patch) return;
    this.patch = name;
    this.started = performance.now();
  }

  get seconds() {
    return Math.min(3600, (performance.now() - this.started) / 1000);
  }
}
