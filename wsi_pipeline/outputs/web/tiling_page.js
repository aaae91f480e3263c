"use strict";
// Which patches a slide gives: decided again with every slider, as `wsi tile` decides, in numbers of 32 bits.

const byId = (id) => document.getElementById(id);
const view = JSON.parse(byId("view").textContent);
const decode = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0)).buffer;
const positions = new Int32Array(decode(view.positions));
const sharpness = new Float32Array(decode(view.sharpness));
const count = sharpness.length;
const steps = view.steps.map((step) => ({
  ...step,
  tissue: new Float32Array(decode(step.tissue)),
  faults: Object.fromEntries(Object.entries(step.faults).map(([name, text]) => [name, new Float32Array(decode(text))])),
}));

/** Reasons in the order in which they are asked, with colours that stay apart with every kind of colour blindness. */
const REASONS = [
  { name: "kept", title: "kept", color: "#009e73", opacity: 0.12 },
  { name: "tissue", title: "too little tissue", color: "#555555", opacity: 0.5 },
  { name: "pen", title: "pen ink", color: "#cc79a7", opacity: 0.7 },
  { name: "fold", title: "folded", color: "#d55e00", opacity: 0.7 },
  { name: "bubble", title: "in a bubble", color: "#56b4e9", opacity: 0.7 },
  { name: "blur", title: "blurred", color: "#f0e442", opacity: 0.7 },
];
const FAULTS = ["pen", "fold", "bubble"];
const NUMBERS = ["min_tissue", "max_pen", "max_fold", "max_bubble", "min_sharpness"];
const reasons = new Uint8Array(count); // index into REASONS
const image = new Image();

/** The settings as they are now, by option. */
function readSettings() {
  const step = steps[byId("step").selectedIndex];
  const settings = { ...view.given, ...step.settings };
  for (const name of NUMBERS) settings[name] = Number(byId(name).value);
  settings.drop = ["pen", "fold", "bubble", "blur"].filter((name) => byId(`drop-${name}`).checked && !byId(`drop-${name}`).disabled);
  if (!settings.min_sharpness) {
    settings.min_sharpness = null;
    settings.drop = settings.drop.filter((name) => name !== "blur");
  }
  return { step, settings };
}

/** Decide every patch again; return how many each reason drops. */
function decide({ step, settings }) {
  const least = Math.fround(settings.min_tissue);
  const limits = FAULTS.filter((name) => settings.drop.includes(name)).map((name) => [REASONS.findIndex((one) => one.name === name), step.faults[name], Math.fround(settings[`max_${name}`])]);
  const sharpest = settings.drop.includes("blur") ? Math.fround(settings.min_sharpness) : null;
  const found = new Array(REASONS.length).fill(0);
  for (let patch = 0; patch < count; patch += 1) {
    let reason = 0;
    const tissue = step.tissue[patch];
    if (least > 0 && !(tissue >= least && tissue > 0)) reason = 1;
    for (const [index, share, most] of limits) if (!reason && share[patch] > most) reason = index;
    if (!reason && sharpest !== null && sharpness[patch] < sharpest) reason = REASONS.length - 1;
    reasons[patch] = reason;
    found[reason] += 1;
  }
  return found;
}

function draw() {
  const now = readSettings();
  for (const name of ["fold", "bubble"]) byId(`drop-${name}`).disabled = !(name in now.step.faults);
  const found = decide(now);
  for (const name of NUMBERS) byId(`${name}-value`).textContent = name === "min_sharpness" && !now.settings.min_sharpness ? "off" : byId(name).value;
  byId("kept").textContent = `${found[0].toLocaleString("en")} ${found[0] === 1 ? "patch" : "patches"} kept`;
  byId("area").textContent = `${(found[0] * view.patch_mm2).toFixed(2)} mm² of ${(view.grid_positions * view.patch_mm2).toFixed(2)} mm²${found[0] ? "" : "; wsi tile refuses a slide with tissue and no patch"}`;
  drawFunnel(found, now.settings.drop);
  byId("command").textContent = writeCommand(now.settings);
  drawPicture();
}

/** A row for each reason: how many it drops, and how many are left after it. */
function drawFunnel(found, drop) {
  let left = view.grid_positions;
  const rows = [makeRow("positions on the grid", null, "", left)];
  const outside = view.grid_positions - count; // without any tissue, by whatever step
  REASONS.slice(1).forEach((reason, index) => {
    if (reason.name !== "tissue" && !drop.includes(reason.name)) return;
    const dropped = found[index + 1] + (reason.name === "tissue" && count < view.grid_positions ? outside : 0);
    left -= dropped;
    rows.push(makeRow(reason.title, reason.color, dropped, left));
  });
  rows.push(makeRow("kept", REASONS[0].color, "", left));
  byId("funnel").replaceChildren(...rows);
}

function makeRow(title, color, dropped, left) {
  const row = document.createElement("tr");
  const head = document.createElement("td");
  if (color) {
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = color;
    head.append(swatch);
  }
  head.append(title);
  row.append(head, ...[dropped, left].map((number) => {
    const cell = document.createElement("td");
    cell.textContent = number.toLocaleString("en");
    return cell;
  }));
  return row;
}

/** The command line: options as given and as tuned; those at their default are left out. */
function writeCommand(settings) {
  const words = [...view.words];
  for (const [name, value] of Object.entries(settings)) {
    if (name === "drop") value.forEach((flag) => words.push("--drop", flag));
    else if (value !== null && value !== view.defaults[name]) words.push(`--${name.replaceAll("_", "-")}`, String(value));
  }
  return words.join(" ");
}

function drawPicture() {
  if (!image.complete || !image.naturalWidth) return;
  const canvas = byId("picture");
  const context = canvas.getContext("2d");
  context.globalAlpha = 1;
  context.drawImage(image, 0, 0);
  const isFramed = view.pitch_px > 6.5; // smaller ones are told apart by a stronger tint
  for (let patch = 0; patch < count; patch += 1) {
    const { name, color, opacity } = REASONS[reasons[patch]];
    const place = placeOf(patch);
    const [x, y] = place.map(Math.round); // whole pixels, so that frames are sharp
    const [width, height] = place.map((at, axis) => Math.max(Math.round(at + view.pitch_px) - [x, y][axis], 1));
    context.fillStyle = context.strokeStyle = color;
    context.globalAlpha = name === "kept" && !isFramed ? 0.35 : opacity;
    context.fillRect(x, y, width, height);
    context.globalAlpha = 0.9;
    if (isFramed) context.strokeRect(x + 0.5, y + 0.5, width - 1, height - 1);
  }
}

const placeOf = (patch) => [view.corner_px[0] + positions[2 * patch + 1] * view.pitch_px, view.corner_px[1] + positions[2 * patch] * view.pitch_px];

/** What is measured of the patch under the pointer. */
function describePatch(event) {
  const canvas = byId("picture");
  const scale = canvas.width / canvas.clientWidth;
  const [col, row] = [event.offsetX, event.offsetY].map((at, axis) => Math.floor((at * scale - view.corner_px[axis]) / view.pitch_px));
  const patch = patchAt.get(`${row} ${col}`);
  if (patch === undefined) return "";
  const { step } = readSettings();
  const parts = [`tissue ${step.tissue[patch].toFixed(2)}`, ...Object.entries(step.faults).map(([name, share]) => `${name} ${share[patch].toFixed(2)}`)];
  if (!Number.isNaN(sharpness[patch])) parts.push(`sharpness ${sharpness[patch].toPrecision(3)}`);
  return `row ${row}, column ${col}: ${REASONS[reasons[patch]].title}; ${parts.join(", ")}`;
}

const patchAt = new Map(Array.from({ length: count }, (_, patch) => [`${positions[2 * patch]} ${positions[2 * patch + 1]}`, patch]));

/** Steps of the sharpness slider: round numbers up to what nine of ten patches exceed or not. */
function fitSharpness() {
  const sorted = Array.from(sharpness).filter((one) => !Number.isNaN(one)).sort((one, other) => one - other);
  const most = Math.max(sorted[Math.floor(0.9 * (sorted.length - 1))] ?? 1, view.given.min_sharpness ?? 0, 1e-6);
  const step = 10 ** Math.floor(Math.log10(most / 50));
  const slider = byId("min_sharpness");
  slider.step = step;
  slider.max = Number((Math.ceil(most / step) * step).toPrecision(6));
}

/** Put a slider at a value, with a step that can hold it. */
function setSlider(name, value) {
  const slider = byId(name);
  slider.value = value;
  if (Number(slider.value) !== value) slider.step = "any";
  slider.value = value;
}

function takeGiven() {
  byId("step").selectedIndex = 0;
  if (view.given.min_tissue < 0.01) byId("min_tissue").min = 0;
  for (const name of NUMBERS) setSlider(name, view.given[name] ?? 0);
  for (const name of ["pen", "fold", "bubble", "blur"]) byId(`drop-${name}`).checked = view.given.drop.includes(name);
  draw();
}

byId("step").replaceChildren(...steps.map((step) => new Option(step.name)));
fitSharpness();
for (const id of [...NUMBERS, "step", "drop-pen", "drop-fold", "drop-bubble", "drop-blur"]) byId(id).addEventListener("input", draw);
byId("zoom").addEventListener("input", () => {
  byId("picture").style.width = `${byId("zoom").value}%`;
  byId("zoom-value").textContent = `${byId("zoom").value} %`;
});
byId("zoom-value").textContent = "100 %";
byId("picture").addEventListener("pointermove", (event) => {
  byId("place").textContent = describePatch(event);
});
byId("copy").addEventListener("click", async () => {
  await navigator.clipboard?.writeText(byId("command").textContent).catch(() => getSelection().selectAllChildren(byId("command")));
  byId("copy").textContent = "copied";
  setTimeout(() => { byId("copy").textContent = "copy"; }, 1500);
});
byId("reset").addEventListener("click", takeGiven);
image.addEventListener("load", () => {
  byId("picture").width = image.naturalWidth;
  byId("picture").height = image.naturalHeight;
  drawPicture();
});
image.src = view.image;
takeGiven();
